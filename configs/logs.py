"""One format of log lines for all processes: driftline's own from INFO on, those of libraries from WARNING on."""

from __future__ import annotations

import logging.config
from typing import Any

FORMAT = "%(asctime)s %(levelname)s %(message)s"


def logging_config() -> dict[str, Any]:
    """As `logging.config.dictConfig` takes it; everything goes to stderr."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"default": {"format": FORMAT}},
        "handlers": {"default": {"class": "logging.StreamHandler", "formatter": "default"}},
        "root": {"level": "WARNING", "handlers": ["default"]},
        "loggers": {"driftline": {"level": "INFO"}},
    }


def log_to_stderr() -> None:
    """What a process does before its first word."""
    logging.config.dictConfig(logging_config())
