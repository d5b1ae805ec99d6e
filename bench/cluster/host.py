"""Runs in every host, ``python -m bench.cluster.host SOCKET HOST``, and forks a process per contender and rank.

Forked, since dozens of processes that all import torch would take minutes and gigabytes.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import traceback
from multiprocessing.connection import Client

import torch

from bench import baselines
from bench.cluster.problem import Problem
from bench.cluster.rank import Rank
from bench.cluster.variants import SHARED_MEMORY, Variant


def main(socket: str, host: int) -> None:
    torch.set_num_threads(1)
    baselines.obstacle("torchrec")  # imports it, if it is there
    gc.freeze()  # so that the ranks' collectors leave these pages shared
    orders = Client(socket)
    orders.send(host)
    lifeline = os.dup(sys.stdin.fileno())  # a fork's own stdin is closed
    context, ranks = multiprocessing.get_context("fork"), []
    try:
        while True:
            variant, problem, port = orders.recv()
            for member in range(problem.members):
                arguments = (socket, variant, problem, host, member, port, lifeline)
                ranks.append(context.Process(target=_rank, args=arguments, daemon=True))
                ranks[-1].start()
    except EOFError:  # whoever gave orders has ended
        for rank in ranks:
            rank.kill()
            rank.join()


def _rank(socket: str, variant: Variant, problem: Problem, host: int, member: int, port: int, lifeline: int) -> None:
    threading.Thread(target=_follow, args=(lifeline,), daemon=True).start()
    rank = host * problem.members + member
    variables = {
        "RANK": rank,
        "WORLD_SIZE": problem.world,
        "LOCAL_RANK": member,
        "LOCAL_WORLD_SIZE": problem.members,
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in variables.items()})
    if not variant.shares_memory:
        os.environ[SHARED_MEMORY] = "0"
    questions = Client(socket)
    questions.send(rank)
    try:
        answering = Rank(variant, problem)
        questions.send((True, None))
        while True:
            questions.send((True, answering.answer(*questions.recv())))
    except EOFError:
        os._exit(0)
    except Exception as error:
        traceback.print_exc()
        questions.send((False, f"{type(error).__name__}: {error}"))
        raise


def _follow(lifeline: int) -> None:
    """End with whoever started the host, also when it was killed and could not say so."""
    os.read(lifeline, 1)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
