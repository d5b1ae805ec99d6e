"""``python -m bench.cluster``: full training steps between emulated hosts, ours beside TorchRec's."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import environment
from bench.cluster import network, show
from bench.cluster.network import Network, parse_rate
from bench.cluster.problem import Problem
from bench.report import facts
from bench.report import show as show_tables
from dmt_kernels.spec import InputError

INSIDE = "DMT_BENCH_CLUSTER_INSIDE"  # set in the namespaces that are thrown away
DEADLINE_S = 600
PORT = 29500  # every run has all ports to itself


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
    job = {
        "problem": asdict(problem),
        "rates": rates,
        "tower_rates": tower_rates,
        "seconds": options.seconds,
        "leave_out": options.leave_out.split(";"),
    }
    record = _run(job, Network(problem.hosts))
    if record is None:
        return 1
    record["environment"] = environment.collect()
    if options.json:
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n")
    if record["complaint"] is not None:
        print(f"bench-cluster DISAGREES, not timed: {record['complaint']}")
        return 1
    show_tables(facts(record["environment"], "environment"), *show.tables(record), *record["obstacles"].values())
    if options.plot:
        show.plot(record, Path(options.plot))
        print(f"plot: {options.plot}")
    return 0


def _run(job: dict[str, Any], hosts: Network) -> dict[str, Any] | None:
    """What rank 0 has recorded, or None if a rank failed, after its last words."""
    hosts.build(shapes_inner=any(job["tower_rates"]))
    members = job["problem"]["members"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job"
        path.write_text(json.dumps(job))
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(hosts.hosts * members):
                with (path.parent / f"rank{rank}").open("wb") as output:
                    ranks.append(_start(rank, members, hosts, path, output))
            failed = _wait(ranks)
            if failed is not None:
                last = (path.parent / f"rank{failed}").read_text(errors="replace")[-4000:]
                print(f"bench-cluster: rank {failed} ended with {ranks[failed].poll()}\n{last}", file=sys.stderr)
                return None
            return json.loads(path.with_suffix(".result").read_text())
        finally:
            for process in ranks:
                process.kill()
                process.wait()


def _start(rank: int, members: int, hosts: Network, path: Path, output: Any) -> subprocess.Popen[bytes]:
    host, member = divmod(rank, members)
    variables = {
        "RANK": rank,
        "WORLD_SIZE": hosts.hosts * members,
        "LOCAL_RANK": member,
        "LOCAL_WORLD_SIZE": members,
        "MASTER_ADDR": hosts.address(0),
        "MASTER_PORT": PORT,
        "GLOO_SOCKET_IFNAME": network.INTERFACE,
        "OMP_NUM_THREADS": 1,
    }
    return subprocess.Popen(
        ["ip", "netns", "exec", hosts.name(host), sys.executable, "-m", "bench.cluster.rank", str(path)],
        env={**os.environ, **{name: str(value) for name, value in variables.items()}},
        stdin=subprocess.PIPE,  # whose end tells a rank that this process has ended
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Return the first rank that failed or, after the deadline, one that still runs; None if all have ended well."""
    deadline = time.monotonic() + DEADLINE_S
    while any(process.poll() is None for process in ranks):
        for rank, process in enumerate(ranks):
            if process.poll() or time.monotonic() > deadline:
                return rank
        time.sleep(0.1)  # ranks run for minutes: often enough to be told of one that fell
    return next((rank for rank, process in enumerate(ranks) if process.returncode), None)


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
    parser.add_argument("--leave-out", default="", metavar="A;B", help="contenders, by name")
    parser.add_argument("--json", metavar="OUT", help="write everything that was measured")
    parser.add_argument("--plot", metavar="PNG")
    return parser


if __name__ == "__main__":
    sys.exit(main())
