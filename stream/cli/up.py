"""`driftline up`, `status`, `down`, `reset`: a whole system on this machine as one thing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from driftline.stream.cli.common import AsJson, Config, Waiting, err, out, print_json, settings_of

if TYPE_CHECKING:
    from driftline.configs.settings import Settings
    from driftline.stream.ops.supervisor import Child
    from driftline.stream.system import Note
    from driftline.stream.system import Standing as _Standing

LOOK_S = 2.0
"""Between two looks at how the system is."""
TELL_S = 60.0
"""Between two lines about it where a line can't be renewed."""
FAILED = "up: ended with code"
COLOURS = {"worker": "cyan", "trainer": "magenta", "profiler": "blue", "serve": "green"}


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    for command in (up, status, down, reset):
        app.command()(command)


def up(
    without: Annotated[
        list[str] | None, typer.Option(help="Leave a part out: worker, trainer, profiler, serve.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background, once it answers.")] = False,
    config: Config = None,
) -> None:
    """Run broker, worker, trainer, profiler and service together until Ctrl-C: one log, one line on how they are.

    The embedded broker is among them where `broker.bootstrap` names none. A part that crashes is started again; any
    signal ends all of them. What a system that was killed has left running is ended first.

    Example: `driftline up -c ecommerce`
    """
    from driftline.configs.signals import stop_on_signals
    from driftline.serving.ports import check_free
    from driftline.stream.events.topics import create_topics
    from driftline.stream.kafka.broker import broker
    from driftline.stream.ops.supervisor import Supervisor
    from driftline.stream.system import (
        PARTS,
        STOP_S,
        children_of,
        claimed,
        end_left_over,
        note_of,
        starting,
        with_ports,
    )

    if unknown := set(without or ()) - set(PARTS):
        raise typer.BadParameter(
            f"got {', '.join(sorted(unknown))}; expected {', '.join(PARTS)}", param_hint="--without"
        )
    parts = [part for part in PARTS if part not in (without or ())]
    if not parts:
        raise typer.BadParameter("nothing is left to run", param_hint="--without")
    settings = settings_of(config)
    if detach:
        from driftline.stream.cli.detached import start_detached

        return start_detached(settings, without or [], config)
    stopping = stop_on_signals()
    with claimed(settings) as write, with_ports(settings) as settings:
        write(starting(settings))
        _begin_log(settings.state.root / "up.log")
        for process in end_left_over(settings):
            err.print(f"up: ended {process.name}, process {process.pid}, that a killed system had left running")
        err.print(f"up: starting {', '.join(parts)}; state in {settings.state.root.absolute()}", soft_wrap=True)
        if "serve" in parts:
            check_free(settings.serving)  # before anything heavy begins
        with broker(settings.broker) as bootstrap:
            create_topics(settings.broker, bootstrap)
            if stopping():
                raise typer.Exit(0)
            with _View() as view:
                children = children_of(settings, bootstrap, config, parts, tell=view.line)
                write(note_of(settings, bootstrap, children))

                def note() -> None:
                    write(note_of(settings, bootstrap, children))

                with _watched(settings, view) as watch:
                    code = Supervisor(children, lambda: watch(children, note), STOP_S).run()
    err.print("up: everything has ended" if not code else f"{FAILED} {code}; the lines above say why")
    raise typer.Exit(code)


def status(config: Config = None, as_json: AsJson = False) -> None:
    """Which parts run, where they answer, and how far state and model are behind. Exit code 1 if nothing runs.

    Example: `driftline status`
    """
    from driftline.stream.system import running, standing

    settings = settings_of(config)
    note = running(settings)
    if note is None:
        if as_json:
            print_json({"running": False})
        else:
            root = settings.state.root.absolute()
            out.print(
                f"nothing runs on state.root {root}; `driftline up` starts it. One that runs elsewhere is asked from "
                "its folder, with its -c",
                soft_wrap=True,
            )
            _tell_how_it_ended(settings)
        raise typer.Exit(1)
    now = standing(settings, note.ports, [child.pid for child in note.children])
    if as_json:
        return print_json(_as_json(note, now))
    if not note.ports:
        return out.print(f"a system is starting, process {note.owner.pid}")
    table = Table("part", "process", "metrics")
    ports = {"service": "serving", "worker": "worker", "trainer": "trainer", "profiler": "profiler"}
    for child in note.children:
        alive = child.find() is not None
        port = note.ports.get(ports.get(child.name, ""), 0)
        where = f"http://127.0.0.1:{port}/metrics" if port and alive else ""
        table.add_row(child.name, str(child.pid) if alive else "ended", where)
    out.print(table)
    serves = any(child.name == "service" for child in note.children)
    answers = f"answers on {note.address}" if now.model_sequence is not None else "the service does not answer yet"
    out.print(f"broker {note.bootstrap}" + (f", {answers}" if serves else ""))
    out.print(now.sentence(), soft_wrap=True)
    if losses := now.losses():
        out.print(losses, soft_wrap=True)
    return None


def down(config: Config = None, as_json: AsJson = False) -> None:
    """End a system that `driftline up` runs, in order; and what one that was killed has left.

    Example: `driftline down`
    """
    from driftline.stream.kafka.broker import EmbeddedBroker
    from driftline.stream.system import STOP_S, end_left_over, running

    settings = settings_of(config)
    note = running(settings)
    owner = note.owner.find() if note is not None else None
    if note is not None and owner is not None:
        owner.terminate()
        if not _ended(note, STOP_S + 30):
            owner.kill()
            err.print(f"up: process {owner.pid} did not end and was killed; what it had committed holds")
    left = end_left_over(settings)
    broker = not settings.broker.bootstrap and EmbeddedBroker(settings.broker).stop_unused()
    if as_json:
        print_json({"was_running": note is not None, "ended": [{"name": p.name, "pid": p.pid} for p in left]})
    elif note is not None:
        out.print("everything has ended")
    elif left or broker:
        ended = [f"{p.name} {p.pid}" for p in left] + ["the embedded broker"] * broker
        out.print(f"ended {', '.join(ended)}, left by a system that was killed")
    else:
        root = settings.state.root.absolute()
        out.print(f"nothing ran on state.root {root}; one that runs elsewhere is ended from its folder", soft_wrap=True)
        _tell_how_it_ended(settings)


def _ended(note: Note, still_s: float) -> bool:
    """Waits until a system that was asked to end has ended; False once none of its parts did for so long."""
    moved_s, parts = time.monotonic(), len(note.children) + 1
    with Waiting("up: ending; what was read is committed first") as waiting:
        while note.owner.find() is not None and time.monotonic() - moved_s < still_s:
            left = [child.name for child in note.children if child.find() is not None]
            if len(left) < parts:
                moved_s, parts = time.monotonic(), len(left)
            waiting.still(f"up: ending; {', '.join(left) or 'the broker'} still runs")
            time.sleep(0.1)
    return note.owner.find() is None


def reset(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    encodings: Annotated[bool, typer.Option("--encodings", help="Delete encoder.cache, too.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Delete state, models and snapshots of this host, and the embedded broker's data: lists them first, then asks.

    A broker of your own keeps its topics: the next start reads them from the beginning. Vectors of texts stay
    (`encoder.cache`) unless --encodings is given: they depend on nothing but the text, and take minutes to make.

    Example: `driftline reset`, `driftline reset --encodings --yes`
    """
    from driftline.configs.errors import InputError
    from driftline.stream.durable import delete_folder
    from driftline.stream.system import cached_vectors, places, unused

    settings = settings_of(config)
    found = {name: path.absolute() for name, path in places(settings).items() if path.exists()}
    vectors = cached_vectors(settings)
    if not found and not (encodings and vectors):
        if as_json:
            return print_json({"deleted": []})
        _tell_what_stays(vectors)
        return out.print("there is nothing to delete")
    for name, path in found.items():
        if path == Path.home() or path == Path.cwd() or path in Path.cwd().parents or (path / ".git").exists():
            raise InputError(
                f"{name} is {path}, which holds other things; expected a folder of its own. Delete by hand"
            )
    with unused(settings):
        _tell_what_goes(settings, found, vectors, encodings)
    if not yes and not typer.confirm("delete all of this?", err=True):
        raise typer.Exit(1)
    with unused(settings):  # asked anew: partitions may have come to this host meanwhile
        for path in found.values():
            if path.exists():  # it was not in one of the others
                delete_folder(path)
        for path in vectors if encodings else ():
            path.unlink(missing_ok=True)
    gone = [*found.values(), *(vectors[:1] if encodings else ())]
    return print_json({"deleted": [str(path) for path in gone]}) if as_json else out.print("deleted")


def _tell_what_goes(settings: Settings, found: dict[str, Path], vectors: list[Path], encodings: bool) -> None:
    """Lists folders by setting."""
    from driftline.stream.ops.doctor import bytes_in

    for name, path in found.items():
        err.print(f"{name:22} {bytes_in(path) / 1e6:10,.1f} MB  {path}", soft_wrap=True)
    if encodings and vectors:
        err.print(f"{'encoder.cache':22} {_megabytes(vectors):10,.1f} MB  {vectors[0]}", soft_wrap=True)
    else:
        _tell_what_stays(vectors)
    if settings.broker.bootstrap:
        err.print(f"the topics at {settings.broker.bootstrap} stay, and are read from the beginning")
    else:
        lost = "with the embedded broker's data all events go, too: keep the files that they came from"
        err.print(lost, soft_wrap=True)


def _tell_what_stays(vectors: list[Path]) -> None:
    if vectors:
        err.print(
            f"encoder.cache stays, {_megabytes(vectors):,.1f} MB in {vectors[0]}: vectors of texts, which need not be "
            "made again; --encodings deletes it, too",
            soft_wrap=True,
        )


def _megabytes(files: list[Path]) -> float:
    return sum(path.stat().st_size for path in files) / 1e6


class _View:
    """The log of all parts, with the line about them below where the terminal can renew one."""

    def __init__(self) -> None:
        self._live = Live(Text(""), console=err, refresh_per_second=2) if err.is_terminal else None
        self._told_s = -TELL_S

    def __enter__(self) -> _View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(Text(""))
            self._live.stop()

    def line(self, part: str, text: str) -> None:
        """What a part has written."""
        err.print(Text.assemble((f"{part:8} | ", COLOURS.get(part, "")), text), soft_wrap=True)

    def about(self, sentence: str, at_once: bool = False) -> None:
        """How the system is."""
        if self._live is not None:
            self._live.update(Text(sentence, "bold"))
        elif at_once or time.monotonic() - self._told_s >= TELL_S:
            self._told_s = time.monotonic()
            err.print(f"up       | {sentence}", soft_wrap=True)


@contextmanager
def _watched(settings: Settings, view: _View) -> Iterator[Any]:
    """Looks at the system beside the supervisor, whose loop must not wait; gives what that calls in each round."""
    from driftline.configs.addresses import joined, reachable
    from driftline.stream.system import Standing, ports_of, standing

    ending, pids = threading.Event(), list[int | None]()
    address = joined(reachable(settings.serving.host), settings.serving.port)

    def watch() -> None:
        answers = False
        while not ending.wait(LOOK_S):
            now = standing(settings, ports_of(settings), [pid for pid in pids if pid is not None])
            if ending.is_set() or now == Standing(snapshot_age_s=now.snapshot_age_s):  # nobody answers
                continue
            first = not answers and now.model_sequence is not None
            if first:
                answers = True
                err.print(
                    f"up       | answers on {address}; `driftline produce --events FILE` sends events, `driftline "
                    "recommend USER` asks, `driftline status` says how it is",
                    soft_wrap=True,
                )
            view.about(now.sentence(), at_once=first)

    def look(children: Sequence[Child], note: Any) -> None:
        now = [child.pid for child in children]
        if now != pids:
            pids[:] = now
            note()

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield look
    finally:
        ending.set()
        thread.join(LOOK_S + 5.0)


def _begin_log(log: Path) -> None:
    """Begins the log of `up -d` anew, once this process, which writes to it, runs the system. The last one stays."""
    with suppress(OSError):
        if os.path.samestat(os.fstat(2), log.stat()):
            log.replace(log.with_name("up.log.1"))
            with log.open("ab") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)


def _tell_how_it_ended(settings: Settings) -> None:
    """Shows the last lines of a system in the background that has ended with an error."""
    log = settings.state.root.absolute() / "up.log"
    with suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        if lines and lines[-1].startswith(FAILED):
            end = "\n".join(lines[-8:])
            out.print(f"how the last one in the background ended, from {log}:\n{end}", soft_wrap=True)


def _as_json(note: Note, now: _Standing) -> dict[str, Any]:
    import msgspec

    parts = [{"name": child.name, "pid": child.pid, "runs": child.find() is not None} for child in note.children]
    return {
        "running": True,
        "pid": note.owner.pid,
        "bootstrap": note.bootstrap,
        "address": note.address,
        "parts": parts,
        "metrics_ports": note.ports,
        **msgspec.to_builtins(now),
    }
