"""The worker's own process: runs the Faust application, and ends at once on any error that it does not know.

Exit codes: 0 after a signal, 70 for an unexpected error, those of configs/errors.py for what a user can mend. It is
started and started again by `stream/ops/supervisor.py`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path

import faust

from driftline.configs.load import load_settings
from driftline.configs.logs import log_to_stderr, logging_config
from driftline.configs.settings import Settings
from driftline.serving.ports import open_metrics
from driftline.stream.app import create_app
from driftline.stream.epochs import collect_rarely, group_of
from driftline.stream.events.topics import create_topics, partitions_of
from driftline.stream.exits import end_process, report
from driftline.stream.kafka.batches import read_as_parsed
from driftline.stream.kafka.broker import broker
from driftline.stream.kafka.members import remove_dead_members
from driftline.stream.kafka.quiet import quiet_clients
from driftline.stream.ops.roots import note_root
from driftline.stream.process.by_item import BY_ITEM
from driftline.stream.process.intake import INTERACTIONS

STOP_S = 8.0
"""How long the end of a worker may take, less than containers get; with a broker that is gone it would be minutes."""


class Worker(faust.Worker):  # type: ignore[misc]
    """Faust's way to run an application, but for how long its end may take."""

    async def stop(self) -> None:
        """Stops; ends the process when that takes too long. Nothing is lost: what is applied was committed with it."""
        timer = threading.Timer(STOP_S, _end_now)
        timer.daemon = True
        timer.start()
        await super().stop()


def _end_now() -> None:
    said = f"the broker does not answer; the worker ends after {STOP_S:.0f} s without leaving its group"
    print(f"driftline: {said}", file=sys.stderr, flush=True)
    os._exit(0)


def run_worker(settings: Settings, bootstrap: str) -> None:
    """Runs the Faust application until a signal ends it. Does not return on an unexpected error.

    Raises:
        DriftlineError: what a user can mend, before the application starts.
    """
    log_to_stderr()
    collect_rarely()
    read_as_parsed()
    create_topics(settings.broker, bootstrap)
    if warning := note_root(settings, bootstrap):
        print(f"driftline: {warning}", file=sys.stderr, flush=True)
    remove_dead_members(settings.broker, bootstrap, group_of(settings))
    partitions = [partitions_of(settings.broker, bootstrap, name) for name in (INTERACTIONS, BY_ITEM)]
    app = create_app(settings, bootstrap, *partitions)
    open_metrics(app.metrics.registry, settings.metrics, "worker_port")
    logging.getLogger("aiokafka").setLevel(logging.WARNING)  # Faust filters at the handler: each line would be made
    quiet_clients()
    worker = Worker(app, loglevel="WARN", logging_config=logging_config(), redirect_stdouts=False, quiet=True)
    worker.spinner = None  # it writes codes that hide the cursor, also to files
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        app.holding.opener.abandon()
        app.open.close_all()
        if end.code:
            end_process(RuntimeError(f"Faust ended with {end.code!r}"))
    except Exception as error:  # noqa: BLE001 - Faust re-raises what made it crash
        end_process(error)


def main(config: str | Path | None = None) -> None:
    """The child process."""
    try:
        settings = load_settings(config)
        with broker(settings.broker) as bootstrap:
            run_worker(settings, bootstrap)
    except Exception as error:  # noqa: BLE001 - the exit code is the message to the supervisor
        sys.exit(report(error))


if __name__ == "__main__":
    main(*sys.argv[1:2])
