"""A training step of the demo's size in a CUDA graph: how long the device does nothing between its kernels."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.gpu.device import Device
from dmt_kernels.train.assemble import build_model, make_loader, set_up
from dmt_kernels.train.config import TrainConfig
from dmt_kernels.train.step import TrainStep

REPLAYS = 5


def demo_step(device: str, data: str) -> tuple[TrainStep, Any]:
    """A step of two towers in one process, and a batch."""
    config = TrainConfig(
        data=data, local=True, towers=2, members=1, exchange="sptt", tower_module="dlrm", batch_size=1024, epochs=1,
        device=device,
    )  # fmt: skip
    setup = set_up(config)
    model = build_model(setup, None)
    batch = next(iter(make_loader(setup, "train", None, torch.device(device))))
    step = TrainStep(model, None, optimizer="adam", lr=1e-3)
    for group in step.optimizer.param_groups:
        group["capturable"] = device == "cuda"
    return step, batch


def device_spans(trace: dict[str, Any]) -> list[tuple[float, float, str]]:
    """Kernels and copies of the device in a profiler's trace: when each began and ended, in us, and its short name."""
    return sorted(
        (event["ts"], event["ts"] + event["dur"], short(event["name"]))
        for event in trace["traceEvents"]
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    )


def gaps(spans: list[tuple[float, float, str]]) -> dict[str, Any]:
    """How many there are, the largest gap between two, what lies beside it, and all gaps together."""
    if not spans:
        return {"kernels": 0, "us": 0.0, "largest gap us": 0.0, "idle us": 0.0, "between": ""}
    largest = idle = 0.0
    (first, end, before), between = spans[0], ""
    for start, stop, name in spans:
        if start - end > largest:
            largest, between = start - end, f"{before} and {name}"
        idle += max(0.0, start - end)
        if stop > end:
            end, before = stop, name
    return {"kernels": len(spans), "us": end - first, "largest gap us": largest, "idle us": idle, "between": between}


def short(kernel: str) -> str:
    """The name of a kernel without namespaces, templates and arguments."""
    return re.sub(r"<.*|\(.*", "", kernel.removeprefix("void ").replace("(anonymous namespace)::", "")).split("::")[-1]


def measure(device: Device, data: str) -> dict[str, Any]:
    """Goal 5 as a row. Without a GPU: three steps, and no graph."""
    row: dict[str, Any] = {"goal": "5", "case": "DMT step of the demo's size in a CUDA graph"}
    step, batch = demo_step(device.device.type, data)
    if device.device.type == "cpu":
        losses = [step(batch).item() for _ in range(3)]
        return row | {"note": f"no graph on a CPU; loss {losses[0]:.4f} to {losses[-1]:.4f}"}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(batch)
    torch.cuda.current_stream().wait_stream(side)
    step.missing_ids.wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(batch)
    graph.replay()
    torch.cuda.synchronize()
    first = loss.item()
    seconds = device.seconds(graph.replay)
    found = []
    for _ in range(REPLAYS):  # a trace each: between two replays nobody promises anything
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            graph.replay()
            torch.cuda.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            found.append(device_spans(json.loads(path.read_text())))
    spans = sorted(found, key=lambda spans: gaps(spans)["largest gap us"])[len(found) // 2]
    found_gaps = gaps(spans)
    met = found_gaps["kernels"] and found_gaps["largest gap us"] <= 5
    row |= {"ms": seconds * 1e3, "met": "yes" if met else "no", "trace": spans}
    return row | {"note": f"{facts(found_gaps)}; loss {first:.4f} to {loss.item():.4f}"}


def facts(found: dict[str, Any]) -> str:
    return (
        f"{found['kernels']} kernels in {found['us']:.0f} us under the profiler, idle {found['idle us']:.1f} of them, "
        f"at most {found['largest gap us']:.1f} at once (between {found['between']})"
    )
