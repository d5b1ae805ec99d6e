"""Where ids are out of range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MissingIds:
    """How many ids are out of range and where the first one is (-1 everywhere when there is none)."""

    count: int
    block: int
    feature: int
    sample: int
    position: int


def check_ids(ids: Tensor, offsets: Tensor, rows: Sequence[int], *, num_blocks: int = 1) -> MissingIds:
    """Count the ids that are no row of their feature's table.

    Parameters
    ----------
    ids : Tensor [N], int32 or int64
    offsets : Tensor [K*F*B + 1], int64
        Bags in the order (block, feature, sample), as for :func:`embedding_bag`.
    rows : sequence of F ints
        For each feature, the rows of its table: an id is fine when it lies in ``[0, rows[f])``.
    num_blocks : int
        K.

    Returns
    -------
    MissingIds
        The count, and block, feature, sample and position in the bag of the first one in the order of the bags.

    Raises
    ------
    RuntimeError
        Offsets that decrease or point outside of `ids` (on CUDA they are clamped); shapes and dtypes that do not fit.
    """
    return MissingIds(*torch.ops.dmt.check_ids(ids, offsets, list(rows), num_blocks).tolist())


def raise_missing_ids(device: torch.device | str) -> None:
    """Raise if ops with ``bounds="error"`` met ids out of range on a CUDA device since the last call.

    They do not wait for the device, so they cannot raise themselves: such ids count as missing there, an
    :func:`embedding_update_` that meets one writes nothing, and a step that ends with this call ends with the error. It
    waits for the device's current stream; :class:`MissingIdWatch` does not. On other devices ops raise themselves, and
    this does nothing.

    Raises
    ------
    RuntimeError
        Names one of the ids, its table, feature, sample and block.
    """
    if torch.device(device).type == "cuda":
        _raise_recorded(_take(device), device)


class MissingIdWatch:
    """Raises what :func:`raise_missing_ids` would without waiting for the device, hence some steps late.

    What a device has recorded is on its way to the host from one :meth:`poll` to a later one that finds it arrived.
    Nothing gets lost meanwhile: the device goes on recording, and updates that meet ids out of range write nothing.

    Parameters
    ----------
    device : torch.device or str
        Where the ops run; on other devices than CUDA there is nothing to watch.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._asked: tuple[Tensor, Callable[[], bool]] | None = None

    def poll(self) -> None:
        """Raise what has arrived, and ask again. For the end of a step; does nothing while a graph is captured."""
        if self._device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return
        if self._asked is not None:
            record, has_arrived = self._asked
            if not has_arrived():
                return
            self._asked = None
            _raise_recorded(record, self._device)
        self._asked = _ask(self._device)

    def wait(self) -> None:
        """Wait for the device and raise whatever it has recorded. For where the host waits anyway."""
        if self._device.type != "cuda":
            return
        asked, self._asked = self._asked, None
        record = _take(self._device).cpu()  # once this is here, so is what was asked for before
        if asked is not None and asked[0][0]:
            record = torch.cat([asked[0][:1] + record[:1], asked[0][1:]])  # of both, with the place of the earlier
        _raise_recorded(record, self._device)


def _take(device: torch.device | str) -> Tensor:
    return torch.ops.dmt.take_missing_ids(torch.empty(0, dtype=torch.int64, device=device))


def _ask(device: torch.device) -> tuple[Tensor, Callable[[], bool]]:
    """Send the record to the host: memory that it will be in, and whether it is."""
    record = torch.empty(6, dtype=torch.int64, pin_memory=True)
    record.copy_(_take(device), non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(device))
    return record, arrived.query


def _raise_recorded(record: Tensor, device: torch.device | str) -> None:
    count, missing, table, feature, sample, block = record.tolist()
    if count:
        where = f"id {missing} of table {table}, feature {feature}, sample {sample}, block {block}"
        raise RuntimeError(f"{where} is out of range; ops on {device} met {count} such ids")


@torch.library.register_fake("dmt::take_missing_ids")
def _(like: Tensor) -> Tensor:
    return like.new_empty(6, dtype=torch.int64)


@torch.library.register_fake("dmt::check_ids")
def _(ids: Tensor, offsets: Tensor, rows: Sequence[int], num_blocks: int = 1) -> Tensor:
    return ids.new_empty(5, dtype=torch.int64)
