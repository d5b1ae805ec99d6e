"""A whole run: who disagrees, then bytes and times of every contender at every rate."""

from __future__ import annotations

import itertools
import mmap
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import baselines
from bench.cluster.check import complaint
from bench.cluster.contender import Contender, Hosts, started
from bench.cluster.network import PACKET_BYTES, PACKET_PAYLOAD
from bench.cluster.problem import Problem
from bench.cluster.variants import Variant
from bench.timing import percentiles

COUNTED_STEPS = 3
TURN = 3  # steps; the first one, which finds the caches as another contender left them, does not count
MIN_ROUNDS = 5
PROBE_S = 0.3  # a timed transfer's length
MOST_TOLD = 1.25  # times the rate

Rates = tuple[float | None, float | None]  # of a host's link and of its inner one, bits per second


def measure(problem: Problem, variants: Sequence[Variant], rates: Sequence[Rates], seconds: float) -> dict[str, Any]:
    """Everything that tables and plots are made from.

    Raises
    ------
    Failure
        If a rank cannot do what it is asked.
    """
    obstacles = {} if (text := baselines.obstacle("torchrec")) is None else {"torchrec": text}
    taking_part = [variant for variant in variants if variant.peer not in obstacles]
    before = _reclaimed_bytes()
    with started(problem, shapes_inner=any(inner for _, inner in rates)) as hosts:
        contenders = [hosts.contender(variant) for variant in taking_part]
        ours = [contender for contender in contenders if contender.variant.peer is None]
        record: dict[str, Any] = {
            "problem": asdict(problem),
            "obstacles": obstacles,
            "complaint": complaint({contender.name: contender.ask("train") for contender in contenders}, problem),
            "parameters": {contender.name: contender.ask("parameters")[0] for contender in ours},
            "phases": [],
        }
        if record["complaint"] is None:
            over_arch = {contender.name: 1e3 * max(contender.ask("over_arch_seconds")) for contender in ours}
            record["phases"].append({"rate": None, "tower_rate": None, "over_arch_ms": over_arch})
            record["phases"][0] |= _step_times(contenders, seconds)
            record["phases"] += [_shaped(contenders, hosts, rate, inner, seconds) for rate, inner in rates]
        record["reclaimed_bytes"] = _reclaimed_bytes() - before
        return record


def _reclaimed_bytes() -> int:
    """What the system has taken back so far, of anybody's pages, because memory was short."""
    counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return mmap.PAGESIZE * sum(int(counts.get(name, 0)) for name in ("pgsteal_kswapd", "pgsteal_direct"))


def _shaped(
    contenders: Sequence[Contender], hosts: Hosts, rate: float | None, tower_rate: float | None, seconds: float
) -> dict[str, Any]:
    """Everything at one rate: the links' own, bytes of every contender, and times."""
    phase: dict[str, Any] = {"rate": rate, "tower_rate": tower_rate}
    phase |= _calibrate(contenders[0], hosts, rate or 0.0, tower_rate)
    phase |= {"sent_bytes": {contender.name: _sent_bytes(contender, hosts) for contender in contenders}}
    return phase | _step_times(contenders, seconds)


def _step_times(contenders: Sequence[Contender], seconds: float) -> dict[str, Any]:
    """Percentiles of a step in ms; contenders take turns, and the slowest rank counts. And chunks that were chosen."""
    chosen = {contender.name: contender.ask("settle")[0] for contender in contenders}
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    end = time.monotonic() + seconds
    for round in itertools.count(1):
        for contender in contenders:
            steps = zip(*contender.ask("seconds", TURN), strict=True)
            times[contender.name] += [max(step) for step in steps][1:]
        if round >= MIN_ROUNDS and time.monotonic() > end:
            ms = {name: [1e3 * t for t in percentiles(of)] for name, of in times.items()}
            return {"ms": ms, "rounds": round, "chunks": {name: chunks for name, chunks in chosen.items() if chunks}}
    raise AssertionError


def _calibrate(contender: Contender, hosts: Hosts, rate: float, tower_rate: float | None) -> dict[str, float]:
    """Shape the links so that timed transfers run at the rates that were asked for, and return what those ran at.

    Shapers that wake up late let less through than they are told to, the more so the higher the rate.
    """
    asked = {"verified_rate": (rate, hosts.problem.members)}  # and to whom rank 0 sends there
    if tower_rate is not None and hosts.problem.members > 1:
        asked["verified_tower_rate"] = (tower_rate, 1)
    hosts.network.shape(rate, tower_rate)
    found = {name: _transfer_rate(contender, *link) for name, link in asked.items()}
    told = {name: link[0] * min(link[0] / found[name], MOST_TOLD) for name, link in asked.items()}
    hosts.network.shape(told["verified_rate"], told.get("verified_tower_rate", tower_rate))
    return {name: _transfer_rate(contender, *link) for name, link in asked.items()}


def _transfer_rate(contender: Contender, rate: float, to: int) -> float:
    """Bits per second of a timed transfer from rank 0 to rank `to`, headers included."""
    sent_bytes = int(rate * PROBE_S / 8)
    took = min(contender.ask("transfer_seconds", to, sent_bytes)[0] for _ in range(2))  # the first opens the window
    return 8 * sent_bytes * PACKET_BYTES / PACKET_PAYLOAD / took


def _sent_bytes(contender: Contender, hosts: Hosts) -> list[float]:
    """What a step puts on the link of every host, by the counters of the links."""
    readings = []
    for steps in (1, COUNTED_STEPS):  # the first sends what was left of the contender before, too
        contender.ask("run", steps)
        time.sleep(0.02)  # for the last acknowledgments
        readings.append(hosts.network.sent_bytes())
    return [(b - a) / COUNTED_STEPS for a, b in zip(*readings, strict=True)]
