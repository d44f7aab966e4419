"""Whether what settings say of files of events and items can be: fields, columns, notations of times.

Faults are found before the schema reads the tree, so that all of them are said at once; doubts after it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from driftline.configs.explain import Fault, did_you_mean, origin_of, quoted
from driftline.configs.settings import EventFiles, ItemFiles, Settings

SECTIONS: dict[str, type[ItemFiles]] = {"event_files": EventFiles, "item_files": ItemFiles}
UNITS = ("s", "ms", "us", "ns")
"""Of times that are counted from 1970 on, or from a time that is said."""
SINCE = " since "
"""Between a unit and the time from which it counts."""
TIMES = (*UNITS, "iso", "dmy", "mdy")
"""Notations of times that have a name."""
OF_ROWS = ("action_from", "action_below_zero")
"""What names the action of a row by its value."""

_SPACED_OFFSET = re.compile(r"\s+(?=[+-][0-9]{2}:?[0-9]{2}$)")
_NAMED_UTC = re.compile(r"\s*(UTC|GMT)$")


def faults_in_files(tree: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[Fault]:
    """What the sections of files say that can't be.

    Args:
        tree: as read, before the schema: anything may stand anywhere.
        origins: of its leaves.
    """
    for name, section in SECTIONS.items():
        given = tree.get(name)
        found = _faults(section, given) if isinstance(given, dict) else ()
        yield from ((origin_of(f"{name}.{key}", origins), f"{name}.{key}: {words}") for key, words in found)


def _faults(section: type[ItemFiles], given: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it)."""
    map_, time, header = (given.get(key) for key in ("map", "time", "header"))
    map_ = map_ if isinstance(map_, dict) else {}
    for field, column in map_.items():
        if field not in section.FIELDS:
            known = ", ".join(section.FIELDS)
            yield (
                f"map.{field}",
                f"there is no such field; expected any of {known}{did_you_mean(field, section.FIELDS)}",
            )
        elif column == "" and field in section.REQUIRED:
            yield f"map.{field}", "got no column; expected its name, every row must have this field"
    if map_.get("user_id") and map_.get("user_id") == map_.get("item_id"):
        yield "map.item_id", f"got {quoted(map_['item_id'])}, which is user_id already; expected another column"
    if isinstance(header, list):
        twice = [name for name, n in Counter(map(str, header)).items() if n > 1]
        if twice:
            yield "header", f"names {', '.join(map(repr, twice))} twice; expected a name for each column"
    if isinstance(time, str) and (words := _time_fault(time)):
        yield "time", words
    if map_.get("action"):
        for key in OF_ROWS:
            if given.get(key):
                yield key, f"column {map_['action']!r} says the action of each row; expected one of the two"


def iso_time(text: str) -> datetime:
    """A time in ISO 8601, also with slashes, "UTC", or a blank before its offset.

    Raises:
        ValueError: it is none.
    """
    text = _SPACED_OFFSET.sub("", _NAMED_UTC.sub("+00:00", text))
    if text[4:5] == "/":
        text = text.replace("/", "-")
    if len(text) < 8 or text[:4].isdigit() is False:
        raise ValueError(text)
    return datetime.fromisoformat(text)


def _time_fault(time: str) -> str:
    """What is wrong with a notation of times, "" = nothing."""
    if not time or time in TIMES:
        return ""
    expected = f"expected {', '.join(TIMES)}, 's since 2018-02-01', or a format as strptime has it, such as '%d %b %Y'"
    unit, since, start = time.partition(SINCE)
    if since and unit in UNITS:
        try:
            iso_time(start)
        except ValueError:
            return f"got {time!r}: {start!r} is no time; {expected}"
        return ""
    if "%" not in time:
        return f"got {time!r}; {expected}{did_you_mean(time.lower(), TIMES)}"
    try:
        datetime.strptime("", time)
    except ValueError as error:
        if "does not match format" not in str(error):
            return f"got {time!r}: {error}; {expected}"
    return ""


def doubts_of_files(settings: Settings, origins: Mapping[str, str]) -> Iterator[Fault]:
    """What can be read with, but hardly meant."""
    for name in SECTIONS:
        files: ItemFiles = getattr(settings, name)
        fields: dict[str, list[str]] = {}
        for field, column in files.map.items():
            if column:
                fields.setdefault(column, []).append(field)
            absent = [part for part in column.split("+") if part not in files.header] if column and files.header else []
            if absent and column not in files.header:
                near = did_you_mean(absent[0], files.header)
                words = f"{name}.map.{field}: {absent[0]!r} is not among the names of {name}.header{near}"
                yield origin_of(f"{name}.map.{field}", origins), words
        for column, of in fields.items():
            if len(of) > 1:
                words = f"{name}.map: column {column!r} is {' and '.join(of)}"
                yield origin_of(f"{name}.map.{of[-1]}", origins), words
    files = settings.event_files
    named = {"action": files.action, "action_below_zero": files.action_below_zero}
    for key, action in (*named.items(), *((f"action_from.{one}", one) for one in files.action_from)):
        if action and action not in settings.actions:
            near = did_you_mean(action, settings.actions)
            by_value = files.action_from or key == "action_below_zero"
            fate = "a file with such rows is refused" if by_value else "it counts as wanted, with weight 1"
            yield (
                origin_of(f"event_files.{key}", origins),
                f"event_files.{key}: {action!r} is not under `actions`: {fate}{near}",
            )
