"""Emulated hosts: rates, the least bytes, the gate before the clock, reports from numbers, and a whole small run."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import report
from bench.agreement import Disagreement
from bench.cluster import __main__ as command
from bench.cluster import network, show
from bench.cluster.__main__ import main
from bench.cluster.check import agree_within, complaint, output_bound, same_bits, trained_bound
from bench.cluster.floor import least_bytes, payload_seconds, wire_seconds
from bench.cluster.network import PACKET_BYTES, PACKET_PAYLOAD, parse_rate, show_rate
from bench.cluster.problem import Problem
from bench.cluster.steps import Ours
from bench.cluster.variants import RATIOS, VARIANTS, Variant, parse_names, twin_of
from dmt_kernels.comm import build_mesh, traffic
from dmt_kernels.ops.id_codec import HEADER_BYTES
from dmt_kernels.spec import InputError, WireFormat
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[2]
TINY = Problem(tables=8, rows=50, dim=8, samples=16, batches=2)
HEADERS = PACKET_BYTES / PACKET_PAYLOAD


def test_rates_are_read_with_their_units():
    assert [parse_rate(text) for text in ("200mbit", "1gbit", "2.5gbit")] == [2e8, 1e9, 2.5e9]
    assert parse_rate("9x", 2e8) == 1.8e9
    assert [show_rate(rate) for rate in (2e8, 1.8e9, None)] == ["200 Mbit/s", "1.8 Gbit/s", "unshaped"]


@pytest.mark.parametrize("text", ["", "200", "fast", "9x", "-1gbit", "nangbit", "1kbit", "1tbit"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(InputError, match="is no rate"):
        parse_rate(text)


def test_the_least_bytes_of_the_flat_road_by_hand():
    # 4 ranks, 1024 samples, 8 of 16 features on the other host, bags of 4 ids; 256 columns on every rank.
    ids = 2 * (1024 * 8 * (4 * 2 + 1) + 2 * HEADER_BYTES)
    rows = 2 * 2 * (2 * 1024 * 256 * 4)  # both members, forward and backward, two ranks there
    ring = 2 * 3 / 4 * 1000 * 4
    wire = least_bytes(Problem(), "flat", over_arch=1000)
    assert wire.peer == pytest.approx(HEADERS * (ids + rows + ring))
    assert wire.payload == pytest.approx(HEADERS * rows)


def test_the_least_bytes_of_compressed_rows_hold_their_scales():
    wire = least_bytes(Problem(), "sptt", compression=4, payload=WireFormat.FP8)
    assert wire.payload == pytest.approx(HEADERS * 2 * 2 * 1024 * (128 + 4))
    slices = least_bytes(Problem(), "sptt", compression=4, slices=True)
    # Of 512 columns a member holds 256, and the module makes 128 of them all; T * B rows there and back on each of 2.
    saved = least_bytes(Problem(), "sptt", compression=4).tower - slices.tower
    assert saved == pytest.approx(2 * 2 * 2 * 1024 * (256 - 128) * 4 * HEADERS)
    uncompressed = least_bytes(Problem(), "sptt")
    assert uncompressed.payload == least_bytes(Problem(), "flat").payload


def _traffic_of_a_step(rank, problem):
    mesh, sent = build_mesh(problem.hosts, problem.members), {}
    for variant in VARIANTS:
        if variant.peer is None and variant.exact:
            step = Ours(variant, problem, mesh)
            step()
            traffic.reset()
            step()  # and the ids of the next
            counted = traffic.sent_bytes()
            sent[variant.name] = [
                sum(size for (stage, over), size in counted.items() if over == link and not stage.endswith("dense"))
                for link in ("peer", "tower")
            ]
    return sent


@pytest.mark.distributed
@pytest.mark.parametrize("hosts, members", [(2, 2), (4, 1)])
def test_the_least_bytes_are_what_our_exchanges_send(hosts, members):
    problem = dataclasses.replace(TINY, hosts=hosts, members=members)
    by_rank = run_ranks(_traffic_of_a_step, 4, problem)
    for variant in VARIANTS:
        if variant.name in by_rank[0]:
            compression = 4 if variant.tower_module else 1
            wire = least_bytes(problem, variant.road, compression=compression, slices=variant.slices)
            for host in range(hosts):
                ranks = by_rank[host * members : (host + 1) * members]
                peer, tower = (sum(sent[variant.name][link] for sent in ranks) for link in (0, 1))
                assert (peer, tower) == pytest.approx((wire.peer / HEADERS, wire.tower / HEADERS)), variant.name


def test_the_slower_link_is_the_floor():
    wire = least_bytes(Problem(), "sptt", compression=4)
    assert wire_seconds(wire, None, None) == 0
    assert wire_seconds(wire, 1e9, None) == 8 * wire.peer / 1e9
    assert wire_seconds(wire, 1e9, 1e9) == 8 * wire.tower / 1e9 > 8 * wire.peer / 1e9
    assert payload_seconds(wire, 1e9) < wire_seconds(wire, 1e9, None)


@pytest.mark.parametrize("sizes", [{"hosts": 1}, {"members": 0}, {"members": 3}, {"dim": 6}])
def test_sizes_that_do_not_go_round_are_refused(sizes):
    with pytest.raises(InputError):
        Problem(**sizes)


@pytest.mark.parametrize("name", ["tables", "rows", "dim", "samples", "bag", "compression", "dense_width", "batches"])
@pytest.mark.parametrize("size", [0, -4])
def test_a_size_below_one_is_named_and_refused(name, size):
    with pytest.raises(InputError, match=f"^{name} is {size}: "):
        Problem(**{name: size})


def test_no_samples_are_one_sentence_and_code_2(capsys):
    assert main(["--samples", "0"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == "bench-cluster: samples is 0: there is nothing to train with less than 1"


def test_every_contender_has_a_twin_of_ours_and_ratios_name_contenders():
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(names)
    for variant in VARIANTS:
        assert twin_of(variant, VARIANTS).exact
    assert [v.name for v in parse_names("dmt, fp8; TorchRec flat")] == ["flat", "dmt", "dmt, fp8", "TorchRec flat"]
    assert [v.name for v in parse_names("dmt, expanded")] == ["dmt, expanded"]  # nobody else trains to its losses
    assert parse_names("") == [variant for variant in VARIANTS if variant.headline]
    with pytest.raises(InputError, match="no contender 'nobody'"):
        parse_names("flat;nobody")
    assert {"TorchRec flat", "TorchRec towers, bare"} <= {second for _, second in RATIOS} & set(names)


def test_only_what_sums_in_one_order_is_held_to_the_bit():
    named = {variant.name: variant for variant in VARIANTS}
    for name in ("sptt", "flat, loopback", "dmt, loopback"):
        assert same_bits(named[name], twin_of(named[name], VARIANTS)), name
    for name in ("flat, 2 chunks", "flat, auto chunks", "dmt, 4 chunks", "dmt, bare, auto chunks", "dmt, owner"):
        assert not same_bits(named[name], twin_of(named[name], VARIANTS)), name


@pytest.mark.parametrize("dim, mapped", [(64, 16), (8, 8)])
def test_an_expanded_model_is_what_train_builds_by_default(dim, mapped):
    problem = dataclasses.replace(TINY, dim=dim)
    model = Ours(next(v for v in VARIANTS if v.name == "dmt, expanded"), problem, None).model
    assert model.out_dim == mapped
    assert model.expand.weight.shape == (problem.tables * mapped, problem.tables * dim // 4)


def test_formats_have_the_room_that_their_errors_need():
    fp8 = Variant("x", "sptt", payload=WireFormat.FP8, tower_payload=WireFormat.FP8)
    assert 2 / 16 < output_bound(fp8, TINY) < 1 / 4
    assert output_bound(dataclasses.replace(fp8, road="flat"), TINY) == output_bound(fp8, TINY) / 2
    agree_within("x", torch.tensor([1.01]), torch.tensor([1.0]), 0.02)
    for wrong in (1.03, float("nan")):
        with pytest.raises(Disagreement, match="x: .* 0.02 allowed"):
            agree_within("x", torch.tensor([wrong]), torch.tensor([1.0]), 0.02)


# How far outputs after training were from the twin's, by the norm: as they should be, and with gradients between hosts
# halved, or lost.
OFF = {
    "dmt, fp16": (Problem(), 0.027, (0.18, 0.74)),
    "dmt, fp8": (Problem(), 0.086, (0.185, 0.74)),
    "dmt, fp16, amp": (Problem(), 0.13, (0.2, 0.74)),
    "dmt, fp8, amp": (Problem(), 0.133, (0.202, 0.74)),
    "dmt, bare, fp16": (Problem(), 0.0002, (0.0455, 0.32)),
    "dmt, bare, fp16, amp": (TINY, 0.0029, (0.0186, 0.16)),
}


@pytest.mark.parametrize("name", OFF)
def test_gradients_that_come_back_wrong_are_told(name, monkeypatch):
    variant = next(variant for variant in VARIANTS if variant.name == name)
    twin = twin_of(variant, VARIANTS).name
    problem, right, wrong = OFF[name]
    monkeypatch.setattr("bench.cluster.check._losses_of_one_process", lambda *_: torch.ones(3))
    ones = np.ones((4, 4), np.float32)
    its = {"losses": ones[0, :3], "before": ones, "after": ones}

    def told(share):
        return complaint({twin: [its], name: [its | {"after": ones * np.float32(1 + share)}]}, problem)

    assert told(right) is None
    for share in (*wrong, -2.0, float("nan")):
        assert f"outputs, {twin} and {name} after training: " in told(share)


def test_lost_gradients_are_told_at_other_sizes_too():
    fp8 = next(variant for variant in VARIANTS if variant.name == "dmt, fp8")
    assert 0.3 < trained_bound(fp8, TINY) < 0.59
    for problem in (Problem(rows=200), Problem(hosts=8, members=1, rows=40_000)):
        assert trained_bound(fp8, problem) == trained_bound(fp8, TINY) > trained_bound(fp8, Problem())


def record():
    names = [variant.name for variant in VARIANTS]
    unshaped = {"rate": None, "tower_rate": None, "rounds": 5, "ms": {name: [9, 10, 11] for name in names}}
    shaped = {"rate": 2e8, "tower_rate": 1.8e9, "verified_rate": 199.96e6, "verified_tower_rate": 1.8e9, "rounds": 5}
    shaped["ms"] = {name: [399, 400 if name == "flat" else 800, 900] for name in names}
    shaped["sent_bytes"] = {name: [9.4e6, 9.3e6] for name in names}
    ours = [variant.name for variant in VARIANTS if variant.peer is None]
    unshaped["over_arch_ms"] = dict.fromkeys(ours, 1.0)
    unshaped["chunks"], shaped["chunks"] = {}, {"dmt, auto chunks": 4}
    parameters = dict.fromkeys(ours, (1000, 0))
    return {"problem": dataclasses.asdict(Problem()), "parameters": parameters, "phases": [unshaped, shaped]}


def test_tables_show_floor_exposed_share_and_ratios(capsys, tmp_path):
    report.show(*show.tables(record()))
    out = capsys.readouterr().out
    assert "dmt, auto chunks: 4 chosen" in out
    assert "200 Mbit/s, a timed transfer ran at 200 Mbit/s, inner links 1.8 Gbit/s" in out
    wire = least_bytes(Problem(), "flat", over_arch=1000)
    [row] = [line for line in out.splitlines() if line.startswith("| flat ") and "9.40" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == ["399.0 400.0 900.0", "9.40", f"{9.4e6 / wire.peer:.3f}"]
    floor = 1e3 * payload_seconds(wire, 2e8) + 1
    peer, tower = 8e3 * wire.peer / 2e8, 8e3 * wire.tower / 1.8e9
    assert peer > floor > tower
    assert cells[4:] == [f"{peer:.1f}", f"{peer:.1f}", f"{400 / peer:.2f}", "98 %"]
    [ratio] = [line for line in out.splitlines() if line.startswith("| flat over TorchRec flat ")]
    assert [cell.strip() for cell in ratio.split("|")[2:4]] == ["1.00", "2.00"]
    show.plot(record(), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.parametrize("reclaimed", [0, 2_000_000])
def test_short_memory_is_told(reclaimed, monkeypatch, capsys):
    told = record() | {"reclaimed_bytes": reclaimed, "complaint": None, "obstacles": {}}
    monkeypatch.setenv(command.INSIDE, "1")
    monkeypatch.setattr(network, "obstacle", lambda: None)
    monkeypatch.setattr(command, "measure", lambda *_: told)
    assert main([]) == 0
    assert ("memory was short (2 MB of pages" in capsys.readouterr().err) == bool(reclaimed)


def test_without_the_tools_one_sentence_and_code_2(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main([]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == "bench-cluster: unshare is not on the PATH; emulated hosts need iproute2 and util-linux"


def test_who_fails_is_named_with_its_last_words_and_nothing_goes_on():
    if obstacle := network.obstacle():
        pytest.skip(obstacle)
    program = """
from bench.cluster.contender import Failure, started
from bench.cluster.problem import Problem
from bench.cluster.variants import VARIANTS
try:
    with started(Problem(members=1, tables=2, rows=8, dim=4, samples=2), shapes_inner=False) as hosts:
        hosts.contender(VARIANTS[0]).ask("transfer_seconds", 1, -1)
except Failure as failure:
    print(failure)
"""
    command = ["unshare", "-n", "-m", sys.executable, "-c", program]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100).stdout
    assert out.startswith("flat: rank ") and "could not transfer_seconds" in out and "Traceback" in out


def test_a_bad_rate_is_one_sentence_and_code_2(capsys):
    assert main(["--rate", "fast"]) == 2
    assert "'fast' is no rate" in capsys.readouterr().err


@pytest.mark.distributed
@pytest.mark.slow
def test_a_small_cluster_measures_and_leaves_nothing(tmp_path):
    if obstacle := network.obstacle():
        pytest.skip(obstacle)
    sizes = "--members 1 --tables 4 --rows 200 --dim 16 --samples 64 --rate 500mbit --seconds 0.1"
    contenders = "sptt;dmt, loopback;dmt, fp8"  # and their twins; all contenders take twice as long
    options = ["--contenders", contenders, "--json", str(tmp_path / "x.json"), "--plot", str(tmp_path / "x.png")]
    before = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    run = subprocess.run(
        [sys.executable, "-m", "bench.cluster", *sizes.split(), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr + run.stdout
    assert subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout == before
    result = json.loads((tmp_path / "x.json").read_text())
    assert result["complaint"] is None and (tmp_path / "x.png").exists()
    for phase in result["phases"]:
        assert set(phase["ms"]) == {variant.name for variant in parse_names(contenders)}
    [flat] = [variant for variant in VARIANTS if variant.name == "flat"]
    sent = result["phases"][1]["sent_bytes"]["flat"]
    assert sent == pytest.approx([show.least(result, flat).peer] * 2, rel=0.1)
    assert "timed transfer" in run.stdout and "over flat" in run.stdout


def test_only_root_can(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(network.shutil, "which", lambda tool: tool)
    assert network.obstacle() == "bench-cluster: emulated hosts need root, for network namespaces"
