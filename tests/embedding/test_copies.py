"""How often rows are moved on their way: with a linear tower module and exact payloads, once forward and once back."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dmt_kernels.embedding import EmbeddingExchange, build_exchange
from dmt_kernels.embedding.wired_exchange import WiredExchange
from dmt_kernels.ops.stage import stage_copied_bytes
from dmt_kernels.planner import partition_features, place
from dmt_kernels.spec import Jagged, Payloads, Table, TableOptimizer, Topology
from dmt_kernels.towers import DLRMTower
from tests.devices import on_cuda
from tests.embedding.worlds import mesh_of, to
from tests.ranks import run_ranks

TOPOLOGY = Topology(2, 2)
T, R = TOPOLOGY.towers, TOPOLOGY.members
SAMPLES, DIM, IDS = 512, 16, 2
TABLES = tuple(Table(f"t{i}", 50, DIM, (f"f{i}",)) for i in range(8))
# What may write rows: lookups, the module's products, and the wires.
WORK = {"embedding_bag", "embedding_update_", "addmm", "addmm_", "mm", "send", "recv_"}
WORK |= {"tower_pool", "tower_pool_pooled_backward", "tower_pool_weight_backward"}
# That need no memory traffic.
ALLOCATE = {"empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view"}
OUT_BYTES = 4 * SAMPLES * T * 8 * 5  # a tower of 4 features gives 5, 8 wide
LITTLE_BYTES = 1 << 16  # for weights and their gradients, chunk by chunk; pooled rows are 262 KB, compressed ones 164


class Written(TorchDispatchMode):
    """Counts the bytes that are written by anything but the work itself, and says by what; and all calls."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        self.calls[name] += 1
        if name in WORK | ALLOCATE:
            return result
        results = result if isinstance(result, (tuple, list)) else [result]
        for returned, value in zip(func._schema.returns, results, strict=False):
            is_view = returned.alias_info is not None and not returned.alias_info.is_write
            if isinstance(value, Tensor) and not is_view:
                self.bytes[name] = self.bytes.get(name, 0) + value.nbytes
        return result


def _exchange(
    chunks: int,
    placement: str = "member",
    kind: str = "sptt",
    payloads: Payloads | None = None,
    device: str = "cpu",
) -> EmbeddingExchange:
    plan = place(TABLES, partition_features(TABLES, T), TOPOLOGY)
    return build_exchange(
        kind,
        plan,
        optimizer=TableOptimizer("rowwise_adagrad", lr=0.1),
        seed=1,
        mesh=mesh_of(TOPOLOGY, device),
        tower_modules=None if kind == "flat" else {t: DLRMTower(plan.tower_dims(t), 8, c=1, p=1) for t in range(T)},
        chunks=chunks,
        payloads=payloads,
        placement=placement,
    ).to(device)


def _batch(rank: int) -> Jagged:
    ids = torch.randint(0, 50, (len(TABLES) * SAMPLES * IDS,), generator=torch.Generator().manual_seed(rank))
    return Jagged(ids, torch.arange(len(TABLES) * SAMPLES + 1) * IDS)


def _bring_ids(exchange: EmbeddingExchange, batch: Jagged) -> None:
    """So that rows are all that moves from now on."""
    exchange.prefetch(batch)
    assert isinstance(exchange, WiredExchange) and exchange._ahead is not None
    exchange._ahead[1].wait()


def _moved(rank: int, chunks: int, placement: str) -> list[tuple[dict[str, int], int]]:
    """Forward and backward: bytes written by what, and bytes that stages packed and unpacked."""
    exchange = _exchange(chunks, placement)
    assert all(layout.is_side_by_side for layout in exchange.layouts)
    width = sum(exchange.out_widths)
    assert exchange.out_widths == [width // T] * T
    assert 4 * SAMPLES * width == OUT_BYTES
    batch = _batch(rank)
    grad = torch.randn(SAMPLES, width)
    _bring_ids(exchange, batch)
    copied = [stage_copied_bytes()]
    with Written() as forward:
        out = exchange(batch)
    copied.append(stage_copied_bytes())
    with Written() as backward:
        out.backward(grad)
    copied.append(stage_copied_bytes())
    return [(forward.bytes, copied[1] - copied[0]), (backward.bytes, copied[2] - copied[1])]


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("placement", ["member", "owner"])
def test_rows_are_moved_once_each_way(chunks: int, placement: str) -> None:
    """The peer stage puts columns of towers side by side, and takes them apart; nothing else touches rows.

    But that owners' partial sums are added up, that the pooled rows' gradient is put where the update finds it, and
    that the first owner puts samples of chunks in order to sum the bias's.
    """
    for rank, passes in enumerate(run_ranks(_moved, TOPOLOGY.world, chunks, placement)):
        more = [0, 0]
        if placement == "owner":
            more = [(R - 1) * OUT_BYTES, 4 * T * SAMPLES * len(TABLES) // T * DIM]
            more[1] += R * OUT_BYTES * (chunks > 1 and TOPOLOGY.member_of(rank) == 0)
        for (written, copied), also in zip(passes, more, strict=True):
            assert copied == OUT_BYTES * (T - 1) // T, "what comes from and goes to other towers"
            assert OUT_BYTES <= sum(written.values()) - also < OUT_BYTES + LITTLE_BYTES, written


def _codec_passes(rank: int, chunks: int, kind: str) -> tuple[int, int, int]:
    exchange, batch = _exchange(chunks, kind=kind, payloads=Payloads.of("bf16", "fp8")), _batch(rank)
    with Written() as written, torch.no_grad():
        exchange(batch)
    lookups, encoded, decoded = (
        written.calls[name] for name in ("embedding_bag_blocks_", "wire_encode_blocks_", "wire_decode_blocks_")
    )
    return lookups, encoded, decoded


@pytest.mark.parametrize("chunks", [1, 4])
def test_what_is_looked_up_is_encoded_on_the_way(chunks: int) -> None:
    """No pass encodes pooled rows; what is left encodes what a tower module has made, for its peers."""
    assert run_ranks(_codec_passes, TOPOLOGY.world, chunks, "flat") == [(chunks, 0, chunks)] * TOPOLOGY.world
    assert run_ranks(_codec_passes, TOPOLOGY.world, chunks, "sptt") == [(chunks, chunks, 2 * chunks)] * TOPOLOGY.world


# Kernels that do nothing but copy, by torch's names and CUDA's; NCCL's own are not among them.
IS_COPY = re.compile(r"^(?!.*nccl).*(DtoD|copy|CatArray)", re.IGNORECASE)


def _launched(trace: dict[str, Any]) -> list[str]:
    """What a profiler's trace has of the GPU, in the order in which the host asked for it."""
    spans = [event for event in trace["traceEvents"] if event.get("cat") in ("kernel", "gpu_memcpy")]
    return [span["name"] for span in sorted(spans, key=lambda span: span["args"]["correlation"])]


def _launched_forward(rank: int, device: str, folder: Path) -> list[str]:
    exchange, batch = _exchange(1, device=device), to(device, _batch(rank))
    exchange(batch)  # what is made once is made now
    _bring_ids(exchange, batch)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        exchange(batch)
        torch.cuda.synchronize()
    profiler.export_chrome_trace(str(folder / f"{rank}.json"))
    return _launched(json.loads((folder / f"{rank}.json").read_text()))


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_cuda)])
def test_no_copy_runs_between_the_stages_on_gpus(device: str, tmp_path: Path) -> None:
    """A linear module multiplies what has arrived where it lies, and what it writes travels from there."""
    for names in run_ranks(_launched_forward, TOPOLOGY.world, device, tmp_path, device=device):
        of_nccl = [i for i, name in enumerate(names) if "nccl" in name.lower()]
        assert len(of_nccl) >= 2, names
        between = [name for name in names[of_nccl[0] : of_nccl[-1]] if "nccl" not in name.lower()]
        assert between and not any(map(IS_COPY.match, between)), names
        # Columns of towers are put side by side; autograd's tokens of 4 bytes are copied twice.
        assert sum(map(bool, map(IS_COPY.match, names))) <= T + 2, names


def test_copies_are_found_in_a_trace() -> None:
    launched = [
        (3, "kernel", "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda(...)>"),
        (1, "kernel", "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"),
        (2, "kernel", "sm90_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize32x32x8_cublas"),
        (4, "gpu_memcpy", "Memcpy DtoD (Device -> Device)"),
        (5, "kernel", "void at::native::(anonymous namespace)::CatArrayBatchedCopy<float>"),
        (6, "gpu_memcpy", "Memcpy HtoD (Pinned -> Device)"),
        (7, "cuda_runtime", "cudaMemcpyAsync"),
    ]
    names = _launched(
        {"traceEvents": [{"cat": cat, "name": name, "args": {"correlation": n}} for n, cat, name in launched]}
    )
    assert [bool(IS_COPY.match(name)) for name in names] == [False, False, True, True, True, False]
