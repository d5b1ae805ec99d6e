"""A gather of rows in Triton, which knows nothing of bags: what random rows cost a GPU, read and written."""

import torch
import triton
import triton.language as tl

ROWS = 16  # of a program


@triton.jit
def gather_kernel(table, ids, out, count, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    here = (row < count)[:, None] & (column < width)[None, :]
    source = tl.load(ids + row, mask=row < count, other=0)
    values = tl.load(table + source[:, None] * width + column[None, :], mask=here)
    tl.store(out + row[:, None] * width + column[None, :], values, mask=here)


def gather(table: torch.Tensor, ids: torch.Tensor, out: torch.Tensor) -> None:
    """``out[i] = table[ids[i]]``, both contiguous."""
    width = table.shape[1]
    grid = (triton.cdiv(len(ids), ROWS),)
    gather_kernel[grid](table, ids, out, len(ids), width, ROWS=ROWS, COLUMNS=triton.next_power_of_2(width))
