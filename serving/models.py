"""The model that serves, and how a new one takes its place.

A thread looks at CURRENT. When it names another snapshot: open and check it, build its scorer, warm it, then swap one
reference. Requests hold the reference they started with, so none ever sees two models. A snapshot that is refused is
remembered with its reason, and the one before keeps serving; one that can't be read is tried again. Nothing ends the
thread but `close`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from driftline.configs.errors import SnapshotError
from driftline.graph.arrays import Int32
from driftline.graph.view import UserView, view_of
from driftline.serving.column import Column
from driftline.serving.delta import Verified
from driftline.serving.filters import EVERYTHING, Attributes, Filter
from driftline.serving.metrics import ServingMetrics
from driftline.serving.scorer import Scorer
from driftline.serving.sizes import short_title
from driftline.serving.snapshot import LEVEL, Pointer, Snapshot, current, gate, list_snapshots, open_snapshot

LOG = logging.getLogger(__name__)
EVENT_PRICES = "signals.item.price"
"""Price of each item's newest event, in the part "engine"."""


@dataclass(frozen=True, slots=True)
class Served:
    """One model in service: a snapshot, its scorer, and what answers say about its items."""

    snapshot: Snapshot
    scorer: Scorer
    titles: list[str]
    offered: NDArray[np.bool_]
    """[items] whether an item may be recommended at all."""
    domain_codes: Int32
    """[items] index into `domains` of each item, 0 = belongs to none."""
    domains: dict[str, int]
    attributes: Attributes | None = None
    """What filters go by; None = nothing is known of the items."""
    adopted_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    def title(self, index: int) -> str:
        """Title of an item by dense index, "" if none is known."""
        return self.titles[index] if 0 <= index < len(self.titles) else ""

    def allowed(self, items: Int32, domain: str, asked: Filter = EVERYTHING) -> NDArray[np.bool_]:
        """Which of some items [n] may be recommended in a domain: available ones that belong to it or to none.

        Args:
            items: dense indices.
            domain: "" = any.
            asked: what they must pass, too; nothing does where nothing is known of the items.
        """
        offered = self.offered[items]
        if domain and self.domains:
            codes = self.domain_codes[items]
            offered &= (codes == 0) | (codes == self.domains.get(domain, -1))
        if asked:
            offered &= self.attributes.passing(asked).mask[items] if self.attributes is not None else False
        return offered

    def reasons(self, asked: Filter) -> tuple[str, ...]:
        """Codes of what is special about a filter."""
        return self.attributes.passing(asked).reasons if asked and self.attributes is not None else ()


BuildScorer = Callable[[Snapshot], Scorer]


class ModelSlot:
    """Holds the serving model and follows CURRENT.

    Args:
        root: directory of the snapshots.
        build: makes a scorer from an open snapshot.
        metrics: counts swaps and refusals.
        poll_s: wall time between two looks at CURRENT.
        gate_drop: share of NDCG@10 that a newer snapshot may lose against the serving one.
    """

    def __init__(
        self, root: Path, build: BuildScorer, metrics: ServingMetrics, poll_s: float = 0.5, gate_drop: float = 0.5
    ) -> None:
        self.root, self._build, self._metrics = root, build, metrics
        self._poll_s, self._gate_drop = poll_s, gate_drop
        self._seen: Pointer | None = None
        self._verified = Verified()
        self._titles, self._domains = Column("title", short_title), Column("domain")
        self._domain_codes: tuple[list[str], dict[str, int], Int32] = [], {}, np.zeros(0, np.int32)
        self._stop = threading.Event()
        self.served: Served | None = None
        """The model in service; take it once a request and use only that."""
        self.refused = ""
        """Why the snapshot that CURRENT names does not serve, "" if it does."""
        self.held = False
        """Whether an operator holds the version."""
        self.poll()
        if self.served is None:
            self._serve_an_older_one()
        self._thread = threading.Thread(target=self._follow, name="model-slot", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops following CURRENT; the model stays usable."""
        self._stop.set()
        self._thread.join()

    def poll(self) -> bool:
        """Looks at CURRENT and swaps if it names another snapshot that may serve. Returns whether it swapped."""
        try:
            pointer = current(self.root)
        except SnapshotError as error:
            return self._refuse(None, str(error))
        if pointer is None or pointer == self._seen:
            return False
        self._seen, self.held = pointer, pointer.held
        if self.served is not None and self.served.snapshot.version == pointer.version:
            self.refused = ""
            return False
        try:
            self._swap(pointer.version, check=not pointer.held)
        except SnapshotError as error:
            transient = isinstance(error.__cause__, OSError)
            return self._refuse(None if transient else pointer, str(error))
        return True

    def _follow(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                self.poll()
            except Exception as error:
                LOG.exception("looking for a newer snapshot failed; the one before keeps serving")
                self.refused = f"looking for a newer snapshot failed: {error!r}. The log has the traceback."

    def _refuse(self, pointer: Pointer | None, reason: str) -> bool:
        if reason != self.refused:
            self._metrics.refused.inc()
            LOG.warning("%s", reason)
        self._seen, self.refused = pointer, reason
        return False

    def _swap(self, version: str, check: bool) -> None:
        started = time.perf_counter()
        snapshot = open_snapshot(self.root, version, self._verified)
        if check and self.served is not None and _level(snapshot) <= _level(self.served.snapshot):
            fell = gate(snapshot.meta.metrics, self.served.snapshot.meta.metrics, self._gate_drop)
            if fell:
                raise SnapshotError(f"snapshot {version} is refused: {fell}. The one before keeps serving.")
        served = self._load(snapshot)
        try:
            served.scorer.warm()
        except Exception:
            LOG.exception("snapshot %s serves, but what was kept of users could not be read ahead for it", version)
        self.served, self.refused = served, ""
        self._metrics.swaps.inc()
        self._metrics.sequence.set(snapshot.sequence)
        self._metrics.swap_s.set(time.perf_counter() - started)
        LOG.info("serving snapshot %s, ready in %.0f ms", version, (time.perf_counter() - started) * 1000)

    def _load(self, snapshot: Snapshot) -> Served:
        try:
            served = self._built(snapshot)
            if len(served.scorer.table):
                _warm(served.scorer, max(0, snapshot.meta.watermark_ms))
        except SnapshotError:
            raise
        except Exception as error:
            LOG.debug("snapshot %s can't be built into a model", snapshot.version, exc_info=True)
            raise SnapshotError(
                f"snapshot {snapshot.version} can't be built into a model: its trainer and this server must run the "
                f"same release and settings ({error!r:.200})"
            ) from error
        return served

    def _built(self, snapshot: Snapshot) -> Served:
        items, scorer = snapshot.parts.get("items", {}), self._build(snapshot)
        n = len(scorer.table)
        codes, domain_codes = self._coded(self._domains.of(items), n)
        offered = np.array(items.get("available", np.ones(n)), np.bool_)[:n]
        titles = self._titles.of(items)
        event_prices = snapshot.parts.get("engine", {}).get(EVENT_PRICES, np.zeros(0, np.float32))
        attributes = Attributes(items, event_prices, domain_codes, codes, n)
        return Served(snapshot, scorer, titles, offered, domain_codes, codes, attributes)

    def _coded(self, domains: list[str], n: int) -> tuple[dict[str, int], Int32]:
        """Codes of the domains, and that of each of n items."""
        of, codes, of_items = self._domain_codes
        if domains is not of or len(of_items) != n:
            codes = {domain: number for number, domain in enumerate(sorted(set(domains) - {""}), 1)}
            of_items = np.zeros(n, np.int32)
            of_items[: len(domains)] = [codes.get(domain, 0) for domain in domains[:n]]
            self._domain_codes = domains, codes, of_items
        return codes, of_items

    def _serve_an_older_one(self) -> None:
        try:
            entries = list_snapshots(self.root)
        except SnapshotError as error:
            LOG.warning("%s", error)
            return
        newest = self._seen.version if self._seen is not None else ""
        said, again = {self.refused.replace(newest, "")}, 0
        for entry in entries:
            try:
                refused = self.refused
                self._swap(entry.version, check=False)
                self.refused = refused
                return
            except SnapshotError as error:
                if (reason := str(error).replace(entry.version, "")) in said:
                    again += 1
                    continue
                said.add(reason)
                LOG.warning("%s", error)
        if again:
            LOG.warning("none of %d snapshots serves, %d of them for a reason that is told above", len(entries), again)


def _level(snapshot: Snapshot) -> int:
    return int(snapshot.meta.extra.get(LEVEL, 0))


def _warm(scorer: Scorer, now_ms: int) -> None:
    """Runs every path once, for nobody and for a made-up history: the first request finds code and maps loaded."""
    table = scorer.table
    items = np.arange(min(20, len(table)), dtype=np.int32)
    ones, times = np.ones(len(items), np.float32), now_ms - np.arange(len(items), dtype=np.int64)[::-1]
    keys = np.zeros(len(items), np.uint64)
    somebody = UserView("", items, times, ones, ones, ones, keys, keys.astype(np.uint32), events=len(items))
    for view in (view_of(None, table), somebody):
        ranking = scorer.rank(view, now_ms)
        ranking.reasons(range(min(10, len(ranking.items))))
    scorer.score(somebody, now_ms, items)
    scorer.similar(0, 10)
