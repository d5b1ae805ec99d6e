"""TorchRec's flat exchange and its training step, on the ranks that ours has.

The step is stock TorchRec: its DLRM, a sharded ``EmbeddingBagCollection`` with FBGEMM's fused tables, and
``DistributedModelParallel``, which averages dense gradients through DDP. ``TrainPipelineSparseDist``, which overlaps
the exchange of ids with the step before, stays out, since ours does not overlap yet either.
``EmbeddingTowerCollection``, the nearest relative of our two stages, cannot run on CPU, and there is no DCN like ours.
"""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Sequence
from functools import partial

import fbgemm_gpu  # noqa: F401  (registers the operators; torchrec alone fails later, and says less)
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.datasets.utils import Batch as TorchRecBatch
from torchrec.distributed.comm_ops import alltoall_pooled
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.models.dlrm import DLRM as TorchRecDLRM
from torchrec.models.dlrm import DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from bench.registry import Run
from dmt_kernels.comm import Mesh
from dmt_kernels.embedding.initial_rows import initial_rows
from dmt_kernels.models import DLRM
from dmt_kernels.spec import Batch, Plan, Table
from dmt_kernels.spec.shards import whole
from dmt_kernels.train.assemble import Setup

COLLECTION = "sparse_arch.embedding_bag_collection"  # inside a DLRM of TorchRec

# DDP asks torch.fx whether it is tracing, and every rank would print what torch.fx has to say about that.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def one_stage(by_rank: Tensor, group: dist.ProcessGroup) -> Run:
    """The way home of a sharded collection's pooled rows: ``[W, B, D]`` of all samples, ``[B, W * D]`` of the own."""
    world, samples, width = by_rank.shape
    pooled = by_rank.view(world * samples, width)

    @torch.no_grad()
    def run() -> Tensor:
        return alltoall_pooled(pooled, [samples] * world, [width] * world, group=group).wait()

    return run


def train_step(model: nn.Module, setup: Setup, mesh: Mesh, batches: Sequence[Batch]) -> TrainStep | None:
    """A step of the flat DLRM that `model` is, from the same first values; None for other models."""
    return TrainStep(model, setup, mesh, batches) if isinstance(model, DLRM) else None


class TrainStep:
    """Trains TorchRec's twin of a flat DLRM, and returns this rank's own mean loss.

    Tables are whole, each on the rank where ours has it (or its first columns). Optimizers are as ours: row-wise
    Adagrad in the backward pass, and Adam in one kernel for the rest. All samples of `batches` are real, so that the
    mean over a rank's samples, averaged over ranks, is the mean over all of them. Gradients are summed in another
    order than ours: results agree to rounding.
    """

    def __init__(self, model: DLRM, setup: Setup, mesh: Mesh, batches: Sequence[Batch]) -> None:
        config, plan = setup.config, setup.plan
        assert model.bottom is not None and config.table_optimizer == "rowwise_adagrad"
        features = plan.partition.features
        collection = EmbeddingBagCollection(
            tables=[_table_config(plan.feature_tables[feature], config.seed) for feature in features],
            device=torch.device("meta"),
        )
        of_tables = config.table_optimizer_spec()
        apply_optimizer_in_backward(RowWiseAdagrad, collection.parameters(), {"lr": of_tables.lr, "eps": of_tables.eps})
        net = TorchRecDLRM(
            embedding_bag_collection=collection,
            dense_in_features=setup.dataset.dense_width,
            dense_arch_layer_sizes=[layer.out_features for layer in _linears(model.bottom)],
            over_arch_layer_sizes=[layer.out_features for layer in _linears(model.top)],
            dense_device=mesh.device,
        )
        _copy_dense(model, net)
        self._model = _distribute(DLRMTrain(net), _owners(plan), mesh)
        dense = dict(in_backward_optimizer_filter(self._model.named_parameters()))
        self._optimizer = CombinedOptimizer(
            [
                self._model.fused_optimizer,
                KeyedOptimizerWrapper(dense, partial(torch.optim.Adam, lr=config.dense_lr, fused=True)),
            ]
        )
        self._batches = itertools.cycle([_keyed(batch, features) for batch in batches])

    def __call__(self) -> Tensor:
        self._optimizer.zero_grad()
        loss, _ = self._model(next(self._batches))
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def tables(self) -> dict[str, Tensor]:
        """``[E, D]`` each, by name: those that this rank holds."""
        bags = self._model.module.model.get_submodule(COLLECTION).embedding_bags
        return {name: bag.weight.detach() for name, bag in bags.items() if bag.weight.numel()}


def _distribute(net: DLRMTrain, owners: dict[str, int], mesh: Mesh) -> DistributedModelParallel:
    sharder = EmbeddingBagCollectionSharder()
    plan = construct_module_sharding_plan(
        net.model.get_submodule(COLLECTION),
        per_param_sharding={name: table_wise(rank=rank) for name, rank in owners.items()},
        sharder=sharder,
        local_size=int(os.environ["LOCAL_WORLD_SIZE"]),
        world_size=mesh.topology.world,
        device_type=mesh.device.type,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of DDP, about an argument that TorchRec gives it
        return DistributedModelParallel(
            module=net,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=mesh.device,
            plan=ShardingPlan(plan={f"model.{COLLECTION}": plan}),
            sharders=[sharder],
        )


def _owners(plan: Plan) -> dict[str, int]:
    """The rank of every table's first shard."""
    return {
        shard.table.name: plan.topology.rank_of(shard.tower, shard.member)
        for shard in reversed(plan.shards)
        if not shard.row_start and not shard.col_start
    }


def _table_config(table: Table, seed: int) -> EmbeddingBagConfig:
    def fill(weight: Tensor) -> None:
        if weight.numel():  # empty where the table is not
            with torch.no_grad():
                weight.copy_(initial_rows(whole(table, 0, 0), seed, None, weight.dtype))

    return EmbeddingBagConfig(
        name=table.name,
        embedding_dim=table.dim,
        num_embeddings=table.rows,
        feature_names=list(table.features),
        pooling=PoolingType[table.pooling.upper()],
        init_fn=fill,
    )


@torch.no_grad()
def _copy_dense(ours: DLRM, theirs: TorchRecDLRM) -> None:
    """Give TorchRec's layers our first values.

    Both concatenate the dense feature and the dot products, but ours come in the order (1, 0), (2, 0), (2, 1), ...,
    and TorchRec's in the order (0, 1), (0, 2), ..., (1, 2), ...
    """
    assert ours.bottom is not None
    for mine, its in ((ours.bottom, theirs.dense_arch), (ours.top, theirs.over_arch)):
        for source, target in zip(_linears(mine), _linears(its), strict=True):
            target.weight.copy_(source.weight)
            target.bias.copy_(source.bias)
    low, high = theirs.inter_arch.triu_indices
    columns = torch.cat([torch.arange(ours.out_dim), ours.out_dim + high * (high - 1) // 2 + low])
    _linears(theirs.over_arch)[0].weight.copy_(_linears(ours.top)[0].weight[:, columns])


def _linears(module: nn.Module) -> list[nn.Linear]:
    """In the order in which they are applied."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def _keyed(batch: Batch, features: Sequence[str]) -> TorchRecBatch:
    sparse = KeyedJaggedTensor.from_lengths_sync(
        keys=list(features), values=batch.sparse.ids, lengths=batch.sparse.lengths().int()
    )
    return TorchRecBatch(dense_features=batch.dense, sparse_features=sparse, labels=batch.label)
