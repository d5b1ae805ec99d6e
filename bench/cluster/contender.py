"""Contenders, each in processes of its own, which are idle while another one has its turn."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.cluster import network
from bench.cluster.network import Network
from bench.cluster.problem import Problem
from bench.cluster.variants import SHARED_MEMORY, Variant

PATIENCE_S = 120  # for an answer
PORT = 29500  # of the first contender; a run has all ports to itself


class Failure(Exception):
    """A rank failed or did not answer; the message says which and has its last words."""


class Contender:
    """The ranks of a variant, as whoever asks them sees them."""

    def __init__(self, variant: Variant, ranks: list[Connection]) -> None:
        self.variant, self.name, self._ranks = variant, variant.name, ranks

    def ask(self, what: str, *arguments: Any) -> list[Any]:
        """What every rank answers: see :class:`~bench.cluster.rank.Rank`.

        Raises
        ------
        Failure
            If a rank cannot, or takes too long.
        """
        for rank in self._ranks:
            rank.send((what, *arguments))
        return self._answers(what)

    def wait_until_built(self) -> None:
        """Wait until all ranks have built their step."""
        self._answers("start")

    def _answers(self, what: str) -> list[Any]:
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + PATIENCE_S
        while missing := [rank for g, rank in enumerate(self._ranks) if g not in answers]:
            ready = wait(missing, max(0.0, deadline - time.monotonic()))
            if not ready:
                late = ", ".join(str(g) for g in range(len(self._ranks)) if g not in answers)
                raise Failure(f"{self.name}: rank {late} did not {what} within {PATIENCE_S} s")
            for g, rank in enumerate(self._ranks):
                if rank not in ready:
                    continue
                try:
                    well, answers[g] = rank.recv()
                except EOFError:
                    well, answers[g] = False, "it ended"
                if not well:
                    raise Failure(f"{self.name}: rank {g} could not {what}: {answers[g]}")
        return [answers[g] for g in range(len(self._ranks))]


class Hosts:
    """The emulated hosts, with a process in each that makes ranks."""

    def __init__(self, problem: Problem, hosts: Network, folder: Path, *, shapes_inner: bool) -> None:
        self.problem, self.network, self._folder = problem, hosts, folder
        self._shapes_inner = shapes_inner
        self._listener = Listener(str(folder / "socket"), "AF_UNIX", backlog=64)
        self._contenders = 0
        self._processes = [self._start(host) for host in range(hosts.hosts)]
        self._orders = self._accept(len(self._processes))

    def contender(self, variant: Variant) -> Contender:
        """Start a variant's ranks."""
        for orders in self._orders:
            orders.send((variant, self.problem, PORT + self._contenders))
        self._contenders += 1
        contender = Contender(variant, self._accept(self.problem.world))
        contender.wait_until_built()
        return contender

    def last_words(self) -> str:
        """The end of what the hosts' ranks have printed."""
        printed = {host: self._output(host).read_text(errors="replace") for host in range(self.network.hosts)}
        return "\n".join(f"host {host}:\n{text[-3000:]}" for host, text in printed.items() if text)

    def end(self) -> None:
        """End all ranks."""
        for orders in self._orders:
            orders.close()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._listener.close()

    def _start(self, host: int) -> subprocess.Popen[bytes]:
        variables = {
            "MASTER_ADDR": self.network.address(0),
            "GLOO_SOCKET_IFNAME": network.INTERFACE,
            "OMP_NUM_THREADS": "1",
        }
        if self._shapes_inner:
            variables[SHARED_MEMORY] = "0"  # which goes past the shaper
        command = [sys.executable, "-m", "bench.cluster.host", str(self._folder / "socket"), str(host)]
        with self._output(host).open("wb") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.network.name(host), *command],
                env={**os.environ, **variables},
                stdin=subprocess.PIPE,  # whose end tells all processes of the host that this one has ended
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _accept(self, count: int) -> list[Connection]:
        """As many processes, in the order of the number by which each introduces itself."""
        accepted: dict[int, Connection] = {}
        listening = self._listener._listener._socket  # type: ignore[attr-defined]  # has no timeout of its own
        listening.settimeout(PATIENCE_S)
        for _ in range(count):
            try:
                connection = self._listener.accept()
            except TimeoutError:
                raise Failure(f"{count - len(accepted)} of {count} processes did not start") from None
            accepted[connection.recv()] = connection
        return [accepted[number] for number in range(count)]

    def _output(self, host: int) -> Path:
        return self._folder / f"host{host}"


@contextmanager
def started(problem: Problem, *, shapes_inner: bool) -> Iterator[Hosts]:
    """Hosts for as long as they are needed, in namespaces of this process's own."""
    hosts = Network(problem.hosts)
    hosts.build(shapes_inner=shapes_inner)
    with TemporaryDirectory() as folder:
        running = Hosts(problem, hosts, Path(folder), shapes_inner=shapes_inner)
        try:
            yield running
        except Failure as failure:
            raise Failure(f"{failure}\n{running.last_words()}") from None
        finally:
            running.end()
