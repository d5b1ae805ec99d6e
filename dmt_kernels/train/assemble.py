"""From options to a model on its ranks: data, plan, process groups, exchange, over-arch."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import nn

from dmt_kernels.comm import Mesh, build_mesh
from dmt_kernels.embedding import build_exchange
from dmt_kernels.embedding.chunk_choice import Chunks
from dmt_kernels.embedding.placement import obstacle_to_owners
from dmt_kernels.models import DCN, DLRM, expanded_dim
from dmt_kernels.planner import STRATEGIES, partition_features, place
from dmt_kernels.spec import ExchangeError, InputError, Partition, Plan, Table, Topology, tables_by_feature
from dmt_kernels.towers import (
    TowerModule,
    build_tower_module,
    common_out_dim,
    even_columns,
    share_columns,
    tower_width,
)
from dmt_kernels.train.config import TrainConfig, flag
from dmt_kernels.train.data import Dataset, Loader, mean_lookups, open_dataset
from dmt_kernels.train.output import replace_text
from dmt_kernels.train.step import mixed_precision


@dataclass(frozen=True)
class Setup:
    """What a run is about, checked: everything that can be wrong has been found out by now."""

    config: TrainConfig
    dataset: Dataset
    plan: Plan

    @property
    def rows(self) -> tuple[int, ...]:
        """Of the training, validation and test splits."""
        return tuple(self.dataset.rows(split) for split in ("train", "valid", "test"))

    @property
    def steps(self) -> int:
        """Training steps of the whole run."""
        steps_per_epoch = -(-self.dataset.rows("train") // self.config.batch_size)
        return self.config.steps or (self.config.epochs or 1) * steps_per_epoch

    def placed(self, placement: str) -> "Setup":
        """The same with its tower modules placed."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, placement=placement))

    def facts(self) -> Iterator[tuple[str, object]]:
        """What all ranks must have been told alike, besides the plan; files may lie elsewhere on another host."""
        for name, value in dataclasses.asdict(self.config).items():
            if name not in ("data", "out", "overwrite", "tables", "partition", "device", "threads"):
                yield flag(name), value
        if (importance := self.plan.partition.importance) is not None:
            for feature in self.plan.partition.features:
                yield f"importance of {feature!r}", importance[feature]
        yield "dense features", self.dataset.dense_width
        yield "rows of the training, validation and test splits", self.rows


def set_up_training(config: TrainConfig) -> Setup:
    """Do what :func:`set_up` does for a run that trains.

    Raises
    ------
    InputError
        As there, and for rows that are missing for it.
    """
    setup = set_up(config)
    if not setup.dataset.rows("train"):
        raise InputError(f"{setup.dataset.name} has no training rows")
    if config.early_stop is not None and not setup.dataset.rows("valid"):
        raise InputError(f"--early-stop needs validation rows, and {setup.dataset.name} has none")
    return setup


def set_up(config: TrainConfig) -> Setup:
    """Open the data, lay out the tables and try the model's shapes, without a process group or a table.

    Raises
    ------
    InputError
        Naming what is wrong with the options or the data.
    """
    assert config.towers is not None and config.members is not None
    choose_device(config)
    rank = int(os.environ.get("RANK", "0"))
    dataset = open_dataset(config.data, seed=config.seed, hash_rows=config.hash_rows, rank=rank)
    tables = _tables(config, dataset)
    if config.partition in STRATEGIES:
        partition = partition_features(tables, config.towers, config.partition)
    else:
        partition = Partition.load(Path(config.partition))
    splits = {} if config.split == "auto" else {table.name: config.split for table in tables}
    topology = Topology(config.towers, config.members)
    setup = Setup(config, dataset, place(tables, partition, topology, splits, mean_lookups(dataset)))
    # Towers in one process need no shares, unless they round rows as ranks would.
    if config.batch_size % topology.world and not (config.local and config.payload == "fp32"):
        whose = f"that --payload {config.payload} rounds for" if config.local else ""
        raise InputError(
            f"--batch-size {config.batch_size} cannot be shared out evenly to {topology.world} ranks {whose}".rstrip()
        )
    with torch.device("meta"):
        modules = _tower_modules(setup)
        _over_arch(setup, _Shapes(list(modules.values())))
    if config.placement == "owner" and (obstacle := obstacle_to_owners(setup.plan, modules)) is not None:
        raise InputError(f"--placement owner: {obstacle}")
    return setup


def save_layout(setup: Setup, path: Path) -> None:
    """Write tables and towers as JSON, in the form that ``--tables`` and ``--partition`` read."""
    replace_text(path, json.dumps(layout_of(setup), indent=1) + "\n")


def layout_of(setup: Setup) -> dict[str, object]:
    """Tables and towers, and how many dense features there are."""
    return {
        "tables": [dataclasses.asdict(table) for table in setup.plan.tables],
        **setup.plan.partition.layout(),
        "dense_width": setup.dataset.dense_width,
    }


def choose_device(config: TrainConfig) -> torch.device:
    """This rank's device: under ``auto`` a GPU if there is one for every rank of this host and the ops run on it.

    Raises
    ------
    InputError
        If CUDA is asked for and cannot be had.
    """
    assert config.towers is not None and config.members is not None
    alone = 1 if config.local else config.towers * config.members
    ranks, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", alone)), torch.cuda.device_count()
    obstacle = ""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("dmt::embedding_bag", "CUDA"):
        obstacle = "the ops are not built for CUDA"
    elif gpus < ranks:
        obstacle = f"{gpus} GPUs are too few for {ranks} ranks"
    if config.device == "cuda" and obstacle:
        raise InputError(f"--device cuda: {obstacle}")
    if config.device == "cpu" or obstacle:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def connect(config: TrainConfig) -> Mesh | None:
    """Join the other ranks of this run; None for ``--local``, which is alone.

    Raises
    ------
    ExchangeError
        They cannot be found, and torchrun has left the addresses of earlier ones where it tells them.
    """
    device = choose_device(config)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if config.local:
        return None
    timeout = timedelta(seconds=config.timeout)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
        return build_mesh(config.towers, config.members, device=device, timeout_s=config.timeout)
    except RuntimeError as error:
        restarts, shares = os.environ.get("TORCHELASTIC_RESTART_COUNT"), os.environ.get("TORCHELASTIC_USE_AGENT_STORE")
        if restarts in (None, "0") or shares != "True":
            raise
        raise ExchangeError(  # pytorch/pytorch#135712
            "ranks that torchrun has restarted may find the addresses of those before them: start torchrun with "
            f"TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment ({error})"
        ) from error


def build_model(setup: Setup, mesh: Mesh | None) -> DLRM | DCN:
    """Build this rank's part of the model; same seed, same model, whatever the ranks."""
    config = setup.config
    trial = None
    if config.placement == "auto" and mesh is not None:
        trial = next(iter(make_loader(setup, "train", mesh, mesh.device))).sparse
    device = choose_device(config)
    with (
        _default_dtype(config.torch_dtype()),
        mixed_precision(device, amp=config.amp),
    ):  # a trial of placements is as training
        exchange = build_exchange(
            config.exchange,
            setup.plan,
            tower_modules=None if config.tower_module == "none" else _tower_modules(setup),
            optimizer=config.table_optimizer_spec(),
            seed=config.seed,
            mesh=mesh,
            dtype=config.torch_dtype(),
            chunks=cast(Chunks, config.chunks),
            payloads=config.payloads(),
            placement=config.placement,
            trial=trial,
        )
        model = _over_arch(setup, exchange)
    return model.to(device)


def make_loader(setup: Setup, split: str, mesh: Mesh | None, device: torch.device, *, shuffle: bool = False) -> Loader:
    """This rank's batches of a split, features in the plan's order."""
    return Loader(
        setup.dataset,
        split,
        global_batch=setup.config.batch_size,
        rank=0 if mesh is None else mesh.rank,
        world=1 if mesh is None else mesh.topology.world,
        feature_order=setup.plan.partition.features,
        seed=setup.config.seed,
        shuffle=shuffle,
        device=device,
    )


class _Shapes(nn.Module):
    """What an over-arch has to know of an exchange before there is one."""

    def __init__(self, modules: Sequence[TowerModule]) -> None:
        super().__init__()
        self.tower_dims = [module.dims for module in modules]
        self.out_widths = [module.out_width for module in modules]


def _tables(config: TrainConfig, dataset: Dataset) -> tuple[Table, ...]:
    rows = {feature.name: feature.rows for feature in dataset.features}
    if config.tables is None:
        return tuple(Table(name, n, config.embedding_dim, (name,)) for name, n in rows.items())
    try:
        entries = json.loads(Path(config.tables).read_text())["tables"]
        tables = tuple(Table(**(entry | {"features": tuple(entry["features"])})) for entry in entries)
    except OSError as error:
        raise InputError(f"--tables {config.tables} cannot be read: {error.strerror}") from None
    except InputError as error:
        raise InputError(f"--tables {config.tables}: {error}") from None
    except (ValueError, TypeError, KeyError):
        form = '{"tables": [{"name": "t", "rows": 10, "dim": 16, "features": ["a", "b"], "pooling": "sum"}, ...]}'
        raise InputError(f"--tables {config.tables} is not of the form {form}") from None
    owners = tables_by_feature(tables)
    for feature, table in owners.items():
        if feature not in rows:
            raise InputError(f"feature {feature!r} of table {table.name!r} is not in {dataset.name}")
        if rows[feature] > table.rows:
            raise InputError(f"feature {feature!r} needs {rows[feature]} rows, table {table.name!r} has {table.rows}")
    if missing := rows.keys() - owners.keys():
        raise InputError(f"feature {min(missing)!r} of {dataset.name} has no table in {config.tables}")
    return tables


def _expands(setup: Setup) -> bool:
    """Whether the over-arch maps what arrives to as many columns as the flat model has."""
    config = setup.config
    return config.tower_module != "none" and config.compression > 1 and config.over_arch_width == "flat"


def _out_dim(setup: Setup) -> int:
    """Width of a feature in the DLRM's dot products."""
    if _expands(setup):
        return expanded_dim(table.dim for table in setup.plan.tables)
    return common_out_dim(setup.config.tower_module, _tower_dims(setup), setup.config.compression)


def _unit(setup: Setup) -> int:
    """What a tower's columns have to be a multiple of: where they are a DLRM's features as they are, of these."""
    return _out_dim(setup) if setup.config.model == "dlrm" and not _expands(setup) else 1


def _tower_dims(setup: Setup) -> list[tuple[int, ...]]:
    return [setup.plan.tower_dims(t) for t in range(setup.plan.topology.towers)]


def _tower_columns(setup: Setup) -> list[tuple[int, ...]]:
    """Columns of every tower's features that cross hosts, after a tower module."""
    config, tower_dims, partition = setup.config, _tower_dims(setup), setup.plan.partition
    unit = _unit(setup)
    if partition.importance is None or config.tower_columns == "even":
        return [even_columns(dims, tower_width(dims, config.compression, unit)) for dims in tower_dims]
    tables = setup.plan.feature_tables
    rows = [[tables[feature].rows for feature in tower] for tower in partition.towers]
    importance = [[partition.importance[feature] for feature in tower] for tower in partition.towers]
    if config.tower_columns == "within":  # every tower sends as much as with even shares
        known = zip(tower_dims, rows, importance, strict=True)
        return [share_columns([d], [r], [i], config.compression, unit)[0] for d, r, i in known]
    return share_columns(tower_dims, rows, importance, config.compression, unit)


def _tower_modules(setup: Setup) -> dict[int, TowerModule]:
    config = setup.config
    # Features start apart, as in a flat model, unless what is compressed stays so (docs/trials.md).
    isometric = _expands(setup) or config.compression <= 1
    return {
        t: build_tower_module(
            config.tower_module,
            dims,
            columns=columns,
            out_dim=_unit(setup),
            isometric=isometric,
            seed=config.seed,
            name=f"tower{t}",
        )
        for t, (dims, columns) in enumerate(zip(_tower_dims(setup), _tower_columns(setup), strict=True))
    }


def _over_arch(setup: Setup, exchange: nn.Module) -> DLRM | DCN:
    expand = _expands(setup)
    columns = _tower_columns(setup) if expand else None
    dense_width, seed = setup.dataset.dense_width, setup.config.seed
    if setup.config.model == "dlrm":
        return DLRM(exchange, dense_width, _out_dim(setup), expand=expand, columns=columns, seed=seed)
    return DCN(exchange, dense_width, expand=expand, columns=columns, seed=seed)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Modules built inside have parameters of this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
