"""The processes that are killed: started, watched through their metrics, killed, stopped, continued."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import httpx

from driftline.configs.addresses import free_port
from driftline.configs.errors import BrokerError, StateError
from driftline.configs.faults import ARMED
from driftline.configs.settings import Broker
from driftline.stream.kafka.broker import check_reachable

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
STOP_S = 60.0
LAUNCH = """
import ctypes, os, resource, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if (size := int(sys.argv[1])):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]} can't be run: {error.strerror}")
"""
"""Becomes the program that it is given, one that dies with its parent (PR_SET_PDEATHSIG), with its files bounded.

A program of its own, since threads of gRPC and a fork that runs Python do not go together.
"""


def launched(file_bytes: int = 0) -> list[str]:
    """What to put before a command."""
    return [sys.executable, "-c", LAUNCH, str(file_bytes)]


class Process:
    """A process of driftline that may die and be started again; its messages go to one file.

    Args:
        name: of its file of messages.
        command: after the interpreter.
        environment: added to this process's own.
        folder: for the file.
        port_setting: environment variable that gets the port of `/metrics`.
    """

    def __init__(
        self, name: str, command: list[str], environment: Mapping[str, str], folder: Path, port_setting: str
    ) -> None:
        self.name, self._command, self._port_setting = name, command, port_setting
        self._environment = {**os.environ, **THREADS, **environment}
        self._log_path = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.port = 0
        self.armed = ""
        self.wanted = False
        """Whether it is to be started again when it ends."""
        self.bounded = False
        """Whether no file of it may grow past a bound."""

    def start(self, armed: str = "", file_bytes: int = 0) -> None:
        """Starts it, with a point armed at which it dies (see `configs/faults.py`), or a bound on its files."""
        self.port, self.armed, self.wanted, self.bounded = free_port(), armed, True, file_bytes > 0
        environment = self._environment | {self._port_setting: str(self.port), ARMED: armed}
        self._log = self._log or self._log_path.open("ab")
        self._process = subprocess.Popen(
            [*launched(file_bytes), sys.executable, *self._command],
            env=environment,
            stdout=self._log,
            stderr=self._log,
        )

    @property
    def returncode(self) -> int | None:
        """Exit code, None while it runs; 0 if it was never started."""
        return 0 if self._process is None else self._process.poll()

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def pause(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM; the exit code, or that of SIGKILL when it does not end. One that has not begun yet ends by it."""
        self.wanted = False
        self._signal(signal.SIGTERM)
        try:
            code = 0 if self._process is None else self._process.wait(STOP_S)
            return 0 if code == -signal.SIGTERM else code
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def messages(self) -> str:
        """What it wrote, the end of it."""
        return self._log_path.read_text(errors="replace")[-4000:] if self._log_path.exists() else ""

    def metrics(self) -> dict[str, float]:
        """Series by name with labels; empty while it does not answer."""
        try:
            text = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=2.0, trust_env=False).text
        except httpx.HTTPError:
            return {}
        rows = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("driftline_"))
        return {name: float(value) for name, value in rows}

    def offsets(self) -> dict[int, int]:
        """Next offset of each partition that it owns."""
        return self._by_partition("driftline_next_offset{")

    def item_offsets(self) -> dict[int, int]:
        """The same of the partitions of item rows."""
        return self._by_partition("driftline_item_next_offset{")

    def _by_partition(self, begins: str) -> dict[int, int]:
        return {int(name.split('"')[1]): int(at) for name, at in self.metrics().items() if name.startswith(begins)}

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


class OwnBroker:
    """A broker that a command starts in the foreground, so that it can be killed: `COMMAND FOLDER PORT`.

    Raises:
        BrokerError: it ends as it starts.
    """

    def __init__(self, command: str, folder: Path) -> None:
        self._command, self._folder, self._port = command, folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def bootstrap(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Starts it on the same folder and port."""
        with (self._folder / "broker.out").open("ab") as log:
            self._process = subprocess.Popen(
                [*launched(), *shlex.split(self._command), str(self._folder), str(self._port)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        time.sleep(1.0)
        self._check_that_it_runs()

    def wait_until_it_answers(self, settings: Broker, within_s: float = 90.0) -> None:
        """Returns when a client can ask it.

        Raises:
            BrokerError: it can't in time.
        """
        deadline = time.monotonic() + within_s
        while True:
            self._check_that_it_runs()
            try:
                return check_reachable(settings, self.bootstrap)
            except (BrokerError, StateError) as error:
                if time.monotonic() > deadline:
                    raise BrokerError(f"{error}; it wrote: {self._messages()}") from None
                time.sleep(0.5)

    def _check_that_it_runs(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise BrokerError(
                f"{self._command} ended with code {self._process.returncode}; expected a broker in the foreground on "
                f"port {self._port}; it wrote: {self._messages()}"
            )

    def _messages(self) -> str:
        return (self._folder / "broker.out").read_text(errors="replace")[-2000:]

    def kill(self) -> None:
        """SIGKILL to it and to what it started."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def restart(self) -> None:
        """Kills it and starts it again."""
        self.kill()
        self.start()
