"""What is installed, reachable and healthy, and what to do about what is not."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from driftline.configs.errors import DriftlineError
from driftline.configs.settings import Broker, Settings

if TYPE_CHECKING:
    from driftline.stream.ops.backlog import Backlog
    from driftline.stream.state.live import StoreStanding

State = Literal["ok", "note", "bad"]
PACKAGES = (
    "torch", "faust-streaming", "aiokafka", "kafka-python", "rocksdict", "grpcio", "transformers", "noida-db",
)  # fmt: skip
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
"""As pyproject.toml has them."""
LITTLE_DISK_BYTES = 2 << 30
NEWEST_LETTERS = 10_000
"""Dead letters that are looked at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: ok, a note that needs nothing, or bad with a remedy."""

    part: str
    state: State
    detail: str
    remedy: str = ""


def examine(settings: Settings) -> list[Finding]:
    """All findings, in the order of the way of an event."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _python, _packages, _codecs, _disk, _broker, _dead_letters, _state, _backlog, _snapshots, _serving, _models,
        _llm,
    )  # fmt: skip
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check(settings)
        except DriftlineError as error:
            findings.append(Finding(check.__name__.strip("_"), "bad", str(error)))
    return findings


def _python(settings: Settings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON
    yield Finding("python", "ok" if good else "bad", version, "" if good else "use Python 3.11, 3.12 or 3.13")
    cores = len(os.sched_getaffinity(0))
    remedy = "" if cores > 1 else "worker, trainer and serving want a core each"
    yield Finding("cores", "ok" if cores > 1 else "note", str(cores), remedy)


def _packages(settings: Settings) -> Iterator[Finding]:
    missing = []
    for name in PACKAGES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding("packages", "bad", f"missing: {', '.join(missing)}", "make setup")
    else:
        yield Finding("packages", "ok", f"{len(PACKAGES)} found")


def _codecs(settings: Settings) -> Iterator[Finding]:
    from driftline.stream.kafka.codecs import CODECS, WHEELS, unreadable

    if faults := unreadable():
        yield Finding(
            "codecs", "bad", f"can't be read: {', '.join(faults)}; records in such batches end worker and trainer",
            f"make setup, or pip install {' '.join(WHEELS)}",
        )  # fmt: skip
    else:
        yield Finding("codecs", "ok", f"{', '.join(CODECS)} can be read")


def _disk(settings: Settings) -> Iterator[Finding]:
    """One finding for each file system that driftline writes to, with what lies there."""
    roots = {
        "state.root": settings.state.root,
        "trainer.root": settings.trainer.root,
        "serving.snapshots": settings.serving.snapshots,
    }
    if not settings.broker.bootstrap:
        roots["broker.embedded_dir"] = settings.broker.embedded_dir
    systems: dict[int, list[tuple[str, Path]]] = {}
    for name, root in roots.items():
        systems.setdefault(_existing(root).stat().st_dev, []).append((name, root))
    for places in systems.values():
        free = shutil.disk_usage(_existing(places[0][1])).free
        kept = [name for name, root in places if not os.access(_existing(root), os.W_OK)]
        used = ", ".join(f"{name} {bytes_in(root) / 1e9:.2f} GB" for name, root in places)
        bad = free <= LITTLE_DISK_BYTES or bool(kept)
        not_writable = f"; can't be written: {', '.join(kept)}" if kept else ""
        yield Finding(
            "disk", "bad" if bad else "ok",
            f"{free / 1e9:.1f} GB free in {_existing(places[0][1])}: {used}{not_writable}",
            "make room, or set these to directories that can be written" if bad else "",
        )  # fmt: skip


def _existing(path: Path) -> Path:
    """A directory, or the nearest one above it that is there."""
    path = path.absolute()
    return path if path.exists() else _existing(path.parent)


def bytes_in(root: Path) -> int:
    """Disk space that the files under a directory take, each once; those that vanish meanwhile take none."""
    taken: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            with suppress(OSError):
                found = os.lstat(os.path.join(folder, name))
                taken[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(taken.values())


def _broker(settings: Settings) -> Iterator[Finding]:
    from driftline.stream.kafka.broker import EmbeddedBroker

    if settings.broker.bootstrap:
        yield from _topics(settings.broker, settings.broker.bootstrap, f"answers at {settings.broker.bootstrap}")
        return
    running = EmbeddedBroker(settings.broker).running()
    if running is not None:
        what = f"embedded, runs on port {running.port} (process {running.pid})"
        yield from _topics(settings.broker, f"127.0.0.1:{running.port}", what)
    elif _listens(settings.broker.embedded_port):
        yield Finding(
            "broker", "bad", f"port {settings.broker.embedded_port} is taken by another process",
            "set broker.embedded_port to a free port, or broker.bootstrap to that broker",
        )  # fmt: skip
    elif EmbeddedBroker(settings.broker).orphaned():
        yield Finding(
            "broker", "bad", "embedded, gone while processes use it", "end them and start them again; see broker.log"
        )
    else:
        yield Finding("broker", "note", "embedded, not running", "every command that needs it starts it")


def _topics(broker: Broker, bootstrap: str, what: str) -> Iterator[Finding]:
    from driftline.stream.events.topics import TOPICS, is_compacted, stamped_by_producers
    from driftline.stream.kafka.broker import admin

    with admin(broker, bootstrap) as client:
        yield Finding("broker", "ok", what)
        existing = set(client.list_topics())
        there = broker.prefix + "interactions" in existing
        loose = there and stamped_by_producers(client, broker)
        compacted = there and is_compacted(client, broker)
    if compacted:
        yield Finding(
            "topics", "bad", f"{broker.prefix}interactions is compacted: of each key the broker keeps its last event",
            f"kafka-configs --alter --topic {broker.prefix}interactions --add-config cleanup.policy=delete; what is "
            "gone can only be produced again",
        )  # fmt: skip
    if loose:
        yield Finding(
            "clocks", "note", f"records of {broker.prefix}interactions carry their producers' time, not the broker's: "
            "with a wrong one an event from the future can't be told for certain",
            f"kafka-configs --alter --topic {broker.prefix}interactions --add-config "
            "message.timestamp.type=LogAppendTime",
        )  # fmt: skip
    missing = [t.name for t in TOPICS if broker.prefix + t.name not in existing]
    yield (
        Finding("topics", "note", f"missing: {', '.join(missing)}", "produce and worker create them")
        if missing
        else Finding("topics", "ok", f"{len(TOPICS)} found")
    )


def _dead_letters(settings: Settings) -> Iterator[Finding]:
    """How many records of each topic were refused, as far as the newest dead letters say."""
    from driftline.stream.events.dlq import newest_letters

    bootstrap = _running_broker(settings.broker)
    if bootstrap is None:
        return
    letters = newest_letters(settings.broker, bootstrap, NEWEST_LETTERS)
    for topic, n in sorted(Counter(letter.topic for letter in letters).items()):
        last = next(letter for letter in reversed(letters) if letter.topic == topic)
        more = " or more" if len(letters) >= NEWEST_LETTERS else ""
        remedy = "`driftline dlq list` shows them, `driftline dlq replay` sends them again"
        if topic == "items":
            remedy = "`driftline dlq list` shows them; mend and send them again: what was known of the items holds"
        yield Finding(
            "dead letters", "note", f"{n:,}{more} records of {topic} were refused, the last for {last.reason}: "
            f"{last.detail:.200}", remedy,
        )  # fmt: skip


def _state(settings: Settings) -> Iterator[Finding]:
    from driftline.stream.ops.roots import difference
    from driftline.stream.state.layout import check_whole, differences, read_layout, unusable
    from driftline.stream.state.live import count_strays

    root, bootstrap = settings.state.root, _running_broker(settings.broker)
    if bootstrap is not None and (elsewhere := difference(settings, bootstrap)):
        yield Finding(
            "state", "bad", elsewhere,
            "end the workers with the other root and start them with this one: they apply the topic to it anew",
        )  # fmt: skip
    check_whole(root)
    folders = {path.name.removeprefix("partition-"): path for path in sorted(root.glob("partition-*"))}
    partitions = [name for name in folders if name.isdecimal()]
    if not partitions:
        yield Finding("state", "note", f"none in {root} yet", "the worker makes it from the topic (`driftline up`)")
        return
    made_with = read_layout(root)
    numbers = {str(number) for number in range(made_with["partitions"])}
    yield Finding("state", "ok", f"{len(numbers & folders.keys())} partitions in {root}")
    if foreign := sorted(folders.keys() - numbers):
        yield Finding(
            "state", "note", f"in {root} partition-{', partition-'.join(foreign)} are none of the state's "
            f"{made_with['partitions']} partitions: nothing reads or writes them",
            "move them away; a backup belongs outside of state.root",
        )  # fmt: skip
    if misfit := unusable(settings, made_with):
        yield Finding("state", "bad", misfit, "start the worker with the settings that the state was made with")
    elif changed := differences(settings, made_with):
        yield Finding("state", "note", changed)
    strays = count_strays(root)
    if strays.forwarded:
        yield Finding(
            "producers", "note", f"{strays.forwarded:,} events so far came in another partition than their user's and "
            "were sent on to it, a second record each",
            "key events by user_id and partition them as Java and kafka-python do (librdkafka: partitioner "
            "murmur2_random)",
        )  # fmt: skip
    if strays.too_late:
        yield Finding(
            "late events", "note", f"{strays.too_late:,} so far came too late: they are counted, but changed no state",
            "produce history in order of time, before what is newer; state.late_ms says how late an event may be",
        )  # fmt: skip


def _backlog(settings: Settings) -> Iterator[Finding]:
    """How far state and trainer are behind the topic, and whether it is the topic that they were made from."""
    from driftline.stream.ops.backlog import backlogs, read_standing
    from driftline.stream.state.live import read_standings

    bootstrap = _running_broker(settings.broker)
    stores, learnt = read_standings(settings.state.root), read_standing(settings.trainer.root)
    if bootstrap is None or not (stores or learnt):
        return
    _hold_to_origins(settings, bootstrap, stores)
    found = backlogs(settings.broker, bootstrap, {(store.name, store.partition): store.next_offset for store in stores})
    yield _behind("lag", "the state", found, "`driftline worker` applies them; if it runs, see its log", stores)
    trained = backlogs(settings.broker, bootstrap, {("interactions", number): at for number, at in learnt.items()})
    if trained:
        remedy = "`driftline trainer` learns them; its checkpoint is written every trainer.checkpoint_s"
        yield _behind("trainer lag", "the trainer's checkpoint", trained, remedy)
    held = [b for b in found or trained if b.undecided and b.name == "interactions"]
    for backlog in held:
        yield Finding(
            "transactions", "note",
            f"a transaction that is not decided holds back {backlog.undecided:,} records from offset {backlog.stable} "
            f"of partition {backlog.partition} of {settings.broker.prefix}{backlog.name}",
            "its producer commits or aborts it, else the broker does after its transaction.timeout.ms; "
            "`kafka-transactions.sh find-hanging` names one that stays",
        )  # fmt: skip


def _behind(
    part: str, who: str, found: Sequence[Backlog], remedy: str, stores: Sequence[StoreStanding] = ()
) -> Finding:
    missing = sum(backlog.missing for backlog in found)
    if not missing:
        return Finding(part, "ok", f"{who} holds all that its topics have")
    where = ", ".join(f"{b.missing:,} of partition {b.partition} of {b.name}" for b in found if b.missing)
    complete_ms = min((store.complete_ms for store in stores), default=-1)
    age = f"; it was complete {time.time() - complete_ms / 1000:,.0f} s ago" if complete_ms > 0 else ""
    return Finding(part, "note", f"{missing:,} records are not in {who} ({where}){age}", remedy)


def _hold_to_origins(settings: Settings, bootstrap: str, stores: Sequence[StoreStanding]) -> None:
    """Raises StateError where a store was made from another topic than the broker has now."""
    from driftline.stream.kafka.identity import Identities
    from driftline.stream.state.origin import merged

    known = {(name, store.partition): origin for store in stores for name, origin in store.origin.items()}
    with closing(Identities(settings.broker, bootstrap)) as identities:
        found = identities.of(list(known), known.values())
    for store in stores:
        now = {name: found[name, store.partition] for name in store.origin if (name, store.partition) in found}
        merged(settings, f"the state of partition {store.partition} of {store.name}", store.origin, now)


def _running_broker(settings: Broker) -> str | None:
    """Where a broker answers, None where none runs."""
    from driftline.stream.kafka.broker import EmbeddedBroker, check_reachable

    if settings.bootstrap:
        with suppress(DriftlineError):
            check_reachable(settings, settings.bootstrap)
            return settings.bootstrap
        return None
    running = EmbeddedBroker(settings).running()
    return f"127.0.0.1:{running.port}" if running else None


def _snapshots(settings: Settings) -> Iterator[Finding]:
    from driftline.model.standing import sentence
    from driftline.serving.snapshot import GATE, current, misfit, open_snapshot

    root = settings.serving.snapshots
    pointer = current(root)
    if pointer is None:
        yield Finding("snapshots", "note", f"none in {root} yet", "the trainer publishes them (`driftline up`)")
        return
    snapshot = open_snapshot(root)
    held = ", held" if pointer.held else ""
    yield Finding("snapshots", "ok", f"{snapshot.version} is current{held}; its sums hold")
    if told := snapshot.meta.extra.get(GATE):
        yield Finding("parts", "ok", "; ".join(sentence(name, one) for name, one in told.items()))
    if which := misfit(snapshot.meta, settings):
        yield Finding(
            "snapshots", "bad", f"{snapshot.version} was trained with other settings than these: {which}",
            "start trainer and serve with the same --config; serve refuses it with this one. After a release that "
            "changed a preset (CHANGELOG.md) set that back, or wait for a snapshot of the new trainer",
        )  # fmt: skip


def _serving(settings: Settings) -> Iterator[Finding]:
    port = settings.serving.port
    if port and _listens(port):
        yield Finding("serving", "ok", f"listens on port {port}")
    else:
        yield Finding(
            "serving",
            "note",
            f"nothing listens on port {port}",
            "`driftline up` starts it with all others, `driftline serve` alone",
        )


def _models(settings: Settings) -> Iterator[Finding]:
    from driftline.llm.fetch import MINILM, SMOLLM, model_directory

    needed = [SMOLLM, MINILM] if settings.llm.client == "smollm" else [MINILM]
    for name in needed:
        try:
            yield Finding("models", "ok", f"{name} in {model_directory(name)}")
        except DriftlineError as error:
            yield Finding("models", "bad", str(error), "make setup")


def _llm(settings: Settings) -> Iterator[Finding]:
    from driftline.llm.openai import OpenAIClient

    if settings.llm.client != "openai":
        return
    client = OpenAIClient(settings.llm)
    try:
        yield Finding("llm", "ok", client.check())
    finally:
        client.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
