"""The processes of the demo: with which settings they run, how they start and end, what memory they hold."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from driftline.configs.errors import DriftlineError
from driftline.configs.load import load
from driftline.configs.settings import Broker, Settings
from driftline.stream.demo.scene import Scene
from driftline.stream.kafka.broker import EmbeddedBroker
from driftline.stream.ops.supervisor import Child, Supervisor, cli
from driftline.stream.system import PARTS, children_of

ROOT = Path(".driftline/demo")
LOGS = ROOT / "logs"
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
        "TRAINER__PUBLISH_S": 1.2,
        "TRAINER__CATCH_UP_SHARE": 0.05,
        "PROFILES__MAX_PER_MINUTE": 40,
        "PROFILES__BATCH": 4,
    }.items()
}
"""Folders, ports and a pace of the demo's own, as environment variables."""


class DemoError(DriftlineError):
    """A part of the demo failed."""


def demo_settings(scene: Scene) -> Settings:
    """The configuration of a scene with folders and ports of the demo's own."""
    return load(scene.config, environment_of(scene)).settings


def environment_of(scene: Scene) -> dict[str, str]:
    """What the parts of a scene find in their environment."""
    return {**OVERRIDES, **scene.settings}


class Parts:
    """The long-running processes, each with a log of its own. They end with this process, however it ends.

    Args:
        settings: of the demo.
        bootstrap: address of the broker that they use.
        scene: what is played.
    """

    def __init__(self, settings: Settings, bootstrap: str, scene: Scene) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self.said_s = time.monotonic()
        """When a part last wrote a line."""
        self._logs: dict[str, IO[str]] = {}
        self._bootstrap, self._config, self._environment = bootstrap, scene.config, environment_of(scene)
        parts = [part for part in PARTS if part != "profiler" or scene.profiles]
        self._children = children_of(settings, bootstrap, scene.config, parts, self._environment, self._write)
        self._supervisor = Supervisor(self._children, stop_s=STOP_S)

    def start(self) -> None:
        """Starts every part."""
        self.check()

    def produce(self, options: list[str]) -> Child:
        """`driftline produce`, which the caller lets run by `step`."""
        environment = {**self._environment, "DRIFTLINE__BROKER__BOOTSTRAP": self._bootstrap}
        command = [*cli("produce", self._config), *options]
        return Child("produce", command, environment, lambda line: self._write("produce", line))

    def check(self) -> None:
        """Lets the parts run; raises DemoError if one has ended for good."""
        for child in self._children:
            code = child.step()
            if code is not None:
                raise DemoError(f"{child.name} ended with exit code {code}; {self.end_of(child.name)}")

    def end_of(self, part: str) -> str:
        """The last lines of a part's log."""
        log = LOGS / f"{part}.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return f"the end of {log}:\n" + "\n".join(lines[-8:])

    def stop(self) -> None:
        """Ends every part in order.

        Raises:
            DemoError: one does not end, or ends with an error.
        """
        code = self._supervisor.end()
        if code:
            raise DemoError(f"a part ended with exit code {code} when it was asked to stop; see {LOGS}")

    def kill(self) -> None:
        """Ends whatever still runs, at once."""
        for child in self._children:
            child.kill()
        for log in self._logs.values():
            log.close()

    def _write(self, part: str, line: str) -> None:
        self.said_s = time.monotonic()
        if part not in self._logs:
            self._logs[part] = (LOGS / f"{part}.log").open("w", buffering=1)
        with suppress(ValueError):  # closed
            self._logs[part].write(line + "\n")


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
