"""Everything a training run is told: the command line, ``config.json`` and the code share one frozen dataclass."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dmt_kernels.embedding.chunk_choice import MAX_CHUNKS
from dmt_kernels.embedding.placement import PLACEMENTS
from dmt_kernels.spec import InputError, Payloads, TableOptimizer, WireFormat
from dmt_kernels.train.data import DEFAULT_HASH_ROWS
from dmt_kernels.train.output import replace_text

DTYPES = {"float32": torch.float32, "float64": torch.float64}


SOURCES = "criteo:PATH|npz:PATH|columns:DIR|synthetic[:ROWS]"
PARTITIONS = "strided|contiguous|FILE"
FORMATS = tuple(format.value for format in WireFormat)
WIRE_OPTIONS = ("chunks", "payload", "tower_payload", "stochastic", "placement")  # of what travels between ranks
TOWER_OPTIONS = ("compression", "tower_columns", "over_arch_width", "tower_lr")  # of tower modules, and what is behind
LOCAL_OPTIONS = ("payload", "stochastic")  # of these, what towers in one process do as well
MAX_TIMEOUT_S = 10**6
SPLITS = ("auto", "whole", "columns", "rows", "replicated")


def _option(
    default: Any,
    help: str,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
    most: float = math.inf,
    word: str | None = None,
) -> Any:
    """A field that the command line shows as ``--name`` with this help; a number is at most `most`, or `word`."""
    metadata = {"help": help, "choices": choices, "metavar": metavar, "most": most, "word": word}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """Options of a run; every field is a command-line option of the same name.

    Raises
    ------
    InputError
        For a value that cannot be trained with, as far as it shows without the data.
    """

    data: str = _option("synthetic", "where the click log comes from", metavar=SOURCES)
    out: str | None = _option(None, "folder for metrics, model and summary (none: nothing is written)", metavar="DIR")
    overwrite: bool = _option(False, "empty DIR first if it holds an earlier run")
    save_every: int | None = _option(None, "steps after which DIR gets a state to go on from", metavar="N")
    resume: bool = _option(False, "go on from the latest state in DIR, or begin if there is none")
    model: str = _option("dlrm", "over-arch", ("dlrm", "dcn"))
    exchange: str = _option("sptt", "road the embeddings take", ("flat", "sptt"))
    tower_module: str = _option("none", "what stands between the two stages", ("none", "dlrm", "dcn"))
    placement: str = _option("member", "where a linear tower module stands (auto: the quicker)", PLACEMENTS)
    towers: int | None = _option(None, "T (default: hosts under torchrun, else 1)", metavar="T")
    members: int | None = _option(None, "R, ranks per tower (default: what the ranks allow, else 1)", metavar="R")
    local: bool = _option(False, "hold all towers in this one process")
    partition: str = _option(
        "strided", "features of a tower: dealt out, in runs, or as a JSON file says", metavar=PARTITIONS
    )
    tables: str | None = _option(None, "JSON file of tables (default: one per feature)", metavar="FILE")
    split: str = _option("auto", "how a table lies inside its tower", SPLITS)
    chunks: int | str = _option(
        1, "pieces of a rank's batch, whose stages overlap", word="auto", metavar="N|auto", most=MAX_CHUNKS
    )
    payload: str = _option("fp32", "format of what crosses hosts, both ways (fp32: as it is)", FORMATS)
    tower_payload: str = _option("fp32", "the same inside a tower", FORMATS)
    stochastic: bool = _option(False, "round gradients to their payload stochastically")
    batch_size: int = _option(1024, "global batch", metavar="B")
    hash_rows: int = _option(DEFAULT_HASH_ROWS, "rows of every table of a Criteo log", metavar="E")
    epochs: int | None = _option(None, "passes over the training split (default 1)", metavar="N")
    steps: int | None = _option(None, "training steps, instead of epochs", metavar="N")
    early_stop: int | None = _option(None, "end after N epochs without a better validation AUC", metavar="N")
    average_weights: float | None = _option(
        None, "score and keep the weights' moving average, decaying so by the step (none: the last)", metavar="DECAY"
    )
    embedding_dim: int = _option(16, "D of every table", metavar="D")
    compression: float = _option(2.0, "how many times narrower a tower module makes its tower", metavar="CR")
    tower_columns: str = _option(
        "importance",
        "how features share what tower modules send: by what the partition file says they are worth, all of them or "
        "those of a tower, or by their dims",
        ("importance", "within", "even"),
    )
    over_arch_width: str = _option(
        "flat",
        "behind compressing towers: that of the flat twin (of a DLRM's features at most 16 columns), or what arrives",
        ("flat", "towers"),
    )
    dense_optimizer: str = _option("adam", "optimizer of everything but the tables", ("adam", "adagrad"))
    dense_lr: float = _option(1e-3, "its learning rate", metavar="LR")
    tower_lr: float = _option(1e-3, "learning rate of tower modules, and of a map behind them", metavar="LR")
    table_optimizer: str = _option("rowwise_adagrad", "optimizer of the tables", ("rowwise_adagrad", "adagrad", "sgd"))
    table_lr: float = _option(0.02, "its learning rate", metavar="LR")
    table_weight_decay: float = _option(0.0, "its L2 decay of the rows a step touches", metavar="WD")
    dtype: str = _option("float32", "of parameters and arithmetic", tuple(DTYPES))
    amp: bool = _option(False, "multiply in bfloat16 (torch.autocast): layers and tower modules")
    device: str = _option("auto", "where to train", ("auto", "cpu", "cuda"))
    timeout: int = _option(120, "seconds until a rank gives up on the others", metavar="SECONDS", most=MAX_TIMEOUT_S)
    threads: int | None = _option(None, "CPU threads per rank (default: cores / local ranks)", metavar="N")
    log_every: int = _option(20, "steps per line of metrics.jsonl", metavar="N")
    seed: int = _option(0, "of tables, parameters and the order of rows", metavar="S")

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if choices and value not in choices:
                raise InputError(f"{flag(option.name)} {value!r} is unknown; choose one of {', '.join(choices)}")
            if (word := option.metadata["word"]) and isinstance(value, str) and value != word:
                raise InputError(f"{flag(option.name)} {value!r} is no number and not {word!r}")
            if isinstance(value, int) and not isinstance(value, bool) and option.name != "seed" and value < 1:
                raise InputError(f"{flag(option.name)} {value} is below 1")
            if isinstance(value, int) and value > option.metadata["most"]:
                raise InputError(f"{flag(option.name)} {value} is above {option.metadata['most']}")
        for name in ("compression", "dense_lr", "tower_lr"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise InputError(f"{flag(name)} {getattr(self, name):g} is not a positive number")
        for name in ("save_every", "resume"):
            if getattr(self, name) and self.out is None:
                raise InputError(f"{flag(name)} needs --out")
        if self.resume and self.overwrite:
            raise InputError("--resume and --overwrite exclude each other")
        if self.average_weights is not None and not 0 < self.average_weights < 1:
            raise InputError(f"--average-weights {self.average_weights:g} is not between 0 and 1")
        if self.amp and self.dtype == "float64":
            raise InputError("--amp and --dtype float64 exclude each other: one multiplies in bfloat16")
        if self.epochs is not None and self.steps is not None:
            raise InputError("--epochs and --steps exclude each other")
        if self.exchange == "flat" and self.tower_module != "none":
            raise InputError(f"--tower-module {self.tower_module} needs --exchange sptt: flat has no towers to stop at")
        if self.placement == "owner" and self.tower_module != "dlrm":
            raise InputError("--placement owner needs --tower-module dlrm, a linear one")
        if self.placement != "member" and self.exchange == "flat":
            raise InputError(f"--placement {self.placement} needs --exchange sptt: flat has no tower modules to place")
        if self.exchange == "flat" and self.tower_payload != "fp32":
            raise InputError(f"--tower-payload {self.tower_payload} needs --exchange sptt: flat has no tower stage")
        inert = [name for name, value in local_options(self.exchange).items() if getattr(self, name) != value]
        if self.local and inert:
            raise InputError(f"--local sends nothing between ranks: {flag(inert[0])} has nothing to act on")
        self.table_optimizer_spec()

    def idle_options(self) -> list[str]:
        """Options that say something of tower modules where there are none."""
        if self.tower_module != "none":
            return []
        return [flag(name) for name in TOWER_OPTIONS if getattr(self, name) != _defaults()[name]]

    def dense_training(self) -> dict[str, Any]:
        """What a :class:`~dmt_kernels.train.step.TrainStep` is told besides the model."""
        return {
            "optimizer": self.dense_optimizer,
            "lr": self.dense_lr,
            "tower_lr": self.tower_lr,
            "amp": self.amp,
        }

    def table_optimizer_spec(self) -> TableOptimizer:
        """The tables' optimizer."""
        return TableOptimizer(self.table_optimizer, self.table_lr, weight_decay=self.table_weight_decay)  # type: ignore[arg-type]

    def payloads(self) -> Payloads:
        """What rows travel as."""
        return Payloads.of(self.payload, self.tower_payload, stochastic=self.stochastic)

    def torch_dtype(self) -> torch.dtype:
        """The dtype of parameters and arithmetic."""
        return DTYPES[self.dtype]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        replace_text(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Read what :meth:`save` wrote, or a version before it.

        Raises
        ------
        InputError
            If the file is missing, cannot be read or holds something else.
        """
        try:
            given = json.loads(path.read_text())
            # Files that do not name them are of before there was a choice.
            before = {"over_arch_width": "towers"} | ({"tower_lr": given["dense_lr"]} if "dense_lr" in given else {})
            return cls(**(before | given))
        except FileNotFoundError:
            raise InputError(f"{path.parent} holds no finished run: {path.name} is missing") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is not the configuration of a run: {error}") from None


def resolve_topology(config: TrainConfig, world: int | None, local_world: int | None) -> TrainConfig:
    """Fill in the towers and members that were not given.

    Parameters
    ----------
    config : TrainConfig
        Options as given.
    world, local_world : int or None
        Ranks, and ranks per host, that torchrun started; None when nothing did.

    Raises
    ------
    InputError
        If towers times members is not the number of ranks.
    """
    towers, members = config.towers, config.members
    if config.local:
        if world not in (None, 1):
            raise InputError(f"--local is one process and torchrun started {world}")
    elif world is not None:
        # What is not given is what the ranks leave, at least 1: the check below then names the mismatch.
        if members is None:
            members = max(1, world // towers) if towers else local_world or world
        towers = towers or max(1, world // members)
        if towers * members != world:
            raise InputError(f"a world of {world} ranks is not {towers} towers x {members} members")
    return dataclasses.replace(config, towers=towers or 1, members=members or 1)


def local_options(exchange: str) -> dict[str, Any]:
    """What makes a run on ranks one in this process: nothing travels there, and towers round as if it did."""
    acts = LOCAL_OPTIONS if exchange == "sptt" else ()
    return {"local": True, **{name: _defaults()[name] for name in WIRE_OPTIONS if name not in acts}}


def _defaults() -> dict[str, Any]:
    return {option.name: option.default for option in dataclasses.fields(TrainConfig)}


def flag(name: str) -> str:
    """The command-line option of a field."""
    return "--" + name.replace("_", "-")
