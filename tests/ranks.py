"""Runs a function on a few ranks: one process each, stragglers killed, the first traceback shown."""

import multiprocessing as mp
import os
import pickle
import random
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Forked from a server that has imported what takes long, ranks start in milliseconds instead of seconds.
_CONTEXT = mp.get_context("forkserver")
DIED = "the process died without a word"
_CONTEXT.set_forkserver_preload(["pytest", "sklearn.metrics", "torch._dynamo", "dmt_kernels.train.loop"])


def free_port() -> int:
    """A TCP port that nobody listens at, out of those that the kernel gives to nobody who does not ask for it."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as trial:
            if trial.connect_ex(("localhost", port)) != 0:
                return port


def run_ranks(
    function: Callable[..., Any],
    world: int,
    *args: Any,
    timeout_s: float = 60.0,
    mortal: bool = False,
    device: str = "cpu",
    port: int | None = None,
) -> list[Any]:
    """Call ``function(rank, *args)`` on every rank of a world and return the results, rank by rank.

    The world speaks gloo; on `device` "cuda" NCCL, and ranks share GPUs if there are too few: right, but slow.
    With `mortal` a rank may die without a word, which is its result then (:data:`DIED`). With a `port` rank 0 hosts the
    ranks' store there, instead of a file.

    Raises
    ------
    AssertionError
        With the traceback of the rank that failed first, or the ranks that were still running at the timeout.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world):
            receiver, sender = _CONTEXT.Pipe(duplex=False)
            rank_args = (function, rank, world, folder, sender, args, mortal, device, port)
            process = _CONTEXT.Process(target=_rank_main, args=rank_args, daemon=True)
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        try:
            return _collect(pipes, timeout_s, mortal)
        finally:
            for process in processes:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()
                    process.join()


def _collect(pipes: list, timeout_s: float, mortal: bool) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_s
    while len(results) < len(pipes):
        open_pipes = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(open_pipes, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            running = sorted(set(range(len(pipes))) - set(results))
            raise AssertionError(f"ranks {running} did not finish in {timeout_s} s")
        for pipe in ready:
            rank = pipes.index(pipe)
            try:
                ok, value = pickle.loads(pipe.recv_bytes())
            except EOFError:
                ok, value = mortal, DIED
            if not ok:
                raise AssertionError(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def _rank_main(
    function: Callable[..., Any],
    rank: int,
    world: int,
    folder: str,
    sender,
    args: tuple,
    mortal: bool,
    device: str,
    port: int | None,
) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
    try:
        if port is None:
            store: dist.Store = dist.FileStore(str(Path(folder) / "store"), world)
        else:
            store = dist.TCPStore("localhost", port, world, is_master=rank == 0)
        if device == "cuda":
            _share_gpus(rank, world)
        dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=world)
        result = function(rank, *args)
        if not mortal:
            dist.all_reduce(torch.zeros(1, device=device))  # nobody leaves while others still talk
            if device == "cuda":
                torch.cuda.synchronize()
        # By value: tensors that Connection.send shares would go with this process.
        sender.send_bytes(pickle.dumps((True, result)))
    except BaseException:
        sender.send_bytes(pickle.dumps((False, traceback.format_exc())))
    finally:
        sender.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def _share_gpus(rank: int, world: int) -> None:
    """Give the rank a GPU, and NCCL what it needs to have several ranks on one: they pose as hosts of their own."""
    gpus = torch.cuda.device_count()
    torch.cuda.set_device(rank % gpus)
    if world <= gpus:
        return
    if torch.cuda.nccl.version() >= (2, 30):
        os.environ.update(NCCL_MULTI_RANK_GPU_ENABLE="1", NCCL_NVLS_ENABLE="0", NCCL_MAX_CTAS="1")
        return
    os.environ.update(
        NCCL_HOSTID=f"rank{rank}",
        NCCL_SOCKET_IFNAME="lo",
        NCCL_IB_DISABLE="1",
        NCCL_NVLS_ENABLE="0",
        NCCL_MAX_CTAS="2",
    )
