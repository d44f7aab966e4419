"""Late events and adopted graph versions: each event is put in its place, and neither cuts nor restarts matter."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from driftline.configs.settings import Settings, State
from driftline.graph.arrays import Float32
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import Event
from driftline.serving.owner import partition_of
from driftline.stream.events.schema import encode_event
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.store import MemoryStore

SETTINGS = Settings()
T0_MS = 1_600_000_000_000
WIDTH = SETTINGS.graph.memory_dim
USERS = [user for user in (f"u{n}" for n in range(99)) if partition_of(user, 4) == 0][:9]
MODELS = {seed: GraphMemory(SETTINGS.graph.model_copy(update={"seed": seed})) for seed in (7, 8, 9)}
ADOPTIONS = {90: 7, 91: 8, 170: 9, 250: 7}
"""Seeds of the versions by the offset at which they are adopted."""


def vectors(seed: int) -> dict[str, Float32]:
    rng = np.random.default_rng(seed)
    return {f"i{n}": rng.standard_normal(WIDTH).astype(np.float32) for n in range(5 + 10 * seed)}


def version_of(sha256: str) -> tuple[GraphMemory, dict[str, Float32]]:
    (seed,) = [seed for seed, model in MODELS.items() if model.version() == sha256]
    return MODELS[seed], vectors(seed)


def log_of(n: int = 320, spread_ms: int = 900_000, seed: int = 0) -> list[Record]:
    rng = np.random.default_rng(seed)
    times = T0_MS + np.cumsum(rng.integers(0, 40_000, n))
    arrival = np.argsort(times + np.where(rng.random(n) < 0.2, rng.integers(0, spread_ms, n), 0), kind="stable")
    events = [
        Event(USERS[rng.integers(9)], f"i{rng.integers(120)}", int(t), "view", price=float(n % 9 + 1), group_id=f"g{t}")
        for n, t in enumerate(times)
    ]
    return [Record(offset, encode_event(events[at]), None) for offset, at in enumerate(arrival)]


def opened(store: MemoryStore, partitions: int, settings: Settings = SETTINGS) -> Processor:
    (value,) = store.get([b"m:graph"])
    if value is None:
        return Processor(settings, store, partitions=partitions, version_of=version_of)
    model, items = next(version_of(m.version()) for m in MODELS.values() if m.version().encode() in value)
    return Processor(settings, store, partitions=partitions, model=model, item_vectors=items, version_of=version_of)


def ran(
    log: list[Record], cuts: list[int], partitions: int, restarts: bool = False, settings: Settings = SETTINGS
) -> dict[bytes, bytes]:
    """The rows after a log that is cut at some offsets and at every adoption."""
    store = MemoryStore()
    processor = opened(store, partitions, settings)
    for start, end in itertools.pairwise(sorted({0, *cuts, *ADOPTIONS, len(log)})):
        if start in ADOPTIONS:
            seed = ADOPTIONS[start]
            processor.commit(processor.adopt(MODELS[seed], vectors(seed) if partitions > 1 else None))
        if restarts:
            processor.apply(log[start : min(end + 3, len(log))])  # never committed: a crash
            processor = opened(store, partitions, settings)
        processor.commit(processor.apply(log[start:end]))
    return {key: value for key, value in store.scan(b"") if key[:2] in (b"u:", b"i:")}


@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("window", [{}, {"late_ms": 400_000, "late_events": 40}])
def test_late_events_across_adoptions_end_in_one_state_however_the_log_is_cut_and_after_restarts(
    partitions: int, window: dict[str, int]
) -> None:
    settings = SETTINGS.model_copy(update={"state": State(**window)})
    log, rng = log_of(), np.random.default_rng(1)
    whole = ran(log, [], partitions, settings=settings)
    for restarts in (False, True, False):
        cuts = rng.choice(np.arange(1, len(log)), 25, replace=False).tolist()
        assert ran(log, cuts, partitions, restarts, settings) == whole
    assert ran(log, list(range(0, len(log), 7)), partitions, True, settings) == whole


def in_order(log: list[Record]) -> Iterator[tuple[int, Event]]:
    """(seed of the version, event) in order of time: the newest version under which it or one before it arrived."""
    processor, top = Processor(SETTINGS, MemoryStore()), -1
    for event in sorted(map(processor.validated, log), key=lambda event: (event.timestamp_ms, event.offset)):
        top = max(top, event.offset)
        yield max((offset, seed) for offset, seed in [(0, 0), *ADOPTIONS.items()] if offset <= top)[1], event


@pytest.mark.parametrize("partitions", [1, 4])
def test_the_state_is_that_of_the_log_in_order_of_time_with_versions_that_never_go_back(partitions: int) -> None:
    log = log_of()
    store, seen = MemoryStore(), 0
    oracle = opened(store, partitions)
    for number, (seed, event) in enumerate(in_order(log)):
        if seed != seen:
            oracle.commit(oracle.adopt(MODELS[seed], vectors(seed) if partitions > 1 else None))
            seen = seed
        oracle.commit(oracle.apply([Record(number, encode_event(event))]))
    assert seen == 7
    live = MemoryStore()
    processor = opened(live, partitions)
    late = 0
    for start, end in itertools.pairwise([0, *ADOPTIONS, len(log)]):
        if start:
            seed = ADOPTIONS[start]
            processor.commit(processor.adopt(MODELS[seed], vectors(seed) if partitions > 1 else None))
        changes = processor.apply(log[start:end])
        processor.commit(changes)
        late += changes.late
        assert changes.too_late == 0
    assert late > 30
    for user in USERS:
        ours, theirs = processor.user(user), oracle.user(user)
        assert ours is not None
        assert theirs is not None
        assert (ours.memory.tobytes(), ours.history) == (theirs.memory.tobytes(), theirs.history)


@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("restart", [False, True])
def test_an_event_one_millisecond_late_right_after_an_adoption_is_put_in_its_place(
    partitions: int, restart: bool
) -> None:
    store, user = MemoryStore(), USERS[0]
    processor = opened(store, partitions)
    log = [Record(n, encode_event(Event(user, f"i{n}", T0_MS + 1000 * n))) for n in range(50)]
    processor.commit(processor.apply(log))
    processor.commit(processor.adopt(MODELS[7], vectors(7) if partitions > 1 else None))
    if restart:
        processor = opened(store, partitions)
    late = Event(user, "late", T0_MS + 49_000 - 1)
    changes = processor.apply([Record(50, encode_event(late))])
    processor.commit(changes)
    assert (changes.applied, changes.late, changes.too_late) == (1, 1, 0)
    row = processor.user(user)
    assert row is not None
    assert row.events_array()["t"].tolist()[-2:] == [T0_MS + 48_999, T0_MS + 49_000]
    assert processor.graph.model is MODELS[7]


def test_versions_that_no_event_can_need_any_more_are_forgotten() -> None:
    processor = Processor(SETTINGS, store := MemoryStore())
    for n in range(40):
        processor.commit(processor.adopt(MODELS[7 + n % 3]))
        event = Event("u", "i", T0_MS + n * SETTINGS.state.late_ms // 4)
        processor.commit(processor.apply([Record(n, encode_event(event))]))
    assert len(processor.versions) <= 6
    assert len(list(store.scan(b"w:"))) <= 6


@pytest.mark.parametrize("partitions", [1, 4])
def test_many_older_versions_take_bounded_memory_and_late_events_are_put_in_their_place(partitions: int) -> None:
    log = log_of()
    models = [GraphMemory(SETTINGS.graph.model_copy(update={"seed": 100 + n})) for n in range(30)]
    known = {model.version(): (model, vectors(n % 5)) for n, model in enumerate(models)}
    read: list[str] = []

    def reading(sha256: str) -> tuple[GraphMemory, dict[str, Float32]]:
        read.append(sha256)
        return known[sha256]

    rows, most = [], {}
    for held_bytes in (-1, 0, 1_000_000):
        store = MemoryStore()
        processor = Processor(SETTINGS, store, partitions=partitions, version_of=reading, versions_bytes=held_bytes)
        most[held_bytes] = 0
        for n, model in enumerate(models):
            processor.commit(processor.apply(log[10 * n : 10 * n + 10]))
            processor.commit(processor.adopt(model, None if partitions == 1 else known[model.version()][1]))
            if n == 20:  # opened again in the middle
                processor = Processor(
                    SETTINGS, store, partitions=partitions, model=model, item_vectors=known[model.version()][1],
                    version_of=reading, versions_bytes=held_bytes,
                )  # fmt: skip
            held = sum(version.held_bytes for version in processor.versions.older)
            most[held_bytes] = max(most[held_bytes], held)
        processor.commit(processor.apply(log[300:]))
        assert len(processor.versions) > 10
        rows.append({key: value for key, value in store.scan(b"") if key[:2] in (b"u:", b"i:")})
    assert rows[0] == rows[1] == rows[2]
    assert most[0] == 0
    assert 0 < most[1_000_000] <= 1_000_000 < most[-1]
    assert read
