"""One case after the other: build, check, measure, forget."""

from __future__ import annotations

import dataclasses
import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from bench.agreement import Disagreement
from bench.ceilings import Ceilings
from bench.memory import huge_page_mb
from bench.registry import Case, Setting, Work
from bench.timing import Clock, interleave, percentiles

if TYPE_CHECKING:
    from dmt_kernels.comm import Mesh

MS = 1e3


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one contender."""

    p20_ms: float
    p50_ms: float
    p80_ms: float
    rounds: int


@dataclass(frozen=True)
class Result:
    case: str
    timings: dict[str, Timing]  # ours first
    floor_ms: dict[str, float] = field(default_factory=dict)
    work_bytes: float = 0
    work_flops: float = 0
    huge_page_mb: float | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Result:
        timings = {name: Timing(**timing) for name, timing in record["timings"].items()}
        return cls(**(record | {"timings": timings}))


def run_case(case: Case, setting: Setting, ceilings: Ceilings | None, budget_s: float) -> Result:
    """Measure a case, after its check.

    Raises
    ------
    Disagreement
        If ours, the oracle and the peers do not agree; nothing has then been timed.
    """
    work = case.build(setting)
    _check(work, setting.mesh)
    samples = interleave(work.contenders(), budget_s, Clock(setting.mesh, cold=work.cold))
    timings = {
        name: Timing(*percentiles([MS * seconds for seconds in times]), len(times)) for name, times in samples.items()
    }
    pages = huge_page_mb()
    floor = work.floor(ceilings) if work.floor is not None and ceilings is not None else {}
    result = Result(
        case.name,
        timings,
        {part: MS * seconds for part, seconds in floor.items()},
        work.work_bytes,
        work.work_flops,
        pages,
    )
    del work
    gc.collect()  # a module and its autograd graph may be a cycle, and they hold gigabytes
    return result


def _check(work: Work, mesh: Mesh | None) -> None:
    """Run the check; what one rank finds wrong stops all of them."""
    complaint = None
    try:
        work.check()
    except Disagreement as error:
        complaint = str(error)
    if mesh is not None:
        complaints: list[str | None] = [None] * mesh.topology.world
        dist.all_gather_object(complaints, complaint, group=mesh.dense)
        complaint = next((f"rank {g}: {text}" for g, text in enumerate(complaints) if text is not None), None)
    if complaint is not None:
        raise Disagreement(complaint)
