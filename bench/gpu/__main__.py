"""The ops on one GPU: ``python -m bench.gpu --out DIR``; with ``--cpu``, tiny, to see that it runs.

Every case is checked first, then timed beside its peers, and compared with a floor: its bytes and operations at the
rates of a copy, a gather of the same rows and a large product, all measured in the same run. Results are written
after every case, the most telling ones first.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import environment
from bench.gpu import graph
from bench.gpu.cases import Case, Cases
from bench.gpu.device import TINY, Device, Sizes

COLUMNS = ("goal", "case", "ms", "floor ms", "of floor", "goal of floor", "peers", "met", "note", "failed")


def measure(device: Device, make: Callable[[], Case]) -> dict[str, Any]:
    case = make()
    row: dict[str, Any] = {"goal": case.goal, "case": case.name}
    try:
        case.check()
    except AssertionError as error:
        return row | {"failed": f"does not agree: {first_line(error)}"}
    ours = device.seconds(case.ours)
    row |= {"ms": ours * 1e3, "floor ms": case.floor_s * 1e3, "of floor": case.floor_s / ours, "note": case.note}
    met: list[bool | None] = []  # of each goal; None where it was not measured
    if case.of_floor is not None:
        row["goal of floor"] = case.of_floor
        met.append(case.floor_s / ours >= case.of_floor)
    said, row["ratios"] = [], {}
    for name, make_peer in case.peers.items():
        try:
            ratio = device.seconds(make_peer()) / ours
        except Exception as error:  # a peer's refusal, whatever it is, costs its own number alone
            said.append(f"{name}: {first_line(error)}")
            if name in case.ratios:
                met.append(None)
            continue
        row["ratios"][name] = ratio
        goal = case.ratios.get(name)
        said.append(f"{name} x {ratio:.2f}" + ("" if goal is None else f" (goal {goal})"))
        if goal is not None:
            met.append(ratio >= goal)
    row["peers"] = "; ".join(said)
    return row if device.device.type == "cpu" else row | {"met": verdict(met)}


def verdict(met: list[bool | None]) -> str:
    """One word for all goals: what was not measured, as where there is none, is not met either."""
    if False in met:
        return "no"
    return "yes" if met and None not in met else "unknown"


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def write(folder: Path, record: dict[str, Any]) -> None:
    """All that is known so far, each file at once: the run may be cut off at any time."""
    replace(folder / "gpu.json", json.dumps(record, indent=1) + "\n")
    rows = record["cases"]
    columns = [column for column in COLUMNS if any(row.get(column) for row in rows)]
    lines = [columns, ["---"] * len(columns), *([cell(row.get(column)) for column in columns] for row in rows)]
    facts = [f"- {key}: {cell(value)}" for key, value in (record["environment"] | record["ceilings"]).items()]
    replace(folder / "gpu.md", "\n".join([*facts, "", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n")


def replace(path: Path, text: str) -> None:
    beside = path.with_suffix(path.suffix + ".part")
    beside.write_text(text)
    os.replace(beside, path)


def cell(value: object) -> str:
    text = "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--cpu", action="store_true", help="tiny, on the CPU: whether it runs")
    options = parser.parse_args()
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    name, sizes = ("cpu", TINY) if options.cpu else ("cuda", Sizes())
    started = time.monotonic()
    record: dict[str, Any] = {
        "environment": environment.collect()
        | ({"note": "tiny, on the CPU: no figure means anything"} if options.cpu else {}),
        "sizes": asdict(sizes),
        "ceilings": {},
        "cases": [],
    }
    write(folder, record)
    device = Device(name, sizes)
    cases = Cases(device)
    record["ceilings"] = {
        "copy, TB/s": device.copy_rate / 1e12,
        "gather of rows, read and written, TB/s": device.gather_rate / 1e12,
        "bf16 product, TFLOP/s": device.product_rate / 1e12,
        "FBGEMM": cases.no_fbgemm or "takes part",
        "TorchRec": "takes no part: bench/gpu/peers.py says why",
    }

    def add(make_row: Callable[[], dict[str, Any]], label: str) -> None:
        try:
            row = make_row()
        except Exception as error:  # whatever goes wrong with one case, the others are worth their time
            row = {"case": label, "failed": f"{type(error).__name__}: {first_line(error)}"}
        record["cases"].append(row | {"at s": time.monotonic() - started})
        print(", ".join(f"{key} {cell(row[key])}" for key in COLUMNS if row.get(key)), flush=True)
        write(folder, record)
        gc.collect()
        if name == "cuda":
            torch.cuda.empty_cache()

    for number, make in enumerate(cases):
        add(partial(measure, device, make), f"case {number}")
        if number == 3:  # after one of each of the first goals
            add(lambda: graph.measure(device, "synthetic:2000" if options.cpu else "synthetic:40000"), "graph")
    failed = sum("failed" in row for row in record["cases"])
    print(f"{len(record['cases'])} cases, {failed} failed, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
