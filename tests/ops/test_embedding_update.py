"""embedding_update_ against autograd, hand-written optimizer steps, torch.optim and the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmt_kernels.ops import embedding_bag, embedding_row_squares, embedding_update_
from dmt_kernels.ops.reference import embedding_update as reference
from tests.devices import on_devices
from tests.ops.bags import DTYPES
from tests.ops.updates import (
    MANY,
    OPTIMIZERS,
    Problem,
    all_updated,
    assert_same_bits,
    new_states,
    problem,
    problems,
    updated,
)
from tests.tolerances import assert_close


def autograd_gradients(case: Problem) -> tuple[list[Tensor], list[Tensor]]:
    """Per table the dense gradient in float64, by autograd through EmbeddingBag, and which rows a bag names."""
    tables = [torch.nn.Parameter(table.double()) for table in case.tables]
    named = [torch.zeros(len(table), dtype=torch.bool) for table in tables]
    loss = torch.zeros((), dtype=torch.float64)
    for (k, f, b), (ids, weights) in case.bag_ids().items():
        present = ids >= 0
        weights = None if weights is None else weights[present].double()
        ids = ids[present].long()
        if len(ids) == 0:
            continue
        t = case.feature_tables[f]
        named[t][ids] = True
        factors = None if weights is None else weights[None]
        pooled = torch.nn.functional.embedding_bag(ids[None], tables[t], mode="sum", per_sample_weights=factors)[0]
        pooled = pooled / len(ids) if case.pooling[f] == "mean" else pooled
        loss = loss + (pooled * case.grad[case.block_order[k] * case.samples + b, case.columns(f)].double()).sum()
    if loss.requires_grad:
        loss.backward()
    return [torch.zeros_like(table) if table.grad is None else table.grad for table in tables], named


def dense_step(
    optimizer: str, w: Tensor, g: Tensor, state: Tensor | None, lr: float, eps: float, weight_decay: float
) -> tuple[Tensor, Tensor | None]:
    h = g + weight_decay * w
    if optimizer == "sgd":
        return w - lr * h, None
    assert state is not None
    if optimizer == "adagrad":
        state = state + h.square()
        return w - lr * h / (state.sqrt() + eps), state
    state = state + h.square().mean(1)
    multiplier = (lr / (state.sqrt() + eps))[:, None]
    return (1 - multiplier * weight_decay) * w - multiplier * g, state


@on_devices
@settings(max_examples=120, deadline=None)
@given(case=problems(), optimizer=st.sampled_from(OPTIMIZERS), weight_decay=st.sampled_from([0.0, 0.3]))
def test_step_equals_autograd_and_formula(case: Problem, optimizer: str, weight_decay: float) -> None:
    tables, states = updated(case, optimizer, weight_decay=weight_decay)
    gradients, named = autograd_gradients(case)
    before = new_states(optimizer, case.tables)
    for t, table in enumerate(case.tables):
        state = before[t].double() if before else None
        w, state = dense_step(optimizer, table.double(), gradients[t], state, 0.1, 1e-6, weight_decay)
        rows = named[t]
        assert_close(tables[t][rows], w[rows].to(table.dtype))
        assert_same_bits([tables[t][~rows]], [table[~rows]])
        if before and state is not None:
            expected = state.to(before[t].dtype)
            assert_close(states[t][rows], expected[rows])
            assert_same_bits([states[t][~rows]], [before[t][~rows]])


@settings(max_examples=60, deadline=None)
@given(case=problems(dtype=torch.float64), weight_decay=st.sampled_from([0.0, 0.3]))
def test_row_squares_equal_autograd(case: Problem, weight_decay: float) -> None:
    squares = embedding_row_squares(
        case.tables, case.grad, case.ids, case.offsets, **case.bags, weight_decay=weight_decay
    )
    gradients, named = autograd_gradients(case)
    expected = [
        (g + weight_decay * table).square().sum(1)[rows]
        for g, table, rows in zip(gradients, case.tables, named, strict=True)
    ]
    torch.testing.assert_close(squares, expected, rtol=1e-12, atol=1e-12)


# float64 is compared to rounding: the square root of a float64 in PyTorch is not always correctly rounded.
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1], ids=["", "decay"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_oracle(dtype: torch.dtype, optimizer: str, weight_decay: float, weighted: bool) -> None:
    case = problem(1, **MANY, dtype=dtype, weighted=weighted, missing=0.2, longest=30)
    tables, states = updated(case, optimizer, weight_decay=weight_decay)
    expected, expected_states = [table.clone() for table in case.tables], new_states(optimizer, case.tables)
    options = {"lr": 0.1, "eps": 1e-6, "optimizer": optimizer, "weight_decay": weight_decay}
    reference.embedding_update_(expected, expected_states, case.grad, case.ids, case.offsets, **case.bags, **options)
    if dtype == torch.float64 or optimizer == "rowwise_adagrad":
        for a, b in zip(tables + states, expected + expected_states, strict=True):
            assert_close(a, b)
    else:
        assert_same_bits(tables + states, expected + expected_states)
    squares = embedding_row_squares(
        case.tables, case.grad, case.ids, case.offsets, **case.bags, weight_decay=weight_decay
    )
    oracle = reference.embedding_row_squares(
        case.tables, case.grad, case.ids, case.offsets, **case.bags, weight_decay=weight_decay
    )
    torch.testing.assert_close(squares, oracle, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grad_dtype", [torch.float16, torch.float32], ids=str)
def test_float32_gradient_of_a_half_table(grad_dtype: torch.dtype) -> None:
    case = problem(2, **MANY, dtype=torch.float16, grad_dtype=grad_dtype)
    expected = updated(replace(case, grad=case.grad.float()), "sgd")
    assert_same_bits(updated(case, "sgd")[0], expected[0])


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_steps_equal_torch_optim(optimizer: str, dtype: torch.dtype) -> None:
    first = problem(3, **MANY, dtype=dtype)
    tables = [table.clone() for table in first.tables]
    parameters = [torch.nn.Parameter(table.clone()) for table in tables]
    states = [torch.full_like(table, 0.1) for table in tables] if optimizer == "adagrad" else []
    peer = (
        torch.optim.SGD(parameters, lr=0.1)
        if optimizer == "sgd"
        else torch.optim.Adagrad(parameters, lr=0.1, eps=1e-6, initial_accumulator_value=0.1)
    )
    for step in range(5):
        case = replace(problem(3 + step, **MANY, dtype=dtype), tables=tables)
        for parameter, gradient in zip(parameters, autograd_gradients(case)[0], strict=True):
            parameter.grad = gradient.to(dtype)
        peer.step()
        options = {"optimizer": optimizer, "lr": 0.1, "eps": 1e-6}
        embedding_update_(tables, states, case.grad, case.ids, case.offsets, **case.bags, **options)
    for table, parameter in zip(tables, parameters, strict=True):
        assert_close(table, parameter.detach())


def test_means_count_ids_that_other_shards_hold_but_not_missing_ones() -> None:
    ids, offsets, grad = torch.tensor([-1, 1, 7, 9]), torch.tensor([0, 4]), torch.full((1, 2), 6.0)
    # A whole table of 8 rows: -1 and 9 are missing, which leaves two ids. A shard of rows 0..3: 7 and 9 are elsewhere.
    for row_starts, rows, divisor in (None, 8, 2.0), ([0], 4, 3.0):
        table = torch.zeros(rows, 2)
        options = {"pooling": "mean", "optimizer": "sgd", "lr": 1.0, "bounds": "none", "row_starts": row_starts}
        embedding_update_([table], [], grad, ids, offsets, **options)
        assert table[1].tolist() == [-6.0 / divisor] * 2
        assert int(table.count_nonzero()) == (4 if row_starts is None else 2)


@pytest.mark.parametrize("bad", [-1, 10, 2**62, -(2**63)])
def test_error_mode_names_the_id_and_writes_nothing(bad: int) -> None:
    case = problem(12, shapes=[(5, 2), (10, 3)], feature_tables=[0, 1], pooling=["sum", "sum"], samples=2, longest=0)
    ids, offsets = torch.tensor([0, 1, 2, 9, bad]), torch.tensor([0, 1, 2, 3, 5])
    case = replace(case, ids=ids, offsets=offsets)
    tables, states = [table.clone() for table in case.tables], new_states("adagrad", case.tables)
    with pytest.raises(
        RuntimeError, match=rf"embedding_update_: id {bad} of table 1, feature 1, sample 1, position 1 is"
    ):
        embedding_update_(tables, states, case.grad, ids, offsets, **case.bags, optimizer="adagrad")
    assert_same_bits(tables + states, case.tables + new_states("adagrad", case.tables))
    skipped = replace(case, ids=ids[:-1], offsets=torch.tensor([0, 1, 2, 3, 4]))
    assert_same_bits(all_updated(case, "adagrad"), all_updated(skipped, "adagrad"))
    with pytest.warns(UserWarning, match="1 of 5 ids"):
        updated(case, "sgd", bounds="warn")


def test_nothing_to_do() -> None:
    table = torch.ones(3, 2)
    none, offsets = torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    embedding_update_([table], [], torch.empty(0, 2), none, offsets, optimizer="sgd")
    embedding_update_([], [], torch.empty(0, 0), none, offsets, optimizer="sgd")
    embedding_update_([torch.empty(0, 2)], [torch.empty(0)], torch.ones(4, 2), none, torch.zeros(5, dtype=torch.int64))
    embedding_update_([torch.empty(3, 0)], [torch.zeros(3)], torch.ones(1, 0), none, torch.zeros(2, dtype=torch.int64))
    assert table.tolist() == [[1.0, 1.0]] * 3
    (squares,) = embedding_row_squares([table], torch.ones(4, 2), none, torch.zeros(5, dtype=torch.int64))
    assert squares.shape == (0,)


HALF_TABLE = torch.zeros(5, 3).half()


def wrong(message: str, error: type[Exception] = RuntimeError, **changes: Any) -> Any:
    return pytest.param(changes, error, message, id=message.replace(" ", "-")[:40])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        wrong("optimizer is 'sgd'", ValueError, optimizer="adam"),
        wrong("bounds is 'error'", ValueError, bounds="clamp"),
        wrong("expected 0 states, got 1", optimizer="sgd"),
        wrong("expected 1 states, got 0", states=[]),
        wrong(r"states\[0\] must have shape \[5\]", states=[torch.zeros(5, 3)]),
        wrong(r"states\[0\] must have shape \[5, 3\]", optimizer="adagrad"),
        wrong(r"states\[0\] must be float32 for float16 tables", tables=[HALF_TABLE], states=[HALF_TABLE[:, 0]]),
        wrong("grad of float32 tables must be float32, got float64", grad=torch.zeros(2, 3).double()),
        wrong(r"grad must have the shape of the pooled output, \[2, 3\]", grad=torch.zeros(2, 4)),
        wrong("row_mean_squares belongs to", optimizer="sgd", states=[], row_mean_squares=torch.zeros(2)),
        wrong("row_mean_squares must be float64", row_mean_squares=torch.zeros(2)),
        wrong("row_mean_squares has 3 entries, but the batch touches 2 rows", row_mean_squares=torch.zeros(3).double()),
        wrong("offsets must not decrease", offsets=torch.tensor([0, 2, 1])),
        wrong("columns of tables", tables=[torch.zeros(3, 5).t()]),
    ],
)  # fmt: skip
def test_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {
        "tables": [torch.zeros(5, 3)],
        "states": [torch.zeros(5)],
        "grad": torch.zeros(2, 3),
        "ids": torch.tensor([1, 4]),
        "offsets": torch.tensor([0, 1, 2]),
    } | changes
    with pytest.raises(error, match=message):
        embedding_update_(**arguments)


@pytest.mark.parametrize("optimizer", range(3), ids=OPTIMIZERS)
def test_opcheck_update(optimizer: int) -> None:
    case = problem(13, **MANY, weighted=True)
    arguments = (case.tables, new_states(OPTIMIZERS[optimizer], case.tables), case.grad, case.ids, case.offsets)
    layout = (case.weights, case.feature_tables, [0, 1, 1, 0], None, case.block_order)
    torch.library.opcheck(torch.ops.dmt.embedding_update_, (*arguments, *layout, 0, optimizer, 0.1, 1e-6, 0.1, None))


@pytest.mark.parametrize("direct", [False, True])
def test_a_table_that_was_saved_for_backward_is_seen_to_change(direct: bool) -> None:
    table, ids, offsets = torch.ones(3, 2), torch.tensor([0, 2]), torch.tensor([0, 1, 2])
    weights = torch.ones(2, requires_grad=True)
    pooled = embedding_bag([table], ids, offsets, per_sample_weights=weights)  # keeps the table for their gradient
    state = torch.zeros(3)
    arguments = ([table], [state], torch.ones(2, 2), ids, offsets)
    if direct:
        torch.ops.dmt.embedding_update_(*arguments, optimizer=OPTIMIZERS.index("rowwise_adagrad"))
    else:
        embedding_update_(*arguments)
    assert state._version == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        pooled.sum().backward()


def test_opcheck_row_squares() -> None:
    case = problem(14, **MANY, weighted=True)
    layout = (case.weights, case.feature_tables, [0, 1, 1, 0], None, case.block_order, 0.1)
    torch.library.opcheck(
        torch.ops.dmt.embedding_row_squares, (case.tables, case.grad, case.ids, case.offsets, *layout)
    )


def test_ids_outside_the_bags_are_not_read() -> None:
    case = problem(15, **MANY, weighted=True)
    padded = replace(
        case,
        ids=torch.nn.functional.pad(case.ids, (2, 3), value=99),
        weights=torch.nn.functional.pad(case.weights, (2, 3), value=torch.nan),
        offsets=case.offsets + 2,
    )
    assert_same_bits(all_updated(padded, "adagrad", bounds="error"), all_updated(case, "adagrad"))
