"""One line that says what the figures of the exchange mean on this cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.runner import Result


def verdict(results: Sequence[Result], facts: Mapping[str, str]) -> str:
    """From results alone; says nothing of what was not measured."""
    by_name = {result.case: result for result in results}
    parts = []
    for stage, text in (("tower", "inside a tower"), ("peer", "between peers")):
        rates = [_gbps(result) for name, result in by_name.items() if name.startswith(f"link/{stage}/")]
        if fastest := max(rates, default=0.0):
            parts.append(f"{fastest:.2f} GB/s per rank {text}")
    sizes = list(dict.fromkeys(name.split("/")[1] for name in by_name if name.startswith("two_stage/")))
    for size in sizes:
        gains = []
        for name, result in by_name.items():
            if name.startswith(f"two_stage/{size}/") and "flat" in result.timings:
                ratio = result.timings["flat"].p50_ms / result.timings["ours"].p50_ms
                gains.append(f"{name.split('/')[2].replace('_', ' ')} {ratio:.2f}x")
        parts.append(f"at {size} per rank {', '.join(gains)}")
    if not parts:
        return ""
    return f"verdict: {facts['ranks']}: {'; '.join(parts)} (above 1x two stages beat one)"


def _gbps(result: Result) -> float:
    return result.work_bytes / result.timings["ours"].p50_ms * 1e-6
