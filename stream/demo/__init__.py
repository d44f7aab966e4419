"""`make demo`: the main job end to end on bundled data, every part a process of its own.

    1 start broker, worker, trainer, profiler, serve     4 stream what came last, paced, and watch
    2 load the history in bulk                           5 one user takes something: before and after; what is new
    3 wait until all of it is applied and learnt         6 stop everything in order, sum up

Latencies are measured from outside, over Kafka and gRPC, in the paced part alone. This file holds the steps; `scene`
says what is played, `git` plays a repository instead, `newcomer` finds a new item, `parts` are the processes, `probes`
what is sent, asked and timed, `show` what people see, `figures` what must hold.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import orjson
from kafka import KafkaProducer
from rich.console import Console
from rich.live import Live

from driftline.configs.security import producer_options
from driftline.configs.settings import Settings
from driftline.graph.rows import Event
from driftline.serving.publish import release, rollback
from driftline.stream.demo.figures import check_figures, counter, percentiles
from driftline.stream.demo.newcomer import newcomers_of
from driftline.stream.demo.parts import LOGS, ROOT, DemoError, Memory, Parts, demo_settings
from driftline.stream.demo.probes import Measured, Probes, Sender, Serving
from driftline.stream.demo.scene import SCENES, Scene
from driftline.stream.demo.show import (
    Picture,
    history_bars,
    show_figures,
    show_newcomer,
    show_purchase,
    wait_for_interrupt,
)
from driftline.stream.events.files import read_columns
from driftline.stream.events.produce import event_messages
from driftline.stream.events.schema import encode_event
from driftline.stream.events.topics import create_topics
from driftline.stream.kafka.broker import EmbeddedBroker
from driftline.stream.kafka.reading import read_all
from driftline.v1 import recommendation_pb2 as pb

__all__ = ["SCENES", "DemoError", "Scene", "run_demo"]

STALLED_S = 300.0
"""So long without an event applied or learnt, something is wrong: a limit of time would say so of a slow machine."""


class Moves:
    """Whether a count still grows, or a part still says something.

    Args:
        parts: of the demo.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts, self._far, self._moved_s = parts, -1, time.monotonic()

    def stalled(self, count: int) -> bool:
        """Takes note of the count; whether nothing went on for `STALLED_S`."""
        if count > self._far:
            self._far, self._moved_s = count, time.monotonic()
        return time.monotonic() - max(self._moved_s, self._parts.said_s) > STALLED_S


def run_demo(scene: Scene, keep: bool, seconds: float) -> dict[str, Any]:
    """Runs the demo; returns its figures.

    Args:
        scene: what is played.
        keep: leave everything running until Ctrl-C.
        seconds: wall time of the paced part.

    Raises:
        DemoError: another demo runs, a part failed, or the figures are not those of a working engine.
    """
    started_s = time.monotonic()
    with staged(scene) as demo:
        times = read_columns(scene.events).t_ms
        times = times[times >= scene.from_ms]
        last_ms = int(times.max())
        since_ms = last_ms - scene.live_ms
        demo.load(since_ms, int((times < since_ms).sum()))  # 2, 3
        measured = demo.stream(list(event_messages(scene.events, since_ms)), seconds)  # 4
        now_ms = last_ms + 3_600_000
        purchase = demo.buy(now_ms)  # 5
        demo.introduce(since_ms)
        figures = demo.summary(measured, purchase, started_s)  # 6
        show_figures(demo.console, figures)
        check_figures(figures, len(times) + 1)
        if keep:
            wait_for_interrupt(demo.console, purchase["user"], purchase["bought"], now_ms)
        demo.parts.stop()
    return figures


@contextmanager
def staged(scene: Scene) -> Iterator[Demo]:
    """A demo in an emptied folder with broker and parts running; they end with it.

    Raises:
        DemoError: another demo runs, or a part failed.
    """
    console = Console(stderr=True, highlight=False)  # stdout stays free for `--json`
    settings = demo_settings(scene)
    EmbeddedBroker(settings.broker).stop_unused()
    if running := EmbeddedBroker(settings.broker).running():
        raise DemoError(
            f"the broker of {ROOT} runs, process {running.pid}: end the demo that uses it with Ctrl-C, or that process"
        )
    shutil.rmtree(ROOT, ignore_errors=True)
    with ExitStack() as stack:
        bootstrap = stack.enter_context(EmbeddedBroker(settings.broker))
        create_topics(settings.broker, bootstrap)
        demo = Demo(console, scene, settings, bootstrap)
        stack.callback(demo.parts.kill)
        demo.parts.start()  # 1
        yield demo


class Demo:
    """The steps of one run.

    Args:
        console: where people look.
        scene: what is played.
        settings: of the demo.
        bootstrap: address of the running broker.
    """

    def __init__(self, console: Console, scene: Scene, settings: Settings, bootstrap: str) -> None:
        self.console, self.scene, self.settings, self.bootstrap = console, scene, settings, bootstrap
        self.parts = Parts(settings, bootstrap, scene)
        self.memory = Memory(settings.broker)
        self.serving = Serving(settings.serving)

    def check(self) -> None:
        """Raises DemoError if a part has ended; notes the memory of those that run."""
        self.parts.check()
        self.memory.note()

    # -- 2, 3 bulk ---------------------------------------------------------------------------------------------

    def load(self, until_ms: int, total: int) -> None:
        """Produces the history, by `driftline produce` as a user would, and waits until it is applied and learnt."""
        files = ["--events", str(self.scene.events), "--items", str(self.scene.items)]
        since = ["--since", str(self.scene.from_ms)] if self.scene.from_ms else []
        produce, produced = self.parts.produce([*files, *since, "--until", str(until_ms)]), None
        moves = Moves(self.parts)
        with history_bars(self.console, total) as show:
            while min(done := show(self.serving.applied(), self.serving.learnt())) < total:
                self.check()
                produced = produce.step() if produced is None else produced
                if produced:
                    raise DemoError(
                        f"driftline produce ended with exit code {produced}; {self.parts.end_of('produce')}"
                    )
                if moves.stalled(sum(done)):
                    raise DemoError(
                        f"no event was applied or learnt, and no part said a word, for {STALLED_S:g} s: "
                        f"{done[0]:,} of {total:,} are applied, {done[1]:,} learnt; see {LOGS}"
                    )
                time.sleep(0.5)
        produce.wait()

    # -- 4 paced -----------------------------------------------------------------------------------------------

    def stream(self, messages: list[tuple[bytes | None, bytes]], seconds: float) -> Measured:
        """Sends the last events evenly over `seconds`, with live figures and probes from outside."""
        total = len(messages)
        picture = Picture(self.serving, total, self.scene)
        with (
            closing(Sender(self.settings.broker, self.bootstrap)) as sender,
            Probes(self.serving, sender) as probes,
            Live(picture.table(sender.newest, 0), console=self.console, refresh_per_second=2) as live,
        ):
            started = time.monotonic()
            for n, (key, value) in enumerate(messages):
                wait = started + seconds * n / total - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                sender.send(key, value)
                if n % 100 == 0:
                    self.check()
                    live.update(picture.table(sender.newest, n))
                if n % 4000 == 0 and not self.console.is_terminal:
                    self.console.print(
                        f"{self.scene.live}: {n:,} of {total:,} events sent, {self.serving.learnt():,} in the model"
                    )
            sender.flush()
            self.wait_learnt(sender.newest.offset + 1, lambda: live.update(picture.table(sender.newest, total)))
        if not self.console.is_terminal:
            self.console.print()  # the last picture ends without a line break
        return probes.measured

    def wait_learnt(self, offset: int, look: Callable[[], None] = lambda: None) -> None:
        """Returns when the serving model has learnt all events before an offset, or learns none any more."""
        moves = Moves(self.parts)
        while (done := self.serving.learnt()) < offset and not moves.stalled(done):
            look()
            self.check()
            time.sleep(0.3)

    def wait_applied(self, offset: int) -> None:
        """Returns when all events before an offset are in the state.

        Raises:
            DemoError: a part has ended, or no event is applied any more.
        """
        moves = Moves(self.parts)
        while (done := self.serving.applied()) < offset:
            self.check()
            if moves.stalled(done):
                raise DemoError(
                    f"event {offset - 1:,} did not reach the state: it stands at {done:,} for {STALLED_S:g} s; see "
                    f"{LOGS / 'worker.log'}"
                )
            time.sleep(0.005)

    # -- 5 before and after ------------------------------------------------------------------------------------

    def buy(self, now_ms: int) -> dict[str, Any]:
        """One user takes the new item that comes first on the list; what is recommended before and after.

        The serving model is held for the moment, so that nothing but the purchase lies between the two answers.
        """
        user_id = self._customer()
        snapshots = self.settings.serving.snapshots
        rollback(snapshots, self.serving.model().provenance.model_version)
        try:
            before = self.serving.recommend(user_id, now_ms)
            novel = self.serving.recommend(user_id, now_ms, pb.SLATE_LIST_NOVEL).slate
            bought = novel.item_ids[0]
            self._purchase(user_id, bought, now_ms)
            after = self.serving.recommend(user_id, now_ms)
        finally:
            release(snapshots)
        if before.provenance.model_version != after.provenance.model_version:
            raise DemoError("the model changed between the two answers although it was held")
        customer = self.serving.state(user_id, now_ms).user_state
        profile = customer.profile
        show_purchase(self.console, self.scene, customer, bought, novel.titles[0], before, after)
        return {
            "user": user_id,
            "bought": bought,
            "profile": {
                "text": profile.text,
                "facets": {facet.name: facet.text for facet in profile.facets},
                "source": profile.source,
                "version": profile.version,
                "valid_from_ms": profile.valid_from_ms,
            },
            "model_version": before.provenance.model_version,
            "request_time_ms": before.provenance.request_time_ms,
            "recommendations_before": list(before.slate.item_ids),
            "recommendations_after": list(after.slate.item_ids),
        }

    def _customer(self) -> str:
        """The most active customer with a profile by a language model, else with any."""
        profiles = self._profiles()
        by_model = [p for p in profiles if p["source"] != "template"] or profiles
        if not by_model:
            raise DemoError(f"no profile was written; see {LOGS / 'profiler.log'}")
        users = dict.fromkeys(p["user_id"] for p in by_model)
        most: str = max(users, key=lambda user: int(self.serving.state(user).user_state.counters.events))
        return most

    def _purchase(self, user_id: str, item_id: str, now_ms: int) -> None:
        """Sends a purchase of a minute ago, and waits until the user's state shows it."""
        value = 1.0 if self.scene.action == "purchase" else None  # one piece; a play has no length
        event = Event(user_id, item_id, now_ms - 60_000, self.scene.action, None, value, None, "demo-basket")
        producer = KafkaProducer(**producer_options(self.settings.broker, self.bootstrap))
        topic = self.settings.broker.prefix + "interactions"
        sent = producer.send(topic, key=user_id.encode(), value=encode_event(event)).get(10)
        producer.close()
        self.wait_applied(sent.offset + 1)

    def introduce(self, since_ms: int) -> None:
        """Shows what goes with the newest item that came in while the demo streamed and that the model has learnt."""
        for newcomer in newcomers_of(self.scene, since_ms):
            if (similar := self.serving.similar(newcomer.item_id)) is not None:
                show_newcomer(self.console, self.scene, newcomer, similar)
                return

    # -- 6 summary ---------------------------------------------------------------------------------------------

    def summary(self, measured: Measured, purchase: Mapping[str, Any], started_s: float) -> dict[str, Any]:
        """The figures of the run."""
        sources = [profile["source"] for profile in self._profiles()]
        return {
            **self.counted(started_s),
            "profiles": len(sources),
            "llm_profiles": sum(source != "template" for source in sources),
            "event_to_state_ms": percentiles(measured.event_to_state_ms),
            "event_to_snapshot_s": percentiles(measured.event_to_snapshot_s),
            "recommend_ms": percentiles(measured.recommend_ms),
            **purchase,
        }

    def counted(self, started_s: float) -> dict[str, Any]:
        """What the parts counted, the most memory that they held, and the time since a start."""
        metrics = self.settings.metrics
        return {
            "events_applied": counter(metrics.worker_port, 'driftline_events_total{outcome="applied"}'),
            "dlq": sum(1 for _ in read_all(self.settings.broker, self.bootstrap, "interactions.dlq")),
            "snapshots": counter(metrics.serving_port, "driftline_serving_swaps_total"),
            "resident_mb": round(self.memory.most_bytes / 1e6),
            "seconds": round(time.monotonic() - started_s, 1),
        }

    def _profiles(self) -> list[dict[str, Any]]:
        """Every profile that was written, oldest first in each partition."""
        records = read_all(self.settings.broker, self.bootstrap, "profiles.log")
        return [orjson.loads(record.value) for record in records]
