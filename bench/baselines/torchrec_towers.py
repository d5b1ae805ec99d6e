"""TorchRec's peers of emulated hosts: its flat collection and its ``EmbeddingTowerCollection``, with and without fp16.

The towers are the honest prior art: a tower of tables per host, an interaction module after the exchange inside the
host, and an exchange between hosts. Stock code cannot run them on a CPU, since it names the CPU as DDP's device id.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.datasets.utils import Batch as TorchRecBatch
from torchrec.distributed import embedding_tower_sharding
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardingType,
    ShardMetadata,
)
from torchrec.modules.embedding_tower import EmbeddingTower, EmbeddingTowerCollection
from torchrec.sparse.jagged_tensor import KeyedTensor

from bench.baselines import Training
from bench.baselines.torchrec import COLLECTION, Sharded, TrainStep, codecs, collection, dlrm, owners
from dmt_kernels.comm import Mesh
from dmt_kernels.models import DLRM
from dmt_kernels.spec import Batch, Plan
from dmt_kernels.towers import TowerModule

BAGS = "bags"


def cluster_step(
    model: nn.Module,
    tower: TowerModule | None,
    plan: Plan,
    mesh: Mesh,
    batches: Sequence[Batch],
    training: Training,
    *,
    half: bool,
    pipelined: bool = False,
    amp: bool = False,
) -> Sharded:
    """A step of the model that `model` is, from the same first values.

    Flat without a `tower`, this rank's linear tower module. Models that are no DLRM have the loss of `MeanSquare`.
    """
    if tower is not None:
        return towers_step(tower, plan, mesh, batches, training, half=half, pipelined=pipelined, amp=amp)
    if isinstance(model, DLRM):
        net: nn.Module = dlrm(model, plan, training)
        return TrainStep(net, COLLECTION, plan, mesh, batches, training, half=half, pipelined=pipelined, amp=amp)
    net = MeanSquare(collection(plan, plan.partition.features, training), keyed=True)
    return TrainStep(net, BAGS, plan, mesh, batches, training, half=half, pipelined=pipelined, amp=amp)


class MeanSquare(nn.Module):
    """The mean of (scale * embedding - 1)^2."""

    def __init__(self, bags: nn.Module, *, keyed: bool) -> None:
        super().__init__()
        self.bags = bags
        self._keyed = keyed  # whether the bags give a KeyedTensor; what is awaited does not tell its type
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, batch: TorchRecBatch) -> tuple[Tensor, tuple[Tensor]]:
        embeddings = self.bags(batch.sparse_features)
        if self._keyed:
            embeddings = embeddings.values()
        loss = (embeddings * self.scale - 1.0).square().mean()
        return loss, (loss.detach(),)


class LinearTower(nn.Module):
    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_width, out_width)

    def forward(self, embeddings: KeyedTensor) -> Tensor:
        return self.linear(embeddings.values())


def towers_step(
    tower: TowerModule,
    plan: Plan,
    mesh: Mesh,
    batches: Sequence[Batch],
    training: Training,
    *,
    half: bool,
    pipelined: bool,
    amp: bool,
) -> Sharded:
    """Tables whole on the ranks where ours are; tower modules that start as ours."""
    held_by, features_of = owners(plan), plan.feature_tables
    towers, sharding = [], EmbeddingModuleShardingPlan()
    for t, features in enumerate(plan.partition.towers):
        # The exchange inside a host gives columns rank by rank.
        by_rank = sorted(features, key=lambda feature: held_by[features_of[feature].name])
        module = LinearTower(tower.in_width, tower.out_width)
        if t == mesh.tower_index:
            _copy_module(tower, module, [features.index(feature) for feature in by_rank])
        towers.append(EmbeddingTower(collection(plan, by_rank, training), module))
        for table in (features_of[feature] for feature in by_rank):
            rank = held_by[table.name]
            # A tower refuses tables that are sharded whole; one shard of all columns is the same.
            sharding[table.name] = ParameterSharding(
                sharding_type=ShardingType.TABLE_COLUMN_WISE.value,
                compute_kernel="fused",
                ranks=[rank],
                sharding_spec=EnumerableShardingSpec(
                    [ShardMetadata([0, 0], [table.rows, table.dim], f"rank:{rank}/cpu")]
                ),
            )
    sharder = embedding_tower_sharding.EmbeddingTowerCollectionSharder(qcomm_codecs_registry=codecs(half))
    net, by_path = MeanSquare(EmbeddingTowerCollection(towers), keyed=False), ShardingPlan(plan={BAGS: sharding})
    features, lr = plan.partition.features, training.dense_lr  # tower modules' is the same by default
    return Sharded(net, by_path, sharder, features, mesh, batches, lr, pipelined=pipelined, amp=amp)


@torch.no_grad()
def _copy_module(ours: TowerModule, theirs: LinearTower, order: Sequence[int]) -> None:
    """`order`: which of our tower's features each of theirs is."""
    linear = ours.linear_weight_bias()
    assert linear is not None
    weight, bias = linear
    theirs.linear.weight.copy_(torch.cat([weight.split(ours.dims, dim=1)[f] for f in order], dim=1))
    theirs.linear.bias.copy_(bias)


class _OnCPU(embedding_tower_sharding.DistributedDataParallel):
    def __init__(self, **options: object) -> None:
        super().__init__(**{**options, "device_ids": None})


embedding_tower_sharding.DistributedDataParallel = _OnCPU
