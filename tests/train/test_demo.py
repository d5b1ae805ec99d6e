"""The demo trains a flat model and its twin and leaves a plot."""

import pytest

from dmt_kernels.cli import main
from dmt_kernels.train.demo import _effort

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("rows", "effort"),
    [(400_000, (1, 1024)), (95_000, (4, 1024)), (8_000, (4, 128)), (10**9, (1, 1024)), (0, (4, 128))],
)
def test_small_data_gets_more_epochs_and_smaller_batches(rows, effort):
    assert _effort(rows) == effort


def test_demo(tmp_path, capsys):
    (tmp_path / "out" / "flat").mkdir(parents=True)
    (tmp_path / "out" / "flat" / "summary.json").write_text("of an earlier demo")
    assert main(["demo", "--data", "synthetic:300", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    for text in ("flat DLRM", "DMT DLRM", "best possible", "loss.png"):
        assert text in shown
    assert (tmp_path / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "dmt" / "summary.json").is_file()


def test_demo_of_missing_data(tmp_path, capsys):
    assert main(["demo", "--data", "npz:/no/such.npz", "--out", str(tmp_path / "out")]) == 2
    assert "/no/such.npz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
