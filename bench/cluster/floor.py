"""The least bytes of a training step, from sizes alone: never from what anything counted."""

from __future__ import annotations

from dataclasses import dataclass

from bench.cluster.network import PACKET_BYTES, PACKET_PAYLOAD
from bench.cluster.problem import Problem
from dmt_kernels.ops.id_codec import HEADER_BYTES, bytes_per_id
from dmt_kernels.spec import WireFormat

LENGTH_BYTES = 1
GRADIENT_BYTES = 4


@dataclass(frozen=True)
class Wire:
    """Bytes of one step, headers of packets included."""

    peer: float  # that a host puts on its link; as many arrive
    payload: float  # of those, rows and their gradients
    tower: float  # that cross a host's inner link, the sends of all its members together


def least_bytes(
    problem: Problem,
    road: str,
    *,
    compression: int = 1,
    payload: WireFormat = WireFormat.FP32,
    tower_payload: WireFormat = WireFormat.FP32,
    over_arch: int = 0,
    tower_module: int = 0,
    slices: bool = False,
) -> Wire:
    """Count what has to cross the links in one training step.

    With ``T`` hosts of ``R`` ranks, ``W = T * R``, ``B`` samples per rank, ``F`` features in equal shares, ``L`` ids in
    a bag, and ``D = F / T * dim`` the width of a tower, every rank sends to other hosts

    * ids and lengths of the features there: ``B * F * (T - 1) / T`` bags of a length, 1 byte, and ``L`` ids of as many
      bytes (1, 2, 4 or 8) as hold a table's rows; to each rank a header that says how many there are;
    * flat: to each of ``W - R`` ranks ``B`` rows of the ``D / R`` columns that it holds, and the gradients of as many;
    * sptt: to each of ``T - 1`` peers ``B`` rows of ``D / compression`` columns, and the gradients of as many;

    where a row is its payload and, in scaled formats, a 4-byte scale (`WireFormat.row_bytes`). Inside the host it sends

    * ids and lengths of the features of the other members: ``B * F / T * (R - 1) / R`` bags, and their headers;
    * flat: ``R - 1`` times ``B`` rows of ``D / R`` columns and the gradients of as many;
    * sptt: ``R - 1`` times ``T * B`` such rows and gradients; and the tower module's share of an all-reduce over ``R``;
      with the module in `slices` at the owners of tables, rows of ``D / compression`` columns and nothing of it.

    Dense gradients (`over_arch` and `tower_module` are numbers of parameters) are counted as a ring's: each rank sends
    ``2 * (n - 1) / n`` of them to its successor. In a ring in the order of ranks one rank of a host sends to
    another host and ``R - 1`` inside. (A hierarchical all-reduce would send a little less between hosts.)

    All of that is cut into packets of 1448 bytes with 66 bytes of headers. Acknowledgments are not counted, for they
    can ride along.
    """
    T, R, W, B = problem.hosts, problem.members, problem.world, problem.samples
    bag_bytes = problem.bag * bytes_per_id([problem.rows]) + LENGTH_BYTES
    remote_ids = B * problem.tables * (T - 1) // T * bag_bytes + (W - R) * HEADER_BYTES
    inner_ids = B * (problem.tables // T) * (R - 1) // R * bag_bytes + (R - 1) * HEADER_BYTES
    width = problem.tables // T * problem.dim
    if road == "flat":
        remote_rows = 2 * (W - R) * B * payload.row_bytes(width // R)
        inner_rows = 2 * (R - 1) * B * payload.row_bytes(width // R)
    else:
        remote_rows = 2 * (T - 1) * B * payload.row_bytes(width // compression)
        inner_rows = 2 * (R - 1) * T * B * tower_payload.row_bytes(width // (compression if slices else R))
    ring = 2 * (W - 1) * over_arch * GRADIENT_BYTES / W
    tower_ring = 2 * (R - 1) * (0 if slices else tower_module) * GRADIENT_BYTES / R
    with_headers = PACKET_BYTES / PACKET_PAYLOAD
    return Wire(
        peer=with_headers * (R * (remote_ids + remote_rows) + ring),
        payload=with_headers * R * remote_rows,
        tower=with_headers * (R * (inner_ids + inner_rows + tower_ring) + (R - 1) * ring),
    )


def wire_seconds(wire: Wire, rate: float | None, tower_rate: float | None) -> float:
    """Least seconds of a step's bytes: the links work side by side, so the slower one counts."""
    return max(_seconds(wire.peer, rate), _seconds(wire.tower, tower_rate))


def payload_seconds(wire: Wire, rate: float | None) -> float:
    """Least seconds of the rows and gradients between hosts, between which the over-arch has its turn."""
    return _seconds(wire.payload, rate)


def _seconds(sent_bytes: float, rate: float | None) -> float:
    return 0.0 if rate is None else 8 * sent_bytes / rate
