"""Which log a state was made from, kept with it: one that was made anew under the old name is refused.

    m:topics   in each store: identity of every topic whose offsets it holds, by name without prefix

A store that holds none, as one of an earlier version, takes the log that is there for its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import orjson

from driftline.configs.errors import StateError
from driftline.configs.settings import Settings
from driftline.stream.kafka.identity import Identity
from driftline.stream.state.store import ReadableStore, StateStore

KEY = b"m:topics"

Origin = dict[str, Identity]
"""Identities by topic, without prefix."""


def origin_of(store: ReadableStore) -> Origin:
    """What a store was made from; empty where it does not say."""
    (value,) = store.get([KEY])
    return {name: Identity(**known) for name, known in orjson.loads(value).items()} if value else {}


def merged(settings: Settings, whose: str, known: Origin, now: Mapping[str, Identity]) -> Origin:
    """What is known of an origin after a look at the broker.

    Args:
        whose: names the state for people.
        now: identities of topics that exist.

    Raises:
        StateError: a topic is another one than the state was made from.
    """
    for name, identity in now.items():
        if name in known and known[name].differs(identity):
            raise StateError(_refusal(settings, whose, name, known[name], identity))
    return {**known, **{name: i for name, i in now.items() if i.topic_id or (i.mark and not _has_id(known, name))}}


def hold_to_origin(settings: Settings, whose: str, store: StateStore, now: Mapping[str, Identity]) -> Origin:
    """Notes in a store which log it is made from, and holds it to that one; returns what is noted.

    Raises:
        StateError: as `merged`.
    """
    known = origin_of(store)
    held = merged(settings, whose, known, now)
    if held != known:
        store.commit({KEY: orjson.dumps({name: asdict(identity) for name, identity in held.items()})})
    return held


def _has_id(known: Origin, name: str) -> bool:
    return name in known and bool(known[name].topic_id)


def _refusal(settings: Settings, whose: str, name: str, before: Identity, now: Identity) -> str:
    by_item = " Where there are several partitions make interactions.by-item anew, too: it holds the old offsets."
    return (
        f"{whose} was made from another topic {settings.broker.prefix}{name} ({before}) than the broker has now "
        f"({now}): it was deleted and made anew, and its offsets mean other records. Restore "
        f"the topic, or start from this one: move state.root {settings.state.root} (on every host of a worker) and "
        f"trainer.root {settings.trainer.root} away, and serving.snapshots {settings.serving.snapshots} if what was "
        f"learnt from the old one is not to serve.{by_item if name == 'interactions' else ''}"
    )
