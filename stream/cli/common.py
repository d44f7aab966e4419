"""What commands share: options, consoles, settings, JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.text import Text

from driftline.configs.environment import strays
from driftline.configs.files import presets
from driftline.configs.load import load_settings
from driftline.configs.settings import Settings
from driftline.stream.ops.progress import progress_bars

Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        envvar="DRIFTLINE_CONFIG",
        help=f"Preset ({', '.join(presets())}) or YAML file.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]

TELL_S = 30.0
"""Between two lines about what is waited for."""
# ids, titles and paths are printed as they are: "[b]" is no style, ":x:" no emoji
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


def settings_of(config: str | None) -> Settings:
    """The settings that a command runs with; variables that look like settings and are none are noted on stderr.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    for stray in strays(os.environ):
        err.print(f"note: {stray}", soft_wrap=True)
    return load_settings(config)


def with_bootstrap(settings: Settings, bootstrap: str) -> Settings:
    """The same settings with the broker's address filled in."""
    return settings.model_copy(update={"broker": settings.broker.model_copy(update={"bootstrap": bootstrap})})


def print_json(value: Any) -> None:
    """One JSON object on a line of its own, with \\u escapes where stdout is in an encoding that lacks a character."""
    try:
        text = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
        text.encode(sys.stdout.encoding or "ascii")
    except (orjson.JSONEncodeError, UnicodeEncodeError):  # a path need not be UTF-8
        text = json.dumps(value, default=str)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def when(t_ms: int) -> str:
    """A time for people, which says that it is of UTC."""
    if t_ms < 0:
        return "never"
    try:
        return datetime.fromtimestamp(t_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError):  # past the year 9999
        return f"{t_ms} ms"


class Waiting:
    """Says what is waited for: in a renewed line on a terminal, else at once, and again every `TELL_S`.

    Args:
        words: to begin with.
    """

    def __init__(self, words: str) -> None:
        self._status = err.status(Text(words), spinner="dots") if err.is_terminal else None
        self._words, self._told_s = words, time.monotonic()

    def __enter__(self) -> Waiting:
        if self._status is not None:
            self._status.start()
        else:
            err.print(self._words, soft_wrap=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def still(self, words: str) -> None:
        """It takes longer; what for."""
        now_s = time.monotonic()
        if now_s - self._told_s < TELL_S:
            return
        if self._status is not None:
            self._status.update(Text(words))
        else:
            self._told_s = now_s
            err.print(words, soft_wrap=True)


@contextmanager
def progress(total: int | None, what: str) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on stderr, or a line a minute; gives the function that takes the number done."""
    with progress_bars() as show:
        yield lambda done: show(what, done, total)


def parse_time(text: str) -> int:
    """Unix milliseconds of an ISO date, an ISO time (of UTC unless it names a zone) or a number: the parser of options.

    Raises:
        typer.BadParameter: it is none of them.
    """
    if text.isdigit() and len(text) > 9:
        return int(text)
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"got {text!r}; expected a date such as 2010-11-25, a time such as 2010-11-25T08:00, both of UTC, "
            "2010-11-25T08:00+01:00, or unix milliseconds such as 1290672000000"
        ) from None
    return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp() * 1000)
