"""What every road from ids to embeddings shares: the check of ids, the shards, and the tower modules.

Letters: ``W`` ranks, ``T`` towers, ``R`` members, ``F`` features, ``B`` samples per rank, ``C_t`` width that tower
``t`` delivers.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmt_kernels import ops
from dmt_kernels.embedding.column_layout import tower_layouts
from dmt_kernels.ops.bag_arguments import bounds_code
from dmt_kernels.spec import InputError, Jagged, Plan
from dmt_kernels.towers import TowerModule


class EmbeddingExchange(nn.Module):
    """Maps this rank's bags to the embeddings of all towers; tables update in the backward pass.

    The table update belongs to ``backward``: one call of ``backward`` is one optimizer step of the tables.

    Parameters
    ----------
    plan : Plan
        Layout of tables, towers and shards.
    tower_modules : mapping of int to TowerModule, or None
        A module for every tower; None passes the embeddings through.
    bounds : {"error", "warn", "none"}
        What an id outside its table is: an error, a missing id that is counted and warned of, or a missing id. With
        all towers in one process on CUDA, ``error`` does not wait for the device: until
        :func:`~dmt_kernels.ops.raise_missing_ids` or a :class:`~dmt_kernels.ops.MissingIdWatch` raises (``TrainStep``
        has one, a loop of one's own calls either), such ids are missing, and steps that meet them update no table.
        That error numbers features and tables in the order in which they are looked up, and calls an id -1 that its
        type, or a table's split by rows, would take for another.

    Raises
    ------
    InputError
        If the modules do not fit the towers, or `bounds` is none of these.

    Attributes
    ----------
    batches : int
        Started so far, to train or to evaluate. What a batch draws at random, to round gradients stochastically,
        depends on it: whoever goes on with a training in a new process sets it.
    placement : str
        ``owner`` if tower modules stand in slices at the owners of tables: then ``tower_slices`` has this rank's
        parameters, and their gradients are whole. Otherwise ``member``: ``tower_modules`` has them.
    """

    placement = "member"

    def __init__(self, plan: Plan, tower_modules: Mapping[int, TowerModule] | None, bounds: str = "error") -> None:
        super().__init__()
        bounds_code(bounds)  # refuses what is none
        self.plan = plan
        self.bounds = bounds
        self.batches = 0
        self.bad_ids = 0  # ids outside their tables that ``warn`` has let pass
        self.features = plan.partition.features
        self.positions = {feature: i for i, feature in enumerate(self.features)}
        self.layouts = tower_layouts(plan)
        towers = range(plan.topology.towers)
        self.tower_dims = [plan.tower_dims(t) for t in towers]
        if tower_modules is not None and sorted(tower_modules) != list(towers):
            raise InputError(
                f"tower modules are given for towers {sorted(tower_modules)}, the plan has 0..{len(towers) - 1}"
            )
        widths = [sum(self.tower_dims[t]) if tower_modules is None else tower_modules[t].out_width for t in towers]
        self.out_widths: list[int] = widths
        self.tower_modules, self.tower_slices = nn.ModuleDict(), nn.ModuleDict()
        self._rows = [plan.feature_tables[feature].rows for feature in self.features]

    @property
    def realised_compression(self) -> float:
        """``sum(D_t) / sum(C_t)``."""
        return sum(map(sum, self.tower_dims)) / sum(self.out_widths)

    @property
    def widest_tower(self) -> float:
        """``max(C_t)`` over the mean of all towers: a peer stage lasts as long as its widest tower sends."""
        return max(self.out_widths) * len(self.out_widths) / sum(self.out_widths)

    def forward(self, sparse: Jagged) -> Tensor:
        """Look up, exchange and compress.

        Parameters
        ----------
        sparse : Jagged
            This rank's bags, feature-major in the order of ``self.features``.

        Returns
        -------
        Tensor
            ``[B, sum(C_t)]``, tower by tower.

        Raises
        ------
        InputError
            If an id is outside its table (``bounds="error"``; in one process on CUDA see `bounds`), the bags are no
            whole number of samples, or their weights require a gradient. On ranks, nobody else hears of it, and others
            wait for this rank's ids: such a batch cannot be skipped by one rank alone.
        """
        return self.finish(self.start(sparse))

    def start(self, sparse: Jagged) -> Any:
        """Begin what :meth:`forward` does, and return what :meth:`finish` takes; what runs between them overlaps.

        Shapes and errors are those of :meth:`forward`. Every batch that was started is finished, in the same order.
        """
        raise NotImplementedError  # every way to exchange is a subclass that has its own

    def finish(self, in_flight: Any) -> Tensor:
        """End it: ``[B, sum(C_t)]``."""
        raise NotImplementedError  # as above

    def finish_into(self, in_flight: Any, over_arch: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """End it in an over-arch that treats samples alone: its work on some runs while others are on their way.

        Parameters
        ----------
        in_flight : object
            What :meth:`start` has returned.
        over_arch : callable
            Called with embeddings ``[b, sum(C_t)]`` and the same samples of `rows`, for all samples at once or, in
            order, for one chunk after the other; returns a tensor of ``b`` rows. What depends on the other samples of
            a batch (batch normalization, say) would see those of its chunk.
        rows : Tensor
            ``[B, ...]`` each.

        Returns
        -------
        Tensor
            What `over_arch` returned, one chunk below the other: ``[B, ...]``.

        Raises
        ------
        RuntimeError
            If `rows` are not as many as the samples.
        """
        return over_arch(self.finish(in_flight), *rows)

    def finish_into_loss(self, in_flight: Any, loss: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """End it in a loss that is a sum over samples: forward and back through some while others are on their way.

        Of a batch in chunks, gradients of all but the last one are in the parameters' ``grad`` when this returns, and
        on their way to the tables: ``zero_grad`` before and not after, and ``backward`` once, on the result as it is.
        Hooks on parameters are called once for each chunk.

        Parameters
        ----------
        in_flight : object
            What :meth:`start` has returned.
        loss : callable
            Called as `over_arch` of :meth:`finish_into` is; returns a scalar, the samples' share of the loss: shares
            add up. What scales a loss, to accumulate gradients or to keep them in range, does so here; where the result
            is scaled, chunks but the last are not, which raises on the CPU and trains wrongly on CUDA. What requires a
            gradient and is computed outside is one of `rows`.
        rows : Tensor
            ``[B, ...]`` each; they may require gradients, and are not to be written to.

        Returns
        -------
        Tensor
            The sum of shares, a scalar.

        Raises
        ------
        RuntimeError
            If `rows` are not as many as the samples; in ``backward``, on the CPU, if the result was scaled.
        """
        return loss(self.finish(in_flight), *rows)

    def prefetch(self, sparse: Jagged) -> None:
        """Send the ids of a batch to come on their way, ahead of the forward pass that is given this very object.

        All ranks prefetch the same batches at the same points of their program. One batch at a time is kept: another
        call forgets a batch that was not used. Where nothing is sent it does nothing.

        Parameters
        ----------
        sparse : Jagged
            As in :meth:`forward`, which it may fail like.
        """

    def advance(self) -> None:
        """Send the second half of what :meth:`prefetch` started, once the first has arrived; all ranks alike."""

    def whole_state(self) -> dict[str, Tensor]:
        """Return ``state_dict()`` with whole tower modules, also where slices of them are held.

        The same for any placement, and collective over the towers.
        """
        return dict(self.state_dict())

    def load_whole_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what :meth:`whole_state` has returned, here or of an exchange with another placement."""
        self.load_state_dict(state)

    def _count(self) -> int:
        """The number of a batch that starts."""
        self.batches += 1
        return self.batches - 1

    def _samples(self, sparse: Jagged) -> int:
        features = len(self.features)
        samples, rest = divmod(sparse.offsets.numel() - 1, features)
        if rest:
            raise InputError(f"{sparse.offsets.numel() - 1} bags are no whole number of samples of {features} features")
        if sparse.weights is not None and sparse.weights.requires_grad and torch.is_grad_enabled():
            raise InputError("per-sample weights of a batch are data: an exchange has no gradient of them")
        return samples

    def _refuse_missing(self, sparse: Jagged, missing: ops.MissingIds) -> None:
        """Do with ids outside their tables what ``bounds`` says; if it returns, they count as missing."""
        if self.bounds == "none":
            return
        message = self._describe(missing, sparse)
        if self.bounds == "error":
            raise InputError(message)
        self.bad_ids += missing.count
        warnings.warn(f"{missing.count} ids count as missing; first: {message}", stacklevel=4)

    def _describe(self, missing: ops.MissingIds, sparse: Jagged) -> str:
        feature = self.features[missing.feature]
        table = self.plan.feature_tables[feature]
        samples = (sparse.offsets.numel() - 1) // len(self.features)
        bag = missing.feature * samples + missing.sample
        return (
            f"id {int(sparse.ids[sparse.offsets[bag].clamp(min=0) + missing.position])} of feature {feature!r} "
            f"(sample {missing.sample}, position {missing.position}) "
            f"is outside table {table.name!r} with {table.rows} rows"
        )
