"""Sentence vectors: meaning, unit length, the cache, and independence of the batch."""

import sqlite3

import numpy as np
import pytest

import driftline.llm.encoder as module
from driftline.configs.errors import MissingModelError
from driftline.configs.settings import Encoder
from driftline.llm.encoder import TextEncoder

TEXTS = ["red retrospot cake stand", "polka dot cupcake plate", "garden spade", "", "hot water bottle " * 60]


def test_related_titles_are_closer_than_unrelated_ones(minilm):
    cake, cases, spade = minilm.encode([TEXTS[0], "fairy cake cases", TEXTS[2]])
    assert cake @ cases > cake @ spade + 0.1
    happy, happier, weather = minilm.encode(
        ["That is a happy person", "That is a very happy person", "It is a sunny day"]
    )
    assert happy @ happier > 0.9 > 0.5 > happy @ weather


def test_vectors_are_unit_float32_of_the_model_s_width(minilm):
    vectors = minilm.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert minilm.encode([]).shape == (0, 384)


def test_a_vector_does_not_depend_on_what_is_encoded_with_it(minilm):
    together = TextEncoder(Encoder(cache=None)).encode(TEXTS + [f"text {i}" for i in range(40)])
    alone = TextEncoder(Encoder(cache=None))
    assert all(np.array_equal(alone.encode([text])[0], together[i]) for i, text in enumerate(TEXTS))


def test_vectors_past_a_bound_are_made_again_and_are_the_same(minilm, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 2)
    encoder = TextEncoder(Encoder(cache=None))
    whole = encoder.encode(TEXTS)
    assert len(encoder._memory) == 2
    np.testing.assert_array_equal(encoder.encode(TEXTS[::-1])[::-1], whole)


def test_the_cache_gives_the_same_vectors_without_the_model(minilm, tmp_path):
    path = tmp_path / "vectors.sqlite"
    first = TextEncoder(Encoder(cache=path)).encode(TEXTS)
    second = TextEncoder(Encoder(cache=path))
    assert np.array_equal(second.encode(TEXTS), first)
    assert second._model is None


def test_a_damaged_cache_is_one_clear_message(tmp_path):
    path = tmp_path / "vectors.sqlite"
    path.write_bytes(b"not a database" * 100)
    if not minilm_is_there():
        pytest.skip("MiniLM was not fetched: run `python -m driftline.llm.fetch`")
    with pytest.raises(MissingModelError, match=r"encoder\.cache.*delete it"):
        TextEncoder(Encoder(cache=path))
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(path).execute("SELECT 1 FROM vectors")


def test_a_folder_without_a_model_is_one_clear_message(tmp_path):
    encoder = TextEncoder(Encoder(model=str(tmp_path), cache=None))
    with pytest.raises(MissingModelError, match=r"does not hold a readable sentence encoder"):
        encoder.encode(["a"])


def minilm_is_there() -> bool:
    from driftline.llm.fetch import MINILM, is_fetched

    return is_fetched(MINILM)
