"""What Prometheus reads of the serving process. One registry for each server, so that tests can run several."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class ServingMetrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.latency_s = Histogram(
            "driftline_serving_latency_seconds", "Time in the handler", ["rpc"], buckets=_LATENCY_S, registry=registry
        )
        self.answers = Counter(
            "driftline_serving_answers", "Answers by gRPC status code", ["rpc", "code"], registry=registry
        )
        self.served_from = Counter(
            "driftline_serving_served_from", "Answers by origin", ["rpc", "served_from"], registry=registry
        )
        self.shed = Counter("driftline_serving_shed", "Requests refused because of load", ["rpc"], registry=registry)
        self.refused_calls = Counter(
            "driftline_serving_refused_calls", "Calls refused for their token", ["rpc", "reason"], registry=registry
        )
        self.stale_tokens = Gauge(
            "driftline_serving_stale_tokens", "1 while serving.token_file can't be read", registry=registry
        )
        self.swaps = Counter("driftline_serving_swaps", "Snapshots taken into service", registry=registry)
        self.refused = Counter("driftline_serving_refused_snapshots", "Snapshots refused", registry=registry)
        self.swap_s = Gauge(
            "driftline_serving_swap_seconds", "Time to open and warm the last snapshot", registry=registry
        )
        self.sequence = Gauge("driftline_serving_model_sequence", "Sequence of the serving snapshot", registry=registry)
        self.health = Gauge(
            "driftline_serving_health",
            "As gRPC health tells it: 1 SERVING, 2 NOT_SERVING; 0 before calls are taken",
            registry=registry,
        )
        self.state_age_ms = Gauge(
            "driftline_serving_state_age_ms",
            "Time since the state was last known to hold all that the topic has, of the oldest partition",
            registry=registry,
        )
        self.watchers = Gauge("driftline_serving_watchers", "Open WatchUserState streams", registry=registry)
        self.profiles = Gauge("driftline_serving_profiles", "Users with a profile in memory", registry=registry)
        self.withdrawn = Gauge(
            "driftline_serving_withdrawn_items", "Items that topic and file withdraw", registry=registry
        )
        self.follows_items = Gauge(
            "driftline_serving_follows_items", "1 while the topic `items` is read up to its end", registry=registry
        )
        self.in_flight = Gauge("driftline_serving_in_flight", "Requests queued or running", registry=registry)

    def watch(
        self, profiles: Callable[[], float], in_flight: Callable[[], float], state_age_ms: Callable[[], float]
    ) -> None:
        """Reads some gauges at scrape time instead of at each change."""
        self.state_age_ms.set_function(state_age_ms)
        self.profiles.set_function(profiles)
        self.in_flight.set_function(in_flight)
