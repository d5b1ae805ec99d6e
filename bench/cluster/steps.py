"""Builds the contenders of one rank: a call of each is one training step."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.baselines import Training
from bench.cluster.problem import DENSE_LR, SEED, TABLE_OPTIMIZER, Problem
from bench.cluster.variants import VARIANTS, Variant, twin_of
from bench.timing import Run
from dmt_kernels.comm import Mesh
from dmt_kernels.embedding import EmbeddingExchange, build_exchange
from dmt_kernels.models import DLRM, Model, expanded_dim
from dmt_kernels.spec import Batch, Jagged
from dmt_kernels.train.step import TrainStep, mixed_precision


class MeanSquare(Model):
    """The smallest over-arch: a scale. What it gives are no logits, but the embeddings less their target of 1."""

    def __init__(self, exchange: nn.Module) -> None:
        super().__init__(exchange)
        self.scale = nn.Parameter(torch.ones(1))

    def beside(self, dense: Tensor) -> tuple[Tensor, ...]:
        return ()

    def logits(self, embeddings: Tensor, *beside: Tensor) -> Tensor:
        return embeddings * self.scale - 1.0


class MeanSquareStep(TrainStep):
    def share(self, logits: Tensor, label: Tensor, weight: Tensor, *, global_samples: int) -> Tensor:
        return logits.square().sum() / (global_samples * logits.shape[1])


def build_over_arch(variant: Variant, problem: Problem, exchange: nn.Module) -> nn.Module:
    """A variant's model, over an exchange."""
    if not variant.over_arch:
        return MeanSquare(exchange)
    out_dim = problem.dim // problem.compression if variant.tower_module else problem.dim
    if variant.expand:
        out_dim = expanded_dim([problem.dim])
    return DLRM(exchange, problem.dense_width, out_dim, expand=variant.expand, seed=SEED)


class Ours:
    """Trains a variant of ours, on the ranks of a mesh or in this process alone, and returns the global loss."""

    def __init__(self, variant: Variant, problem: Problem, mesh: Mesh | None) -> None:
        self.plan = problem.plan()
        modules = problem.tower_modules(self.plan) if variant.tower_module else None
        self.exchange = build_exchange(
            variant.road,
            self.plan,
            optimizer=TABLE_OPTIMIZER,
            seed=SEED,
            mesh=mesh,
            tower_modules=modules,
            **(variant.exchange_options if mesh is not None else {}),
        )
        self.batches = problem.global_batches() if mesh is None else problem.rank_batches(mesh.rank)
        self._next: Iterator[tuple[Batch, Batch]] = itertools.pairwise(itertools.cycle(self.batches))
        self.variant = variant
        self.model = build_over_arch(variant, problem, self.exchange)
        kind = TrainStep if variant.over_arch else MeanSquareStep
        self.step = kind(self.model, mesh, optimizer="adam", lr=DENSE_LR, amp=variant.amp and mesh is not None)

    def __call__(self) -> Tensor:
        return self.step(*next(self._next))  # the ids of the next batch travel under this one, as in the training loop

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """The exchange's output for the first batch."""
        with mixed_precision(torch.device("cpu"), amp=self.step.amp):
            return self.exchange(self.batches[0].sparse)

    @property
    def parameters(self) -> tuple[int, int]:
        """Dense parameters of this rank: of the over-arch, and of its tower module."""
        return sum(p.numel() for p in self.step.over_arch), sum(p.numel() for p in self.step.tower_module)


def make_step(variant: Variant, problem: Problem, mesh: Mesh) -> Run:
    """A variant's step on the ranks of a mesh; a peer's has the first values of ours of the same model."""
    if variant.peer is None:
        return Ours(variant, problem, mesh)
    twin = Ours(twin_of(variant, VARIANTS), problem, mesh)
    peer = importlib.import_module(f"bench.baselines.{variant.peer}_towers")
    tower = twin.exchange.tower_modules[str(mesh.tower_index)] if variant.tower_module else None
    training = Training(TABLE_OPTIMIZER, DENSE_LR, SEED)
    half = variant.payload.element_bytes == 2
    options = {"half": half, "amp": variant.amp, **variant.options}
    return peer.cluster_step(twin.model, tower, twin.plan, mesh, twin.batches, training, **options)


class _Widths(nn.Module):
    """What an over-arch sees of an exchange: its output, and who takes its gradient."""

    def __init__(self, exchange: EmbeddingExchange, samples: int) -> None:
        super().__init__()
        self.out_widths, self.tower_dims = exchange.out_widths, exchange.tower_dims
        self._output = torch.rand(samples, sum(self.out_widths), requires_grad=True)

    def forward(self, sparse: Jagged) -> Tensor:
        return self._output


def over_arch_alone(ours: Ours, problem: Problem) -> Run:
    """Forward and backward pass of the over-arch of a variant, without the exchange under it."""
    model = build_over_arch(ours.variant, problem, _Widths(ours.exchange, problem.samples))
    step = type(ours.step)(model, None, optimizer="adam", lr=DENSE_LR, amp=ours.step.amp)

    def run() -> None:
        step.loss(ours.batches[0]).backward()

    return run
