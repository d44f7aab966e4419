"""A small shop for the serving tests: events through the real processor, and an engine that learnt them."""

from __future__ import annotations

import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from driftline.configs.settings import Settings
from driftline.graph.rows import Event
from driftline.graph.view import Group, ItemTable, view_of
from driftline.model.engine import Engine
from driftline.serving.arrays import item_part
from driftline.serving.publish import publish
from driftline.serving.server import Server
from driftline.serving.snapshot import Meta
from driftline.serving.state_reader import COMPLETE
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.store import RocksStore
from driftline.v1 import recommendation_pb2_grpc as pb_grpc

START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
USERS, ITEMS, GROUPS = 20, 60, 160


def small_settings(root: Path, **serving: object) -> Settings:
    """Settings whose directories lie under `root` and whose models are small."""
    follow = {"follow_profiles": False, "follow_items": False, "follow_ends": False}
    base = {"port": 0, "snapshots": root / "snapshots", "poll_s": 0.05, "state_poll_ms": 10, **follow}
    return Settings.model_validate(
        {
            "state": {"root": root / "state", "sync": False},
            "ranker": {"hidden": 8, "members": 1, "rehearsal_steps": 1, "text_dim": 0},
            "graph": {"memory_dim": 8, "message_dim": 8, "time_dim": 4, "embed_dim": 8},
            "serving": {**base, "grace_s": 1.0, **serving},
        }
    )


def shop_events(groups: int = GROUPS, seed: int = 0) -> list[Event]:
    """Baskets of three neighbouring items, each user with a corner of the catalogue of their own."""
    random = np.random.default_rng(seed)
    events = []
    for n in range(groups):
        user = int(random.integers(USERS))
        first = (user * 3 + int(random.integers(8))) % ITEMS
        for item in range(first, first + 3):
            events.append(
                Event(
                    f"user-{user}",
                    f"item-{item % ITEMS}",
                    START_MS + n * HOUR_MS,
                    "purchase",
                    value=2.0,
                    price=float(item),
                    group_id=f"basket-{n}",
                    domain="home",
                    offset=len(events),
                )
            )
    return events


@dataclass
class Worker:
    """Writes the state of one partition as the real worker does."""

    processor: Processor

    def apply(self, events: list[Event]) -> None:
        """One epoch, committed."""
        first = self.processor.next_offset
        changes = self.processor.apply([Record(first + n, event) for n, event in enumerate(events)])
        self.processor.commit(changes)
        self.complete()

    def complete(self) -> None:
        """What the worker's timer notes when the topic has no more."""
        self.processor.store.commit({COMPLETE: b"%d" % (time.time_ns() // 1_000_000)})


def learn(settings: Settings, events: list[Event]) -> tuple[Engine, ItemTable]:
    """An engine that has scored and learnt some events, group by group."""
    from driftline.stream.state.store import MemoryStore

    processor, table = Processor(settings, MemoryStore()), ItemTable()
    engine = Engine(settings, table)
    groups: dict[str, list[Event]] = {}
    for event in events:
        groups.setdefault(event.group_id or "", []).append(event)
    offset = 0
    for rows in groups.values():
        items = np.array([table.add(event.item_id) for event in rows], np.int32)
        view = view_of(processor.user(rows[0].user_id), table, rows[0].user_id)
        ones = np.ones(len(rows), np.float32)
        prices = np.array([event.price for event in rows], np.float32)
        group = Group(
            rows[0].user_id, rows[0].timestamp_ms, items, ones, 2 * ones, prices, ones.astype(bool), rows[0].domain
        )
        engine.learn(group, view, engine.slate(view, group.t_ms))
        processor.commit(processor.apply([Record(offset + n, event) for n, event in enumerate(rows)]))
        offset += len(rows)
    return engine, table


@pytest.fixture(scope="session")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, np.ndarray]], Meta]:
    """Parts of a snapshot of an engine that learnt the shop, and where it comes from."""
    settings = small_settings(tmp_path_factory.mktemp("learnt"))
    events = shop_events()
    engine, table = learn(settings, events)
    titles = [f"Title of {item}" for item in table.ids]
    domains = ["" if n % 2 else "home" for n in range(len(table))]
    parts = {"engine": engine.arrays(rehearsal=False), "items": item_part(table.ids, titles, domains)}
    meta = Meta(
        offsets={"interactions:0": len(events)},
        watermark_ms=events[-1].timestamp_ms,
        metrics={"ndcg@10": 0.2},
        config_sha256="c0",
        git_revision="abc",
    )
    return parts, meta


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return small_settings(tmp_path)


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    """A worker that applied the shop's events and keeps its partition open."""
    store = RocksStore(settings.state.root / "partition-0", sync=False)
    made = Worker(Processor(settings, store))
    made.apply(shop_events())
    yield made
    store.close()


@pytest.fixture
def snapshot(settings: Settings, learnt: tuple[dict[str, dict[str, np.ndarray]], Meta]) -> str:
    """Version of a published snapshot."""
    return publish(settings.serving.snapshots, *learnt)


@dataclass
class Running:
    """A server with a channel to it."""

    server: Server
    channel: grpc.Channel

    @property
    def stub(self) -> pb_grpc.RecommendationServiceStub:
        return pb_grpc.RecommendationServiceStub(self.channel)


@pytest.fixture
def running(settings: Settings, worker: Worker, snapshot: str) -> Iterator[Running]:
    """A server over a worker's state and a snapshot."""
    with Server(settings) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Running(server, channel)
