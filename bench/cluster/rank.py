"""What a rank of one contender does when it is asked; it lives in a process of its own."""

from __future__ import annotations

import gc
import time
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from bench.cluster.problem import Problem
from bench.cluster.steps import Ours, make_step, over_arch_alone
from bench.cluster.variants import Variant
from bench.timing import best
from dmt_kernels.comm import build_mesh
from dmt_kernels.embedding.wired_exchange import WiredExchange

TRAINED_STEPS = 3


class Rank:
    """This process's rank of a contender; all ranks are asked the same, together."""

    def __init__(self, variant: Variant, problem: Problem) -> None:
        self.problem, self._chooses = problem, variant.options.get("chunks") == "auto"
        dist.init_process_group("gloo")
        self.mesh = build_mesh(problem.hosts, problem.members)
        self.step = make_step(variant, problem, self.mesh)

    def train(self) -> dict[str, NDArray[np.float32]]:
        """Outputs of ours before and after a few steps, and the global losses."""
        ours = self.step if isinstance(self.step, Ours) else None
        found = {"before": ours.outputs()} if ours else {}
        losses = torch.stack([self.step() for _ in range(TRAINED_STEPS)])
        if ours:
            found["after"] = ours.outputs()
        else:  # a peer returns its rank's own mean
            dist.all_reduce(losses, group=self.mesh.dense)
            losses /= self.mesh.topology.world
        # Or the collector walks through torch's and TorchRec's modules now and then, in some step.
        gc.collect()
        gc.freeze()
        gc.disable()
        return {name: tensor.numpy() for name, tensor in (*found.items(), ("losses", losses))}

    def parameters(self) -> tuple[int, int]:
        """Dense parameters of ours: of the over-arch, and of the rank's tower module."""
        assert isinstance(self.step, Ours)
        return self.step.parameters

    def settle(self) -> int | None:
        """Train until a contender that chooses its chunks has chosen, for the links as they are, and return them."""
        if not self._chooses:
            return None
        assert isinstance(self.step, Ours)
        exchange = cast(WiredExchange, self.step.exchange)
        exchange.chunks = "auto"
        while exchange.chunks is None:
            self.step()
        return exchange.chunks

    def over_arch_seconds(self) -> float:
        """The least seconds of the over-arch alone, all ranks at work: a part of a floor."""
        assert isinstance(self.step, Ours)
        run = over_arch_alone(self.step, self.problem)
        self.wait_for_all()
        return best(run, rounds=20)

    def run(self, steps: int) -> None:
        """Train."""
        for _ in range(steps):
            self.step()

    def seconds(self, steps: int) -> list[float]:
        """Train, and take the time of every step; all ranks start each together."""
        times = []
        for _ in range(steps):
            self.wait_for_all()
            start = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - start)
        return times

    def transfer_seconds(self, to: int, sent_bytes: int) -> float:
        """Seconds of a message from rank 0 to rank `to`, and of a word back."""
        message = torch.zeros(sent_bytes, dtype=torch.uint8)
        self.wait_for_all()
        start = time.perf_counter()
        if self.mesh.rank == 0:
            dist.send(message, to)
            dist.recv(message[:1], to)
        elif self.mesh.rank == to:
            dist.recv(message, 0)
            dist.send(message[:1], 0)
        return time.perf_counter() - start

    def wait_for_all(self) -> None:
        """Wait until all ranks are here."""
        dist.all_reduce(torch.zeros(1), group=self.mesh.dense)

    def answer(self, what: str, *arguments: Any) -> Any:
        """Do what one of the methods above says."""
        return getattr(self, what)(*arguments)
