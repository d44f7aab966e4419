"""One format of log lines for all processes: driftline's own from INFO on, those of libraries from WARNING on."""

from __future__ import annotations

import logging
import logging.config
import time
from typing import Any

FORMAT = "%(asctime)s %(levelname)s %(message)s"


class OfUtc(logging.Formatter):
    """Times of UTC, as everywhere, and says so."""

    default_msec_format = "%s,%03d UTC"

    @staticmethod
    def converter(seconds: float | None) -> time.struct_time:
        """The parts of a time."""
        return time.gmtime(seconds)


class NoServices(logging.Filter):
    """Leaves out that a service of Faust starts or stops, which it logs under the name of our own class."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for such a line."""
        return record.levelno > logging.INFO or not record.getMessage().startswith("[^")


def logging_config() -> dict[str, Any]:
    """As `logging.config.dictConfig` takes it; everything goes to stderr."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"default": {"()": OfUtc, "fmt": FORMAT}},
        "filters": {"no_services": {"()": NoServices}},
        "handlers": {"default": {"class": "logging.StreamHandler", "formatter": "default", "filters": ["no_services"]}},
        "root": {"level": "WARNING", "handlers": ["default"]},
        "loggers": {"driftline": {"level": "INFO"}},
    }


def log_to_stderr() -> None:
    """What a process does before its first word."""
    logging.config.dictConfig(logging_config())
