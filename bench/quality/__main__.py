"""``python -m bench.quality``: what towers cost in AUC, by pairs of runs with the same seed.

Trials of one space choose the options of flat models and of towers of each compression by validation AUC, as many for
all: random ones first, then some near the best, each time with more seeds for the best few. Then all are trained with
seed after seed until their difference in test AUC is known well enough. Trials and runs end alike, by validation AUC. A
bench that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import environment, report
from bench.quality import show
from bench.quality.grid import PARTITIONS, Plan, grid
from bench.quality.progress import BenchProgress
from bench.quality.provenance import made_otherwise
from bench.quality.records import Records
from bench.quality.search import Search
from bench.quality.study import Study, conduct
from dmt_kernels.cli import build_parser
from dmt_kernels.planner import GROUPINGS, STRATEGIES
from dmt_kernels.spec import InputError
from dmt_kernels.train.config import FORMATS, TrainConfig, flag

CHOSEN_HERE = ("data", "seed", "local", "partition", "model", "exchange", "out", "overwrite")


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code: 2 for bad input, 130 where it was interrupted; both leave what is finished."""
    given = _parser().parse_args(argv)
    folder = Path(given.out)
    try:
        plan = _plan(given)
        study = Study(plan, Records(folder / "runs.jsonl"))
        study.check()
        if given.report and not len(study.records):
            raise InputError(f"{folder} holds no finished runs")
        folder.mkdir(parents=True, exist_ok=True)
        if others := study.strangers():
            print(f"bench-quality: not shown: runs of other options in {folder}, {others} of them", file=sys.stderr)
        if not given.report:
            study.check_data()
            if warning := made_otherwise(study.finished()):
                print(f"bench-quality: {warning}", file=sys.stderr)
            with BenchProgress() as progress:
                conduct(study, folder, given.jobs, progress.tell)
        report.show(report.facts(environment.collect(), "environment"), *show.tables(study))
        show.write(study, folder)
    except (InputError, OSError) as error:
        print(f"bench-quality: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench-quality: interrupted; the same command goes on", file=sys.stderr)
        return 130
    print(f"tables: {folder / 'tables.md'}\nplot:   {folder / 'differences.png'}")
    return 0


def _plan(given: argparse.Namespace) -> Plan:
    cells = grid(given.models, given.towers, given.compressions, given.partitions, given.train_payloads)
    return Plan(
        data=given.data,
        cells=cells,
        tune_at=given.tune_at,
        search=Search(given.trials, given.near, given.rounds, given.finalists, given.trial_seeds),
        trial_epochs=given.trial_epochs,
        epochs=given.epochs,
        patience=given.patience,
        least=given.least,
        most=max(given.most, given.least),
        half_width=given.half_width,
        payloads=given.payloads,
        options=({"average_weights": given.average_weights} if given.average_weights else {}) | dict(given.option),
        tower_options=dict(given.tower_option),
    )


def _parser() -> argparse.ArgumentParser:
    shown, search = argparse.ArgumentDefaultsHelpFormatter, Search()
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality", description=__doc__, formatter_class=shown, allow_abbrev=False
    )

    def add(name: str, default: Any, help: str, metavar: str, kind: Any = _count, **more: Any) -> None:
        parser.add_argument(name, default=default, type=kind, help=help, metavar=metavar, **more)

    add("--data", "synthetic", "as for train", "DATA", str)
    add("--out", "bench_quality", "folder of finished runs, towers, tables and plot", "DIR", str)
    add("--jobs", len(os.sched_getaffinity(0)), "runs at a time, one core each", "N")
    add("--models", ["dlrm", "dcn"], "over-archs", "M", str, nargs="+")
    add("--towers", [2, 4, 8], "numbers of towers", "T", nargs="+")
    add("--compressions", [1.0, 2.0, 4.0, 8.0], "compressions", "CR", float, nargs="+")
    rules = list(dict.fromkeys([*GROUPINGS, *STRATEGIES]))
    add("--partitions", list(PARTITIONS), "how towers are chosen", "P", str, nargs="+", choices=rules)
    formats = {"kind": str, "nargs": "*", "choices": FORMATS}
    add("--payloads", ["bf16", "fp8"], "formats of peer rows to score with; finished runs keep theirs", "F", **formats)
    add("--train-payloads", [], "formats that towers are also trained with", "F", **formats)
    add("--trials", search.trials, "random trials, for each over-arch: flat, and towers of each compression", "N")
    add("--near", search.near, "trials of each round near the best", "N")
    add("--rounds", search.rounds, "rounds of trials near the best so far, after the random ones", "N", _whole)
    add("--finalists", search.finalists, "trials of each round that run again with other seeds", "N")
    add("--trial-seeds", search.seeds, "runs of every finalist; their mean decides", "N")
    add("--tune-at", 4, "towers of the trials, of the first of the partitions; every compression has trials", "T")
    add("--epochs", 20, "of a run at most", "N")
    add("--patience", 2, "epochs without a better validation AUC that end a run", "N")
    add("--trial-epochs", None, "of a trial at most (--epochs); fewer are a bias against what converges late", "N")
    help = "decay, by the step, of the moving average of weights that is scored; 0: the last step's weights are"
    add("--average-weights", 0.995, help, "DECAY", float)
    add("--least", 3, "seeds", "N")
    add("--most", 20, "seeds", "N")
    add("--half-width", 0.0004, "of the confidence interval of a difference: no seeds are added below", "AUC", float)
    for name, whose in (("--option", "all runs"), ("--tower-option", "all multi-tower runs")):
        help = f"an option of train for {whose}"
        parser.add_argument(name, type=_option, action="append", default=[], metavar="NAME=VALUE", help=help)
    parser.add_argument("--report", action="store_true", help="only show what is finished")
    return parser


def _whole(text: str, least: int = 0) -> int:
    if (value := int(text)) < least:
        raise argparse.ArgumentTypeError(f"{text} is below {least}")
    return value


def _count(text: str) -> int:
    return _whole(text, 1)


def _option(text: str) -> tuple[str, Any]:
    """A field of `TrainConfig` and its value, as ``train`` itself reads it."""
    name, _, value = text.partition("=")
    field = name.replace("-", "_")
    if field == "average_weights":
        raise argparse.ArgumentTypeError(f"{name} is an option of the bench: --average-weights")
    if field in CHOSEN_HERE:
        raise argparse.ArgumentTypeError(f"{name} is what the bench itself chooses")
    given = [f"{flag(field)}={value}"]
    if isinstance(getattr(TrainConfig, field, None), bool):
        if value not in ("true", "false"):
            raise argparse.ArgumentTypeError(f"{name} is true or false, not {value!r}")
        given = [flag(field)] if value == "true" else []
    try:
        return field, vars(build_parser().parse_args(["train", *given]))[field]
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the runs would outlive the bench
    sys.exit(main())
