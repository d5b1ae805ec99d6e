"""What README shows is what runs."""

import re
from pathlib import Path

from tests.ranks import run_ranks

README = (Path(__file__).parents[1] / "README.md").read_text()


def _run(rank: int, source: str) -> float:
    # The ranks of the test are initialised already, and end by themselves.
    source = source.replace('dist.init_process_group("gloo")\n', "").replace("dist.destroy_process_group()\n", "")
    scope: dict = {}
    exec(compile(source, "README.md", "exec"), scope)
    return scope["loss"].item()


def test_the_loop_trains() -> None:
    (loop,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert "init_process_group" in loop
    first, last = (sum(run_ranks(_run, 4, re.sub(r"range\(20\)", f"range({n})", loop))) for n in (1, 20))
    assert first > 0.6 and last < 0.75 * first, "the loss falls"
