"""The table of texts: small and large it holds the same vectors, however it grew, was kept or copied."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from driftline.graph import codes
from driftline.graph.codes import Codes
from driftline.graph.codes_kernel import half_dots, half_rows
from driftline.graph.texts import TextTable

DIM = 24


@pytest.fixture
def few(monkeypatch):
    """A table of more than 40 rows is large."""
    monkeypatch.setattr(codes, "SMALL", 40 * DIM)


def vectors_of(n, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def table_of(vectors, rows=None):
    table = TextTable(DIM)
    for row in range(len(vectors)) if rows is None else rows:
        assert table.set(row, vectors[row])
    return table


def test_a_small_table_gives_back_what_was_set_to_the_bit(few):
    vectors = vectors_of(40)
    table = table_of(vectors, [3, 39, 0])
    assert table.codes is None
    assert len(table) == 40
    assert np.array_equal(table[np.array([39, 0, 3])], vectors[[39, 0, 3]])
    assert np.array_equal(table[39], vectors[39])
    assert not table[np.array([1, 2, 40, 1000])].any()
    assert np.array_equal(table.dense(20), table[np.arange(20)])
    assert table.dense(1000).shape == (40, DIM)


def test_a_table_that_becomes_large_keeps_every_row_as_float16_and_is_searched_by_codes(few):
    vectors = vectors_of(300)
    table = table_of(vectors)
    halves = vectors.astype(np.float16).astype(np.float32)
    assert np.array_equal(table[np.arange(300)], halves)
    at_once = Codes(DIM)
    at_once.set(np.arange(300), halves)
    query = vectors_of(1, 7)[0]
    rows, scores = table.codes.best(query[None], 300, 20, table.dots)[0]
    assert set(np.argsort(-(halves @ query))[:10].tolist()) <= set(rows.tolist())
    np.testing.assert_allclose(scores, halves[rows] @ query, atol=1e-6)
    np.testing.assert_allclose(
        table.dots(np.array([5, 299, 300, 9999], np.int32), query)[:2], halves[[5, 299]] @ query, atol=1e-6
    )
    assert not table.dots(np.array([300, 9999], np.int32), query).any()


@pytest.mark.parametrize("n", [30, 300])
def test_a_row_that_is_there_already_is_no_change_and_a_new_one_is(few, n):
    vectors = vectors_of(n)
    table = table_of(vectors)
    assert not table.set(7, vectors[7])
    assert table.set(7, vectors[8])
    assert np.array_equal(table[7], table[8])
    assert table.set(7, np.zeros(DIM, np.float32))
    assert not table[7].any()


@pytest.mark.parametrize("n", [30, 300])
def test_what_is_kept_or_copied_is_the_same_and_goes_its_own_way(few, n):
    vectors = vectors_of(n)
    table = table_of(vectors)
    kept = {name: array.copy() for name, array in table.arrays().items()}
    for other in (TextTable.from_arrays(kept), copy.deepcopy(table), TextTable.from_arrays(kept, read_only=True)):
        assert other.arrays().keys() == table.arrays().keys()
        for name, array in other.arrays().items():
            assert np.array_equal(array, table.arrays()[name]), name
    changed = TextTable.from_arrays(kept)
    assert changed.set(n + 50, vectors[3])
    assert changed.set(2, vectors[3])
    assert np.array_equal(table[2], table_of(vectors)[2])
    assert np.array_equal(kept["text"][2].astype(np.float32), table[2])
    assert len(table) == n


def test_a_table_of_a_release_without_float16_becomes_one_with_its_next_row(few):
    vectors = vectors_of(100)
    table = TextTable.from_arrays({"text": vectors})
    assert np.array_equal(table[np.arange(100)], vectors)
    assert table.set(100, vectors[0])
    assert table.arrays()["text"].dtype == np.float16
    assert table.codes is not None
    np.testing.assert_allclose(table[np.arange(100)], vectors, atol=3e-4)


def test_a_table_of_a_release_with_one_bit_a_number_is_read_as_it_is_and_coded_anew_where_it_learns(few):
    vectors, query = vectors_of(300), vectors_of(1, 7)[0]
    table = table_of(vectors)
    kept = {name: array.copy() for name, array in table.arrays().items() if name != "text.seconds"}
    read, learns = TextTable.from_arrays(kept, read_only=True), TextTable.from_arrays(kept)
    for other in (read, learns):
        rows, scores = other.codes.best(query[None], 300, 20, other.dots)[0]
        best = np.argsort(-other.dots(np.arange(300, dtype=np.int32), query))[:10]
        assert set(best.tolist()) <= set(rows[np.argsort(-scores)[:20]].tolist())
    assert not read.codes.complete
    assert learns.arrays().keys() == table.arrays().keys()
    for name, array in learns.arrays().items():
        expected = table.arrays()[name]
        if name == "text.scales":  # of products whose rounding depends on how many rows are turned at once
            np.testing.assert_allclose(array, expected, rtol=1e-6)
        else:
            assert np.array_equal(array, expected), name
    assert read.set(310, vectors[3])
    assert read.codes.complete


def test_every_number_of_a_half_table_is_read_as_numpy_reads_it():
    words = np.arange(1 << 16, dtype=np.uint16)
    halves = words.view(np.float16)
    words, halves = words[np.isfinite(halves)], halves[np.isfinite(halves)]
    rows, products = np.empty((1, len(words)), np.float32), np.empty(1, np.float32)
    half_rows(words[None], np.zeros(1, np.int64), rows)
    assert np.array_equal(rows[0], halves.astype(np.float32))
    for at in (0, 1, 1024, 31_744, len(words) - 1):  # zero, the least, a normal one, the first below zero, the last
        one = np.zeros(len(words), np.float32)
        one[at] = 1
        half_dots(words[None], np.zeros(1, np.int32), one, products)
        assert products[0] == np.float32(halves[at])
