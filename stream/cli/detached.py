"""`driftline up -d`: starts a system in the background, and says what it waits for until that answers.

No time is too long while something goes on: a machine may be slow, an encoder large. It gives up where the part that is
waited for does nothing any more, or is started again and again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import typer

from driftline.configs.errors import StateError
from driftline.configs.settings import Settings
from driftline.stream.cli.common import Waiting, err, out
from driftline.stream.headway import duration
from driftline.stream.ops.supervisor import FAILURES
from driftline.stream.system import PARTS, Note, Process, Standing, claimed, running, standing

LOOK_S = 0.5
STILL_S = 300.0
"""So long without a line in its log or work of its processor, a part does nothing any more."""
WORKS = 0.01
"""Share of a processor above which a process that is silent is at work: one that only waits takes less."""
TAIL = 20
"""Lines of the log that are shown where it was given up."""
_LOG_BYTES = 65_536


class Lag(NamedTuple):
    """What is waited for.

    Attributes:
        what: in words.
        part: whose lines of the log say more; "" = all of them.
        processes: which are to do something meanwhile.
    """

    what: str
    part: str
    processes: list[Process]


def lag_of(note: Note | None, now: Standing, settings: Settings, parts: Sequence[str]) -> Lag | None:
    """What does not answer yet of what a system of these parts is waited for; None = it answers.

    Worker, trainer and service are to answer: one that refuses its checkpoint, or another's state, ends all of them.
    The service does so, from what is popular, before a model is there; beside a worker, once its health is SERVING.

    Args:
        note: of the system; None = it wrote none yet.
        now: what its parts tell.
        settings: of the system.
        parts: which of `PARTS` it is to have.
    """
    if note is None:
        return Lag("the process that starts the parts", "", [])
    if not note.ports:
        at = settings.broker.bootstrap
        return Lag(f"the broker at {at}" if at else "the embedded broker", "", [note.owner])
    answers = {
        "serve": now.model_sequence is not None, "worker": now.state_behind is not None, "trainer": now.trains
    }  # fmt: skip
    silent = [part for part, answer in answers.items() if part in parts and not answer]
    if not silent:
        if "serve" not in parts or "worker" not in parts or now.serving:
            return None
        workers = [child for child in note.children if child.name == "worker"]
        return Lag("a state or a model that the service can answer from", "worker", workers)
    names = {"serve": "service"}
    return Lag(
        named([f"the {names.get(part, part)}" for part in reversed(silent)]) + " to answer",
        silent[0],
        [child for child in note.children if child.name == names.get(silent[0], silent[0])],
    )


def named(things: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([*([", ".join(things[:-1])] if things[1:] else []), things[-1]])


class Log:
    """What is written to a log from now on, also where the writer begins it anew.

    Args:
        path: of a file that exists.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._before = path, path.stat()

    def lines(self) -> list[str]:
        """The newest ones."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                start = self._before.st_size if os.path.samestat(found, self._before) else 0
                file.seek(max(start, found.st_size - _LOG_BYTES))
                return file.read().decode(errors="replace").splitlines()
        except FileNotFoundError:  # between two names
            return []

    def last_of(self, part: str) -> str:
        """The newest line of a part, without its name; "" where there is none."""
        lines = [line for line in self.lines() if line.strip()]
        own = [line for line in lines if line.startswith(f"{part:8} | ")] if part else lines
        return own[-1].partition(" | ")[2] or own[-1] if own else ""


class Life:
    """Whether what is waited for still does something.

    Args:
        now_s: when it begins, by a clock that only goes on.
    """

    def __init__(self, now_s: float) -> None:
        self._seen: tuple[object, ...] = ()
        self._since_s, self._worked_s = now_s, 0.0
        self._starts: dict[str, set[int]] = {}

    def stands_still(self, now_s: float, lag: Lag, log: Log) -> bool:
        """Takes note of how it is; whether nothing went on for `STILL_S`."""
        worked_s, seen = _worked_s(lag.processes), (lag, log.last_of(lag.part))
        if seen != self._seen:
            self._seen, self._since_s, self._worked_s = seen, now_s, worked_s
        if now_s - self._since_s < STILL_S:
            return False
        still = worked_s - self._worked_s < WORKS * (now_s - self._since_s)
        self._since_s, self._worked_s = now_s, worked_s
        return still

    def failing(self, children: Sequence[Process]) -> str:
        """Takes note of the processes; the part that was started again more than `FAILURES` times, "" = none."""
        for child in children:
            self._starts.setdefault(child.name, set()).add(child.pid)
        running = Counter(child.name for child in children)
        again = (name for name, pids in self._starts.items() if len(pids) - max(1, running[name]) > FAILURES)
        return next(again, "")


def _worked_s(processes: Sequence[Process]) -> float:
    """Seconds of a processor that they have taken."""
    taken = 0.0
    for process in processes:
        with suppress(psutil.Error):
            if found := process.find():
                times = found.cpu_times()
                taken += times.user + times.system
    return taken


def start_detached(settings: Settings, without: Sequence[str], config: str | None) -> None:
    """Starts `driftline up` in a session of its own; returns once it answers.

    Raises:
        LockedError: a system runs already.
        StateError: it does nothing any more, or a part crashes again and again.
        typer.Exit: it has ended; what it wrote last is shown.
    """
    with claimed(settings):
        pass  # refused here where one runs; the process that is started claims it for good
    path = settings.state.root.absolute() / "up.log"
    options = [*(["-c", config] if config else []), *(word for part in without for word in ("--without", part))]
    with path.open("ab") as file:
        log = Log(path)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "driftline.stream.cli.command", "up", *options],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        _wait(settings, [part for part in PARTS if part not in without], process, log)
    except KeyboardInterrupt:
        err.print(f"up: process {process.pid} goes on in the background; `driftline down` ends it")
        raise


def _wait(settings: Settings, parts: Sequence[str], process: subprocess.Popen[bytes], log: Log) -> None:
    """Returns once a system answers. Raises as `start_detached` does."""
    began_s = time.monotonic()
    life = Life(began_s)
    with Waiting(f"up: starting until it answers, which may take a minute; log in {log.path}") as waiting:
        while process.poll() is None:
            note = running(settings)
            if note is not None and note.owner.pid != process.pid:
                note = None
            children = note.children if note else []
            now = standing(settings, note.ports, [child.pid for child in children]) if note else Standing()
            lag = lag_of(note, now, settings, parts)
            if lag is None:
                where = note.address if note else ""
                err.print(f"up: {now.sentence()}", soft_wrap=True)
                out.print(f"runs as process {process.pid}, answers on {where}; log in {log.path}", soft_wrap=True)
                return
            now_s = time.monotonic()
            if name := life.failing(children):
                raise _given_up(f"the {name} crashed more than {FAILURES} times", lag, log)
            if life.stands_still(now_s, lag, log):
                raise _given_up(f"nothing went on for {duration(STILL_S)}", lag, log)
            last = log.last_of(lag.part)
            more = f"; last line of {lag.part or 'its log'}: {last}" if last else ""
            waiting.still(f"up: waits for {lag.what}, {int(now_s - began_s):,} s so far{more}")
            time.sleep(LOOK_S)
    err.print("\n".join(log.lines()[-TAIL:]), soft_wrap=True)
    raise typer.Exit(process.returncode)


def _given_up(why: str, lag: Lag, log: Log) -> StateError:
    tail = "\n".join(log.lines()[-TAIL:])
    return StateError(
        f"waited for {lag.what}, and {why}. What there is runs on: `driftline status` says how it is, `driftline down` "
        f"ends it. The end of {log.path}:\n{tail}"
    )
