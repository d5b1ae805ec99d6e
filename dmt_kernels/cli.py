"""The command line: train | eval | partition | demo | convert | info.

Bad input is one sentence on stderr and exit code 2; what is wrong is found before anything is started or written.
"""

import argparse
import dataclasses
import os
import sys
import time
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dmt_kernels.spec import InputError, NotBuilt, RankFailed

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
PAUSE_S = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    # A rank that torchrun started says nothing that rank 0 says too.
    speaks = os.environ.get("RANK", "0") == "0"
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        if arguments == ["info"]:  # answers also where nothing else can be imported
            _info()
            return 0
        options = vars(build_parser().parse_args(arguments))
        options.pop("command")(**options)
        return 0
    except NotBuilt as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except InputError as error:
        if speaks:
            print(f"dmt_kernels: {error}", file=sys.stderr)
        else:
            time.sleep(PAUSE_S)  # torchrun ends all ranks when one has ended: rank 0 is to have spoken by then
        return BAD_INPUT
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "sklearn", "scipy", "rich", "matplotlib"):
            raise
        what = "torch" if error.name == "torch" else "'dmt_kernels[train]'"
        print(f"dmt_kernels: {error.name} is not installed; pip install {what}", file=sys.stderr)
        return BAD_INPUT
    except (RankFailed, FloatingPointError) as error:  # the latter of a training that has diverged in this process
        print(f"dmt_kernels: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("dmt_kernels: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _train(**options: Any) -> None:
    from dmt_kernels.train.config import TrainConfig  # a command imports what it needs: rich and the like are extras
    from dmt_kernels.train.run import train

    train(TrainConfig(**options))


def _evaluate(folder: str, split: str | None, **changes: Any) -> None:
    from dmt_kernels.train.run import evaluate

    evaluate(folder, split, **changes)


def _partition(
    out: str,
    towers: int,
    strategy: str,
    affinity: str,
    slack: dict[str, float] | float,
    pin: list[tuple[str, int]],
    no_importance: bool,
    seconds: float,
    **options: Any,
) -> None:
    from dmt_kernels.train.config import TrainConfig
    from dmt_kernels.train.partition import partition

    pins = dict(pin)
    if len(pins) < len(pin):
        raise InputError("--pin names a feature twice")
    partition(
        TrainConfig(**options),
        out,
        towers,
        strategy,
        affinity=affinity,
        slack=slack,
        pins=pins,
        importance=not no_importance,
        seconds=seconds,
    )


def _demo(**options: Any) -> None:
    from dmt_kernels.train.demo import demo

    demo(**options)


def _convert(source: str, out: str, **options: Any) -> None:
    from dmt_kernels.train.data import convert

    convert(source, Path(out), **options)
    print(f"columns: {out} (--data columns:{out})")


def _info() -> None:
    from dmt_kernels.info import report

    print(report())


class _Parser(argparse.ArgumentParser):
    """Complains in one sentence, as everything else here does, and does not guess options from their beginnings."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def build_parser() -> argparse.ArgumentParser:
    """All commands, each with what it is called with; bad input is an :class:`InputError`."""
    from dmt_kernels.train.config import TrainConfig

    parser = _Parser(prog="python -m dmt_kernels", description="Train and study disaggregated multi-tower models.")
    commands = parser.add_subparsers(required=True, metavar="train | eval | partition | demo | convert | info")
    train = commands.add_parser("train", help="train a model", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for option in dataclasses.fields(TrainConfig):
        _add_option(train, option, option.default)
    train.set_defaults(command=_train)

    evaluate = commands.add_parser("eval", help="score a trained model")
    evaluate.add_argument("folder", metavar="DIR", help="folder of a finished run")
    evaluate.add_argument("--split", choices=("train", "valid", "test"), help="default: test, else valid")
    for option in dataclasses.fields(TrainConfig):
        if option.name in ("data", "batch_size", "local", "device", "threads"):
            _add_option(evaluate, option, None)  # None: as the model was trained
    evaluate.set_defaults(command=_evaluate)

    _add_partition(commands, dataclasses.fields(TrainConfig))

    demo = commands.add_parser("demo", help="train a flat DLRM and its multi-tower twin, and compare")
    demo.add_argument("--data", default="synthetic", help="as for train")
    demo.add_argument("--out", default="demo_out", metavar="DIR", help="folder for both runs and the plot")
    demo.set_defaults(command=_demo)

    convert = commands.add_parser("convert", help="turn data into columns that are mapped, not read")
    convert.add_argument("source", metavar="DATA", help="as for train --data")
    convert.add_argument("--out", required=True, metavar="DIR", help="folder to create")
    convert.add_argument("--hash-rows", type=int, default=100_000, metavar="E", help="rows of a Criteo log's tables")
    convert.add_argument("--workers", type=int, default=1, metavar="N", help="processes")
    convert.add_argument("--seed", type=int, default=0, metavar="S", help="of a split that the data does not bring")
    convert.set_defaults(command=_convert)

    info = commands.add_parser("info", help="print versions, build options and what is available")
    info.set_defaults(command=_info)
    return parser


def _add_partition(commands: Any, fields: Sequence[dataclasses.Field]) -> None:
    from dmt_kernels.planner import DEFAULT_SECONDS, DEFAULT_SLACK
    from dmt_kernels.train.affinity import DEFAULT_AFFINITY
    from dmt_kernels.train.flat_run import STEPS

    shown = argparse.ArgumentDefaultsHelpFormatter
    partition = commands.add_parser("partition", help="choose which features share a tower", formatter_class=shown)
    partition.add_argument(
        "--out", required=True, metavar="FILE", help="JSON file for train --partition; pictures beside it"
    )
    partition.add_argument("--towers", required=True, type=int, metavar="T", help="how many")
    partition.add_argument(
        "--strategy",
        default="coherent",
        metavar="coherent|diverse|strided|random|load",
        help="alike features together, or apart; by turns; at random; or by loads alone",
    )
    partition.add_argument(
        "--affinity",
        default=DEFAULT_AFFINITY,
        metavar="alignment|cosine|ids|FILE",
        help="how alike features are: by embeddings of a short flat run, their mean cosine, ids, or as the rows of a "
        "file say, features in the order of the tables",
    )
    partition.add_argument(
        "--slack",
        type=_converter(_slack, "a number, or LOAD=number,... with a load once"),
        default=DEFAULT_SLACK,
        metavar="S|LOAD=S,...",
        help="how far from the mean a tower's features, bytes, lookups and flops may be; inf leaves a load out; "
        "coherent and diverse keep it, load counts a larger table as that, others only tell",
    )
    partition.add_argument(
        "--seconds", type=float, default=DEFAULT_SECONDS, metavar="S", help="for the solver's proof, of one assignment"
    )
    partition.add_argument(
        "--pin",
        type=_converter(_pin, "FEATURE=TOWER, with the number of a tower"),
        action="append",
        default=[],
        metavar="FEATURE=TOWER",
        help="where a feature has to go",
    )
    partition.add_argument(
        "--no-importance",
        action="store_true",
        help="do not find out what features are worth, by which towers share what they send: they share it evenly",
    )
    for option in fields:
        if option.name in ("data", "tables", "steps", "batch_size", "embedding_dim", "hash_rows", "model", "seed"):
            _add_option(partition, option, STEPS if option.name == "steps" else option.default)
    partition.set_defaults(command=_partition)


def _converter(convert: Callable[[str], Any], form: str) -> Callable[[str], Any]:
    """A type for argparse, which says otherwise only what the function is called."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {form}") from None

    return converted


def _slack(text: str) -> dict[str, float] | float:
    """``0.2``, or ``bytes=0.2,lookups=inf``."""
    if "=" not in text:
        return float(text)
    given = [item.split("=") for item in text.split(",")]
    if len({name for name, _ in given}) < len(given):
        raise ValueError("a load has two slacks")
    return {name: float(part) for name, part in given}


def _pin(text: str) -> tuple[str, int]:
    feature, _, tower = text.rpartition("=")
    return feature, int(tower)


def _add_option(parser: argparse.ArgumentParser, option: dataclasses.Field, default: Any) -> None:
    """Add a field of ``TrainConfig`` as an option."""
    from dmt_kernels.train.config import TrainConfig

    flag, shown = "--" + option.name.replace("_", "-"), option.metadata
    hint = typing.get_type_hints(TrainConfig)[option.name]
    if hint is bool:
        parser.add_argument(flag, action="store_true", default=default, help=shown["help"])
        return
    if shown["word"]:
        kind: Any = _number_or_word
    else:
        kind = next((part for part in typing.get_args(hint) if part is not type(None)), hint)
    metavar = shown["metavar"] or "|".join(shown["choices"])
    parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=shown["help"])


def _number_or_word(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text
