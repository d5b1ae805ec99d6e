#!/usr/bin/env bash
# bash bench/gpu.sh OUT_DIR [--cpu]: all that a machine with one GPU can tell, the most valuable first, into OUT_DIR: builds the CUDA
# library, checks the kernels against the CPU's, measures (gpu.json, gpu.md, and in ceilings.log what plain kernels reach), trains the
# demo there and on the CPU, runs the tests, NCCL's among them, tries compute-sanitizer. Under nine minutes; report.md has what was
# found so far at any time, also when it is cut off. Needs no network: the python on the PATH has torch, cmake, ninja, pybind11, pytest
# and hypothesis. --cpu: the same road on a machine without a GPU, tiny.
set -uo pipefail
[ $# -ge 1 ] || { sed -n '2,6s/^# //p' "$0"; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cpu=${2:-}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(command -v python || command -v python3)
export PYTHONPATH=$PWD:$PWD/build/peers DMT_CUDA=on DMT_TESTS=$PWD/build/tests PYTHONUNBUFFERED=1
device=cuda marked=cuda
if [ "$cpu" = --cpu ]; then DMT_CUDA=off device=cpu marked='not cuda'; fi
# One architecture compiles in a third of the time.
if [ $device = cuda ] && nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | grep -qx 9.0; then
  export CUDAARCHS=90a-real
fi
failed=() unfinished=() running=

report() {
  {
    echo "# $(date -u +%FT%TZ), at ${SECONDS}s: ${1}"
    echo
    sed 's/^/- /' "$out/steps.txt"
    echo "- failed: ${failed[*]:-nothing}"
    [ ${#unfinished[@]} -eq 0 ] || echo "- not finished: ${unfinished[*]}"
    echo
    cat "$out/auc.txt" "$out/gpu.md" 2> /dev/null
  } > "$out/report.md.part"
  mv "$out/report.md.part" "$out/report.md"
}

cut_off() {
  [ -z "$running" ] || kill -TERM "$running" 2> /dev/null
  failed+=('the rest')
  report 'cut off'
  echo "== cut off (${SECONDS}s): $out/report.md"
  exit 143
}
trap cut_off TERM INT HUP

# What was out of time has failed, since it may have hung; but not the whole suite, which few machines have time for,
# unless a test of it did.
out_of_time() {
  if [ "$1" != suite ] || grep -qsE '(^|[] ])(FAILED|ERROR)( |$)' "$out/$1.log"; then failed+=("$1"); else unfinished+=("$1"); fi
}

# step SECONDS NAME COMMAND...: its output goes to NAME.log; the last line of it is shown.
step() {
  local limit=$1 name=$2 began=$SECONDS
  shift 2
  printf '== %s (%ss)\n' "$name" "$SECONDS"
  if [ -n "$cpu" ]; then
    limit=$((4 * limit))
  elif [ $((SECONDS + limit)) -gt 530 ]; then
    limit=$((530 - SECONDS))
    if [ "$limit" -lt 10 ]; then
      rm -f "$out/$name.log"  # of a run before
      out_of_time "$name"
      echo "$name: no time left" | tee -a "$out/steps.txt"
      return
    fi
  fi
  timeout -k 5 "$limit" "$@" > "$out/$name.log" 2>&1 &  # not in front: a signal is to be heard at once
  running=$!
  wait "$running"
  local code=$?
  running=
  tail -n 1 "$out/$name.log"
  if [[ $code =~ ^(124|137)$ && $((SECONDS - began)) -ge $limit ]]; then  # timeout's
    out_of_time "$name"
    echo "   out of time, see $out/$name.log"
  elif [ $code -ne 0 ]; then
    failed+=("$name")
    echo "   failed ($code), see $out/$name.log"
  fi
  printf '%s: exit %s, %s s, %s\n' "$name" "$code" "$((SECONDS - began))" "$(tail -n 1 "$out/$name.log" | cut -c 1-160)" >> "$out/steps.txt"
  report 'under way'
}

side_by_side=() in_pairs=()  # the latter of tests that are four processes each
if "$python" -c 'import xdist' 2> /dev/null; then side_by_side=(-n 5) in_pairs=(-n 2); fi
tests() { step "$1" "$2" "$python" -m pytest -q -p no:cacheprovider "${@:3}"; }

rm -rf "$out"/run_{cpu,cuda}
rm -f "$out"/{steps.txt,auc.txt,report.md,gpu.md,gpu.json}
: > "$out/steps.txt"
report 'under way'
step 10 machine bash -c 'nvidia-smi; nvcc --version; "$0" --version; true' "$python"
step 200 build "$python" setup.py -q build_ext --inplace
step 20 info "$python" -m dmt_kernels info
tests 60 kernels tests/cuda -m "$marked" -k 'not triton and not by_ring' "${side_by_side[@]}"
step 150 bench "$python" -m bench.gpu --out "$out" $cpu
[ $device = cpu ] || step 40 ceilings \
  bash -c 'nvcc -O3 -std=c++20 -arch=native bench/gpu/ceilings.cu -o build/ceilings && build/ceilings'
# The same model, data and seeds: both AUCs belong to within some thousandths.
train() {
  step 60 "train_$1" "$python" -m dmt_kernels train --data synthetic:40000 --local --towers 2 --members 2 --exchange sptt \
    --tower-module dlrm --batch-size 512 --epochs 1 --device "$1" --out "$out/run_$1" --overwrite
}
[ $device = cpu ] || train cuda
train cpu
"$python" - "$out" << 'AUC' | tee "$out/auc.txt" || failed+=(auc)
import json, pathlib, sys

paths = {name: pathlib.Path(sys.argv[1], f"run_{name}", "summary.json") for name in ("cpu", "cuda")}
auc = {name: json.loads(path.read_text())["auc"] for name, path in paths.items() if path.is_file()}
for name, value in auc.items():
    print(f"- AUC of the demo on {name}: {value:.5f}")
if len(auc) == 2:
    gap = abs(auc["cuda"] - auc["cpu"])
    is_near = gap <= 0.005  # not so of NaN
    print(f"- apart by {gap:.5f}{'' if is_near else ', more than 0.005'}")
    sys.exit(not is_near)
AUC
report 'under way'
if [ $device = cuda ]; then
  tests 60 nccl tests/ops/test_stage_devices.py tests/comm tests/ops/test_id_exchange.py tests/ops/test_all_to_all.py -m cuda -vv "${in_pairs[@]}"
  tests 90 exchange tests/embedding -m cuda -vv "${in_pairs[@]}"
  tests 80 ops tests/ops -m cuda --deselect tests/ops/test_stage_devices.py "${side_by_side[@]}"
  tests 60 resume tests/train -m cuda
  tests 40 ring tests/cuda/test_tower_pool.py -m cuda -k by_ring  # no GPU has run these yet: they cost nobody's results
  tests 60 triton tests/cuda -m cuda -k triton "${side_by_side[@]}"
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
  for tool in memcheck racecheck; do
    if [ -n "$sanitizer" ]; then
      step 45 "sanitize_$tool" "$sanitizer" --tool $tool --error-exitcode 1 \
        "$python" -m pytest -q tests/cuda -m cuda -p no:cacheprovider \
        -k 'not triton and not by_ring and (wide_rows or slices or strides or one_behind)'
    else
      step 5 "sanitize_$tool" echo 'no compute-sanitizer on this machine'
    fi
  done
  tests 200 suite tests -m 'not cuda' -vv "${side_by_side[@]}" ${side_by_side:+--dist loadfile}  # as `make test`
else
  tests 60 triton tests/cuda/test_triton.py
  tests 100 tests tests/cuda/test_wire_codec.py tests/ops/test_check_ids.py
fi
report 'done'
echo "== done (${SECONDS}s): $out/report.md; failed: ${failed[*]:-nothing}; not finished: ${unfinished[*]:-nothing}"
[ ${#failed[@]} -eq 0 ]
