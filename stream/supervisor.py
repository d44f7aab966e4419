"""The supervisor of a worker: keeps one child process running, and imports nothing heavy.

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
from types import FrameType

from configs.errors import UNEXPECTED_EXIT_CODE, BrokerError
from configs.settings import Settings
from stream.broker import broker

PIPE = "DRIFTLINE_SUPERVISOR_PIPE"
HEALTHY_S = 60.0
"""A child that lived this long starts the count of failures anew."""
FAILURES = 5
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


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
            if self._ending and code == -signal.SIGTERM:  # it had not begun yet
                return 0
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
        self._child = subprocess.Popen(self._command, env=environment, pass_fds=[reading], preexec_fn=_leave_ctrl_c)
        if self._ending:  # the signal came while it was made
            self._child.terminate()
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
            self._child.terminate()


def _leave_ctrl_c() -> None:
    """In a new child: a terminal sends Ctrl-C to both, and it is for the supervisor to pass it on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
