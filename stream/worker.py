"""The worker's own process: runs the Faust application, and ends at once on any error that it does not know.

Exit codes: 0 after a signal, 70 for an unexpected error, those of configs/errors.py for what a user can mend. It is
started and started again by `stream/supervisor.py`.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import faust
import torch

from configs.load import load_settings
from configs.settings import Settings
from stream.app import INTERACTIONS, create_app, group_of
from stream.broker import broker
from stream.exits import end_process, report
from stream.members import remove_dead_members
from stream.metrics import serve_metrics
from stream.supervisor import end_with_supervisor
from stream.topics import create_topics, partitions_of


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
    logging.getLogger("aiokafka").setLevel(logging.WARNING)  # Faust filters at the handler: each line would be made
    worker = faust.Worker(app, loglevel="WARN", redirect_stdouts=False, quiet=True)
    worker.spinner = None  # it writes codes that hide the cursor, also to files
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        app.open.close_all()
        if end.code:
            end_process(RuntimeError(f"Faust ended with {end.code!r}"))
    except Exception as error:  # noqa: BLE001 - Faust re-raises what made it crash
        end_process(error)


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
