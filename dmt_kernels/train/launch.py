"""Start one process per rank, or take the place torchrun gave this one.

The engine is torch.distributed's own launcher; what is here chooses its settings, hands Ctrl-C
through and puts the traceback of the rank that failed last on the screen.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dmt_kernels.spec import ExchangeError, InputError, RankFailed

SHUTDOWN_TIMEOUT_S = 10  # from a polite signal to SIGKILL
BYSTANDER_PAUSE_S = 3.0  # a rank that lost its peer speaks this much later than the peer


def launched() -> bool:
    """Whether torchrun, or :func:`run_ranks`, started this process as one of its ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def speaks() -> bool:
    """Whether this process is the one that prints: rank 0, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def run_ranks(work: Callable[..., Any], *args: Any, world: int, threads: int | None = None) -> Any:
    """Run ``work(*args)`` on ``world`` ranks and return what rank 0 returned.

    Under torchrun the process already is a rank and calls ``work`` itself. Otherwise ``world`` local
    processes are started, also for a world of one, so that every distributed run is launched alike.

    Parameters
    ----------
    work : callable
        A module-level function; spawned processes import it by name.
    *args
        Picklable arguments.
    world : int
        Ranks.
    threads : int or None
        Intra-op threads per rank; None shares the cores out evenly.

    Raises
    ------
    InputError
        If torchrun started another number of ranks, or a rank found its input wrong.
    RankFailed
        With the traceback of the rank that failed first.
    KeyboardInterrupt
        After every process has ended.
    """
    if launched():
        present = int(os.environ["WORLD_SIZE"])
        if present != world:
            raise InputError(f"torchrun started {present} ranks and towers x members asks for {world}")
        return record(_as_rank)(work, args, threads)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # a machine's own name need not resolve
        max_restarts=0,
        start_method="forkserver",
    )
    # Ranks are forked from a process that has imported what they need, so that one import serves all of them: also
    # what an optimizer's first call imports, and what rank 0 scores with.
    multiprocessing.set_forkserver_preload([work.__module__, "torch._dynamo", "sklearn.metrics"])
    with _quiet_engine():
        try:
            return elastic_launch(config, _as_rank)(work, args, threads)[0]
        except SignalException as stop:
            raise KeyboardInterrupt from stop
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            raise _explain(rank, failure) from None


def _as_rank(work: Callable[..., Any], args: tuple[Any, ...], threads: int | None) -> Any:
    """What every rank runs around ``work``."""
    # A rank that waits inside a collective never returns to Python to see a KeyboardInterrupt, so the
    # signals end it at once; what must not be half-written is renamed into place when it is complete.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if (launcher := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_follow, args=(launcher,), daemon=True).start()
        logging.getLogger("dmt_kernels.data").setLevel(logging.ERROR)  # the launcher has read the data and warned
    torch.set_num_threads(threads or max(1, _cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    try:
        return work(*args)
    except Exception as error:
        if _lost_a_peer(error):
            # The launcher reports whom it sees fail first: let that be the rank with the cause.
            time.sleep(BYSTANDER_PAUSE_S)
        raise


def _follow(launcher: Any) -> None:
    """End with the launcher, also when it was killed and could not say so."""
    launcher.join()
    os._exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lost_a_peer(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, ExchangeError | torch.distributed.DistError) or any(
        sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL")
    )


def _explain(rank: int, failure: ProcessFailure) -> Exception:
    """Turn what the launcher knows of a failed rank into the error to show."""
    message: Any = failure.message
    if isinstance(message, dict):
        callstack = message.get("extraInfo", {}).get("py_callstack", "")
        last = callstack.rstrip().rsplit("\n", 1)[-1]
        name, _, sentence = last.partition(": ")
        if name.rsplit(".", 1)[-1] == InputError.__name__:
            return InputError(sentence)
        message = callstack or message.get("message")
    return RankFailed(f"rank {rank} (process {failure.pid}, exit code {failure.exitcode}) failed:\n{message}")


@contextlib.contextmanager
def _quiet_engine() -> Iterator[None]:
    """Silence the launcher's log of what the error it raises says anyway, and bound its shutdown."""
    timeout, disabled = os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT"), logging.root.manager.disable
    logging.disable(logging.ERROR)
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = timeout or str(SHUTDOWN_TIMEOUT_S)
    try:
        yield
    finally:
        logging.disable(disabled)
        if timeout is None:
            del os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
