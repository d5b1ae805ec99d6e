"""Two hosts that exchange embeddings until the link between them is cut: ``unshare -n -m python -m tests.comm.cut_link
FOLDER TIMEOUT_S``. What every rank said, and how many seconds after the cut, is then in the folder.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from bench.cluster.network import INTERFACE, Network
from dmt_kernels.comm import build_mesh
from dmt_kernels.embedding import build_exchange
from dmt_kernels.planner import partition_features, place
from dmt_kernels.spec import ExchangeError, Jagged, Table, TableOptimizer, Topology

HOSTS, MEMBERS = 2, 2
WORLD = HOSTS * MEMBERS
TABLES = (Table("wide", 50, 8, ("a", "b")), Table("narrow", 9, 4, ("c",)))
STEPS_BEFORE = 20


def main(folder: Path, timeout_s: float) -> None:
    hosts = Network(HOSTS)
    hosts.build(shapes_inner=False)
    ranks = [_start(rank, hosts, folder, timeout_s) for rank in range(WORLD)]
    try:
        _wait_for(folder, "at_it", ranks)
        cut = time.time()
        hosts.cut(1)
        _wait_for(folder, "said", ranks)
        said = [json.loads((folder / f"said{rank}").read_text()) for rank in range(WORLD)]
        result = [(sentence, moment - cut) for sentence, moment in said]
        (folder / "result").write_text(json.dumps(result))
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def _start(rank: int, hosts: Network, folder: Path, timeout_s: float) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.comm.cut_link", str(folder), str(timeout_s), str(rank)]
    return subprocess.Popen(
        ["ip", "netns", "exec", hosts.name(rank // MEMBERS), *command],
        env={**os.environ, "GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1"},
    )


def _wait_for(folder: Path, what: str, ranks: list[subprocess.Popen]) -> None:
    """The test's own limit ends what never comes."""
    while not all((folder / f"{what}{rank}").exists() for rank in range(WORLD)):
        assert all(process.poll() is None for process in ranks), "a rank ended before its time"
        time.sleep(0.05)  # ranks speak by files, which nobody is woken up by


def rank_main(folder: Path, timeout_s: float, rank: int) -> None:
    store = dist.FileStore(str(folder / "store"), WORLD)  # which no cut link takes away
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    mesh = build_mesh(HOSTS, MEMBERS, timeout_s=timeout_s)
    plan = place(TABLES, partition_features(TABLES, HOSTS), Topology(HOSTS, MEMBERS), {"wide": "columns"})
    optimizer = TableOptimizer("rowwise_adagrad", lr=0.1)
    exchange = build_exchange("sptt", plan, optimizer=optimizer, seed=0, mesh=mesh, chunks=2)
    bags = 64 * len(exchange.features)
    batch = Jagged(torch.arange(bags) % 9, torch.arange(bags + 1))
    step = 0
    try:
        while True:
            exchange(batch).sum().backward()
            step += 1
            if step == STEPS_BEFORE:
                (folder / f"at_it{rank}").touch()
    except ExchangeError as error:
        _write(folder / f"said{rank}", json.dumps([str(error), time.time()]))
    time.sleep(60)  # until all have spoken: one that leaves is lost to the others, too


def _write(path: Path, text: str) -> None:
    """All at once: somebody looks whether it is there."""
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").rename(path)


if __name__ == "__main__":
    arguments = Path(sys.argv[1]), float(sys.argv[2])
    if len(sys.argv) > 3:
        rank_main(*arguments, int(sys.argv[3]))
    else:
        main(*arguments)
