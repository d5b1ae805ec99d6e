"""``python -m bench.cluster``: full training steps between emulated hosts, ours beside TorchRec's."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import environment
from bench.cluster import network, show
from bench.cluster.contender import Failure
from bench.cluster.measure import measure
from bench.cluster.network import parse_rate
from bench.cluster.problem import Problem
from bench.cluster.variants import parse_names
from bench.report import facts
from bench.report import show as show_tables
from dmt_kernels.spec import InputError

INSIDE = "DMT_BENCH_CLUSTER_INSIDE"  # set in the namespaces that are thrown away


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code: 1 if anything disagreed or failed, 2 if it cannot run here."""
    options = _parser().parse_args(argv)
    try:
        problem = Problem(
            hosts=options.hosts,
            members=options.members,
            tables=options.tables,
            rows=options.rows,
            dim=options.dim,
            samples=options.samples,
            compression=options.compression,
        )
        rates = [parse_rate(text) for text in options.rate.split(",")]
        variants = parse_names(options.contenders)
        tower_rates = [parse_rate(options.tower_rate, rate) if options.tower_rate else None for rate in rates]
    except InputError as error:
        print(f"bench-cluster: {error}", file=sys.stderr)
        return 2
    if obstacle := network.obstacle():
        print(obstacle, file=sys.stderr)
        return 2
    if INSIDE not in os.environ:
        command = [sys.executable, "-m", "bench.cluster", *(sys.argv[1:] if argv is None else argv)]
        return subprocess.run(["unshare", "-n", "-m", *command], env={**os.environ, INSIDE: "1"}).returncode
    try:
        record = measure(problem, variants, list(zip(rates, tower_rates, strict=True)), options.seconds)
    except Failure as error:
        print(f"bench-cluster: {error}", file=sys.stderr)
        return 1
    record["environment"] = environment.collect()
    if options.json:
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n")
    if record["complaint"] is not None:
        print(f"bench-cluster DISAGREES, not timed: {record['complaint']}")
        return 1
    show_tables(facts(record["environment"], "environment"), *show.tables(record), *record["obstacles"].values())
    if record["reclaimed_bytes"]:
        short = f"memory was short ({record['reclaimed_bytes'] / 1e6:.0f} MB of pages were taken back), so that times"
        print(f"{short} are longer than they are: name fewer contenders", file=sys.stderr)
    if options.plot:
        show.plot(record, Path(options.plot))
        print(f"plot: {options.plot}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__, allow_abbrev=False)
    size = Problem()
    parser.add_argument("--hosts", type=int, default=size.hosts, metavar="T")
    parser.add_argument("--members", type=int, default=size.members, metavar="R", help="ranks of a host")
    parser.add_argument("--rate", default="200mbit,1gbit,2gbit", metavar="A,B", help="of a host's link, each way")
    parser.add_argument("--tower-rate", default="", metavar="9x", help="of a host's inner link (default: unshaped)")
    parser.add_argument("--tables", type=int, default=size.tables, metavar="F")
    parser.add_argument("--rows", type=int, default=size.rows, metavar="E")
    parser.add_argument("--dim", type=int, default=size.dim, metavar="D")
    parser.add_argument("--samples", type=int, default=size.samples, metavar="B", help="of a rank")
    parser.add_argument("--compression", type=int, default=size.compression, metavar="CR", help="of a tower module")
    parser.add_argument("--seconds", type=float, default=12.0, metavar="S", help="of timing, per rate")
    parser.add_argument("--contenders", default="", metavar="A;B", help="by name (default: those of the headline)")
    parser.add_argument("--json", metavar="OUT", help="write everything that was measured")
    parser.add_argument("--plot", metavar="PNG")
    return parser


if __name__ == "__main__":
    sys.exit(main())
