"""A link between two hosts that is cut in the middle of a step, and stays so."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cluster import network
from tests.comm.cut_link import MEMBERS, WORLD

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
TIMEOUT_S, ALL_ENDED_S = 5, 20


def test_every_rank_says_whom_it_lost(tmp_path: Path) -> None:
    if obstacle := network.obstacle():
        pytest.skip(obstacle)
    command = ["unshare", "-n", "-m", sys.executable, "-m", "tests.comm.cut_link", str(tmp_path), str(TIMEOUT_S)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "result").read_text())
    across = set()
    for rank, (sentence, seconds) in enumerate(said):
        pattern = rf"rank {rank} .* and lost rank (\d) in the (ids|tower|peer|rows) stage of group '\d+' \(ranks .*"
        told = re.match(pattern, sentence)
        assert told is not None, sentence
        assert seconds < ALL_ENDED_S, sentence
        if int(told[1]) // MEMBERS != rank // MEMBERS:
            across.add(rank // MEMBERS)
    # One of a host waits for the other host, and the others perhaps for that one.
    assert len(said) == WORLD and across == {0, 1}, said
