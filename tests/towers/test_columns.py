"""How columns are shared out among features."""

import math

import pytest

from dmt_kernels.spec import InputError
from dmt_kernels.towers import even_columns, share_columns, tower_width

MANY = 1000


@pytest.mark.parametrize(
    ("dims", "width", "columns"),
    [((16,) * 3, 24, (8, 8, 8)), ((16,) * 3, 10, (3, 3, 4)), ((4, 12), 8, (2, 6)), ((4,) * 4, 2, (0, 1, 0, 1))],
)
def test_even_shares_are_in_proportion_to_dims(dims, width, columns):
    assert even_columns(dims, width) == columns


def test_shares_are_as_the_roots_of_importance():
    shared = share_columns([(64,) * 2, (64,)], [(MANY,) * 2, (MANY,)], [(0.16, 0.01), (0.25,)], 192 / 60)
    assert shared == [(24, 6), (30,)]
    assert share_columns([(64,) * 2, (64,)], [(MANY,) * 2, (MANY,)], [(16, 1), (25,)], 192 / 60) == shared


@pytest.mark.parametrize("compression", [1, 2, 4, 8])
def test_equal_importance_is_an_even_share(compression):
    tower_dims = [(16,) * 3, (16,) * 5]
    shared = share_columns(tower_dims, [(MANY,) * 3, (MANY,) * 5], [(0.2,) * 3, (0.2,) * 5], compression)
    assert shared == [even_columns(dims, sum(dims) // compression) for dims in tower_dims]


def test_a_table_of_few_rows_needs_fewer_columns_than_rows():
    assert share_columns([(16, 16, 16)], [(2, 4, MANY)], [(1, 1, 1)], 4) == [(1, 3, 8)]
    assert share_columns([(16, 16)], [(1, MANY)], [(1, 1)], 4) == [(1, 7)]


def test_columns_beyond_what_is_of_use_are_given_all_the_same():
    assert share_columns([(16, 16)], [(3, 5)], [(1, 1)], 4) == [(4, 4)]
    assert sum(share_columns([(16, 16)], [(3, 5)], [(1, 1)], 1)[0]) == 32
    assert share_columns([(16, 16)], [(MANY, MANY)], [(9, 1)], 0.5) == [(48, 16)]


def test_what_is_worth_nothing_gets_a_column_if_there_are_as_many():
    rows = [(MANY,) * 4]
    assert share_columns([(16,) * 4], rows, [(1, -0.1, 0, 1e-9)], 4) == [(13, 1, 1, 1)]
    assert share_columns([(2,) * 4], rows, [(1, 0.1, 0.2, 0)], 4) == [(1, 0, 1, 0)]


@pytest.mark.parametrize("unit", [1, 4, 8])
@pytest.mark.parametrize("compression", [1.5, 2, 3, 4, 16, 1000])
def test_every_tower_gets_a_multiple_of_the_unit_and_all_together_what_compression_allows(unit, compression):
    tower_dims = [(16,) * 3, (16,), (16,) * 6]
    importance = [(0.1, 0.2, 0.01), (3.0,), (0.02,) * 6]
    shared = share_columns(tower_dims, [(MANY,) * len(d) for d in tower_dims], importance, compression, unit)
    sums = [sum(columns) for columns in shared]
    assert all(
        width % unit == 0 and unit <= width <= max(unit, sum(d)) for width, d in zip(sums, tower_dims, strict=True)
    )
    assert sum(sums) == sum(tower_width(dims, compression, unit) for dims in tower_dims)


@pytest.mark.parametrize("importance", [[(1, math.nan)], [(1, math.inf)]])
def test_importance_has_to_be_numbers(importance):
    with pytest.raises(InputError, match="must be finite numbers"):
        share_columns([(4, 4)], [(9, 9)], importance, 2)


@pytest.mark.parametrize("importance", [[(0, -1)], [(0, 0)], [(-3, -2)]])
def test_where_nothing_is_worth_anything_all_are_alike(importance):
    assert share_columns([(4, 4)], [(9, 9)], importance, 2) == [(2, 2)]


def test_nobody_gets_more_than_his_dim_while_others_have_room():
    assert share_columns([(16, 16)], [(MANY, MANY)], [(1, 1e-9)], 1.6) == [(16, 4)]


def test_every_tower_knows_its_own_tables():
    shared = share_columns([(8, 8), (8, 8)], [(3, MANY), (MANY, 2)], [(1, 1), (1, 1)], 2)
    assert shared == [(2, 7), (6, 1)]


def test_a_table_of_one_row_waits_for_all_others():
    assert share_columns([(2, 2, 2)], [(1, MANY, MANY)], [(1, 0.9, 0.8)], 6) == [(0, 1, 0)]


def test_a_tower_of_little_worth_keeps_a_column_for_each_feature_if_there_are_as_many():
    dims = [(16,) * 6] * 2
    shared = share_columns(dims, [(MANY,) * 6] * 2, [(1,) * 6, (1e-6,) * 6], 4, 4)
    assert shared == [(7, 7, 7, 7, 6, 6), (2, 2, 1, 1, 1, 1)]


@pytest.mark.parametrize("unit", [1, 5, 8])
@pytest.mark.parametrize("compression", [1.5, 3, 8])
def test_there_are_as_many_columns_as_by_even_shares(compression, unit):
    dims = [(16,) * 6, (16,) * 7, (16,) * 13]
    shared = share_columns(
        dims, [(MANY,) * len(d) for d in dims], [range(1, len(d) + 1) for d in dims], compression, unit
    )
    assert sum(map(sum, shared)) == sum(tower_width(d, compression, unit) for d in dims)


@pytest.mark.parametrize("compression", [0, -1, math.nan])
def test_compression_must_be_positive(compression):
    with pytest.raises(InputError, match="compression must be a positive number"):
        share_columns([(4, 4)], [(9, 9)], [(1, 1)], compression)
