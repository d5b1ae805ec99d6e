"""What every rank of the emulated hosts runs: ``python -m bench.cluster.rank JOB``."""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench import baselines
from bench.cluster.check import check
from bench.cluster.network import PACKET_BYTES, PACKET_PAYLOAD, Network
from bench.cluster.problem import Problem
from bench.cluster.steps import Ours, build, over_arch_alone
from bench.cluster.variants import VARIANTS
from bench.registry import Run
from bench.timing import Clock, interleave, percentiles
from dmt_kernels.comm import Mesh, build_mesh

COUNTED_STEPS = 3
PROBE_S = 0.3  # a timed transfer's length
MOST_TOLD = 1.25  # times the rate


def main(path: Path) -> None:
    threading.Thread(target=_follow, daemon=True).start()
    job = json.loads(path.read_text())
    problem, network = Problem(**job["problem"]), Network(job["problem"]["hosts"])
    dist.init_process_group("gloo")
    mesh = build_mesh(problem.hosts, problem.members)
    obstacles = {} if (text := baselines.obstacle("torchrec")) is None else {"torchrec": text}
    variants = [v for v in VARIANTS if v.peer not in obstacles and v.name not in job["leave_out"]]
    steps = build(variants, problem, mesh)
    record: dict[str, Any] = {
        **job,
        "obstacles": obstacles,
        "complaint": check(steps, variants, problem, mesh),
        "parameters": {name: step.parameters for name, step in steps.items() if isinstance(step, Ours)},
        "phases": [],
    }
    gc.freeze()  # or the collector walks through torch's and TorchRec's modules now and then, in somebody's step
    if record["complaint"] is None:
        rates = [(None, None), *zip(job["rates"], job["tower_rates"], strict=True)]
        for rate, tower_rate in rates:
            record["phases"].append(_phase(steps, problem, mesh, network, rate, tower_rate, job["seconds"]))
    if mesh.rank == 0:
        path.with_suffix(".result").write_text(json.dumps(record))
    dist.barrier(group=mesh.dense)
    dist.destroy_process_group()


def _phase(
    steps: dict[str, Run],
    problem: Problem,
    mesh: Mesh,
    network: Network,
    rate: float | None,
    tower_rate: float | None,
    seconds: float,
) -> dict[str, Any]:
    """Everything at one rate: the links' own, bytes of every contender, and times."""
    if mesh.rank == 0:
        network.shape(rate, tower_rate)
    dist.barrier(group=mesh.dense)
    phase: dict[str, Any] = {"rate": rate, "tower_rate": tower_rate}
    if rate is None:
        ours = {name: step for name, step in steps.items() if isinstance(step, Ours)}
        alone = {name: over_arch_alone(step, problem) for name, step in ours.items()}
        samples = interleave(alone, 2.0, Clock(mesh))
        # A part of a floor: of what disturbs it, as little as possible.
        phase["over_arch_ms"] = {name: 1e3 * percentiles(times)[0] for name, times in samples.items()}
    else:
        phase |= _calibrate(mesh, problem, network, rate, tower_rate)
        phase["sent_bytes"] = {name: _sent_bytes(step, mesh, network) for name, step in steps.items()}
    samples = interleave(steps, seconds, Clock(mesh))
    phase["ms"] = {name: [1e3 * t for t in percentiles(times)] for name, times in samples.items()}
    phase["rounds"] = len(next(iter(samples.values())))
    return phase


def _calibrate(
    mesh: Mesh, problem: Problem, network: Network, rate: float, tower_rate: float | None
) -> dict[str, float]:
    """Shape the links so that timed transfers run at the rates that were asked for, and return what those ran at.

    Shapers that wake up late let less through than they are told to, the more so the higher the rate.
    """
    inner = tower_rate is not None and problem.members > 1
    asked = {"verified_rate": rate, "verified_tower_rate": tower_rate or 0.0}
    told = dict(asked)
    for last in (False, True):
        found = {"verified_rate": _transfer_rate(mesh, problem.members, rate)}
        if inner:
            found["verified_tower_rate"] = _transfer_rate(mesh, 1, tower_rate or 0.0)
        if not last and mesh.rank == 0:
            told |= {name: asked[name] * min(asked[name] / ran_at, MOST_TOLD) for name, ran_at in found.items()}
            network.shape(told["verified_rate"], told["verified_tower_rate"] if inner else tower_rate)
        dist.barrier(group=mesh.dense)
    return found


def _transfer_rate(mesh: Mesh, to: int, rate: float) -> float:
    """Bits per second of a timed transfer from rank 0 to rank `to`, headers included."""
    message = torch.zeros(int(rate * PROBE_S / 8), dtype=torch.uint8)
    best = 0.0
    for _ in range(2):  # the first one opens TCP's window
        dist.barrier(group=mesh.dense)
        start = time.perf_counter()
        if mesh.rank == 0:
            dist.send(message, to)
            dist.recv(message[:1], to)
        elif mesh.rank == to:
            dist.recv(message, 0)
            dist.send(message[:1], 0)
        best = max(best, 8 * len(message) * PACKET_BYTES / PACKET_PAYLOAD / (time.perf_counter() - start))
    return _from_first(best, mesh)


def _sent_bytes(step: Run, mesh: Mesh, network: Network) -> list[float]:
    """What a step puts on the link of every host, by the counters of the links."""
    readings: list[list[int]] = []
    for count in (0, COUNTED_STEPS):
        for _ in range(count):
            step()
        dist.barrier(group=mesh.dense)
        time.sleep(0.02)  # for the last acknowledgments
        readings.append(network.sent_bytes() if mesh.rank == 0 else [])
        dist.barrier(group=mesh.dense)
    return [(b - a) / COUNTED_STEPS for a, b in zip(*readings, strict=True)]


def _from_first(value: float, mesh: Mesh) -> float:
    shared = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(shared, 0, group=mesh.dense)
    return float(shared)


def _follow() -> None:
    """End with whoever started this process, also when it was killed and could not say so."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
