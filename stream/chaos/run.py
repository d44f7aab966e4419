"""Breaks a running driftline on purpose, then says whether anything was lost.

    troubled stream --produce--> broker --> workers, trainer, serve    killed, stopped, more and fewer of them
                                                  '--> state on disk --compare--> what one thread makes of the topics

Every second kill comes at a moment drawn at random, the others at named points between two steps
(`configs/faults.py`). A process that ends is started again, as a supervisor would. All draws come from one seed; when
things happen depends on the machine.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import cycle
from pathlib import Path

import numpy as np
import yaml
from kafka import TopicPartition

from driftline.configs.errors import UNEXPECTED_EXIT_CODE, BrokerError, DriftlineError, StateError
from driftline.configs.faults import ITEM_POINTS, STARTING_POINTS, TRAINER_POINTS, WORKER_POINTS
from driftline.configs.settings import Settings
from driftline.stream.chaos.feeder import Feed, fed
from driftline.stream.chaos.oracle import compare
from driftline.stream.chaos.plan import Outcome, Plan
from driftline.stream.chaos.processes import OwnBroker, Process
from driftline.stream.chaos.queries import Queries
from driftline.stream.chaos.troubles import TroubledStream
from driftline.stream.events.topics import create_topics
from driftline.stream.kafka.reading import consumer
from driftline.stream.state.store import partition_path, state_directories

LOG = logging.getLogger(__name__)
LOOK_S = 0.1
BLOCK = 4096
AHEAD = 2000
"""Records that the producer may be ahead, over the partitions: what one that stands still sends on may be too late."""
COUNT_S = 1.0
"""How often the copies are counted that workers sent on to other partitions: no progress of the stream."""
EPOCH_AHEAD = 600
"""Records past what was seen last: more than what one epoch, already committed then, can explain."""
FULL_DISK_BYTES = 2 << 20
SETTLE_S = 600.0
"""How long the last events may take after the last kill."""
SLOWEST_PER_S = 200
BROKEN_S = 30.0
"""What a stream with its troubles, and each thing that is broken, may take on a machine with other work."""
RESTARTED = (-signal.SIGKILL, BrokerError.exit_code, UNEXPECTED_EXIT_CODE)
"""Exit codes after which a supervisor starts a process again."""


class ChaosError(DriftlineError):
    """A process ended in a way that no supervisor mends, or the stream was not applied to its end."""


class Chaos:
    """One run.

    Args:
        settings: state, snapshots and topics of the run's own.
        broker: one that may be killed, None = `settings.broker.bootstrap` stays as it is.
        bootstrap: where the broker listens.
        stream: what is sent.
        plan: what is done.
        folder: for the settings and the messages of the processes.
        say: gets (events applied, a line for people).
    """

    def __init__(
        self,
        settings: Settings,
        broker: OwnBroker | None,
        bootstrap: str,
        stream: TroubledStream,
        plan: Plan,
        folder: Path,
        say: Callable[[int, str], None] = lambda done, line: None,
    ) -> None:
        self.settings, self.broker, self.bootstrap, self.stream, self.plan = settings, broker, bootstrap, stream, plan
        self.say, self.outcome = say, Outcome(plan)
        self._rng = np.random.default_rng(plan.seed)
        self._config = folder / "settings.yaml"
        self._config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
        self._folder, self._reached = folder, dict[int, int]()
        points = [*WORKER_POINTS, *(ITEM_POINTS if plan.partitions > 1 else ())]
        self._points = cycle([name for name in points if plan.trainer or name != "adoption"])
        self.workers = [self._worker(n) for n in range(max(plan.workers, *plan.scaling, 1))]
        self._parts: list[Process] = []
        self._trainer_points = cycle(TRAINER_POINTS)
        self._recovering: dict[int, tuple[float, int]] = {}
        self._copies, self._counted = 0, time.monotonic()

    def run(self) -> Outcome:
        """Produces, breaks, waits for the end and compares.

        Raises:
            ChaosError: a process can't be started again, or the end was not reached.
        """
        started, plan = time.monotonic(), self.plan
        broken = plan.kills + plan.broker_restarts + plan.pauses + plan.full_disks + plan.damaged
        longest_s = SETTLE_S + len(self.stream.messages) / SLOWEST_PER_S + broken * BROKEN_S
        create_topics(self.settings.broker, self.bootstrap)
        steps = self._steps()
        with self._ended_at_last(), self._feeder() as feed, self._beside() as queries:
            for worker in self.workers[: self.plan.workers]:
                worker.start()
            while not (feed.done.is_set() and not steps and self._killed_enough() and self._settled()):
                feed.check()
                self._look(steps)
                self._count_copies(feed)
                if time.monotonic() - started > longest_s:
                    raise ChaosError(
                        f"not applied to the end after {longest_s:,.0f} s, {self.outcome.kills} of {plan.kills} kills: "
                        f"{self._reached} of {self._ends()}; {self._tails()}"
                    )
            for worker in self.workers:
                code = 0 if worker.returncode is not None else worker.stop()
                if code == -signal.SIGKILL and worker.armed:
                    self._count_point(worker)
                elif code != 0:
                    raise ChaosError(f"{worker.name} did not end in order: {worker.messages()}")
        if queries is not None:
            self.outcome.queries, self.outcome.failed_queries = queries.asked, dict(queries.failed)
        self.outcome.verdict = compare(self.settings, self.bootstrap, self.plan.partitions, self.stream)
        self.outcome.seconds = time.monotonic() - started
        return self.outcome

    @contextmanager
    def _ended_at_last(self) -> Iterator[None]:
        """However it ends: no process of ours outlives it."""
        try:
            yield
        finally:
            for process in (*self.workers, *self._parts):
                process.kill()

    # -- what is done ------------------------------------------------------------------------------------------

    def _steps(self) -> list[tuple[int, Callable[[], None]]]:
        """What to do when so many records are applied, in order."""
        plan, total = self.plan, len(self.stream.messages)
        doing: list[Callable[[], None]] = []
        for step, times in (
            (self._kill, (plan.kills + 1) // 2),
            (self._pause, plan.pauses),
            (self._restart_broker, plan.broker_restarts),
            (self._fill_disk, plan.full_disks),
            (self._damage, plan.damaged),
        ):
            doing += [step] * times
        places = np.sort(self._rng.integers(total // 50, max(total * 9 // 10, 1), len(doing))).tolist()
        steps = list(zip(places, [doing[i] for i in self._rng.permutation(len(doing)).tolist()], strict=True))
        for number, wanted in enumerate(plan.scaling):
            steps.append((total * (number + 1) // (len(plan.scaling) + 1), lambda n=wanted: self._scale(n)))
        return sorted(steps, key=lambda step: step[0])

    def _look(self, steps: list[tuple[int, Callable[[], None]]]) -> None:
        """One look at everything: what was reached, who ended, what is due."""
        for worker in self._running():
            for partition, offset in worker.offsets().items():
                self._reached[partition] = max(offset, self._reached.get(partition, 0))
        self._note_recovered()
        self._restart_ended()
        done = sum(self._reached.values())
        if steps and done >= steps[0][0] and not self._recovering:
            _, step = steps.pop(0)
            step()
        elif not steps and not self._recovering and self._running():
            self._kill()  # if some are left: points that were armed in workers that were not needed any more
        self.say(done, "")
        time.sleep(LOOK_S)

    def _count_copies(self, feed: Feed) -> None:
        """How many records of the topic are not the feeder's."""
        if self.plan.partitions == 1 or time.monotonic() < self._counted + COUNT_S:
            return
        self._counted = time.monotonic()
        if ends := self._ends():
            self._copies = max(0, sum(ends.values()) - feed.sent)

    def _kill(self) -> None:
        """A kill now, and the arming of a point for the worker's next life; nothing once there were enough."""
        if self._killed_enough():
            return
        worker = self._pick()
        self._note_broken(worker)
        worker.kill()
        self.outcome.kills += 1
        name = next(self._points)
        armed = f"{name}:{1 if name in STARTING_POINTS else self._rng.integers(1, 5)}"
        self.say(sum(self._reached.values()), f"{worker.name} killed; it dies next at {armed}")
        worker.start(armed if self.outcome.kills < self.plan.kills else "")

    def _pause(self) -> None:
        """Stops a worker for twice the session timeout, as a machine that hangs."""
        worker = self._pick()
        self.outcome.pauses += 1
        self.say(sum(self._reached.values()), f"{worker.name} stopped for a while")
        worker.pause()
        threading.Timer(2 * self.settings.broker.session_timeout_s, worker.go_on).start()

    def _fill_disk(self) -> None:
        """A life in which no file grows past a few megabytes, as on a full disk; the next one has room again."""
        worker = self._pick()
        self._note_broken(worker)
        worker.kill()
        self.outcome.full_disks += 1
        self.say(sum(self._reached.values()), f"{worker.name} has no room to write")
        worker.start(file_bytes=FULL_DISK_BYTES)

    def _damage(self) -> None:
        """A byte flipped in each block of a partition's largest file, under a worker that is not running.

        One that is read at opening is among them; users are read when they come.
        """
        worker = self._pick()
        self._note_broken(worker)
        owned = sorted(worker.offsets())
        worker.kill()
        if owned:
            path = partition_path(self.settings.state.root, owned[0])
            files = sorted((f for f in path.iterdir() if f.suffix in (".sst", ".log")), key=lambda f: f.stat().st_size)
            content = np.fromfile(files[-1], np.uint8)
            content[len(content) // 2 % BLOCK :: BLOCK] ^= 0xFF
            with files[-1].open("r+b") as file:
                file.write(content.tobytes())
            self.outcome.damaged += 1
            self.say(sum(self._reached.values()), f"{files[-1].name} of {path.name} is damaged")
        worker.start()

    def _rebuild(self, worker: Process) -> bool:
        """Moves damaged directories away, as the worker asks for; False if there is none that it named."""
        if not self.outcome.damaged:
            return False
        named = [path for path in state_directories(self.settings.state.root) if f"{path} " in worker.messages()]
        for path in named:
            path.rename(self._folder / f"damaged-{time.monotonic_ns()}-{path.name}")
        return bool(named)

    def _restart_broker(self) -> None:
        if self.broker is not None:
            self.broker.restart()
            self.outcome.broker_restarts += 1
            self.say(sum(self._reached.values()), "broker killed and started")

    def _scale(self, wanted: int) -> None:
        """More or fewer workers; those that go end in order."""
        self.say(sum(self._reached.values()), f"{wanted} workers")
        running = self._running()
        for worker in running[wanted:]:
            worker.stop()
        for worker in [w for w in self.workers if w not in running][: max(0, wanted - len(running))]:
            worker.start()

    def _restart_ended(self) -> None:
        for worker in [*self.workers, *self._parts]:
            code = worker.returncode
            if code is None or not worker.wanted:
                continue
            if code == -signal.SIGKILL and worker.armed:
                self._count_point(worker)
            elif code in RESTARTED or (code == StateError.exit_code and self._rebuild(worker)):
                self._note_end(worker, code)
            else:
                raise ChaosError(f"{worker.name} ended with code {code}: {worker.messages()}")
            worker.start(self._armed_next(worker))

    def _note_end(self, process: Process, code: int) -> None:
        """Counts a process that ended by itself; what the plan does not explain is a fault of ours."""
        self.outcome.other_ends += 1
        broker_was_away = code == BrokerError.exit_code and self.outcome.broker_restarts > 0
        if code in (BrokerError.exit_code, UNEXPECTED_EXIT_CODE) and not (process.bounded or broker_was_away):
            last = " ".join(process.messages().split())[-500:]
            self.outcome.unexplained.append(f"{process.name} ended with code {code}: ...{last}")

    def _count_point(self, worker: Process) -> None:
        name = worker.armed.partition(":")[0]
        self.outcome.points[name] = self.outcome.points.get(name, 0) + 1
        self.outcome.kills += worker.name != "trainer"

    def _killed_enough(self) -> bool:
        return self.outcome.kills >= self.plan.kills

    # -- how it goes -------------------------------------------------------------------------------------------

    def _running(self) -> list[Process]:
        return [worker for worker in self.workers if worker.returncode is None]

    def _pick(self) -> Process:
        running = self._running() or self.workers[:1]
        return running[int(self._rng.integers(len(running)))]

    def _note_broken(self, worker: Process) -> None:
        now = time.monotonic()
        for partition, offset in worker.offsets().items():
            self._reached[partition] = max(offset, self._reached.get(partition, 0))
            self._recovering[partition] = (now, self._reached[partition])

    def _note_recovered(self) -> None:
        """A partition has recovered when it is well past where it stood, or when it has nothing more.

        The first offset that a new worker tells is the store's, which may be one epoch past what was seen last.
        """
        ends = self._ends() if self._recovering else {}
        for partition, (since, stood) in list(self._recovering.items()):
            reached = self._reached.get(partition, 0)
            if reached > stood + EPOCH_AHEAD or (ends and reached >= ends.get(partition, 0)):
                del self._recovering[partition]
                if reached > stood:
                    self.outcome.recovery_s.append(time.monotonic() - since)

    def _settled(self) -> bool:
        """Whether everything is applied, every worker is up, and each partition is open in one of them."""
        ends, opened = self._ends(), dict[int, int]()
        for worker in (w for w in self.workers if w.wanted):
            if worker.returncode is not None or not worker.metrics():
                return False
            opened |= worker.offsets()
        return (
            bool(ends)
            and all(opened.get(partition, -1) >= end for partition, end in ends.items())
            and (self.plan.partitions == 1 or self._items_settled())
        )

    def _items_settled(self) -> bool:
        """Whether the item rows of all partitions have taken what the users' partitions sent them."""
        reached: dict[int, int] = {}
        for worker in self._running():
            reached |= worker.item_offsets()
        ends = self._ends("interactions.by-item")
        return bool(ends) and all(reached.get(partition, 0) >= end for partition, end in ends.items())

    def _ends(self, name: str = "interactions") -> dict[int, int]:
        """End offset of each partition of a topic; empty while the broker is away."""
        topic = self.settings.broker.prefix + name
        try:
            with consumer(self.settings.broker, self.bootstrap) as reader:
                places = [TopicPartition(topic, number) for number in range(self.plan.partitions)]
                return {place.partition: end for place, end in reader.end_offsets(places).items()}
        except DriftlineError:
            return {}

    @contextmanager
    def _beside(self) -> Iterator[Queries | None]:
        """Trainer and service, where they are wanted."""
        self._parts = [self._part(name) for name in ("trainer", "serve") if getattr(self.plan, _PLANNED[name])]
        for part in self._parts:
            part.start(self._armed_next(part))
        queries = Queries(self.settings.serving, self._users()) if self.plan.queries else None
        try:
            if queries is not None:
                queries.start()
            yield queries
        finally:
            if queries is not None:
                queries.stop()
            for part in self._parts:
                part.stop()

    def _armed_next(self, process: Process) -> str:
        """Where a process that is started again dies next: the trainer at each of its points in turn."""
        return f"{next(self._trainer_points)}:2" if process.name == "trainer" else ""

    def _feeder(self) -> AbstractContextManager[Feed]:
        """The stream on its way, never far ahead of the workers, so that the kills meet a stream that flows."""
        return fed(
            self.settings.broker,
            self.bootstrap,
            self.stream.messages,
            lambda: sum(self._reached.values()) - self._copies + AHEAD // self.plan.partitions,
        )

    def _users(self) -> Sequence[str]:
        return list(dict.fromkeys(event.user_id for event in self.stream.events[:1000]))

    def _worker(self, number: int) -> Process:
        command = ["-m", "driftline.stream.worker", str(self._config)]
        return Process(f"worker-{number}", command, self._environment, self._folder, "DRIFTLINE__METRICS__WORKER_PORT")

    def _part(self, name: str) -> Process:
        command = ["-m", "driftline.stream.cli.command", name, "--config", str(self._config)]
        port = "DRIFTLINE__METRICS__TRAINER_PORT" if name == "trainer" else "DRIFTLINE__METRICS__SERVING_PORT"
        return Process(name, command, self._environment, self._folder, port)

    @property
    def _environment(self) -> dict[str, str]:
        return {"DRIFTLINE__BROKER__BOOTSTRAP": self.bootstrap}

    def _tails(self) -> str:
        return "; ".join(f"{worker.name}: {worker.messages()[-800:]}" for worker in self.workers)


_PLANNED = {"trainer": "trainer", "serve": "queries"}
