"""The processes of the demo: with which settings they run, how they start and end, what memory they hold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from configs.errors import DriftlineError
from configs.load import load
from configs.settings import Broker, Settings
from stream.broker import EmbeddedBroker

ROOT = Path(".driftline/demo")
LOGS = ROOT / "logs"
PARTS = ("worker", "trainer", "profiler", "serve")
STOP_S = 60
MEMORY_EVERY_S = 5.0
OVERRIDES = {
    f"DRIFTLINE__{name}": str(value)
    for name, value in {
        "BROKER__EMBEDDED_DIR": ROOT / "broker",
        "BROKER__EMBEDDED_PORT": 19392,
        "STATE__ROOT": ROOT / "state",
        "TRAINER__ROOT": ROOT / "trainer",
        "SERVING__SNAPSHOTS": ROOT / "snapshots",
        "SERVING__PORT": 50651,
        "METRICS__WORKER_PORT": 19393,
        "METRICS__SERVING_PORT": 19394,
        "TRAINER__CHECKPOINT_S": 3600,  # a run of minutes needs none but the last
        "TRAINER__PUBLISH_EVENTS": 1_000_000,  # by time alone
        "TRAINER__CATCH_UP_SHARE": 0.05,
        "PROFILES__MAX_PER_MINUTE": 40,
        "PROFILES__BATCH": 4,
    }.items()
}
"""Folders, ports and a pace of the demo's own, as environment variables."""


class DemoError(DriftlineError):
    """A part of the demo failed."""


def demo_settings() -> Settings:
    """The e-commerce preset with folders and ports of the demo's own."""
    return load("ecommerce", OVERRIDES).settings


def environment(bootstrap: str) -> dict[str, str]:
    """Environment of the parts: the demo's settings and one thread for each library."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**OVERRIDES, **threads, "DRIFTLINE__BROKER__BOOTSTRAP": bootstrap}


class Parts:
    """The long-running processes, each a `driftline` command with a log of its own.

    Args:
        bootstrap: address of the broker that they use.
    """

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Starts every part."""
        for part in PARTS:
            self._processes[part] = self.run(part, [])

    def run(self, command: str, options: list[str]) -> subprocess.Popen[bytes]:
        """Starts one command, which is the caller's to watch and to end."""
        LOGS.mkdir(parents=True, exist_ok=True)
        line = [sys.executable, "-m", "stream.command", command, "--config", "ecommerce", *options]
        env = {**os.environ, **environment(self._bootstrap)}
        with (LOGS / f"{command}.log").open("wb") as log:
            return subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, env=env)

    def check(self) -> None:
        """Raises DemoError if a part has ended."""
        for part, process in self._processes.items():
            code = process.poll()
            if code is not None:
                log = LOGS / f"{part}.log"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
                raise DemoError(f"{part} ended with exit code {code}; the end of {log}:\n{tail}")

    def stop(self) -> None:
        """Ends every part in order.

        Raises:
            DemoError: one does not end, or ends with an error.
        """
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for part, process in self._processes.items():
            try:
                code = process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                raise DemoError(f"{part} did not end within {STOP_S} s of SIGTERM") from None
            if code not in (0, -signal.SIGTERM):
                raise DemoError(f"{part} ended with exit code {code} when it was asked to stop")

    def kill(self) -> None:
        """Ends whatever still runs, at once."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


class Memory:
    """The most that this process, all that it started and the broker held together.

    Args:
        broker: settings of the embedded broker.
    """

    def __init__(self, broker: Broker) -> None:
        self.most_bytes = 0
        self._broker, self._noted_s = broker, 0.0

    def note(self) -> None:
        """Measures, at most every few seconds: a page that several processes share counts once, in parts."""
        if time.monotonic() - self._noted_s < MEMORY_EVERY_S:
            return
        self._noted_s = time.monotonic()
        total = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True), *self._broker_process()]:
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
        self.most_bytes = max(self.most_bytes, total)

    def _broker_process(self) -> list[psutil.Process]:
        running = EmbeddedBroker(self._broker).running()
        process = running.process() if running is not None else None
        return [process] if process is not None else []
