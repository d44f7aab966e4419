"""IFDB, the Interactive Fiction Database: games that people noted as played, with titles, tags, authors and systems.

An entry says when somebody noted a game, not when they played it, and some note their whole shelf in one evening.
Entries of one person at most ten minutes apart are therefore one sitting: one group at the time of its start, which
is scored as a whole and learnt at once, however many games it names. Ids of people are hashed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from driftline.stream.convert.named.made import Made, cut, hashed, opened

GAP_MS = 10 * 60_000
SINCE_MS = 1_199_145_600_000
"""1 January 2008: the few entries before are dates of a game, not of a player."""
LOG = ("userid", "gameid", "date_added")
GAMES = ("gameid", "title", "author", "system_clean", "tags_clean", "doc_text")
READY_LOG = ("user_id", "item_id", "timestamp_ms", "action", "group_id")
READY_GAMES = ("item_id", "title", "text", "categories", "brand", "system")
DESCRIPTION = "Description: "


def read(source: Path) -> Made:
    """The log and the games of a folder: as the public repository has them, or as `ifdb_*.parquet` prepared from it.

    Raises:
        InputError: a file is missing, or is something else.
    """
    notes = ["tags are those of today, not of the time of an event"]
    if (source / "ifdb_events.parquet").is_file():
        events = opened(source / "ifdb_events.parquet", (), "sittings of IFDB", READY_LOG)
        games = opened(source, ("ifdb_items.parquet",), "games of IFDB", READY_GAMES)
        rows = [(*row[:3], _words(row[3], "|"), *row[4:]) for row in _rows(games, READY_GAMES)]
    else:
        entries = opened(source, ("playedgames.parquet",), "entries of IFDB", LOG)
        whole = entries.drop_null()
        events = sittings(whole)
        if lost := len(entries) - len(whole):
            notes.append(f"{lost:,} of {len(entries):,} entries lack person, game or time and are left out")
        games = opened(source, ("game_docs.parquet",), "games of IFDB", GAMES)
        rows = [
            (item_id, title, (text or "").partition(DESCRIPTION)[2].strip(), _words(tags, ","), author, system)
            for item_id, title, author, system, tags, text in _rows(games, GAMES)
        ]
    items = pa.table(
        {
            "item_id": [row[0] for row in rows],
            "title": [row[1] for row in rows],
            "text": pa.array([row[2] or None for row in rows], pa.string()),
            "categories": pa.array([_with_system(row[3], row[5]) for row in rows], pa.list_(pa.string())),
            "brand": pa.array([cut(row[4]) if row[4] else None for row in rows], pa.string()),
        }
    )
    return Made(events, items, preset="media", notes=notes)


def sittings(log: pa.Table) -> pa.Table:
    """Entries by time, the first one of a person and a game each, those of one sitting at the time of its start."""
    t_ms = log["date_added"].cast(pa.timestamp("ms")).cast(pa.int64()).to_numpy()
    order = np.argsort(t_ms, kind="stable")
    people, games = (log[name].cast(pa.string()).to_pylist() for name in ("userid", "gameid"))
    last: dict[str, int] = {}  # of a person: time of the entry before
    sitting: dict[str, tuple[int, str]] = {}  # of a person: start and name of the sitting
    known: set[tuple[str, str]] = set()
    rows: list[tuple[str, str, int, str]] = []
    for i in order.tolist():
        person, game, t = people[i], games[i], int(t_ms[i])
        if t < SINCE_MS or (person, game) in known:
            continue
        known.add((person, game))
        if t - last.get(person, -GAP_MS - 1) > GAP_MS:
            sitting[person] = (t, f"s{len(rows)}")
        last[person] = t
        rows.append((hashed(person), game, *sitting[person]))
    # rows of a sitting next to each other: its start, then its first row, then the order of its entries
    rows.sort(key=lambda row: (row[2], int(row[3][1:])))
    people_, games_, times, groups = zip(*rows, strict=True) if rows else ((), (), (), ())
    return pa.table(
        {
            "user_id": pa.array(people_, pa.string()),
            "item_id": pa.array(games_, pa.string()),
            "timestamp_ms": pa.array(times, pa.int64()),
            "action": pa.array(["play"] * len(rows), pa.string()),
            "group_id": pa.array(groups, pa.string()),
        }
    )


def _rows(table: pa.Table, columns: Iterable[str]) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].cast(pa.string()).to_pylist() for name in columns), strict=True)


def _words(text: str | None, sign: str) -> list[str]:
    return [word.strip() for word in (text or "").split(sign) if word.strip()]


def _with_system(tags: list[str], system: str | None) -> list[str]:
    return [*tags, system] if system and system not in tags else tags
