"""Processes that begin where importing has ended: forks of one that has the worker's modules loaded.

What `python -m driftline.stream.worker` does before its first own line takes longer than many a test. Those that start
the command test that, too: chaos, `driftline up` and the pages of the docs.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from driftline.configs import faults

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # read as numpy is imported, before any fork
    os.environ.setdefault(_threads, "1")
_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["driftline.stream.worker"])


class Forked:
    """A process, with what `subprocess.Popen` has of it.

    Args:
        run: what it does, a function of this file, which imports nothing that takes long.
        config: what it is given.
        out: takes what it writes to stdout; err: to stderr.
    """

    def __init__(
        self, run: Callable[[Path], None], config: Path, environment: Mapping[str, str], out: Path, err: Path
    ) -> None:
        args = (run, config, dict(environment), out, err)
        self._process = _FORKS.Process(target=_begin, args=args, daemon=True)
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("a worker", timeout or 0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _begin(run: Callable[[Path], None], config: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    importlib.reload(faults)  # it has read the environment
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), stream)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    run(config)


def worker(config: Path) -> None:
    """As `python -m driftline.stream.worker CONFIG`."""
    from driftline.stream.worker import main

    main(config)


def backfill(config: Path) -> None:
    """As `driftline backfill --json`, with small blocks, so that a test's log is many epochs."""
    from driftline.stream.cli.command import main
    from driftline.stream.kafka import direct

    direct.BLOCK_RECORDS, direct.LEAST_RECORDS = 400, 100
    sys.argv = ["driftline", "backfill", "--json", "--config", str(config)]
    main()


def slow_backfill(config: Path) -> None:
    """As `backfill`; it says of each epoch that it is committed, and then waits."""
    from driftline.stream.process.processor import Processor

    commit = Processor.commit

    def committed(*args: Any) -> None:
        commit(*args)
        print("committed", file=sys.stderr, flush=True)
        time.sleep(0.5)

    Processor.commit = committed  # type: ignore[method-assign]
    backfill(config)
