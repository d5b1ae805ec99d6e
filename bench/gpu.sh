#!/usr/bin/env bash
# bash bench/gpu.sh OUT_DIR [--cpu]: all that a machine with one GPU can tell, the most valuable first, into OUT_DIR: builds the CUDA
# library, checks the kernels against the CPU's, measures, trains the demo there and on the CPU, runs the tests, tries
# compute-sanitizer. Under nine minutes; what it has found so far is in OUT_DIR at any time. Needs no network: the python on
# the PATH has torch, cmake, ninja, pybind11, pytest and hypothesis. --cpu: the same road on a machine without a GPU, tiny.
set -uo pipefail
[ $# -ge 1 ] || { sed -n '2,5s/^# //p' "$0"; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cpu=${2:-}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=$PWD DMT_CUDA=on DMT_TESTS=$PWD/build/tests
device=cuda marked=cuda
if [ "$cpu" = --cpu ]; then DMT_CUDA=off device=cpu marked='not cuda'; fi
failed=()

# step SECONDS NAME COMMAND...: its output goes to NAME.log; the last line of it is shown.
step() {
  local limit=$1 name=$2
  shift 2
  printf '== %s (%ss)\n' "$name" "$SECONDS"
  if [ -n "$cpu" ]; then
    limit=$((4 * limit))
  elif [ $((SECONDS + limit)) -gt 530 ]; then
    limit=$((530 - SECONDS))
    if [ "$limit" -lt 10 ]; then
      failed+=("$name")
      echo '   no time left'
      return
    fi
  fi
  timeout -k 5 "$limit" "$@" > "$out/$name.log" 2>&1
  local code=$?
  tail -n 1 "$out/$name.log"
  if [ $code -ne 0 ]; then
    failed+=("$name")
    echo "   failed ($code), see $out/$name.log"
  fi
  printf '%s: exit %s, at %ss\n' "$name" "$code" "$SECONDS" >> "$out/steps.txt"
}

rm -f "$out/steps.txt"
step 10 machine bash -c 'nvidia-smi; nvcc --version; python --version; true'
step 200 build python setup.py -q build_ext --inplace
step 20 info python -m dmt_kernels info
step 60 kernels python -m pytest -q tests/cuda -m "$marked" -p no:cacheprovider
step 120 bench python -m bench.gpu --out "$out" $cpu
# The same model, data and seeds: both AUCs belong to within some thousandths.
train() {
  step 60 "train_$1" python -m dmt_kernels train --data synthetic:40000 --local --towers 2 --members 2 --exchange sptt \
    --tower-module dlrm --batch-size 512 --epochs 1 --device "$1" --out "$out/run_$1" --overwrite
}
train cpu
[ $device = cpu ] || train cuda
python - "$out" << 'AUC' | tee "$out/auc.txt"
import json, pathlib, sys

for path in sorted(pathlib.Path(sys.argv[1]).glob("run_*/summary.json")):
    print(f"{path.parent.name}: AUC {json.loads(path.read_text())['auc']:.5f}")
AUC
if [ $device = cuda ]; then
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
  for tool in memcheck racecheck; do
    if [ -n "$sanitizer" ]; then
      step 60 "sanitize_$tool" "$sanitizer" --tool $tool --error-exitcode 1 \
        python -m pytest -q tests/cuda -m cuda -k "wide_rows or slices or strides or one_behind" -p no:cacheprovider
    else
      echo 'no compute-sanitizer on this machine' | tee "$out/sanitize_$tool.log"
    fi
  done
  step 150 tests_cuda python -m pytest -q -m cuda -p no:cacheprovider
  step 200 tests python -m pytest -q -x -m 'not cuda' -p no:cacheprovider
else
  step 100 tests python -m pytest -q tests/cuda/test_wire_codec.py tests/ops/test_embedding_bag.py -p no:cacheprovider
fi
echo "== done (${SECONDS}s): $out; failed: ${failed[*]:-nothing}"
[ ${#failed[@]} -eq 0 ]
