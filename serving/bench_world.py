"""A shop to measure serving on: a few thousand items, users with histories, an engine that has learnt some of them.

Deterministic and of fixed size, so that figures of two machines or two commits can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rocksdict import Options, Rdict, WriteBatch

from driftline.configs.settings import Settings
from driftline.graph.rows import UserRow, action_code, encode_user, key64, pack_event
from driftline.graph.texts import TextTable
from driftline.graph.view import Group, ItemTable, UserView, view_of
from driftline.model.engine import Engine
from driftline.model.parts import made, plugs_of
from driftline.serving.arrays import Array, item_part
from driftline.serving.publish import publish
from driftline.serving.snapshot import PARTS, Meta

ITEMS, USERS, GROUPS_A_USER, BASKET = 4000, 300, 5, 15
RANKED_GROUPS = 40
"""Groups that the ranker learns; the signals learn all."""
START_MS, STEP_MS = 1_600_000_000_000, 1_800_000


@dataclass(frozen=True, slots=True)
class World:
    """What requests may ask about."""

    user_ids: list[str]
    item_ids: list[str]
    now_ms: int
    candidates: float
    """Mean candidates of a request."""


def build_world(settings: Settings, items: int = ITEMS) -> World:
    """Publishes a snapshot and writes one partition's user rows where the settings say that serving looks."""
    table = ItemTable(f"item-{n:05d}" for n in range(items))
    random = np.random.default_rng(0)
    text = random.standard_normal((items, settings.ranker.text_dim)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    texts = TextTable(settings.ranker.text_dim)
    learners = made(settings, table, texts)
    engine = Engine(settings, table, plugs_of(learners, settings), texts)
    for index, item_id in enumerate(table.ids):
        engine.set_text(index, text[index])
        for part in learners.values():
            part.add_item(index, item_id)
            part.set_text(index, text[index])
    engine.grow(items)
    rows: dict[str, UserRow] = {}
    for number, group in enumerate(_groups(random, items)):
        view = view_of(rows.get(group.user_id), table, group.user_id)
        slate = engine.slate(view, group.t_ms) if number % (USERS * GROUPS_A_USER // RANKED_GROUPS) == 0 else None
        engine.learn(group, view, slate)
        for part in learners.values():
            part.learn(group, view, learnt=False)
        rows[group.user_id] = _applied(settings, rows.get(group.user_id), group, table, random)
    now_ms = max(row.last_update_ms for row in rows.values()) + STEP_MS
    parts: dict[str, dict[str, Array]] = {
        "engine": dict(engine.arrays(rehearsal=False)),
        "items": item_part(table.ids, [f"A thing to buy, number {n}" for n in range(items)]),
    }
    parts |= {name: dict(arrays) for name, part in learners.items() if (arrays := part.arrays())}
    meta = Meta({"interactions:0": items}, now_ms, extra={PARTS: list(learners)})
    publish(settings.serving.snapshots, parts, meta)
    _write(settings, rows)
    sizes = [len(engine.slate(_view(rows, user, table), now_ms).candidates) for user in list(rows)[:50]]
    return World(list(rows), table.ids, now_ms, float(np.mean(sizes)))


def _view(rows: dict[str, UserRow], user_id: str, table: ItemTable) -> UserView:
    return view_of(rows[user_id], table, user_id)


def _groups(random: np.random.Generator, n: int) -> Iterator[Group]:
    """Baskets around each user's taste, popular items more often."""
    tastes = random.integers(0, n, (USERS, 4))
    for number in range(USERS * GROUPS_A_USER):
        user = int(random.integers(USERS))
        near = random.choice(tastes[user], BASKET) + (random.standard_normal(BASKET) * 40).astype(int)
        popular = (n * random.random(BASKET) ** 3).astype(int)
        items = np.unique(np.where(random.random(BASKET) < 0.7, near % n, popular)).astype(np.int32)
        ones = np.ones(len(items), np.float32)
        yield Group(f"user-{user:05d}", START_MS + number * STEP_MS, items, ones, ones, ones, ones.astype(bool), "home")


def _applied(
    settings: Settings, row: UserRow | None, group: Group, table: ItemTable, random: np.random.Generator
) -> UserRow:
    """The user's row after a group, with a random memory."""
    memory, message = settings.graph.memory_dim, settings.graph.message_dim
    if row is None:
        zeros = np.zeros(memory, np.float32)
        row = UserRow(group.user_id, zeros, zeros, np.zeros(message, np.float32), first_ms=group.t_ms, domain="home")
    row.memory = random.standard_normal(memory).astype(np.float32)
    basket, code = key64(f"basket-{group.t_ms}"), action_code("purchase")
    for item in group.items.tolist():
        row.history += pack_event(key64(table.ids[item]), group.t_ms, basket, 1.0, 1.0, 1.0, code)
    row.events += len(group.items)
    row.actions = {code: row.events}
    row.version += len(group.items)
    row.last_update_ms = group.t_ms
    return row


def _write(settings: Settings, rows: dict[str, UserRow]) -> None:
    path = settings.state.root / "partition-0"
    path.mkdir(parents=True)
    store = Rdict(str(path), Options(raw_mode=True))
    batch = WriteBatch(raw_mode=True)
    for user_id, row in rows.items():
        batch.put(b"u:" + user_id.encode(), encode_user(row))
    batch.put(b"m:watermark", b"%d" % max(row.last_update_ms for row in rows.values()))
    store.write(batch)
    store.close()
