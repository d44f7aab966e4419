"""Prometheus counters of the processes that read Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from driftline.configs.settings import Metrics
from driftline.serving.ports import open_metrics
from driftline.stream.owned.opening import Opener
from driftline.stream.owned.partitions import Partitions
from driftline.stream.process.processor import Changes, Processor

COUNTS = ("applied", "forwarded", "duplicates", "dead", "late", "too_late", "unknown_actions", "forgotten")
EPOCH_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class WorkerMetrics:
    """What a worker counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.events = Counter("driftline_events", "Events by outcome", ["outcome"], registry=self.registry)
        self.partitions = Gauge("driftline_partitions", "Partitions owned", registry=self.registry)
        self.waiting = Gauge(
            "driftline_partitions_waiting",
            "Partitions assigned and not read yet: being opened, or locked by another process",
            ["why"],
            registry=self.registry,
        )
        self.offset = Gauge("driftline_next_offset", "Next offset by partition", ["partition"], registry=self.registry)
        self.item_offset = Gauge(
            "driftline_item_next_offset", "Next offset by partition of items", ["partition"], registry=self.registry
        )
        self.watermark = Gauge(
            "driftline_watermark_ms", "Event time reached, unix ms", ["partition"], registry=self.registry
        )
        self.lag = Gauge("driftline_lag", "Records not yet applied", ["partition"], registry=self.registry)
        self.item_lag = Gauge(
            "driftline_item_lag",
            "Records not yet applied, by partition of items",
            ["partition"],
            registry=self.registry,
        )
        self.backlog_s = Gauge(
            "driftline_backlog_seconds", "What is not applied takes so long at the present rate", registry=self.registry
        )
        self.backlog_s.set(float("nan"))
        self.undecided = Gauge(
            "driftline_undecided_records",
            "Records of and behind transactions that are neither committed nor aborted",
            ["topic", "partition"],
            registry=self.registry,
        )
        self.gap_offsets = Counter(
            "driftline_gap_offsets", "Offsets passed over that hold no record", registry=self.registry
        )
        self.epochs = Histogram(
            "driftline_epoch_seconds", "Apply and commit of one epoch", buckets=EPOCH_BUCKETS_S, registry=self.registry
        )
        self.again = Counter(
            "driftline_events_applied_again", "Events applied once more, after a late one", registry=self.registry
        )
        self.expired = Counter(
            "driftline_expired",
            "Rows that ended by state.ttl_days: an event started them anew, or a sweep removed them",
            ["kind", "how"],
            registry=self.registry,
        )
        self.totals = dict.fromkeys(COUNTS, 0)

    def follow(self, open_here: Partitions, opener: Opener) -> None:
        """Asks these for the number of partitions whenever somebody reads it."""
        self.partitions.set_function(lambda: len(open_here.users))
        self.waiting.labels("locked").set_function(lambda: sum(map(bool, opener.waiting.values())))
        self.waiting.labels("opening").set_function(lambda: sum(not why for why in opener.waiting.values()))

    @contextmanager
    def epoch(self, processor: Processor, end: int) -> Iterator[None]:
        """Times an epoch; then notes where the partition stands against the `end` of its topic."""
        start = time.perf_counter()
        yield
        self.epochs.observe(time.perf_counter() - start)
        self.lag.labels(processor.partition).set(max(0, end - processor.next_offset))
        self.stands_at(processor)

    def stands_at(self, processor: Processor) -> None:
        """Notes where a partition stands: after an epoch, and as it is opened, which no event may follow."""
        self.offset.labels(processor.partition).set(processor.next_offset)
        self.watermark.labels(processor.partition).set(processor.window.watermark_ms)

    def left(self, users: Iterable[int], items: Iterable[int]) -> None:
        """Takes out what was said of partitions that belong to somebody else now."""
        gone = [(gauge, number) for number in users for gauge in (self.offset, self.watermark, self.lag)]
        gone += [(gauge, number) for number in items for gauge in (self.item_offset, self.item_lag)]
        for gauge, number in gone:
            with suppress(KeyError):
                gauge.remove(number)

    def left_undecided(self, topic: str, partition: int) -> None:
        """Takes out what was said of transactions of a partition that belongs to somebody else now."""
        with suppress(KeyError):
            self.undecided.remove(topic, partition)

    def count(self, changes: Changes) -> None:
        """Adds what an epoch did."""
        for name in COUNTS:
            n = getattr(changes, name)
            self.totals[name] += n
            if n:
                self.events.labels(name).inc(n)
        self.again.inc(changes.again)
        for kind, how, n in (
            ("user", "anew", changes.users_anew),
            ("user", "swept", changes.users_swept),
            ("item", "anew", changes.items_anew),
            ("item", "swept", changes.items_swept),
        ):
            self.expired.labels(kind, how).inc(n)


class TrainerMetrics:
    """What the trainer counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.events = Counter("driftline_trainer_events", "Events taken in", registry=self.registry)
        self.groups = Counter("driftline_trainer_groups", "Groups by use", ["use"], registry=self.registry)
        self.lag = Gauge("driftline_trainer_lag", "Records not yet taken in", registry=self.registry)
        self.groups_left = Gauge(
            "driftline_trainer_groups_left", "Groups before it, about as many as records make", registry=self.registry
        )
        self.groups_per_s = Gauge(
            "driftline_trainer_groups_per_second", "Groups of the last while", registry=self.registry
        )
        self.backlog_s = Gauge(
            "driftline_trainer_backlog_seconds", "What is left takes so long at that rate", registry=self.registry
        )
        self.lag.set(float("nan"))  # until the broker has told where the log ends
        self.behind(float("nan"), float("nan"), float("nan"))
        self.ndcg = Gauge("driftline_trainer_ndcg_at_10", "Prequential NDCG@10, overall list", registry=self.registry)
        self.snapshots = Counter("driftline_trainer_snapshots", "Snapshots published", registry=self.registry)
        self.publish_s = Gauge(
            "driftline_trainer_publish_seconds", "Time that the last snapshot took to disk", registry=self.registry
        )
        self.publish_pause_s = Gauge(
            "driftline_trainer_publish_pause_seconds",
            "The longest that learning waited for the last snapshot",
            registry=self.registry,
        )
        self.publish_bytes = Gauge(
            "driftline_trainer_publish_bytes", "Of the last snapshot's files", registry=self.registry
        )
        self.invalid_items = Counter("driftline_trainer_invalid_items", "Items left out", registry=self.registry)
        self.invalid_profiles = Counter(
            "driftline_trainer_invalid_profiles", "Profiles left out", registry=self.registry
        )
        self.gated = Counter("driftline_trainer_gated", "Snapshots that the gate refused", registry=self.registry)
        self.levels = Counter(
            "driftline_trainer_levels", "Lasting drops that the gate took as the new level", registry=self.registry
        )
        self.part_gain = Gauge(
            "driftline_trainer_part_gain",
            "Relative gain in NDCG@10 by a part, and the bounds of its interval",
            ["part", "bound"],
            registry=self.registry,
        )
        self.part_on = Gauge(
            "driftline_trainer_part_on", "Whether a part takes part, 1 or 0", ["part"], registry=self.registry
        )

    def serve(self, settings: Metrics) -> None:
        """Opens `/metrics`, or not: see `open_metrics`."""
        open_metrics(self.registry, settings, "trainer_port")

    def behind(self, groups: float, per_s: float, seconds: float) -> None:
        """Notes the groups that are left, the present rate and how long they take; nan = not known yet."""
        self.groups_left.set(groups)
        self.groups_per_s.set(per_s)
        self.backlog_s.set(seconds)

    def learnt(self, events: int, use: str) -> None:
        """Counts one group and what it was used for."""
        self.events.inc(events)
        self.groups.labels(use).inc()

    def parts(self, told: Mapping[str, Mapping[str, Any]]) -> None:
        """Notes how parts stand, as `driftline.model.standing` tells; nan = not known yet."""
        for part, standing in told.items():
            for bound in ("gain", "low", "high"):
                known = standing[bound]
                self.part_gain.labels(part, bound).set(float("nan") if known is None else known)
            self.part_on.labels(part).set(standing["on"])

    def published(self, seconds: float, pause_s: float, size: int, metrics: Mapping[str, float]) -> None:
        """Notes one snapshot: its time to disk, how long learning waited for it at once, its bytes, what it says."""
        self.snapshots.inc()
        self.publish_s.set(seconds)
        self.publish_pause_s.set(pause_s)
        self.publish_bytes.set(size)
        if "ndcg@10" in metrics:
            self.ndcg.set(metrics["ndcg@10"])


class ProfilerMetrics:
    """What the profiler counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.profiles = Counter("driftline_profiles", "Profiles written by source", ["source"], registry=self.registry)
        self.waiting = Gauge("driftline_profile_requests_waiting", "Requests that wait", registry=self.registry)
        self.without_text = Counter(
            "driftline_profile_requests_without_text",
            "Requests left out: nothing is known in words of the user's items, and a profile that says so is there",
            registry=self.registry,
        )
        self.seconds = Histogram("driftline_profile_seconds", "Time of one profile", registry=self.registry)

    def serve(self, settings: Metrics) -> None:
        """Opens `/metrics`, or not: see `open_metrics`."""
        open_metrics(self.registry, settings, "profiler_port")
