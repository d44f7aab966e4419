"""Numbers in text with a decimal point or a decimal comma: which of them a file has, and the same with a point."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from driftline.stream.events.cells import plain

BETWEEN = {".": ",", ",": "."}
"""What stands between thousands."""
HIGHEST_GRADE, MOST_GRADES = 10, 21
"""Of ratings."""
OPEN = "?"
"""Of a column in which 1,234 may be a thousand, or a bit more than one."""
_SIGNED = re.compile(r"\s*[+-]?[0-9.,]*[.,][0-9.,]*\s*")
_WHOLE = re.compile(r"\s*[+-]?[0-9]+\s*")


def _written(decimal: str) -> re.Pattern[str]:
    """Numbers with decimals, thousands apart or not, or with several thousands apart."""
    point, between = re.escape(decimal), re.escape(BETWEEN[decimal])
    groups = rf"[0-9]{{1,3}}(?:{between}[0-9]{{3}})"
    return re.compile(rf"\s*[+-]?(?:(?:{groups}+|[0-9]+){point}[0-9]+|{groups}{{2,}})\s*")


_WRITTEN = {decimal: _written(decimal) for decimal in BETWEEN}


def are_grades(values: Sequence[float]) -> bool:
    """Whether numbers look like ratings: some whole or half steps of a scale of up to 10."""
    grades = set(values)
    if not 3 <= len(grades) <= MOST_GRADES:
        return False
    return all(0 <= grade <= HIGHEST_GRADE and (2 * grade).is_integer() for grade in grades)


def sign_of(values: Sequence[Any]) -> str:
    """The decimal sign of a column of text: "," or "." where it can't be the other, OPEN, or "" = it holds none."""
    texts = [value for value in values if isinstance(value, str)]
    signed = [text for text in texts if _SIGNED.fullmatch(text)]
    if (
        not signed
        or len(texts) < len(values)
        or len(signed) + sum(map(bool, map(_WHOLE.fullmatch, texts))) < len(texts)
    ):
        return ""
    if not any("," in text or text.count(".") > 1 for text in signed):
        return ""  # with points alone it is written as everywhere else
    fitting = [decimal for decimal, written in _WRITTEN.items() if any(map(written.fullmatch, signed))]
    only = [
        d for d in fitting if not any(_WRITTEN[BETWEEN[d]].fullmatch(text) and not _either(text) for text in signed)
    ]
    sure = [d for d in only if any(_WRITTEN[d].fullmatch(text) and not _either(text) for text in signed)]
    return sure[0] if len(sure) == 1 else OPEN


def _either(text: str) -> bool:
    return re.fullmatch(r"\s*[+-]?[0-9]{1,3}[.,][0-9]{3}\s*", text) is not None


def sign_of_file(columns: Mapping[str, Sequence[Any]]) -> str:
    """The decimal sign that the columns of a file agree on, OPEN where one leaves it open and none says it."""
    signs = {sign_of(values) for values in columns.values()} - {""}
    sure = signs - {OPEN}
    return next(iter(sure)) if len(sure) == 1 else OPEN if signs else ""


def with_point(cell: Any, decimal: str) -> Any:
    """A number in text as it is written with a point and nothing between thousands; anything else as it is.

    Args:
        decimal: "," or "."; "" or OPEN = nothing is known, so nothing is changed.
    """
    between = BETWEEN.get(decimal)
    if not isinstance(cell, str) or between is None:
        return cell
    point, apart = re.escape(decimal), re.escape(between)
    if re.fullmatch(rf"\s*[+-]?[0-9]{{1,3}}(?:{apart}[0-9]{{3}})+(?:{point}[0-9]*)?\s*", cell):
        cell = cell.replace(between, "")
    return cell if between in cell else cell.replace(decimal, ".")


def column_with_point(raw: Any, decimal: str) -> Any:
    """A column of numbers, those in text with a point."""
    if decimal not in BETWEEN:
        return raw
    if isinstance(raw, pa.Array):
        array = plain(raw)
        if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
            return raw
        return pa.array([with_point(cell, decimal) for cell in array.to_pylist()], pa.string())
    return [with_point(cell, decimal) for cell in raw]
