"""What may be recommended: the topic's last word, what is kept for later starts, and what compaction took away."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from driftline.serving.availability import CATALOGUE, Availability
from driftline.serving.models import Served
from driftline.serving.scorer import PopularityScorer
from driftline.serving.snapshot import Meta, Snapshot
from driftline.serving.withdrawn import WithdrawnFile

IDS = ("a", "b", "c", "d")
ALL = {*IDS}


def record(item_id, **fields):
    return item_id.encode(), orjson.dumps({"item_id": item_id, **fields})


def model(listing=None, offered=IDS, topic="items"):
    places = [(listing or {}).get(item_id, (-1, -1)) for item_id in IDS]
    items = dict(zip(("listed_partition", "listed_offset"), np.array(places).T, strict=True))
    snapshot = Snapshot("v", 1, 0, Meta(extra={CATALOGUE: topic}), {"items": items})
    scorer = PopularityScorer([(item_id, 1.0) for item_id in IDS])
    return Served(snapshot, scorer, [], np.isin(IDS, offered), np.zeros(len(IDS), np.int32), {})


def read(availability, records, bounds=None, begin=True):
    """`records`: key and value, and perhaps partition and time."""
    if begin:
        availability.begin(bounds or {0: (0, len(records))})
    for said in records:
        availability.take(*said)
    availability.taken(at_end=True)
    return availability


def offered(availability, served):
    return {IDS[n] for n in np.flatnonzero(availability.over(served).offered)}


def test_the_last_record_of_an_item_counts_in_either_direction():
    availability, served = Availability(), model(offered=("a", "b", "c"))
    assert offered(availability, served) == {"a", "b", "c"}
    read(availability, [record("a", available=False), record("b"), record("d")])
    assert offered(availability, served) == {"b", "c", "d"}
    read(availability, [record("a"), (b"b", None), (b"c", b"")], begin=False)
    assert offered(availability, served) == {"a", "d"}
    read(availability, [record("b", available=True), (b"not known", None)], begin=False)
    assert offered(availability, served) == {"a", "b", "d"}
    assert offered(availability, model()) == {"a", "b", "d"}


def test_titles_of_the_topic_are_there_for_what_no_model_knows():
    from dataclasses import replace

    availability, served = Availability(), model()
    read(availability, [record("a", title="Amber"), record("b", text="of b"), record("c", title="C"), record("d")])
    popular = replace(served, snapshot=Snapshot("", 0, -1, Meta(), {}))
    assert availability.over(popular).titles == ["Amber", "of b", "C", ""]
    read(availability, [record("a", title="Ambrosia"), (b"c", None)], begin=False)
    assert availability.over(popular).titles == ["Ambrosia", "of b", "", ""]
    read(availability, [record("new", title="Dawn")], begin=False)
    assert availability.over(replace(served, titles=["of the model"])).titles == ["of the model"]
    assert (availability.title("a"), availability.title("new")) == ("", "Dawn")
    assert availability.lists("new")
    assert not availability.lists("newer")


def test_old_words_of_the_topic_do_not_count_while_it_is_read_anew():
    availability, served = read(Availability(), [(b"a", None)]), model()
    availability.begin({0: (0, 3)})
    availability.take(*record("a"))
    availability.take(*record("b", available=False))
    availability.taken(at_end=False)
    assert offered(availability, served) == {"b", "c", "d"}
    availability.take(*record("b"))
    availability.taken(at_end=True)
    assert offered(availability, served) == ALL


@pytest.mark.parametrize(
    "bad", [(None, None), (b"\xff", None), (b"a", b"{"), (b"a", b"[]"), (b"a", b'{"item_id": "a", "available": "no"}')]
)
def test_a_record_that_is_no_item_is_counted_and_changes_nothing(bad):
    availability = read(Availability(), [bad])
    assert availability.invalid == 1
    assert offered(availability, model()) == ALL


@pytest.mark.parametrize("order", ["000001111", "111100000", "010101010"])
def test_of_two_partitions_the_one_with_the_newer_record_counts_in_whatever_order_they_are_read(tmp_path, order):
    a_out, b_out = record("a", available=False), record("b", available=False)
    first = [(*record("a"), 0, 5), (*a_out, 0, 30), (*record("b"), 0, 10), (*record("d"), 0, 7), (b"c", None, 0, 40)]
    other = [(*record("a"), 1, 20), (*b_out, 1, 20), (*record("c"), 1, 30), (b"d", None, 1, 7)]
    partitions = {"0": iter(first), "1": iter(other)}
    read_so = [next(partitions[number]) for number in order]
    availability = Availability("items", WithdrawnFile(tmp_path))
    for _ in range(2):  # a start, and a reconnection
        read(availability, read_so)
        assert availability.withdrawn == WithdrawnFile(tmp_path).read() == ALL
    read(availability, [(*record("b"), 0, 15), (*record("c"), 1, 50), (*record("a"), 0, 1)], begin=False)
    assert availability.withdrawn == {"b", "d"}, "offsets order a partition, times order two"


def test_an_item_deleted_in_another_partition_than_its_record_s_stays_away_once_compaction_took_the_tombstone(tmp_path):
    stale, tombstone = (*record("a"), 0, 10), (b"a", None, 1, 20)  # the topic got a second partition in between
    read(Availability("items", WithdrawnFile(tmp_path)), [stale, tombstone])
    later = Availability("items", WithdrawnFile(tmp_path))
    for _ in range(2):  # a start, and a reconnection
        read(later, [stale])
        assert later.withdrawn == WithdrawnFile(tmp_path).read() == {"a"}
    read(later, [(*record("a"), 0, 30)], begin=False)
    assert later.withdrawn == WithdrawnFile(tmp_path).read() == set()
    assert WithdrawnFile(tmp_path).words == {}


def test_a_file_of_an_earlier_release_says_which_items_are_withdrawn_and_not_since_when(tmp_path):
    (tmp_path / "withdrawn.json").write_bytes(orjson.dumps({"item_ids": ["a", "b"]}))
    availability = read(Availability("items", WithdrawnFile(tmp_path)), [(*record("a"), 0, 10), (b"c", None, 0, 20)])
    assert availability.withdrawn == {"b", "c"}
    file = WithdrawnFile(tmp_path)
    assert (file.read(), file.words) == ({"b", "c"}, {"c": (20, 0)})


def test_a_tombstone_finds_its_item_under_the_key_that_a_serialiser_wrote():
    key, value = b'"a"', record("a")[1]
    assert offered(read(Availability(), [(key, value), (key, None)]), model()) == {"b", "c", "d"}


def test_what_was_withdrawn_stays_so_where_the_topic_has_lost_it_until_it_is_offered_again(tmp_path):
    file = WithdrawnFile(tmp_path)
    read(Availability("items", file), [record("a"), (b"a", None), record("b", available=False)])
    later = Availability("items", WithdrawnFile(tmp_path))
    assert offered(later, model()) == {"c", "d"}  # before anything is read
    read(later, [record("c")])
    assert offered(later, model()) == {"c", "d"}
    read(later, [record("a")], begin=False)
    assert offered(later, model()) == {"a", "c", "d"}
    assert WithdrawnFile(tmp_path).read() == {"b"}


def test_processes_that_share_the_file_learn_from_each_other(tmp_path):
    first, second = (Availability("items", WithdrawnFile(tmp_path)) for _ in range(2))
    read(first, [record("a"), record("b")])
    read(second, [record("a"), record("b")])
    WithdrawnFile(tmp_path).merge({"d"}, lambda item_id: False)  # as a trainer does that found it deleted
    for one in (first, second):
        one.taken(at_end=True)
        assert offered(one, model()) == {"a", "b", "c"}
    read(first, [(b"c", None)], begin=False)
    read(second, [record("d")], begin=False)
    first.taken(at_end=True)
    second.taken(at_end=True)
    assert WithdrawnFile(tmp_path).read() == {"c"}
    assert offered(second, model()) == {"a", "b", "d"}


def test_an_item_whose_record_compaction_took_is_withdrawn_and_kept_so(tmp_path):
    listing = {"a": (0, 3), "b": (0, 5), "c": (1, 9), "d": (0, 99)}
    availability = Availability("items", WithdrawnFile(tmp_path))
    read(availability, [record("b")], {0: (0, 20), 1: (0, 5)})
    served = model(listing)
    assert offered(availability, served) == {"b", "c", "d"}  # partition 1 and offset 99 are not spanned
    availability.taken(at_end=True)
    assert WithdrawnFile(tmp_path).read() == {"a"}
    read(availability, [record("a")], begin=False)
    assert offered(availability, served) == ALL
    assert WithdrawnFile(tmp_path).read() == set()


def test_a_listing_of_another_topic_or_a_cut_one_withdraws_nothing():
    assert offered(read(Availability(), [record("b")], {0: (0, 20)}), model({"a": (0, 3)}, topic="x.items")) == ALL
    assert offered(read(Availability(), [record("b")], {0: (4, 20)}), model({"a": (0, 3)})) == ALL


def test_a_file_that_can_not_be_read_or_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "withdrawn.json").write_bytes(b"{")
    availability = read(Availability("items", WithdrawnFile(tmp_path)), [(b"a", None)])
    assert offered(availability, model()) == {"b", "c", "d"}
    assert "can't be read" in caplog.text
    blocked = tmp_path / "file"
    blocked.write_text("")
    availability = read(Availability("items", WithdrawnFile(blocked)), [(b"a", None)])
    assert offered(availability, model()) == {"b", "c", "d"}
    assert "can't be written" in caplog.text
