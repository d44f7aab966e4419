"""Whatever partition a producer puts an event into, it is applied once, in the partition of its user."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import orjson
import pytest

from driftline.configs.settings import Settings
from driftline.graph.rows import Event, decode_user
from driftline.serving.owner import partition_of
from driftline.stream.events.records import Outgoing, Record, pack, unpack
from driftline.stream.events.schema import encode_event
from driftline.stream.process.by_item import BY_ITEM, sources
from driftline.stream.process.forget import encode_forget
from driftline.stream.process.intake import FORWARDED
from driftline.stream.process.processor import Processor
from driftline.stream.state.store import MemoryStore

SETTINGS = Settings()
PARTITIONS, T0_MS = 4, 1_600_000_000_000


class Topic:
    """`interactions` of several partitions with their processors, and a worker that may be killed."""

    def __init__(self, twice: float = 0.0, settings: Settings = SETTINGS) -> None:
        self.settings, self.twice, self.random = settings, twice, np.random.default_rng(9)
        self.logs: list[list[Record]] = [[] for _ in range(PARTITIONS)]
        self.stores = [MemoryStore() for _ in range(PARTITIONS)]
        self.sent: list[Outgoing] = []
        self.forwarded = self.duplicates = 0
        self.processors = [self.opened(n) for n in range(PARTITIONS)]

    def opened(self, partition: int) -> Processor:
        return Processor(self.settings, self.stores[partition], partition=partition, partitions=PARTITIONS)

    def put(self, partition: int, value: bytes, key: bytes | None = None, headers=(), t_ms: int = -1) -> None:
        log = self.logs[partition]
        log.append(Record(len(log), value, key, t_ms, headers))

    def work(self, epoch: int = 7) -> None:
        """Applies everything; after some epochs the worker dies before it sends, or before it knows that it did."""
        while any(p.next_offset < len(log) for p, log in zip(self.processors, self.logs, strict=True)):
            for number in range(PARTITIONS):
                processor = self.processors[number]
                log = self.logs[number]
                changes = processor.apply(log[processor.next_offset : processor.next_offset + epoch])
                processor.commit(changes)
                self.forwarded += changes.forwarded
                self.duplicates += changes.duplicates
                if self.random.random() < self.twice:
                    self.send(changes.outgoing[: self.random.integers(len(changes.outgoing) + 1)])
                    self.processors[number] = self.opened(number)
                    self.send(self.processors[number].unsent)
                else:
                    self.send(changes.outgoing)
                self.processors[number].acknowledged = True

    def send(self, outgoing: list[Outgoing]) -> None:
        self.sent += outgoing
        for out in outgoing:
            if out.topic == "interactions":
                assert out.partition is not None
                self.put(out.partition, out.value, out.key, out.headers)

    def rows(self) -> dict[str, tuple[int, int]]:
        """(partition, events) by user; a user in two partitions is an error."""
        users = ((n, decode_user(value)) for n, store in enumerate(self.stores) for _, value in store.scan(b"u:"))
        found = [(row.user_id, (n, row.events)) for n, row in users if row.events]
        assert len({user for user, _ in found}) == len(found)
        return dict(found)


def history(n: int = 300, seed: int = 0) -> list[Event]:
    rng = np.random.default_rng(seed)
    times = T0_MS + np.cumsum(rng.integers(1, 5_000, n))
    return [Event(f"user-é{rng.integers(25)}", f"i{rng.integers(20)}", int(t), "view", f"e{t}") for t in times]


@pytest.mark.parametrize("twice", [0.0, 0.4])
def test_a_user_whose_events_are_spread_over_all_partitions_has_one_row_with_all_of_them(twice: float) -> None:
    events, topic = history(), Topic(twice)
    for event in events:
        topic.put(int(topic.random.integers(PARTITIONS)), encode_event(event))
    topic.work()
    straight = Topic()
    for event in events:
        straight.put(partition_of(event.user_id, PARTITIONS), encode_event(event), event.user_id.encode())
    straight.work()
    assert topic.rows() == straight.rows()
    assert straight.forwarded == 0
    assert topic.forwarded == sum(
        partition_of(orjson.loads(record.value)["user_id"], PARTITIONS) != number
        for number, log in enumerate(topic.logs)
        for record in log
        if not record.headers
    )
    for one, other in zip(topic.processors, straight.processors, strict=True):
        for user in other.nodes.indices:
            ours, theirs = one.user(user), other.user(user)
            assert (ours.memory.tobytes(), ours.history) == (theirs.memory.tobytes(), theirs.history)
    assert topic.duplicates == 0 if not twice else topic.duplicates > 10
    for_items = [place for out in topic.sent if out.topic == BY_ITEM for place in sources(out)]
    assert len(set(for_items)) == len(events)


def test_an_event_id_that_two_producers_send_to_two_partitions_counts_once() -> None:
    topic = Topic()
    for event, partition in itertools.product(history(40), range(PARTITIONS)):
        topic.put(partition, encode_event(event))
    topic.work()
    assert sum(events for _, events in topic.rows().values()) == 40


@pytest.mark.parametrize("key", [None, b"", b'"u"', b"\x00\x00\x00\x07", b"tenant|u", b"u", b"x" * 70_000])
def test_whatever_key_a_producer_uses_the_event_is_its_user_s(key: bytes | None) -> None:
    topic, raw = Topic(), b' {"user_id": "u", "item_id": "i", "timestamp_ms": 1600000000000, "colour": "red" }'
    for partition in range(PARTITIONS):
        topic.put(partition, raw, key)
    topic.work()
    assert topic.rows() == {"u": (partition_of("u", PARTITIONS), PARTITIONS)}
    copies = [out for out in topic.sent if out.topic == "interactions"]
    assert {(out.value, out.key, out.partition) for out in copies} == {(raw, b"u", partition_of("u", PARTITIONS))}
    alone = Processor(SETTINGS, MemoryStore())
    assert alone.apply([Record(0, raw, key)]).applied == 1


def test_with_one_partition_nothing_is_sent_on() -> None:
    processor = Processor(SETTINGS, MemoryStore())
    changes = processor.apply([Record(n, encode_event(event)) for n, event in enumerate(history())])
    assert (changes.applied, changes.forwarded) == (300, 0)
    assert not [out for out in changes.outgoing if out.topic == "interactions"]


@pytest.mark.parametrize("partition", range(PARTITIONS))
@pytest.mark.parametrize("origin", [b"0:5:-1", b"1:5:-1", b"2:5:-1", b"3:5:-1", b"9:5:-1"])
def test_a_copy_is_never_sent_on_and_applied_only_where_its_user_belongs(partition: int, origin: bytes) -> None:
    topic = Topic()
    topic.put(partition, encode_event(Event("u", "i", T0_MS)), b"u", ((FORWARDED, origin),))
    topic.work()
    source = int(origin[:1])
    belongs = partition == partition_of("u", PARTITIONS) and source != partition and source < PARTITIONS
    assert topic.rows() == ({"u": (partition, 1)} if belongs else {})
    assert topic.forwarded == 0
    assert not [out for out in topic.sent if out.topic == "interactions"]


@pytest.mark.parametrize("value", [b"", b"no place", b"1:2", None])
def test_a_header_of_that_name_which_no_worker_wrote_changes_nothing(value: bytes | None) -> None:
    topic = Topic()
    for partition in range(PARTITIONS):
        topic.put(partition, encode_event(Event("u", "i", T0_MS)), None, ((FORWARDED, value),))
    topic.work()
    assert topic.rows() == {"u": (partition_of("u", PARTITIONS), PARTITIONS)}


def test_a_copy_is_judged_by_the_time_at_which_the_broker_took_the_event() -> None:
    later = T0_MS + 40 * 86_400_000
    owner = partition_of("u", PARTITIONS)
    for place in range(PARTITIONS):
        topic = Topic()
        topic.put(place, encode_event(Event("u", "i", T0_MS + 3_600_000)), None, (), T0_MS)
        topic.put(place, encode_event(Event("u", "i", T0_MS + 60_000)), None, (), T0_MS)
        topic.work()
        letters = [out for out in topic.sent if out.topic == "interactions.dlq"]
        assert [dict(out.headers)["reason"] for out in letters] == [b"from_the_future"]
        assert topic.rows() == {"u": (owner, 1)}
    copy = Record(0, encode_event(Event("u", "i", T0_MS + 3_600_000)), b"u", later, ((FORWARDED, b"0:0:%d" % T0_MS),))
    assert Processor(SETTINGS, MemoryStore(), partition=owner, partitions=PARTITIONS).apply([copy]).dead == 1


def test_profiles_are_asked_for_by_the_owner_alone() -> None:
    settings = Settings.model_validate({"profiles": {"first_events": 3}})
    topic = Topic(settings=settings)
    for n in range(12):
        topic.put(n % PARTITIONS, encode_event(Event("u", f"i{n}", T0_MS + n)))
    topic.work(epoch=1)
    asked = [orjson.loads(out.value) for out in topic.sent if out.topic == "profile-requests"]
    assert [request["version"] for request in asked] == sorted({request["version"] for request in asked})
    assert asked
    assert asked[0]["events"] == 3


def test_the_outbox_keeps_the_partition_and_reads_what_was_kept_without_one() -> None:
    plain = Outgoing("t", None, b"v", (("a", b"1"),))
    copies = [plain, dataclasses.replace(plain, partition=0), dataclasses.replace(plain, partition=3, headers=())]
    assert unpack(pack(copies)) == copies


def test_a_copy_that_came_with_another_log_is_a_dead_letter_and_hides_no_copy_of_this_one() -> None:
    store, owner = MemoryStore(), partition_of("u", PARTITIONS)
    source = (owner + 1) % PARTITIONS
    store.commit({b"m:topics": orjson.dumps({"interactions": {"topic_id": "this", "offset": 0, "mark": ""}})})
    processor = Processor(SETTINGS, store, partition=owner, partitions=PARTITIONS)
    value = encode_event(Event("u", "i", T0_MS))
    places = [b"%d:900:-1:that" % source, b"%d:900:-1" % source, b"%d:7:-1:this" % source, b"%d:7:-1:this" % source]
    changes = processor.apply([Record(n, value, b"u", -1, ((FORWARDED, place),)) for n, place in enumerate(places)])
    assert (changes.applied, changes.duplicates, changes.dead) == (1, 1, 2)
    assert {dict(out.headers)["reason"] for out in changes.outgoing if out.topic.endswith("dlq")} == {b"foreign_copy"}


def test_a_request_to_forget_that_came_with_another_log_is_a_dead_letter_and_hides_no_copy_of_this_one() -> None:
    store, owner = MemoryStore(), partition_of("u", PARTITIONS)
    source = (owner + 1) % PARTITIONS
    store.commit({b"m:topics": orjson.dumps({"interactions": {"topic_id": "this", "offset": 0, "mark": ""}})})
    processor = Processor(SETTINGS, store, partition=owner, partitions=PARTITIONS)
    key, value = encode_forget("u")
    event = encode_event(Event("u", "i", T0_MS))
    that, this = [((FORWARDED, b"%d:%d:-1:%s" % (source, n, log)),) for n, log in ((900, b"that"), (7, b"this"))]
    changes = processor.apply([Record(0, event), Record(1, value, key, -1, that), Record(2, event, key, -1, this)])
    assert (changes.applied, changes.duplicates, changes.dead, changes.forgotten) == (2, 0, 1, 0)
    (letter,) = [out for out in changes.outgoing if out.topic.endswith("dlq")]
    assert (dict(letter.headers)["reason"], letter.value) == (b"foreign_copy", value)


def test_a_copy_names_the_log_of_the_record_that_it_is_of() -> None:
    store, elsewhere = MemoryStore(), (partition_of("u", PARTITIONS) + 1) % PARTITIONS
    store.commit({b"m:topics": orjson.dumps({"interactions": {"topic_id": "this", "offset": 0, "mark": ""}})})
    processor = Processor(SETTINGS, store, partition=elsewhere, partitions=PARTITIONS)
    (out,) = processor.apply([Record(0, encode_event(Event("u", "i", T0_MS)), None, T0_MS)]).outgoing
    assert dict(out.headers)[FORWARDED] == b"%d:0:%d:this" % (elsewhere, T0_MS)
