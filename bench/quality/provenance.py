"""What code made a run: finished runs outlive changes of the models, and must not pass for those of today."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Sequence

from bench import environment
from bench.quality.records import Record

SOURCES = (".py", ".cpp", ".cu", ".h", ".cuh")


@functools.cache
def code() -> dict[str, str]:
    """The revision, for people, and a digest of the package's sources, which documents and benches do not change."""
    digest = hashlib.sha256()
    folders = [environment.ROOT / "dmt_kernels", environment.ROOT / "csrc"]
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in SOURCES):
        digest.update(str(path.relative_to(environment.ROOT)).encode() + path.read_bytes())
    return {"revision": environment.revision(), "sources": digest.hexdigest()[:12]}


def made_otherwise(runs: Sequence[Record]) -> str:
    """A sentence about runs that were not made by this package as it is now; empty if there are none."""
    others = [run.get("code", {}) for run in runs if run.get("code", {}).get("sources") != code()["sources"]]
    if not others:
        return ""
    revisions = Counter(other.get("revision", "unknown") for other in others)
    named = ", ".join(f"{count} of {revision}" for revision, count in revisions.items())
    return (
        f"{len(others)} of {len(runs)} finished runs were made by other sources than those of {code()['revision']}: "
        f"{named}; in another folder they are made again"
    )
