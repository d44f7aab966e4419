"""What went on `interactions.by-item` before there were frames, each event by itself: an oracle, and still read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from driftline.graph.arrays import Float32
from driftline.graph.rows import Event
from driftline.stream.events.records import Outgoing
from driftline.stream.events.schema import encode_event
from driftline.stream.process.by_item import BY_ITEM, sent


def single(partition: int, event: Event, memory: Float32) -> Outgoing:
    """One applied event with its user's memory, keyed by item."""
    headers = (("source", f"{partition}:{event.offset}".encode()), ("user_memory", memory.tobytes()))
    return Outgoing(BY_ITEM, event.item_id.encode(), encode_event(event), headers)


def singles(outgoing: Iterable[Outgoing]) -> Iterator[Outgoing]:
    """The events of all frames among some records, in order of their offsets."""
    found = [sent(out) for out in outgoing if "frame" in dict(out.headers)]
    events = [(part.partition, *one) for part in found for one in zip(part.events, part.memories, strict=True)]
    for partition, event, memory in sorted(events, key=lambda one: one[1].offset):
        yield single(partition, event, memory)
