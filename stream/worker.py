"""The worker process: a supervisor, and below it the process that runs the Faust application.

The child ends at once, with exit code 70, on any error that it does not know; the supervisor starts it again, later
and later while it keeps failing. What a user can mend (a locked partition, a wrong address) ends both with its own
code. The child holds one end of a pipe to the supervisor and ends when that closes: no worker outlives its supervisor.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import faust
import torch

from configs.errors import UNEXPECTED_EXIT_CODE, BrokerError
from configs.load import load_settings
from configs.settings import Settings
from stream.app import INTERACTIONS, create_app, group_of
from stream.broker import broker
from stream.exits import end_process, report
from stream.members import remove_dead_members
from stream.metrics import serve_metrics
from stream.topics import create_topics, partitions_of

PIPE = "DRIFTLINE_SUPERVISOR_PIPE"
HEALTHY_S = 60.0
"""A child that lived this long starts the count of failures anew."""
FAILURES = 5
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


def run_worker(settings: Settings, bootstrap: str) -> None:
    """Runs the Faust application until a signal ends it. Does not return on an unexpected error.

    Raises:
        DriftlineError: what a user can mend, before the application starts.
    """
    torch.set_num_threads(1)
    create_topics(settings.broker, bootstrap)
    remove_dead_members(settings.broker, bootstrap, group_of(settings))
    app = create_app(settings, bootstrap, partitions_of(settings.broker, bootstrap, INTERACTIONS))
    serve_metrics(app.metrics.registry, settings.metrics.worker_port, "metrics.worker_port")
    worker = faust.Worker(app, loglevel="WARN", redirect_stdouts=False)
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        app.open.close_all()
        if end.code:
            end_process(RuntimeError(f"Faust ended with {end.code!r}"))
    except Exception as error:  # noqa: BLE001 - Faust re-raises what made it crash
        end_process(error)


class Supervisor:
    """Keeps one child process running.

    Args:
        command: of the child.
        environment: added to this process's own.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._command, self._environment = list(command), environment
        self._child: subprocess.Popen[bytes] | None = None
        self._ending = False

    def run(self) -> int:
        """Runs the child until it ends by itself or by our signal; returns the exit code for this process."""
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._forward)
        failures = 0
        while True:
            start = time.monotonic()
            code = self._run_once()
            if self._ending or not self._restarts(code, failures):
                return code if code >= 0 else 128 - code
            failures = 1 if time.monotonic() - start > HEALTHY_S else failures + 1
            if failures > FAILURES:
                print(f"driftline: the worker failed {FAILURES} times in a row; giving up", file=sys.stderr)
                return UNEXPECTED_EXIT_CODE
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1))
            print(f"driftline: the worker ended with code {code}; next start in {pause_s:g} s", file=sys.stderr)
            if self._ends_within(pause_s):
                return code if code >= 0 else 128 - code

    def _ends_within(self, seconds: float) -> bool:
        """Waits; true at once when a signal asks for the end."""
        deadline = time.monotonic() + seconds
        while not self._ending and time.monotonic() < deadline:
            time.sleep(0.05)
        return self._ending

    def _run_once(self) -> int:
        reading, writing = os.pipe()
        environment = os.environ | self._environment | {PIPE: str(reading)}
        self._child = subprocess.Popen(self._command, env=environment, pass_fds=[reading])
        os.close(reading)
        code = self._child.wait()
        os.close(writing)
        return code

    @staticmethod
    def _restarts(code: int, failures: int) -> bool:
        """An unexpected end or a kill; a broker that went away counts once the worker has run."""
        return code == UNEXPECTED_EXIT_CODE or code < 0 or (code == BrokerError.exit_code and failures > 0)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._ending = True
        if self._child is not None:
            self._child.send_signal(number)


def supervise(settings: Settings, config: str | None) -> int:
    """Runs a supervised worker; returns the exit code.

    Args:
        settings: for the broker, which the supervisor starts and the child only uses.
        config: what the child is to load its settings from.

    Raises:
        BrokerError: no broker answers.
    """
    with broker(settings.broker) as bootstrap:
        command = [sys.executable, "-m", "stream.worker", *([config] if config else [])]
        return Supervisor(command, {"DRIFTLINE__BROKER__BOOTSTRAP": bootstrap}).run()


def end_with_supervisor() -> None:
    """Ends this process when its supervisor is gone."""
    number = os.environ.pop(PIPE, "")
    if not number:
        return

    def wait() -> None:
        os.read(int(number), 1)
        os._exit(UNEXPECTED_EXIT_CODE)

    threading.Thread(target=wait, name="supervisor", daemon=True).start()


def main(config: str | Path | None = None) -> None:
    """The child process."""
    end_with_supervisor()
    try:
        settings = load_settings(config)
        with broker(settings.broker) as bootstrap:
            run_worker(settings, bootstrap)
    except Exception as error:  # noqa: BLE001 - the exit code is the message to the supervisor
        sys.exit(report(error))


if __name__ == "__main__":
    main(*sys.argv[1:2])
