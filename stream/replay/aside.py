"""The part of a replay that runs in a process of its own, beside the pass of the engine: simple arms and leak audit.

The parent writes one line of JSON, what to do; the child answers with lines of JSON, how far it is and what came of
it. Results of arms travel as files, as between a run and its `--resume`. The child reads the events anew.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from driftline.configs.errors import DriftlineError, InputError
from driftline.configs.settings import Settings
from driftline.stream.replay.audit import AuditResult
from driftline.stream.replay.source import Options

Say = Callable[[str, int, int], None]
PATHS = ("events", "out", "items", "profiles")
"""Options that are paths; `adoptions` and `records` are the parent's alone."""
MODULE = "driftline.stream.replay.aside"


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Aside:
    """A child at work. Ctrl-C is the parent's alone, which then stops it; a child whose parent has gone ends.

    Args:
        options, settings: of the replay.
        names: all arms, which are audited; passed: those that are to run.
        say: gets what the child says, whenever `poll` or `result` is called.
    """

    def __init__(self, options: Options, settings: Settings, names: list[str], passed: list[str], say: Say) -> None:
        given = dataclasses.asdict(dataclasses.replace(options, adoptions=None, records=None))
        given |= {name: str(path) for name in PATHS if (path := given[name]) is not None}
        work = {"options": given, "settings": settings.model_dump(mode="json"), "names": names, "passed": passed}
        command = [sys.executable, "-P", "-m", MODULE]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
        if self._child.stdin is None or self._child.stdout is None:
            raise RuntimeError("a child with pipes has none")
        self._output = self._child.stdout
        with self._child.stdin as pipe:
            pipe.write(orjson.dumps(work))
        self._say = say
        self._outcome: dict[str, Any] | None = None

    def poll(self) -> None:
        """Passes on what was said so far."""
        while self._outcome is None and select.select([self._output], [], [], 0)[0]:
            self._take()

    def result(self) -> AuditResult | None:
        """What the audit found, None if none was asked for.

        Raises:
            InputError: the child found something wrong with files or options.
            RuntimeError: it ended without a result.
        """
        while self._outcome is None:
            self._take()
        self._child.wait()
        if (error := self._outcome.get("error")) is not None:
            raise InputError(error)
        found = self._outcome["audit"]
        return None if found is None else AuditResult(**found)

    def stop(self) -> None:
        """Ends the child, whatever it does."""
        self._child.kill()
        self._child.wait()
        self._output.close()

    def _take(self) -> None:
        line = self._output.readline()
        if not line:
            code = self._child.wait()
            raise RuntimeError(f"the part of the replay that ran beside the others ended with exit code {code}")
        message = orjson.loads(line)
        if "said" in message:
            self._say(*message["said"])
        else:
            self._outcome = message


def main() -> None:
    """The child's whole life."""
    from driftline.stream.replay.run import beside

    logging.disable(logging.WARNING)  # the parent has read the same files and said so
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no message
    work = orjson.loads(sys.stdin.buffer.read())
    given = work["options"]
    given |= {name: Path(given[name]) for name in PATHS if given[name] is not None}
    settings = Settings.model_validate(work["settings"])

    def tell(message: dict[str, Any]) -> None:
        pipe.write(orjson.dumps(message) + b"\n")
        pipe.flush()

    try:
        found = beside(Options(**given), settings, work["names"], work["passed"], lambda *said: tell({"said": said}))
        tell({"audit": None if found is None else dataclasses.asdict(found)})
    except BrokenPipeError:  # the parent has gone
        os._exit(0)
    except DriftlineError as error:
        tell({"error": str(error)})


if __name__ == "__main__":
    main()
