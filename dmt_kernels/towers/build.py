"""From a compression ratio to a tower module."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

from dmt_kernels.spec import InputError
from dmt_kernels.towers.base import TowerModule
from dmt_kernels.towers.columns import even_columns, tower_width
from dmt_kernels.towers.dcn import DCNTower
from dmt_kernels.towers.dlrm import DLRMTower
from dmt_kernels.towers.passthrough import PassThrough

TowerModuleKind = Literal["none", "dlrm", "dcn"]

# Dot products of features narrower than this lose AUC; below it there are fewer output features instead.
_MIN_OUT_DIM = 4


def common_out_dim(kind: str, tower_dims: Sequence[Sequence[int]], compression: float = 1.0) -> int:
    """Choose the width of a feature that all towers of a model with dot products give.

    Every input feature gets one output feature, narrower by the compression, but not narrower than 4 as long as every
    tower can pay for one such feature. Pass-through keeps the embedding dim.

    Parameters
    ----------
    kind : {"none", "dlrm", "dcn"}
        Tower module.
    tower_dims : sequence of sequence of int
        Embedding dims of the features of every tower.
    compression : float
        ``D_t / C_t`` to aim at.

    Returns
    -------
    int
        ``out_dim`` for :func:`build_tower_module` and for a DLRM that does not expand what arrives.

    Raises
    ------
    InputError
        For an unknown kind, a bad compression, or pass-through with unequal dims.
    """
    _check(kind, compression)
    all_dims = [dim for dims in tower_dims for dim in dims]
    if kind == "none":
        if len(set(all_dims)) != 1:
            raise InputError(f"dot products without a tower module need one embedding dim, not {sorted(set(all_dims))}")
        return all_dims[0]
    one_for_one = min(math.floor(sum(dims) / compression / len(dims)) for dims in tower_dims)
    affordable = max(1, min(math.floor(sum(dims) / compression) for dims in tower_dims))
    return min(max(one_for_one, min(_MIN_OUT_DIM, max(all_dims))), affordable)


def build_tower_module(
    kind: str,
    dims: Sequence[int],
    *,
    compression: float = 1.0,
    columns: Sequence[int] | None = None,
    out_dim: int | None = None,
    c: int | None = None,
    p: int | None = None,
    layers: int = 1,
    rank: int | None = None,
    isometric: bool = False,
    seed: int = 0,
    name: str = "tower",
) -> TowerModule:
    """Build the module of one tower, as wide as the compression allows.

    The output has ``out_dim * max(1, floor(D_t / compression / out_dim))`` columns (:func:`tower_width`), whatever is
    left over by the rounding being lost; compare ``in_width / out_width`` for what was realised.

    Parameters
    ----------
    kind : {"none", "dlrm", "dcn"}
        :class:`PassThrough` (which ignores the rest), :class:`DLRMTower` or :class:`DCNTower`.
    dims : sequence of int
        Embedding dim of every feature of the tower.
    compression : float
        ``D_t / C_t`` to aim at; below 1 the module widens.
    columns : sequence of int, optional
        Columns of every feature, of :func:`share_columns`; together they are the output, whatever the compression
        (unless `c` or `p` makes it another). By default they are in proportion to the dims.
    out_dim : int, optional
        The output width is a multiple of this. A model that takes dot products of what arrives needs one for
        all towers (:func:`common_out_dim`); others take any width, which is the default.
    c, p : int, optional
        Output features of a DLRM-style module, see there; values given win over the compression. By default ``p`` is 0
        and ``c`` fills the width: the flattened projection can do all that the per-feature one can.
    layers, rank : int, int or None
        Crosses of a DCN-style module and the rank of their matrices.
    isometric : bool
        Whether the projection of the flattened tower starts as an isometry, with those columns for every feature; with
        shares in proportion to the dims where `c` or `p` makes it wider or narrower than they are.
    seed, name : int, str
        Initial values: see :mod:`dmt_kernels.towers.init`. Towers need different names.

    Returns
    -------
    TowerModule
        With parameters of torch's default dtype, on the default device.

    Raises
    ------
    InputError
        For an unknown kind, a compression that is not positive, or widths or columns that make no module.
    """
    _check(kind, compression)
    if kind == "none":
        return PassThrough(dims)
    if out_dim is None:
        out_dim = common_out_dim(kind, [dims], compression) if kind == "dlrm" else 1
    if out_dim < 1:
        raise InputError(f"the dim of a tower module's output features must be at least 1, not {out_dim}")
    if columns is None:
        columns = even_columns(dims, tower_width(dims, compression, out_dim))
    if len(columns) != len(dims) or min(columns) < 0:
        raise InputError(f"columns {tuple(columns)} are not those of {len(dims)} features")
    width = sum(columns)
    if width % out_dim:
        raise InputError(f"{width} columns are no multiple of the {out_dim} of an output feature")
    own = columns if isometric else None
    if kind == "dcn":
        return DCNTower(dims, width, layers, rank=rank, columns=own, seed=seed, name=name)
    p = 0 if p is None else p
    c = max(0, width // out_dim - p * len(dims)) if c is None else c
    if isometric and c * out_dim != width:
        own = even_columns(dims, c * out_dim)
    return DLRMTower(dims, out_dim, c, p, columns=own, seed=seed, name=name)


def _check(kind: str, compression: float) -> None:
    kinds = get_args(TowerModuleKind)
    if kind not in kinds:
        raise InputError(f"tower module {kind!r} is unknown; choose one of {', '.join(kinds)}")
    if not (compression > 0 and math.isfinite(compression)):
        raise InputError(f"compression must be a positive number, not {compression:g}")
