"""How a process of driftline ends: one message for what a user can mend, a traceback for what only we can.

And whether one that was noted has ended.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

import psutil

from driftline.configs.errors import UNEXPECTED_EXIT_CODE, BrokerError, DriftlineError


def report(error: BaseException) -> int:
    """Writes an error to stderr; returns the exit code that goes with it."""
    if _broker_is_gone(error):
        error = BrokerError(f"the broker can't be reached: {error!r:.300}; check it and try again")
    if isinstance(error, DriftlineError):
        print(f"driftline: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    traceback.print_exception(error, file=sys.stderr)
    print("driftline: ends on an unexpected error", file=sys.stderr, flush=True)
    return UNEXPECTED_EXIT_CODE


def _broker_is_gone(error: BaseException) -> bool:
    """Whether a Kafka client, wherever it is used, found no broker: each of them has an error of its own."""
    from aiokafka import errors as of_aiokafka
    from kafka import errors as of_kafka

    gone = (of_kafka.KafkaConnectionError, of_kafka.KafkaTimeoutError)
    return isinstance(error, (*gone, of_aiokafka.KafkaConnectionError, of_aiokafka.KafkaTimeoutError))


def end_process(error: BaseException) -> NoReturn:
    """Ends the process now, whatever else runs in it.

    Nothing is closed or flushed beyond the log: what counts was committed before, and a framework that goes on past
    an error would step over the events that caused it.
    """
    code = report(error)
    sys.stdout.flush()
    os._exit(code)


def still_running(pid: int, created: float, apart_s: float = 1.0) -> psutil.Process | None:
    """A process that was noted, told from a later one with the same number by its start time; None when it is gone.

    Args:
        created: when it was started, in unix seconds.
        apart_s: how far the start may be off; notes of whole seconds need more.
    """
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if abs(process.create_time() - created) < apart_s and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None
