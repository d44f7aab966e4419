"""The rows of the graph as they are stored: one for each user, one for each item.

A row is canonical: equal state gives equal bytes, on any host and for any order of arrival of other rows. So
it holds ids or their 64-bit keys, never dense indices, never wall-clock times and never profiles.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import msgspec
import numpy as np
import xxhash
from msgspec import Meta, Struct
from numpy.typing import NDArray

from driftline.graph.arrays import Float32

EVENT_DTYPE = np.dtype(
    [
        ("item", "<u8"),  # key64 of the item
        ("t", "<i8"),  # unix milliseconds
        ("group", "<u8"),  # key64 of the group, 0 = an event of its own
        ("weight", "<f4"),  # weight of the action
        ("value", "<f4"),  # rating, quantity, watch seconds; NaN = none
        ("price", "<f4"),  # NaN = none
        ("action", "<u4"),  # crc32 of the action's name
    ]
)
"""One event in a user's history, 40 bytes."""

NEIGHBOR_DTYPE = np.dtype([("user", "<u8"), ("t", "<i8")])
"""One temporal neighbour of an item."""


pack_event = struct.Struct("<QqQfffI").pack
"""Packs one EVENT_DTYPE record: (item, t, group, weight, value, price, action)."""


def key64(text: str) -> int:
    """Stable 64-bit key of an id: the same in every process, never reused.

    Two of a million ids collide with probability 3e-8.
    """
    return xxhash.xxh3_64_intdigest(text.encode()) or 1


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass or of an event by name; unlike `dataclasses.asdict` it copies none of them."""
    if isinstance(value, Struct):
        return msgspec.structs.asdict(value)
    return {field.name: getattr(value, field.name) for field in fields(value)}


def action_code(action: str) -> int:
    """The 32-bit code under which an action is stored."""
    return zlib.crc32(action.encode())


MAX_ID_BYTES = 256
MAX_ACTION_BYTES = 64
MAX_TIMESTAMP_MS = 4_102_444_800_000  # 2100-01-01
MAX_NUMBER = 1e30

_Text = Annotated[str, Meta(min_length=1, max_length=MAX_ID_BYTES)]
_Action = Annotated[str, Meta(min_length=1, max_length=MAX_ACTION_BYTES)]
_Time = Annotated[int, Meta(ge=0, le=MAX_TIMESTAMP_MS)]
_Number = Annotated[float, Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
_NotRead = Meta(gt=0, lt=0)  # no number satisfies it: a document can't fill such a field
_NotReadEither = Meta(min_length=1, max_length=0)


class Event(Struct, forbid_unknown_fields=True):
    """One interaction, already validated.

    A `msgspec.json.Decoder` of this type reads the common case; what it refuses, and texts that are not ASCII,
    `stream.events.schema` judges.

    Attributes:
        user_id: 1..256 bytes of UTF-8.
        item_id: 1..256 bytes of UTF-8.
        timestamp_ms: event time, unix milliseconds.
        action: what happened; its weight is a setting.
        event_id: with it, a second event of the same id is dropped.
        value: rating, quantity or watch seconds; None = not given.
        price: price at the event; None = not given.
        group_id: basket or session; rows of one group at one time stamp are one simultaneous update.
        domain: market, scene or shop.
        extra: fields that the schema does not know, kept as they came.
    """

    user_id: _Text
    item_id: _Text
    timestamp_ms: _Time
    action: _Action = "interact"
    event_id: _Text | None = None
    value: _Number | None = None
    price: _Number | None = None
    group_id: _Text | None = None
    domain: _Text | None = None
    extra: Annotated[dict[str, object], _NotReadEither] = msgspec.field(default_factory=dict)
    offset: Annotated[int, _NotRead] = -1
    """Offset in its partition; the tie-break of equal times."""

    def changed(self, **fields: Any) -> Event:
        """A copy with other values in some fields."""
        return msgspec.structs.replace(self, **fields)

    def nameless(self) -> Event:
        """Time and offset alone: what holds the place of an event whose user was forgotten."""
        return Event("", "", self.timestamp_ms, offset=self.offset)


@dataclass(slots=True)
class UserRow:
    """State of one user.

    Attributes:
        memory: [memory_dim] float32, node memory after the last event.
        pre: [memory_dim] float32, memory before the open group.
        message_sum: [message_dim] float32, sum of the open group's messages.
        message_count: rows in the open group.
        group: key64 of the open group (0 = single events) and `group_ms` its time.
        pre_update_ms: `last_update_ms` before the open group.
        last_update_ms: time of the last applied event, -1 before the first.
        events: events applied in total.
        actions: counts by action code.
        first_ms: time of the first event.
        domain: last domain seen, "" = none.
        too_late: events that came too late for the history; only counted.
        history: packed EVENT_DTYPE records in (time, offset) order, the newest last.
        version: number of this row's last change: offset + 1 of the newest event in it.
        earlier: events before those of `history` that lie elsewhere (graph/chunks.py); 0 = the row is whole.
    """

    user_id: str
    memory: Float32
    pre: Float32
    message_sum: Float32
    message_count: int = 0
    group: int = 0
    group_ms: int = -1
    pre_update_ms: int = -1
    last_update_ms: int = -1
    events: int = 0
    too_late: int = 0
    first_ms: int = -1
    domain: str = ""
    actions: dict[int, int] = field(default_factory=dict)
    history: bytearray = field(default_factory=bytearray)
    version: int = 0
    earlier: int = 0

    def events_array(self) -> NDArray[np.void]:
        """The history of a whole row as a read-only structured array [n] of EVENT_DTYPE."""
        return np.frombuffer(bytes(self.history), EVENT_DTYPE)


@dataclass(slots=True)
class ItemRow:
    """State of one item.

    Attributes:
        memory: [memory_dim] float32.
        last_update_ms: time of the last applied event, -1 before the first.
        first_ms: time of the first event.
        count: events applied.
        too_late: events that came too late; only counted.
        popularity: decayed sum of positive weights, half-life `signals.half_lives_days[0]`, as of last_update_ms.
        price: latest price, NaN = never given.
        ring: packed NEIGHBOR_DTYPE records of the last K users, oldest first.
    """

    item_id: str
    memory: Float32
    last_update_ms: int = -1
    first_ms: int = -1
    count: int = 0
    too_late: int = 0
    popularity: float = 0.0
    price: float = float("nan")
    ring: bytearray = field(default_factory=bytearray)


# user_id bytes follow the header, then domain, memory, pre, message_sum, actions, history
_USER = struct.Struct("<BHHHHIIiQqqqqqqq")
_ITEM = struct.Struct("<BHHIqqqqdf")
_ACTION = struct.Struct("<IQ")
_FORMAT = 1
_HEAD_FORMAT = 2
"""Of a user row that is not whole: the number of earlier events follows the header."""
_EARLIER = struct.Struct("<I")


def is_whole(data: bytes) -> bool:
    """Whether what `encode_user` wrote has all its events."""
    return data[:1] != b"%c" % _HEAD_FORMAT


def encode_user(row: UserRow, vectors: bytes | None = None) -> bytes:
    """The little-endian bytes of a user row; those of a whole one are canonical.

    Args:
        row: of the user.
        vectors: memory, pre and message_sum, if whoever asks has them as bytes already.
    """
    user_id, domain = row.user_id.encode(), row.domain.encode()
    actions = b"".join([_ACTION.pack(code, n) for code, n in sorted(row.actions.items())])
    head = _USER.pack(
        _HEAD_FORMAT if row.earlier else _FORMAT,
        len(user_id),
        len(domain),
        len(row.memory),
        len(row.message_sum),
        len(row.actions),
        len(row.history),
        row.message_count,
        row.group,
        row.group_ms,
        row.pre_update_ms,
        row.last_update_ms,
        row.events,
        row.too_late,
        row.first_ms,
        row.version,
    )
    if vectors is None:
        vectors = row.memory.tobytes() + row.pre.tobytes() + row.message_sum.tobytes()
    earlier = _EARLIER.pack(row.earlier) if row.earlier else b""
    return b"".join((head, earlier, user_id, domain, vectors, actions, row.history))


def decode_user(data: bytes) -> UserRow:
    """The row that `encode_user` wrote.

    Raises:
        ValueError: the bytes are not a user row of this format.
    """
    if len(data) < _USER.size + _EARLIER.size or data[0] not in (_FORMAT, _HEAD_FORMAT):
        raise ValueError(f"not a user row of format {_FORMAT} or {_HEAD_FORMAT}: {len(data)} bytes, first {data[:1]!r}")
    (_, n_id, n_domain, d_memory, d_message, n_actions, n_history, message_count, group, *times) = _USER.unpack_from(
        data
    )
    at, earlier = _USER.size, 0
    if not is_whole(data):
        (earlier,), at = _EARLIER.unpack_from(data, at), at + _EARLIER.size
    user_id, at = data[at : at + n_id].decode(), at + n_id
    domain, at = data[at : at + n_domain].decode(), at + n_domain
    vectors = np.frombuffer(data, "<f4", 2 * d_memory + d_message, at).copy()
    at += vectors.nbytes
    actions = dict(struct.iter_unpack("<IQ", data[at : at + 12 * n_actions]))
    at += 12 * n_actions
    group_ms, pre_update_ms, last_update_ms, events, too_late, first_ms, version = times
    return UserRow(
        user_id=user_id,
        memory=vectors[:d_memory],
        pre=vectors[d_memory : 2 * d_memory],
        message_sum=vectors[2 * d_memory :],
        message_count=message_count,
        group=group,
        group_ms=group_ms,
        pre_update_ms=pre_update_ms,
        last_update_ms=last_update_ms,
        events=events,
        too_late=too_late,
        first_ms=first_ms,
        domain=domain,
        actions=actions,
        history=bytearray(data[at : at + n_history]),
        version=version,
        earlier=earlier,
    )


def encode_item(row: ItemRow) -> bytes:
    """The canonical little-endian bytes of an item row."""
    item_id = row.item_id.encode()
    head = _ITEM.pack(
        _FORMAT,
        len(item_id),
        len(row.memory),
        len(row.ring),
        row.last_update_ms,
        row.first_ms,
        row.count,
        row.too_late,
        row.popularity,
        row.price,
    )
    return b"".join((head, item_id, row.memory.tobytes(), row.ring))


_ITEM_HEAD = np.dtype(
    [
        ("format", "u1"),
        ("id_bytes", "<u2"),
        ("width", "<u2"),
        ("ring_bytes", "<u4"),
        ("last_ms", "<i8"),
        ("first_ms", "<i8"),
        ("count", "<i8"),
        ("too_late", "<i8"),
        ("popularity", "<f8"),
        ("price", "<f4"),
    ]
)
"""What `_ITEM` packs."""


def encode_items(
    ids: Sequence[bytes], memory: Float32, rings: NDArray[np.uint64], **columns: NDArray[Any]
) -> list[bytes]:
    """The canonical bytes of several item rows, as `encode_item` gives them.

    Args:
        ids: [n] item ids in UTF-8.
        memory: [n, memory_dim] float32.
        rings: [n, K, 2] of (key64, t_ms), oldest first.
        columns: the other fields of `_ITEM_HEAD`, [n] each; ring_bytes says how much of a ring there is.
    """
    heads = np.empty(len(ids), _ITEM_HEAD)
    heads["format"], heads["id_bytes"], heads["width"] = _FORMAT, [len(item_id) for item_id in ids], memory.shape[1]
    for name, column in columns.items():
        heads[name] = column
    parts = (heads.tobytes(), memory.astype("<f4").tobytes(), rings.astype("<u8").tobytes())
    head, vector, ring = (len(part) // max(len(ids), 1) for part in parts)
    used = columns["ring_bytes"].tolist()
    return [
        b"".join(
            (
                parts[0][n * head : (n + 1) * head],
                item_id,
                parts[1][n * vector : (n + 1) * vector],
                parts[2][n * ring : n * ring + used[n]],
            )
        )
        for n, item_id in enumerate(ids)
    ]


def without_users(data: bytes, keys: Sequence[int]) -> bytes:
    """An item row whose ring has zeros where it had some users; the same bytes where it has none of them.

    Args:
        data: from `encode_item`.
        keys: key64 of the users.
    """
    if not any(key.to_bytes(8, "little") in data for key in keys):
        return data
    row = decode_item(data)
    ring = np.frombuffer(row.ring, "<u8").reshape(-1, 2).copy()
    gone = np.isin(ring[:, 0], np.array(keys, np.uint64))
    if not gone.any():
        return data
    ring[gone] = 0
    row.ring = bytearray(ring.tobytes())
    return encode_item(row)


def decode_item(data: bytes) -> ItemRow:
    """The row that `encode_item` wrote.

    Raises:
        ValueError: the bytes are not an item row of this format.
    """
    if len(data) < _ITEM.size or data[0] != _FORMAT:
        raise ValueError(f"not an item row of format {_FORMAT}: {len(data)} bytes, first {data[:1]!r}")
    _, n_id, d_memory, n_ring, last_update_ms, first_ms, count, too_late, popularity, price = _ITEM.unpack_from(data)
    at = _ITEM.size
    item_id, at = data[at : at + n_id].decode(), at + n_id
    memory = np.frombuffer(data, "<f4", d_memory, at).copy()
    at += memory.nbytes
    return ItemRow(
        item_id,
        memory,
        last_update_ms,
        first_ms,
        count,
        too_late,
        popularity,
        price,
        bytearray(data[at : at + n_ring]),
    )
