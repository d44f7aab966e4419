"""The feature store, filled directly and from a real broker's compacted topic."""

from __future__ import annotations

import gc
import time

import numpy as np
import orjson
import pytest

from driftline.configs.addresses import free_port
from driftline.configs.settings import Broker
from driftline.graph.profile import Profile
from driftline.serving import profiles
from driftline.serving.profiles import ProfileFollower, ProfileStore, _IntoStore
from driftline.stream.learn.profiles import StreamProfiles


def record(user_id="u", version=1, valid_from_ms=0, **changes):
    facets = {"crowd": "collectors", "interests": "lamps", "categories": "", "brands": ""}
    vectors = np.eye(4, 8, dtype=np.float32)
    profile = Profile(user_id, facets, f"Text {version}.", "template", {}, version, valid_from_ms, 0, vectors=vectors)
    return orjson.dumps({**profile.to_dict(), **changes})


def test_what_the_profiler_writes_is_what_the_store_gives():
    store = ProfileStore()
    assert store.put(b"u", record(valid_from_ms=5))
    got = store.get("u", 5)
    assert got.text == "Text 1."
    assert dict(got.facets)["interests"] == "lamps"
    assert (got.vectors.source, got.vectors.version, got.vectors.valid_from_ms) == ("template", 1, 5)
    np.testing.assert_array_equal(got.vectors.facets, np.eye(4, 8))
    assert store.get("u", 4) is None
    assert store.get("nobody", 5) is None


def test_a_version_that_is_not_valid_yet_does_not_hide_the_one_before():
    store = ProfileStore()
    for version, valid_from_ms in ((2, 20), (1, 10), (3, 30)):
        store.put(b"u", record(version=version, valid_from_ms=valid_from_ms))
    assert store.get("u", 35).vectors.version == 3
    assert store.get("u", 25).vectors.version == 2
    assert store.get("u", 15) is None


def test_a_text_that_was_being_decoded_when_its_record_went_is_not_kept(monkeypatch):
    store, decode = ProfileStore(), profiles.decode_profile
    assert store.put(b"u", record())

    def slow(raw):
        store.put(b"u", None)
        return decode(raw)

    with monkeypatch.context() as patch:
        patch.setattr(profiles, "decode_profile", slow)
        assert store.get("u", 1).text == "Text 1."  # as of when it was asked for
    assert (store.get("u", 1), len(store._decoded)) == (None, 0)
    small = ProfileStore(capacity=1)
    for user_id in ("a", "b"):
        small.put(user_id.encode(), record(user_id))
        assert small.get(user_id, 1)
    small.put(b"a", None)
    assert [stored.user_id for stored in small._decoded.values()] == ["b"]


def test_a_tombstone_in_another_partition_than_the_profile_forgets_it_in_whatever_order_they_are_read():
    """As after `profiles` got more partitions: a profile lies where its key went before."""
    ann, bob = record("ann"), record("bob")
    records = [(b"ann", ann, 0, 10), (b"ann", None, 1, 20), (b"bob", None, 1, 10), (b"bob", bob, 0, 20)]
    for order in (records, records[::-1]):
        store = ProfileStore()
        into = _IntoStore(store)
        for said in order:
            into.take(*said)
        assert (store.get("ann", 10**15) is None, store.get("bob", 10**15) is None) == (True, False)


def test_a_tombstone_forgets_the_user_and_capacity_forgets_the_oldest():
    store = ProfileStore(capacity=2)
    for user_id in ("a", "b", "c"):
        store.put(user_id.encode(), record(user_id))
    assert [store.get(user_id, 1) is not None for user_id in "abc"] == [False, True, True]
    assert store.put(b"b", None)
    assert store.get("b", 1) is None
    assert len(store) == 1
    assert [profile.user_id for profile in store._decoded.values()] == ["c"]  # nor does its text stay in memory


@pytest.mark.parametrize(
    "value",
    [
        b"{",
        b"[]",
        b'{"user_id": "u"}',
        record(embedding="AAAA"),
        record(embedding=[1, 2, 3]),
        record(valid_from_ms="x"),
        record(valid_from_ms=2**63),
        record(version=2**31),
        record(version=1e308),
    ],
)
def test_a_record_that_is_none_is_counted_and_left_out(value):
    store = ProfileStore()
    assert not store.put(b"u", value)
    assert (store.invalid, len(store)) == (1, 0)


def test_a_profile_of_another_width_than_the_models_read_is_counted_and_left_out(caplog):
    store = ProfileStore(text_dim=4)
    assert not store.put(b"u", record())
    assert (store.invalid, store.get("u", 1)) == (1, None)
    assert store.put(b"u", record(embedding=None)), "a profile without vectors is shown, and says nothing to a model"
    assert store.get("u", 1).text == "Text 1."
    assert "vectors of width 8, expected ranker.text_dim 4" in caplog.text
    assert ProfileStore(text_dim=8).put(b"u", record())


def test_where_models_read_no_vectors_a_profile_is_shown_without_them(caplog):
    store, stream = ProfileStore(text_dim=0), StreamProfiles(0)
    for user_id, value in (("a", record("a")), ("b", record("b", embedding=None))):
        assert store.put(user_id.encode(), value)
        got = store.get(user_id, 1)
        assert (got.text, got.vectors.facets.shape) == ("Text 1.", (4, 0))
        stream.take(value)
        assert stream.at(user_id, 1) is None
    assert (store.invalid, stream.invalid, caplog.text) == (0, 0, "")


def test_a_hit_is_quick_and_a_miss_never_blocks():
    store = ProfileStore()
    for n in range(200):
        store.put(b"k", record(f"user-{n}"))
    started = time.perf_counter()
    for n in range(400):
        store.get(f"user-{n}", 1)
    assert (time.perf_counter() - started) / 400 < 0.01


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_the_topic_is_read_from_its_beginning_and_followed(tmp_path):
    from kafka import KafkaProducer

    from driftline.stream.events.topics import create_topics
    from driftline.stream.kafka.broker import EmbeddedBroker

    settings = Broker(embedded_port=free_port(), embedded_dir=tmp_path / "broker", prefix="t-")
    store = ProfileStore()
    with EmbeddedBroker(settings) as bootstrap:
        follower = ProfileFollower(store, settings, bootstrap)  # before there is a topic
        try:
            create_topics(settings, bootstrap)
            producer = KafkaProducer(bootstrap_servers=bootstrap)
            producer.send("t-profiles", key=b"a", value=record("a"))
            producer.send("t-profiles", key=b"b", value=b"not a profile")
            producer.flush()
            deadline = time.monotonic() + 20
            while store.get("a", 1) is None and time.monotonic() < deadline:
                time.sleep(0.02)
            producer.send("t-profiles", key=b"a", value=record("a", version=2)).get(5)
            while store.get("a", 1).vectors.version != 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            producer.close()
            assert store.get("a", 1).text == "Text 2."
            assert store.invalid >= 1
        finally:
            follower.close()
    gc.collect()  # kafka-python and the broker's process leave things to the collector
