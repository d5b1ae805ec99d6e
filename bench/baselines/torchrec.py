"""TorchRec's flat exchange and its training step, on the ranks that ours has.

The step is stock TorchRec: its DLRM, a sharded ``EmbeddingBagCollection`` with FBGEMM's fused tables, and
``DistributedModelParallel``, which averages dense gradients through DDP; with or without ``TrainPipelineSparseDist``,
which exchanges the ids of the next batch under a step, as ours does.
There is no DCN like ours. ``torchrec_towers`` has ``EmbeddingTowerCollection``, the nearest relative of our two stages.
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
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.train_pipeline.train_pipelines import TrainPipelineSparseDist
from torchrec.distributed.types import ModuleSharder, QuantizedCommCodecs, ShardingEnv, ShardingPlan
from torchrec.models.dlrm import DLRM as TorchRecDLRM
from torchrec.models.dlrm import DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from bench.baselines import Training
from bench.timing import Run
from dmt_kernels.comm import Mesh
from dmt_kernels.embedding.initial_rows import initial_rows
from dmt_kernels.models import DLRM
from dmt_kernels.spec import Batch, Plan, Table
from dmt_kernels.spec.shards import whole
from dmt_kernels.train.assemble import Setup

COLLECTION = "model.sparse_arch.embedding_bag_collection"  # inside a DLRMTrain

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
    if not isinstance(model, DLRM):
        return None
    config = setup.config
    training = Training(config.table_optimizer_spec(), config.dense_lr, config.seed)
    return TrainStep(dlrm(model, setup.plan, training), COLLECTION, setup.plan, mesh, batches, training)


class Sharded:
    """Trains a net that ``DistributedModelParallel`` has sharded, and returns this rank's own mean loss.

    `net` maps a batch of TorchRec's to a loss and something else. All samples of `batches` are real, so that the mean
    over a rank's samples, averaged over ranks, is the mean over all of them. Gradients are summed in another order than
    ours: results agree to rounding.
    """

    def __init__(
        self,
        net: nn.Module,
        plan: ShardingPlan,
        sharder: ModuleSharder[nn.Module],
        features: Sequence[str],
        mesh: Mesh,
        batches: Sequence[Batch],
        dense_lr: float,
        *,
        pipelined: bool = False,
        amp: bool = False,
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of DDP, about an argument that TorchRec gives it
            self._model = DistributedModelParallel(
                module=net,
                env=ShardingEnv.from_process_group(dist.group.WORLD),
                device=mesh.device,
                plan=plan,
                sharders=[sharder],
            )
        dense = dict(in_backward_optimizer_filter(self._model.named_parameters()))
        adam = partial(torch.optim.Adam, lr=dense_lr, fused=True)
        self._optimizer = CombinedOptimizer([self._model.fused_optimizer, KeyedOptimizerWrapper(dense, adam)])
        self._amp = partial(torch.autocast, mesh.device.type, torch.bfloat16, enabled=amp)
        self._batches = itertools.cycle([_keyed(batch, features) for batch in batches])
        self._pipeline = TrainPipelineSparseDist(self._model, self._optimizer, mesh.device) if pipelined else None

    def __call__(self) -> Tensor:
        if self._pipeline is not None:
            with self._amp():
                return self._pipeline.progress(self._batches)[0]
        self._optimizer.zero_grad()
        with self._amp():
            loss, _ = self._model(next(self._batches))
        loss.backward()
        self._optimizer.step()
        return loss.detach()


class TrainStep(Sharded):
    """A net over one flat collection, at `path` in it.

    Tables are whole, each on the rank where ours has it (or its first columns). With `half`, rows and
    gradients travel as float16.
    """

    def __init__(
        self,
        net: nn.Module,
        path: str,
        plan: Plan,
        mesh: Mesh,
        batches: Sequence[Batch],
        training: Training,
        *,
        half: bool = False,
        pipelined: bool = False,
        amp: bool = False,
    ) -> None:
        self._path = path
        sharder = EmbeddingBagCollectionSharder(qcomm_codecs_registry=codecs(half))
        sharding = construct_module_sharding_plan(
            net.get_submodule(path),
            per_param_sharding={name: table_wise(rank=rank) for name, rank in owners(plan).items()},
            sharder=sharder,
            local_size=int(os.environ["LOCAL_WORLD_SIZE"]),
            world_size=mesh.topology.world,
            device_type=mesh.device.type,
        )
        by_path = ShardingPlan(plan={path: sharding})
        features, lr = plan.partition.features, training.dense_lr
        super().__init__(net, by_path, sharder, features, mesh, batches, lr, pipelined=pipelined, amp=amp)

    def tables(self) -> dict[str, Tensor]:
        """``[E, D]`` each, by name: those that this rank holds."""
        bags = self._model.module.get_submodule(self._path).embedding_bags
        return {name: bag.weight.detach() for name, bag in bags.items() if bag.weight.numel()}


def dlrm(model: DLRM, plan: Plan, training: Training) -> DLRMTrain:
    """TorchRec's twin of a flat DLRM, from the same first values."""
    assert model.bottom is not None
    net = TorchRecDLRM(
        embedding_bag_collection=collection(plan, plan.partition.features, training),
        dense_in_features=_linears(model.bottom)[0].in_features,
        dense_arch_layer_sizes=[layer.out_features for layer in _linears(model.bottom)],
        over_arch_layer_sizes=[layer.out_features for layer in _linears(model.top)],
        dense_device=torch.device("cpu"),
    )
    _copy_dense(model, net)
    return DLRMTrain(net)


def collection(plan: Plan, features: Sequence[str], training: Training) -> EmbeddingBagCollection:
    """The tables of some features, which get their values where they are sharded to."""
    assert training.tables.kind == "rowwise_adagrad"
    bags = EmbeddingBagCollection(
        tables=[_table_config(plan.feature_tables[feature], training.seed) for feature in features],
        device=torch.device("meta"),
    )
    apply_optimizer_in_backward(
        RowWiseAdagrad, bags.parameters(), {"lr": training.tables.lr, "eps": training.tables.eps}
    )
    return bags


def codecs(half: bool) -> dict[str, QuantizedCommCodecs] | None:
    """What makes rows and gradients travel as float16."""
    if not half:
        return None
    precision = QCommsConfig(forward_precision=CommType.FP16, backward_precision=CommType.FP16)
    return get_qcomm_codecs_registry(precision, device=torch.device("cpu"))


def owners(plan: Plan) -> dict[str, int]:
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
