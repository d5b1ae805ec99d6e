"""``python -m bench [ops|comm|train]``: build, check, measure, show."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import baselines, environment, ranks, registry, report
from bench.agreement import Disagreement
from bench.bags import free_tables
from bench.ceilings import Ceilings, missing_probe
from bench.comm.verdict import verdict
from bench.registry import DEFAULT, QUICK, SUITES, Setting
from bench.runner import Result, run_case
from dmt_kernels.train.launch import launched, speaks

BUDGET_S = {QUICK: 0.6, DEFAULT: 1.5}  # of timing, per case

# Other ways of ours to do the same.
OWN_ROADS = {"ops": ("two passes",), "comm": ("flat", "op", "member"), "train": ("flat",)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code: 1 if anything disagreed."""
    options = _parser().parse_args(argv)
    suites = [options.suite] if options.suite else list(SUITES)
    if launched() and options.suite not in ("comm", "train"):
        print("bench: under torchrun say which suite: comm or train", file=sys.stderr)
        return 2
    filters, effort = options.filter.split(), QUICK if options.quick else DEFAULT
    if options.list:
        for suite in suites:
            print("\n".join(f"{suite} {case.name}" for case in registry.load(suite).select(filters, effort)))
        return 0
    if options.threads:
        torch.set_num_threads(options.threads)
    unknown = [name for name in options.peer if name not in baselines.NAMES]
    if unknown:
        print(f"bench: no peer is named {unknown[0]!r}; choose of {', '.join(baselines.NAMES)}", file=sys.stderr)
        return 2

    record: dict[str, Any] = {"environment": environment.collect() if speaks() else {}, "suites": {}}
    if speaks():
        report.show(report.facts(record["environment"], "environment"))
    for suite in suites:
        peers = baselines.of_suite(suite, options.peer)
        if suite == "ops":
            part = _run_ops(filters, effort, peers)
        else:
            part = ranks.run_suite(suite, filters, effort, BUDGET_S[effort], options.towers, peers)
        if not speaks():
            continue
        record["suites"][suite] = part
        _show(suite, part, peers)
    if options.json and speaks():
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n")
    failures = [name for part in record["suites"].values() for name in part["failures"]]
    return 1 if failures else 0


def _run_ops(filters: Sequence[str], effort: int, peers: Sequence[str]) -> dict[str, Any]:
    ceilings, results, failures = Ceilings(), [], {}
    selected = registry.load("ops").select(filters, effort)
    cases = registry.in_running_order(selected)
    try:
        for number, case in enumerate(cases, 1):
            _progress(f"{number}/{len(cases)} {case.name}")
            try:
                results.append(run_case(case, Setting(peers=tuple(peers)), ceilings, BUDGET_S[effort]).to_json())
            except Disagreement as error:
                failures[case.name] = str(error)
    except KeyboardInterrupt:
        failures["interrupted"] = "the cases that are missing were not run"
    _progress("")
    free_tables()
    order = [case.name for case in selected]
    results.sort(key=lambda result: order.index(result["case"]))
    if any(result["floor_ms"] for result in results):
        ceilings.survey()
    facts: dict[str, Any] = dict(ceilings.rates)
    pages = [result["huge_page_mb"] for result in results if result["huge_page_mb"] is not None]
    if pages:
        facts["AnonHugePages while timing, MB: most, least"] = f"{max(pages):.0f}, {min(pages):.0f}"
    obstacles = {name: text for name in peers if (text := baselines.obstacle(name))}
    return {"results": results, "failures": failures, "facts": facts, "obstacles": obstacles}


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\x1b[2K{text}", end="\r", file=sys.stderr, flush=True)


def _show(suite: str, part: dict[str, Any], peers: Sequence[str]) -> None:
    results = [Result.from_json(result) for result in part["results"]]
    others = [road for road in OWN_ROADS[suite] if any(road in result.timings for result in results)]
    others += peers
    title = "measured ceilings" if suite == "ops" else "ranks"
    if results:
        report.show("", report.facts(part["facts"], title), report.comparison(results, others))
    notes = list(part["obstacles"].values())
    if suite == "ops":
        notes.append(missing_probe())
    if suite == "comm" and results:
        notes.append(verdict(results, part["facts"]))
    report.show("", *(note for note in notes if note))
    for name, complaint in part["failures"].items():
        print(f"{name} DISAGREES, not timed: {complaint}" if name != "interrupted" else f"interrupted: {complaint}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("suite", nargs="?", choices=tuple(SUITES), help="default: all three")
    parser.add_argument(
        "--filter", default="", metavar="WORDS", help="all cases, rare ones too, whose names hold WORDS"
    )
    parser.add_argument(
        "--peer",
        default=",".join(baselines.NAMES),
        metavar="A,B",
        type=lambda text: text.split(",") if text else [],
        help="whom to compare with (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="OUT", help="write everything that was measured")
    parser.add_argument("--quick", action="store_true", help="few cases, few rounds: under a minute")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and end")
    parser.add_argument("--threads", type=int, metavar="N", help="of the ops suite (default: torch's)")
    parser.add_argument("--towers", type=int, metavar="T", help="of comm and train (default: hosts; 2 on one host)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
