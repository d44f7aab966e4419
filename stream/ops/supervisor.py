"""The supervisor of long-running parts: keeps their processes running, and imports nothing heavy.

A child ends at once, with exit code 70, on any error that it does not know; the supervisor starts it again, later
and later while it keeps failing. What a user can mend (a locked partition, a wrong address) ends all of them with its
own code. None outlives its supervisor, also one that is killed: see `stream/ops/child.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import IO

from driftline.configs.errors import UNEXPECTED_EXIT_CODE, BrokerError
from driftline.configs.settings import Settings
from driftline.stream.kafka.broker import broker
from driftline.stream.ops.child import PIPE

HEALTHY_S = 60.0
"""A child that lived this long starts the count of failures anew."""
FAILURES = 5
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
_POLL_S = 0.05
ONE_BLAS_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Child:
    """One process that is to run, started again when it ends unexpectedly.

    On Linux it ends with the thread that started it, which should be the main one.

    Args:
        name: in messages.
        command: of the process.
        environment: added to this process's own.
        tell: is given each line that the process writes; None = it writes where this process does.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.name, self._command, self._environment, self._tell = name, list(command), dict(environment), tell
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._failures, self._started_s, self._next_s = 0, 0.0, 0.0

    def step(self) -> int | None:
        """Starts it where it is to run and does not; the code with which it ended for good, None while it goes on."""
        if self._process is None:
            if time.monotonic() >= self._next_s:
                self._start()
            return None
        code = self._process.poll()
        if code is None:
            return None
        self._gone()
        if not _restarts(code, self._failures):
            return code if code >= 0 else 128 - code
        lived_s = time.monotonic() - self._started_s
        self._failures = 1 if lived_s > HEALTHY_S else self._failures + 1
        if self._failures > FAILURES:
            print(f"driftline: the {self.name} failed {FAILURES} times in a row; giving up", file=sys.stderr)
            return UNEXPECTED_EXIT_CODE
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._failures - 1))
        print(f"driftline: the {self.name} ended with code {code}; next start in {pause_s:g} s", file=sys.stderr)
        self._next_s = time.monotonic() + pause_s
        return None

    @property
    def pid(self) -> int | None:
        """Of the process, None while there is none."""
        return None if self._process is None else self._process.pid

    def terminate(self) -> None:
        """Asks it to end."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def wait(self, seconds: float | None = None) -> int:
        """The code with which it ended, once it was asked to; 0 where it does not run or had not begun yet.

        Args:
            seconds: after which it is killed; None = it may take what it needs.
        """
        if self._process is None:
            return 0
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            print(f"driftline: the {self.name} did not end within {seconds:g} s and is killed", file=sys.stderr)
            self._process.kill()
            code = self._process.wait()
        self._gone()
        return 0 if code == -signal.SIGTERM else code if code >= 0 else 128 - code

    def _start(self) -> None:
        reading, self._pipe = os.pipe()
        environment = os.environ | self._environment | {PIPE: str(reading)}
        # in a group of its own: a terminal sends Ctrl-C to a whole group, and it is for the supervisor to pass it on
        self._process = subprocess.Popen(
            self._command,
            env=environment,
            pass_fds=[reading],
            process_group=0,
            stdout=subprocess.PIPE if self._tell else None,
            stderr=subprocess.STDOUT if self._tell else None,
        )
        os.close(reading)
        if self._process.stdout is not None:
            threading.Thread(target=self._pass_on, args=(self._process.stdout,), name=self.name, daemon=True).start()
        self._started_s = time.monotonic()

    def _pass_on(self, lines: IO[bytes]) -> None:
        with lines:
            for line in lines:
                if self._tell is not None:
                    self._tell(line.decode(errors="replace").rstrip())

    def _gone(self) -> None:
        os.close(self._pipe)
        self._process = None


class Supervisor:
    """Keeps child processes running: all of them, until one ends for good or a signal comes.

    Args:
        children: what is to run.
        look: is called again and again meanwhile.
        stop_s: how long a child may take to end in order; None = what it needs.
    """

    def __init__(
        self, children: Sequence[Child], look: Callable[[], None] = lambda: None, stop_s: float | None = None
    ) -> None:
        self._children, self._look, self._stop_s = list(children), look, stop_s
        self._ending = False

    def run(self) -> int:
        """Runs the children until one ends by itself or all by our signal; returns the exit code for this process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup lets a process outlive its terminal
            signal.signal(signal.SIGHUP, self._forward)
        while not self._ending:
            code = self.step()
            if code is not None:
                self.end()
                return code
            self._look()
            time.sleep(_POLL_S)
        return self.end()

    def step(self) -> int | None:
        """Starts what does not run; the exit code of a child that ended for good, None while all go on."""
        for child in self._children:
            code = child.step()
            if code is not None:
                return code
        return None

    def end(self) -> int:
        """Ends what still runs; the worst of the codes."""
        for child in self._children:
            child.terminate()
        return max((child.wait(self._stop_s) for child in self._children), default=0)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if not self._ending:  # not print: the signal may have come in the middle of one
            names = " and ".join(dict.fromkeys(child.name for child in self._children))
            os.write(2, f"driftline: {names}: stopping; what was taken on is finished first\n".encode())
        self._ending = True


def supervise(settings: Settings, config: str | None) -> int:
    """Runs a supervised worker; returns the exit code.

    Args:
        settings: for the broker, which the supervisor starts and the child only uses.
        config: what the child is to load its settings from.

    Raises:
        BrokerError: no broker answers.
    """
    with broker(settings.broker) as bootstrap:
        return Supervisor([Child("worker", worker(config), {"DRIFTLINE__BROKER__BOOTSTRAP": bootstrap})]).run()


def serve_in_processes(settings: Settings, bootstrap: str, config: str | None) -> int:
    """Runs `serving.processes` services that share one port; returns the exit code. See `services`."""
    return Supervisor(services(settings, {"DRIFTLINE__BROKER__BOOTSTRAP": bootstrap}, config)).run()


def services(
    settings: Settings,
    environment: Mapping[str, str],
    config: str | None,
    tell: Callable[[str], None] | None = None,
) -> list[Child]:
    """The processes that answer: each computes in one thread of BLAS.

    The n-th of them tells its metrics on `metrics.serving_port` + n.

    Args:
        settings: the whole configuration.
        environment: of all of them.
        config: what they are to load their settings from.
        tell: see `Child`.
    """
    port, processes = settings.metrics.serving_port, settings.serving.processes
    found = []
    for n in range(processes):
        own = {
            "DRIFTLINE__SERVING__PROCESSES": "1",
            "DRIFTLINE__SERVING__REUSE_PORT": str(processes > 1 or settings.serving.reuse_port).lower(),
            "DRIFTLINE__METRICS__SERVING_PORT": str(port and port + n),
        }
        found.append(Child("service", cli("serve", config), {**ONE_BLAS_THREAD, **environment, **own}, tell))
    return found


def worker(config: str | None) -> list[str]:
    """The worker's own process as a child."""
    return [*_child("driftline.stream.worker"), *([config] if config else [])]


def cli(command: str, config: str | None) -> list[str]:
    """A `driftline` command as a child."""
    return [*_child("driftline.stream.cli.command"), command, *(["-c", config] if config else [])]


def _child(module: str) -> list[str]:
    """A module that runs as a child."""
    return [sys.executable, "-P", "-m", "driftline.stream.ops.child", module]


def _restarts(code: int, failures: int) -> bool:
    """An unexpected end or a kill; a broker that went away counts once the child has run."""
    return code == UNEXPECTED_EXIT_CODE or code < 0 or (code == BrokerError.exit_code and failures > 0)
