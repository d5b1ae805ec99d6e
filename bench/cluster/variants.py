"""Who takes part: our variants, by what they ask `build_exchange` for, and TorchRec's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dmt_kernels.spec import InputError, Payloads, WireFormat

SHARED_MEMORY = "DMT_SHARED_MEMORY"  # in the environment of a rank


@dataclass(frozen=True)
class Variant:
    """One contender.

    A new one is a line in `VARIANTS`: its options go to `build_exchange` as they are, its formats to the count of the
    least bytes and to the bounds of the comparison.
    """

    name: str
    road: str  # flat | sptt
    over_arch: bool = (
        True  # a DLRM; otherwise the loss is the mean of (scale * embedding - 1)^2, as for TorchRec's towers
    )
    tower_module: bool = False
    expand: bool = False  # the DLRM maps what towers send back to the flat model's features, as `train` does by default
    peer: str | None = None  # whose it is, if not ours
    payload: WireFormat = WireFormat.FP32  # of rows and gradients between hosts
    tower_payload: WireFormat = WireFormat.FP32  # inside a host
    shares_memory: bool = True  # ranks of a host, which otherwise talk over its loopback
    amp: bool = False  # layers and tower modules multiply in bfloat16
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    headline: bool = True  # takes part unless contenders are named

    @property
    def exchange_options(self) -> dict[str, Any]:
        """What `build_exchange` is asked for."""
        return {"payloads": Payloads.of(self.payload, self.tower_payload), **self.options}

    @property
    def model(self) -> tuple[bool, bool, bool]:
        """Variants of one model train to the same losses, but for rounding and formats."""
        return self.over_arch, self.tower_module, self.expand

    @property
    def slices(self) -> bool:
        """Whether the tower module stands in slices at the owners of tables."""
        return self.options.get("placement") == "owner"

    @property
    def exact(self) -> bool:
        return self.payload is self.tower_payload is WireFormat.FP32 and not self.amp


VARIANTS = (
    Variant("flat", "flat"),
    Variant("sptt", "sptt"),
    Variant("dmt", "sptt", tower_module=True),
    Variant("flat, loopback", "flat", shares_memory=False, headline=False),
    Variant("dmt, loopback", "sptt", tower_module=True, shares_memory=False),
    Variant("flat, bare", "flat", over_arch=False, headline=False),
    Variant("dmt, owner", "sptt", tower_module=True, options={"placement": "owner"}, headline=False),
    Variant("dmt, bare", "sptt", over_arch=False, tower_module=True),
    Variant("dmt, fp16", "sptt", tower_module=True, payload=WireFormat.FP16),
    Variant("dmt, fp8", "sptt", tower_module=True, payload=WireFormat.FP8),
    Variant("dmt, bare, fp16", "sptt", over_arch=False, tower_module=True, payload=WireFormat.FP16),
    Variant("dmt, fp16, amp", "sptt", tower_module=True, payload=WireFormat.FP16, amp=True),
    Variant("dmt, fp8, amp", "sptt", tower_module=True, payload=WireFormat.FP8, amp=True, headline=False),
    Variant("dmt, bare, fp16, amp", "sptt", over_arch=False, tower_module=True, payload=WireFormat.FP16, amp=True),
    Variant("dmt, expanded", "sptt", tower_module=True, expand=True, headline=False),
    Variant("dmt, 2 chunks", "sptt", tower_module=True, options={"chunks": 2}, headline=False),
    Variant("dmt, 4 chunks", "sptt", tower_module=True, options={"chunks": 4}, headline=False),
    Variant("dmt, 8 chunks", "sptt", tower_module=True, options={"chunks": 8}, headline=False),
    Variant("dmt, auto chunks", "sptt", tower_module=True, options={"chunks": "auto"}, headline=False),
    Variant(
        "dmt, bare, auto chunks", "sptt", over_arch=False, tower_module=True, options={"chunks": "auto"}, headline=False
    ),
    Variant(
        "dmt, fp16, auto chunks",
        "sptt",
        tower_module=True,
        payload=WireFormat.FP16,
        options={"chunks": "auto"},
        headline=False,
    ),
    Variant(
        "dmt, bare, fp16, auto chunks",
        "sptt",
        over_arch=False,
        tower_module=True,
        payload=WireFormat.FP16,
        options={"chunks": "auto"},
        headline=False,
    ),
    Variant("flat, auto chunks", "flat", options={"chunks": "auto"}, headline=False),
    Variant("flat, 2 chunks", "flat", options={"chunks": 2}, headline=False),
    Variant("flat, 4 chunks", "flat", options={"chunks": 4}, headline=False),
    Variant("TorchRec flat", "flat", peer="torchrec"),
    Variant("TorchRec flat, fp16", "flat", peer="torchrec", payload=WireFormat.BF16),  # its fp16 has no scales either
    Variant("TorchRec flat, fp16, amp", "flat", peer="torchrec", payload=WireFormat.BF16, amp=True),
    Variant("TorchRec flat, pipelined", "flat", peer="torchrec", options={"pipelined": True}),
    Variant(
        "TorchRec towers, bare, pipelined",
        "sptt",
        over_arch=False,
        tower_module=True,
        peer="torchrec",
        options={"pipelined": True},
    ),
    Variant("TorchRec flat, bare", "flat", over_arch=False, peer="torchrec", headline=False),
    Variant("TorchRec towers, bare", "sptt", over_arch=False, tower_module=True, peer="torchrec"),
    Variant(
        "TorchRec towers, bare, fp16",
        "sptt",
        over_arch=False,
        tower_module=True,
        peer="torchrec",
        payload=WireFormat.BF16,
        tower_payload=WireFormat.BF16,
    ),
    Variant(
        "TorchRec towers, bare, fp16, amp",
        "sptt",
        over_arch=False,
        tower_module=True,
        peer="torchrec",
        payload=WireFormat.BF16,
        tower_payload=WireFormat.BF16,
        amp=True,
    ),
)

# Like against like: the ratio of the second's step to the first's.
RATIOS = (
    ("flat", "TorchRec flat"),
    ("flat, bare", "TorchRec flat, bare"),
    ("dmt, bare", "TorchRec towers, bare"),
    ("dmt, bare, fp16", "TorchRec towers, bare, fp16"),
    ("dmt", "TorchRec flat"),
    ("dmt, auto chunks", "TorchRec flat"),
    ("dmt, auto chunks", "dmt"),
    ("dmt, auto chunks", "dmt, 2 chunks"),
    ("dmt, auto chunks", "dmt, 4 chunks"),
    ("dmt, auto chunks", "dmt, 8 chunks"),
    ("dmt, bare, auto chunks", "TorchRec towers, bare"),
    ("dmt, bare, fp16, auto chunks", "TorchRec towers, bare, fp16"),
    ("dmt, fp16, auto chunks", "TorchRec flat, fp16"),
    ("dmt, fp16", "TorchRec flat, fp16"),
    ("dmt, bare, fp16, amp", "TorchRec towers, bare, fp16, amp"),
    ("dmt, fp16, amp", "TorchRec flat, fp16, amp"),
    ("flat", "TorchRec flat, pipelined"),
    ("dmt", "TorchRec flat, pipelined"),
    ("dmt, bare", "TorchRec towers, bare, pipelined"),
    ("dmt, fp8", "dmt, fp16"),
    ("dmt, fp16, amp", "dmt, fp16"),
    ("dmt, fp8, amp", "dmt, fp16, amp"),
    ("dmt, expanded", "TorchRec flat"),
    ("dmt, expanded", "dmt"),
    ("dmt", "dmt, loopback"),
    ("flat", "flat, loopback"),
    ("dmt", "flat"),
    ("sptt", "flat"),
)


def parse_names(text: str) -> list[Variant]:
    """Variants of names like ``flat;dmt, fp16``, and the twins that they are compared with; nothing means the headline.

    Raises
    ------
    InputError
        If a name is nobody's.
    """
    names = [name.strip() for name in text.split(";") if name.strip()] or [v.name for v in VARIANTS if v.headline]
    if unknown := set(names) - {variant.name for variant in VARIANTS}:
        known = "; ".join(variant.name for variant in VARIANTS)
        raise InputError(f"there is no contender {min(unknown)!r}; choose from {known}")
    chosen = {variant.name for variant in VARIANTS if variant.name in names}
    chosen |= {twin_of(variant, VARIANTS).name for variant in VARIANTS if variant.name in chosen}
    return [variant for variant in VARIANTS if variant.name in chosen]


def twin_of(variant: Variant, variants: Sequence[Variant]) -> Variant:
    """The variant of ours that trains to the same losses: the first of the same model without losses in its formats."""
    return next(v for v in variants if v.peer is None and v.exact and v.model == variant.model)
