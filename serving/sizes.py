"""How large an answer may be: gRPC clients of every language take 4 MiB unless they are told otherwise.

What would not fit is left off at the end: the worst items of a slate, the oldest events of a history. Then the
answer's provenance has the reason `shortened`.
"""

from __future__ import annotations

from itertools import accumulate

from driftline.v1 import recommendation_pb2 as pb

SHORTENED = "shortened"
ANSWER_BYTES = 4 * 1024 * 1024
_ROOM_BYTES = 1024
"""For what stands beside a slate or a state: ids of 256 bytes, provenance, tags and lengths."""
TITLE_CHARACTERS = 200
_PER_ITEM_BYTES = 24
"""A score, and tags and lengths of three texts, at most."""
_PER_EVENT_BYTES = 48
"""Numbers of an event, and tags and lengths of three texts, at most."""


def share_bytes(slates: int = 1) -> int:
    """What each of so many slates may take of one answer."""
    return ANSWER_BYTES // slates - _ROOM_BYTES


def short_title(title: str) -> str:
    """A title as answers tell it: an item without one has its description here."""
    return title if len(title) <= TITLE_CHARACTERS else title[: TITLE_CHARACTERS - 1] + "…"


def fit_slate(slate: pb.Slate, most_bytes: int) -> bool:
    """Leaves off the worst items that do not fit; whether any was."""
    if slate.ByteSize() <= most_bytes:
        return False
    reasons = [row.ByteSize() for row in slate.item_reasons] or [0] * len(slate.item_ids)
    sizes = [
        len(item.encode()) + len(title.encode()) + reason + _PER_ITEM_BYTES
        for item, title, reason in zip(slate.item_ids, slate.titles, reasons, strict=True)
    ]
    kept = _fitting(sizes, most_bytes)
    for column in (slate.item_ids, slate.scores, slate.titles, slate.item_reasons):
        del column[kept:]
    return True


def fit_state(state: pb.UserState) -> bool:
    """Leaves off the oldest events that do not fit; whether any was."""
    most_bytes = share_bytes()
    if state.ByteSize() <= most_bytes:
        return False
    history = state.history
    texts = zip(history.item_ids, history.titles, history.actions, strict=True)
    sizes = [sum(len(text.encode()) for text in row) + _PER_EVENT_BYTES for row in texts]
    kept = _fitting(sizes, most_bytes - (state.ByteSize() - history.ByteSize()))
    for field in history.DESCRIPTOR.fields:
        del getattr(history, field.name)[kept:]
    return True


def _fitting(sizes: list[int], most_bytes: int) -> int:
    """How many of the first ones fit together."""
    return sum(total <= most_bytes for total in accumulate(sizes))
