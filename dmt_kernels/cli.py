"""The command line: train | eval | demo | convert | info.

Bad input is one sentence on stderr and exit code 2; what is wrong is found before anything is started or written.
"""

import argparse
import dataclasses
import os
import sys
import time
import typing
from collections.abc import Sequence
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
        options = vars(_parser().parse_args(arguments))
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
        if error.name not in ("torch", "sklearn", "rich", "matplotlib"):
            raise
        what = "torch" if error.name == "torch" else "'dmt_kernels[train]'"
        print(f"dmt_kernels: {error.name} is not installed; pip install {what}", file=sys.stderr)
        return BAD_INPUT
    except RankFailed as error:
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


def _demo(**options: Any) -> None:
    from dmt_kernels.train.demo import demo

    demo(**options)


def _convert(source: str, out: str, **options: Any) -> None:
    from dmt_kernels.train.data import convert

    convert(source, Path(out), **options)


def _info() -> None:
    from dmt_kernels.info import report

    print(report())


class _Parser(argparse.ArgumentParser):
    """Complains in one sentence, as everything else here does, and does not guess options from their beginnings."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _parser() -> argparse.ArgumentParser:
    from dmt_kernels.train.config import TrainConfig

    parser = _Parser(prog="python -m dmt_kernels", description="Train and study disaggregated multi-tower models.")
    commands = parser.add_subparsers(required=True, metavar="train | eval | demo | convert | info")
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
