"""Writes a synthetic stream: events.parquet and items.parquet as `produce` and `replay` take them, and optimum.json."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from driftline.configs.errors import InputError
from driftline.stream.durable import make_folder
from driftline.stream.generate.draw import Day, days
from driftline.stream.generate.optimum import OPTIMUM, Optimum, over
from driftline.stream.generate.plan import DAY_MS, Plan
from driftline.stream.generate.words import title_of
from driftline.stream.generate.world import World

FORMAT = 1
EVENTS, ITEMS = "events.parquet", "items.parquet"
ROW_GROUP = 1 << 19
SPLIT = 0.85
EVENT_SCHEMA = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp_ms", pa.int64())])


def generate(plan: Plan, out: Path, progress: Callable[[int], None] = lambda done: None) -> dict[str, Any]:
    """Writes the three files.

    Args:
        plan: what to make.
        out: folder; made.
        progress: gets the number of events written so far.

    Returns:
        The content of optimum.json.

    Raises:
        InputError: the folder can't be made or written.
    """
    started = time.perf_counter()
    make_folder(out)
    world = World(plan)
    optimum = Optimum(world)
    try:
        _write_items(world, out / ITEMS)
        users, seen = _write_events(world, out / EVENTS, optimum.see, progress)
        with (out / EVENTS).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        slices = optimum.slices()
        made = {
            "format": FORMAT,
            "plan": dataclasses.asdict(plan),
            "events": plan.events,
            "users": users,
            "items": seen,
            "events_sha256": sha256,
            "split": SPLIT,
            "test": over(slices, slices[int(SPLIT * len(slices))]["from_ms"]),
            "slices": slices,
        }
        (out / OPTIMUM).write_bytes(orjson.dumps(made, option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as error:
        raise InputError(f"{out}: can't be written: {error.strerror or error}; choose another --out") from None
    seconds = time.perf_counter() - started
    return made | {"seconds": round(seconds, 3), "events_per_second": round(plan.events / seconds)}


def _write_events(
    world: World, path: Path, see: Callable[[Day], None], progress: Callable[[int], None]
) -> tuple[int, int]:
    """Writes all events, some of them at a time; the distinct users and items among them."""
    user_ids = pa.array([f"u{n:07d}" for n in world.user_numbers.tolist()])
    item_ids = pa.array([f"i{n:07d}" for n in world.number.tolist()])
    users, items = np.zeros(world.plan.users, np.bool_), np.zeros(world.plan.items, np.bool_)
    waiting: list[Day] = []
    rows = 0

    def table() -> pa.Table:
        user, place, t_ms = (np.concatenate([getattr(day, n) for day in waiting]) for n in ("user", "place", "t_ms"))
        users[user], items[place] = True, True
        columns = [user_ids.take(pa.array(user)), item_ids.take(pa.array(place)), pa.array(t_ms)]
        return pa.table(columns, schema=EVENT_SCHEMA)

    # the writer has a thread of its own: compression and drawing both leave Python's lock
    with _parquet(path, EVENT_SCHEMA) as file, ThreadPoolExecutor(1) as pool:
        written: Future[None] | None = None
        for day in days(world):
            see(day)
            waiting.append(day)
            rows += len(day.t_ms)
            if sum(len(one.t_ms) for one in waiting) >= ROW_GROUP or rows == world.plan.events:
                made = table()
                if written is not None:
                    written.result()
                written = pool.submit(file.write_table, made, ROW_GROUP)
                waiting.clear()
                progress(rows)
        if written is not None:
            written.result()
    return int(users.sum()), int(items.sum())


def _write_items(world: World, path: Path) -> None:
    """Items in order of their entry, with the time from which they may be recommended."""
    plan = world.plan
    order = np.argsort(world.born, kind="stable")
    columns: dict[str, pa.Array] = {"item_id": pa.array([f"i{n:07d}" for n in world.number[order].tolist()])}
    if plan.titles:
        genres, numbers = world.genre[order].tolist(), world.number[order].tolist()
        titled = [title_of(genre, number) for genre, number in zip(genres, numbers, strict=True)]
        columns["title"] = pa.array([title for title, _ in titled])
        columns["categories"] = pa.array([[category] for _, category in titled])
    columns["valid_from_ms"] = pa.array(plan.start_ms + world.born[order] * DAY_MS)
    table = pa.table(columns)
    with _parquet(path, table.schema) as file:
        file.write_table(table, ROW_GROUP)


def _parquet(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    names = [name for name in schema.names if name.endswith("_id")]
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=names, write_statistics=names == [])
