"""A whole system on one machine under one command: `driftline up`, and what `status`, `down` and `reset` know of it.

    state.root/up.lock   held by the process that runs the system, dropped by the kernel when it dies
    state.root/up.json   that process, its children, where they answer: read by the others, and by the next start

The children end with the process that started them, also when it is killed; what the next start still finds of them
it ends.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec
import psutil

from driftline.configs.addresses import free_port, joined, reachable
from driftline.configs.errors import LockedError
from driftline.configs.settings import Settings
from driftline.serving.ports import is_taken
from driftline.stream.durable import has_name, open_locked, write_durably
from driftline.stream.exits import still_running
from driftline.stream.headway import duration
from driftline.stream.kafka.broker import EmbeddedBroker
from driftline.stream.ops.scrape import series
from driftline.stream.ops.supervisor import ONE_BLAS_THREAD, Child, cli, services, worker
from driftline.stream.state import lock
from driftline.stream.state.store import state_directories

PARTS = ("worker", "trainer", "profiler", "serve")
STOP_S = 60.0
"""How long the parts may take to end in order."""


class Process(msgspec.Struct, frozen=True):
    """A process, told from a later one with the same number by its start time."""

    name: str
    pid: int
    created: float

    def find(self) -> psutil.Process | None:
        """The process, None when it is gone."""
        return still_running(self.pid, self.created)


class Note(msgspec.Struct):
    """A running system, as `up.json` tells it.

    Attributes:
        owner: the process that runs it.
        children: its parts.
        bootstrap: where its broker answers.
        address: of the gRPC service.
        ports: metrics by part.
    """

    owner: Process
    bootstrap: str
    address: str
    ports: dict[str, int]
    children: list[Process] = msgspec.field(default_factory=list)


class Standing(msgspec.Struct):
    """How far a system is.

    Attributes:
        read: records that the state has taken in so far, also by workers of before; None before a partition is open.
        applied: events that this worker applied since it began; None where no worker answers.
        dead, duplicates, too_late, unknown_actions: records that it refused, second copies of events, events that came
            too late, events with an action that the configuration does not set, since it began.
        state_behind: records that the state lacks; None where no worker answers.
        opening: partitions that no worker of this system has open yet.
        state_s: how long the worker takes for them at its present rate; None where that is not known.
        trains: whether a trainer answers: it has read its checkpoint.
        model_behind: records that the trainer has not taken in; None where no trainer answers, or it does not know yet.
        model_groups: groups that these make, about; None where that is not known.
        model_groups_per_s: the trainer's present rate.
        model_s: how long they take at that rate.
        snapshot_age_s: of the newest snapshot; None before the first.
        model_sequence: number of the snapshot that serves, 0 = none; None where no service takes calls.
        serving: whether the service has anything to answer from, as its health says; None as above.
    """

    read: int | None = None
    applied: int | None = None
    dead: int = 0
    duplicates: int = 0
    too_late: int = 0
    unknown_actions: int = 0
    state_behind: int | None = None
    state_s: float | None = None
    opening: int = 0
    trains: bool = False
    model_behind: int | None = None
    model_groups: int | None = None
    model_groups_per_s: float | None = None
    model_s: float | None = None
    snapshot_age_s: float | None = None
    model_sequence: int | None = None
    serving: bool | None = None

    def sentence(self) -> str:
        """One line for people."""
        said = [
            "no worker answers yet"
            if self.state_behind is None
            else "state: no partition is open yet"
            if self.read is None
            else f"state: {self.read:,} records read, {self.applied or 0:,} events applied by this worker"
            + (f", {self.state_behind:,} behind" if self.state_behind else ", nothing behind")
            + (f", about {duration(self.state_s)}" if self.state_behind and self.state_s is not None else "")
            + (f", {self.opening} partitions not open yet" if self.opening else ""),
            "no trainer answers yet"
            if not self.trains
            else "model: how far behind is not known yet"
            if self.model_behind is None
            else f"model: {self.model_behind:,} events behind"
            if self.model_behind
            else "model: none yet, no event was read yet (driftline produce sends some)"
            if self.model_sequence == 0 and self.read == 0
            else "model: none yet, the texts of the items are encoded before the first one"
            if self.model_sequence == 0
            else "model: nothing behind",
        ]
        if self.model_behind and self.model_groups and self.model_s is not None:
            said[-1] += (
                f", about {self.model_groups:,} groups at {self.model_groups_per_s:,.1f}/s: {duration(self.model_s)}"
            )
        if self.snapshot_age_s is not None:
            said.append(f"newest snapshot {self.snapshot_age_s:.0f} s old")
        if self.model_sequence is not None:
            said.append(f"model {self.model_sequence} serves" if self.model_sequence else "no model serves yet")
        return " · ".join(said)

    def losses(self) -> str:
        """What did not reach the state as it was meant, with the commands that say more; "" = nothing."""
        said = [
            f"{n:,} {words}"
            for n, words in (
                (self.dead, "records refused (`driftline dlq list`)"),
                (self.duplicates, "events a second time, by event_id or place, and dropped"),
                (self.too_late, "events too late to change the state (`driftline doctor`)"),
                (self.unknown_actions, "events with an action that is not in the configuration (the worker's log)"),
            )
            if n
        ]
        return f"since this worker began: {', '.join(said)}" if said else ""


@contextmanager
def claimed(settings: Settings) -> Iterator[Callable[[Note], None]]:
    """The right to run a system on `state.root`; gives the function that writes its note.

    Raises:
        LockedError: one runs.
    """
    root = settings.state.root
    file = open_locked(root / "up.lock")
    if file is None:
        found = running(settings)
        whose = f"process {found.owner.pid}" if found else "another process"
        raise LockedError(
            f"a system runs on state.root {root.absolute()} already, {whose}: `driftline status` says how it is, "
            "`driftline down` ends it"
        )
    wrote = False

    def write(note: Note) -> None:
        nonlocal wrote
        wrote = True
        write_durably(root / "up.json", msgspec.json.encode(note))

    with file:
        try:
            yield write
        finally:
            if wrote and has_name(file, root / "up.lock"):
                (root / "up.json").unlink(missing_ok=True)


def read_note(settings: Settings) -> Note | None:
    """What was written of the system on `state.root`, whether it runs or was killed; None = nothing."""
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((settings.state.root / "up.json").read_bytes(), type=Note)
    return None


def running(settings: Settings) -> Note | None:
    """The system that runs on `state.root`, None if none does."""
    note = read_note(settings)
    return note if note is not None and note.owner.find() is not None else None


def end_left_over(settings: Settings) -> list[Process]:
    """Ends the parts of a system that was killed; those that still ran. They commit what they have taken on."""
    note = read_note(settings)
    left = [(child, found) for child in (note.children if note else []) if (found := child.find()) is not None]
    for _, process in left:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs([process for _, process in left], timeout=STOP_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return [child for child, _ in left]


@contextmanager
def with_ports(settings: Settings) -> Iterator[Settings]:
    """The same settings with a free port for the metrics of each part that has none, or one that is taken.

    The parts listen only seconds later. Until the end the numbers are held as ports of UDP, on which nobody sends:
    a second system that starts meanwhile looks for others, and the kernel gives them back when this process dies.
    """
    metrics, found = settings.metrics, dict[str, int]()
    with ExitStack() as held:
        for key, port in metrics.model_dump(exclude={"host"}).items():
            processes = settings.serving.processes if key == "serving_port" else 1
            while not port or not _hold(metrics.host, range(port, port + processes), held):
                port = free_port()
            found[key] = port
        yield settings.model_copy(update={"metrics": metrics.model_copy(update=found)})


def _hold(host: str, ports: Iterable[int], held: ExitStack) -> bool:
    """Whether nobody listens on any of these ports or holds it; then they are held until `held` ends."""
    with ExitStack() as stack:
        for port in ports:
            if is_taken(host, port):
                return False
            try:
                family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
                stack.enter_context(socket.socket(family, kind)).bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return False  # an address that this machine has not is refused where the part opens it
        held.enter_context(stack.pop_all())
    return True


def children_of(
    settings: Settings,
    bootstrap: str,
    config: str | None,
    parts: Sequence[str] = PARTS,
    environment: Mapping[str, str] | None = None,
    tell: Callable[[str, str], None] | None = None,
) -> list[Child]:
    """The processes of a system.

    Args:
        settings: what the parts run with; ports are passed on to them.
        bootstrap: where their broker answers.
        config: what they load the other settings from.
        parts: which of `PARTS`.
        environment: of all of them, beside this process's own.
        tell: gets (part, line) of what they write.
    """
    ports = {f"DRIFTLINE__METRICS__{part.upper()}_PORT": str(port) for part, port in ports_of(settings).items()}
    common = {
        **ONE_BLAS_THREAD, **(environment or {}), **ports, "DRIFTLINE__BROKER__BOOTSTRAP": bootstrap,
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip

    def teller(part: str) -> Callable[[str], None] | None:
        return None if tell is None else lambda line: tell(part, line)

    found: list[Child] = []
    for part in parts:
        if part == "serve":
            found += services(settings, common, config, teller(part))
        else:
            command = worker(config) if part == "worker" else cli(part, config)
            found.append(Child(part, command, common, teller(part)))
    return found


def ports_of(settings: Settings) -> dict[str, int]:
    """Ports of metrics by part, as the settings name them."""
    metrics = settings.metrics
    return {
        "worker": metrics.worker_port,
        "trainer": metrics.trainer_port,
        "profiler": metrics.profiler_port,
        "serving": metrics.serving_port,
    }


def starting(settings: Settings) -> Note:
    """The note of a system that begins in this process; what one that was killed has left stays in it."""
    left = read_note(settings)
    return Note(_me(), "", "", {}, left.children if left else [])


def note_of(settings: Settings, bootstrap: str, children: Sequence[Child]) -> Note:
    """The note of a system whose children run in this process."""
    address = joined(reachable(settings.serving.host), settings.serving.port)
    found = [_process(child.name, child.pid) for child in children if child.pid is not None]
    return Note(_me(), bootstrap, address, ports_of(settings), [child for child in found if child is not None])


def standing(settings: Settings, ports: Mapping[str, int], pids: Collection[int]) -> Standing:
    """How far a system is, from what its parts count.

    Args:
        settings: of the system.
        ports: of metrics by part.
        pids: its processes: what another system tells at such a port is passed over.
    """

    def told(part: str) -> dict[str, float]:
        found = series(ports.get(part, 0))
        return found if int(found.get("process_id", 0)) in pids else {}

    def known(value: float | None) -> float | None:
        return None if value is None or math.isnan(value) else value

    def summed(metrics: Mapping[str, float], name: str) -> int:
        """Over all partitions."""
        return int(sum(value for key, value in metrics.items() if key.startswith(f"{name}{{")))

    found = Standing()
    if applied := told("worker"):
        for outcome in ("applied", "dead", "duplicates", "too_late", "unknown_actions"):
            setattr(found, outcome, int(applied.get(f'driftline_events_total{{outcome="{outcome}"}}', 0)))
        is_open = any(key.startswith("driftline_next_offset{") for key in applied)
        found.read = summed(applied, "driftline_next_offset") if is_open else None
        found.state_behind = summed(applied, "driftline_lag")
        found.state_s = known(applied.get("driftline_backlog_seconds"))
        found.opening = summed(applied, "driftline_partitions_waiting")
    if learnt := told("trainer"):
        found.trains = True
        behind = known(learnt.get("driftline_trainer_lag"))
        found.model_behind = None if behind is None else int(behind)
        groups = known(learnt.get("driftline_trainer_groups_left"))
        found.model_groups = None if groups is None else int(groups)
        found.model_groups_per_s = known(learnt.get("driftline_trainer_groups_per_second"))
        found.model_s = known(learnt.get("driftline_trainer_backlog_seconds"))
    served = told("serving")
    if health := served.get("driftline_serving_health"):  # its metrics answer before it takes calls
        found.model_sequence = int(served.get("driftline_serving_model_sequence", 0))
        found.serving = health == 1
    with suppress(OSError):
        found.snapshot_age_s = time.time() - (settings.serving.snapshots / "CURRENT").stat().st_mtime
    return found


def places(settings: Settings) -> dict[str, Path]:
    """Where a system keeps what it makes, by setting; the embedded broker's log is part of it."""
    found = {
        "state.root": settings.state.root,
        "trainer.root": settings.trainer.root,
        "serving.snapshots": settings.serving.snapshots,
    }
    return found if settings.broker.bootstrap else {**found, "broker.embedded_dir": settings.broker.embedded_dir}


def cached_vectors(settings: Settings) -> list[Path]:
    """The files of `encoder.cache` that there are, itself first: what is in them depends on no state."""
    cache = settings.encoder.cache
    files = [] if cache is None else [cache.absolute().with_name(cache.name + end) for end in ("", "-wal", "-shm")]
    return [path for path in files if path.is_file()]


@contextmanager
def unused(settings: Settings) -> Iterator[None]:
    """Holds what this host keeps, so that no process works on it, nor begins to.

    Raises:
        LockedError: one does.
    """
    from driftline.stream.learn import checkpoint  # it brings torch, which the other commands do without

    with ExitStack() as stack:
        stack.enter_context(claimed(settings))
        for path in state_directories(settings.state.root):
            stack.enter_context(lock.locked(path))
        if settings.trainer.root.exists():
            stack.enter_context(checkpoint.locked(settings.trainer.root, 0.0))
        if not settings.broker.bootstrap:
            stack.enter_context(EmbeddedBroker(settings.broker).unused())
        yield


def _me() -> Process:
    me = _process("up", os.getpid())
    assert me is not None
    return me


def _process(name: str, pid: int) -> Process | None:
    with suppress(psutil.NoSuchProcess):
        return Process(name, pid, psutil.Process(pid).create_time())
    return None
