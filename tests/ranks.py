"""Runs a function on a few gloo ranks: one process each, stragglers killed, the first traceback shown."""

import multiprocessing as mp
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Forked from a server that has torch imported, ranks start in milliseconds instead of seconds.
_CONTEXT = mp.get_context("forkserver")
DIED = "the process died without a word"
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "dmt_kernels"])


def run_ranks(
    function: Callable[..., Any],
    world: int,
    *args: Any,
    timeout_s: float = 60.0,
    mortal: bool = False,
    port: int | None = None,
) -> list[Any]:
    """Call ``function(rank, *args)`` on every rank of a gloo world and return the results, rank by rank.

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
            rank_args = (function, rank, world, folder, sender, args, mortal, port)
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
    port: int | None,
) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
    try:
        if port is None:
            store: dist.Store = dist.FileStore(str(Path(folder) / "store"), world)
        else:
            store = dist.TCPStore("localhost", port, world, is_master=rank == 0)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        result = function(rank, *args)
        if not mortal:
            dist.barrier()  # nobody leaves while others still talk
        # By value: tensors that Connection.send shares would go with this process.
        sender.send_bytes(pickle.dumps((True, result)))
    except BaseException:
        sender.send_bytes(pickle.dumps((False, traceback.format_exc())))
    finally:
        sender.close()
        if dist.is_initialized():
            dist.destroy_process_group()
