"""Faust's own commits while partitions go: a courtesy to those who look at the group, never a reason to end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from driftline.stream.kafka.consumer import CalmThread

HERE, GONE = TP("interactions", 0), TP("interactions", 1)


@pytest.mark.parametrize(("offsets", "committed"), [({GONE: 7}, []), ({GONE: 7, HERE: 5}, [{HERE: 5}]), ({}, [])])
def test_what_is_not_assigned_any_more_is_left_to_its_new_owner(
    offsets: dict[TP, int], committed: list[dict[TP, int]]
) -> None:
    sent: list[dict[TP, int]] = []

    class Client(SimpleNamespace):
        def assignment(self) -> set[TP]:
            return {HERE}

        async def commit(self, offsets: dict[Any, Any]) -> None:
            if not offsets:
                raise ValueError(offsets)  # as aiokafka does
            sent.append({TP(*place): meta.offset for place, meta in offsets.items()})

    class Thread(CalmThread):
        def __init__(self) -> None:
            self.tp_last_committed_at: dict[TP, float] = {}
            self.crashes: list[Exception] = []

        def _ensure_consumer(self) -> Client:
            return Client()

        async def crash(self, reason: Exception) -> None:
            self.crashes.append(reason)

        @property
        def log(self) -> Any:
            return SimpleNamespace(exception=lambda *_: None)

    thread = Thread()
    assert asyncio.run(thread._commit(offsets)) is bool(committed)
    assert (sent, thread.crashes) == (committed, [])
