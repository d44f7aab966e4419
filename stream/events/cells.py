"""What a cell of a file says: raw values to the types of the schema, by one table of rules for all formats.

A column that holds one plain type is converted in one go, every other one cell by cell, by the same rules: text stays
as it is, and whole numbers, UUIDs and bytes of UTF-8 become text. Nothing becomes text by way of a number with a
point, and text becomes a number only where it is written as one.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

TEXTS = ("id", "text", "action", "long")
ARROW = {
    "id": pa.string(),
    "text": pa.string(),
    "action": pa.string(),
    "long": pa.string(),
    "texts": pa.list_(pa.string()),
    "flag": pa.bool_(),
    "time": pa.int64(),
    "since": pa.int64(),
    "number": pa.float64(),
}
FLAGS = dict.fromkeys(("true", "1", "1.0", "yes", "y", "ja", "j", "oui", "si", "sí"), True) | dict.fromkeys(
    ("false", "0", "0.0", "no", "n", "nein", "non", "nee"), False
)
"""What stands for true and false, in lower case."""
NUMBER = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(?i:inf|infinity|nan)"
WHOLE = r"[0-9]{1,18}"
EXACT_BELOW = {16: 1 << 11, 32: 1 << 24, 64: 1 << 53}
"""By bits of a floating-point number: whole numbers below are what was written, others may have been rounded."""
MAX_LIST_TEXT = 65_536
EXACT_DIGITS = 15
"""Decimal digits that a float64 keeps."""

_NUMBER, _WHOLE = f"^({NUMBER})$", f"^{WHOLE}$"
_IS_NUMBER = re.compile(NUMBER)
_DECIMAL_COMMA = re.compile(r"[+-]?([0-9]+|[0-9]{1,3}([. '\u00a0\u202f][0-9]{3})+),[0-9]+")


# ---------------------------------------------------------------------------------------------- plain Arrow arrays


def plain(array: pa.Array) -> pa.Array:
    """The same values without dictionary, run lengths, views and extension types; UUIDs as text."""
    if isinstance(array.type, pa.BaseExtensionType):
        is_uuid = array.type.extension_name == "arrow.uuid"
        return uuid_text(array.storage) if is_uuid else plain(array.storage)
    if pa.types.is_dictionary(array.type):
        return plain(array.dictionary_decode())
    if pa.types.is_run_end_encoded(array.type):
        return plain(pc.run_end_decode(array))
    if pa.types.is_string_view(array.type):
        return array.cast(pa.large_string())
    if pa.types.is_binary_view(array.type):
        return array.cast(pa.large_binary())
    return uuid_text(array) if is_raw_uuid(array) else array


def is_raw_uuid(array: pa.Array) -> bool:
    """Whether these are 16 bytes a value and no text: UUIDs whose type the writer did not note."""
    if not pa.types.is_fixed_size_binary(array.type) or array.type.byte_width != 16:
        return False
    data = _bytes_of(array.drop_null())
    return bool(((data < 0x20) | (data > 0x7E)).any())


def _bytes_of(array: pa.Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[n, 16] bytes of a fixed-size binary array."""
    _, data = array.buffers()
    if data is None:
        return np.zeros((len(array), 16), np.uint8)
    return np.frombuffer(data, np.uint8)[16 * array.offset : 16 * (array.offset + len(array))].reshape(-1, 16)


def uuid_text(array: pa.Array) -> pa.Array:
    """UUIDs [n] of 16 bytes in their usual form of 36 lower-case characters."""
    n = len(array)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    data = _bytes_of(array)
    characters = np.full((n, 36), ord("-"), np.uint8)
    places = [i for i in range(36) if i not in (8, 13, 18, 23)]
    characters[:, places] = digits[np.stack([data >> 4, data & 15], axis=2).reshape(n, 32)]
    offsets = np.arange(n + 1, dtype=np.int32) * 36
    text = pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(characters.tobytes()))
    return pc.if_else(array.is_valid(), text, pa.scalar(None, pa.string()))


def values_of(array: pa.Array) -> list[Any]:
    """Plain values [n] of an Arrow array; bytes in place of one with a string that is not UTF-8."""
    try:
        return list(array.to_pylist())
    except (ValueError, OverflowError, LookupError, pa.ArrowException):
        return [_value(cell) for cell in array]


def _value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return error.object
    except (ValueError, OverflowError, LookupError, pa.ArrowException):  # nanoseconds, an unknown zone, the year 20000
        pass
    try:
        return str(cell.cast(pa.string()))
    except pa.ArrowException:
        return str(getattr(cell, "value", f"a value of type {cell.type}"))


def kept_values(array: pa.Array) -> list[Any]:
    """Values [n] of a column that the schema does not know, as JSON can hold them; decimals stay exact."""
    array = plain(array)
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64() if array.type.precision <= EXACT_DIGITS else pa.string())
    return values_of(array)


# ---------------------------------------------------------------------------------------------- whole columns


def whole_column(meaning: str, raw: pa.Array | Sequence[Any]) -> pa.Array | None:
    """A column converted in one go; None if it needs to be gone through cell by cell.

    Args:
        meaning: a key of ARROW.
        raw: plain Arrow array or Python values [n].
    """
    try:
        array = raw if isinstance(raw, pa.Array) else pa.array(raw)
        if pa.types.is_null(array.type):
            return array.cast(ARROW[meaning])
        if meaning in TEXTS:
            return _whole_text(array)
        return _WHOLE_OF[meaning](array)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None


def _whole_text(array: pa.Array) -> pa.Array | None:
    kind = array.type
    digits = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0)
    if not (digits or _is_text(kind) or _is_bytes(kind)):
        return None
    text = array.cast(pa.binary()).cast(pa.string()) if _is_bytes(kind) else array.cast(pa.string())
    text.validate(full=True)  # a file may call bytes a string that are not UTF-8
    return text


def _whole_list(array: pa.Array) -> pa.Array | None:
    kind = array.type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    if not any(is_kind(kind) for is_kind in lists) or not (_is_text(kind.value_type)):
        return None
    array = array.cast(ARROW["texts"])
    array.validate(full=True)
    return None if array.flatten().null_count else array


def _whole_flag(array: pa.Array) -> pa.Array | None:
    return array if pa.types.is_boolean(array.type) else None


def _whole_time(array: pa.Array) -> pa.Array | None:
    kind = array.type
    if _is_text(kind):
        return array.cast(pa.int64()) if _all_match(array, _WHOLE) else None
    if pa.types.is_timestamp(kind):  # of any zone: the instant; of none: UTC
        return array.cast(pa.timestamp("ms", kind.tz), safe=kind.unit == "s").cast(pa.int64())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return array.cast(pa.int64())
    return None


def _whole_number(array: pa.Array) -> pa.Array | None:
    kind = array.type
    if _is_text(kind):
        return array.cast(pa.float64()) if _all_match(array, _NUMBER) else None
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return array.cast(pa.float64())
    return None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _all_match(array: pa.Array, pattern: str) -> bool:
    found = pc.all(pc.match_substring_regex(array, pattern)).as_py()
    return found is not False  # None: every cell is null


_WHOLE_OF = {
    "texts": _whole_list,
    "flag": _whole_flag,
    "time": _whole_time,
    "since": _whole_time,
    "number": _whole_number,
}

# ---------------------------------------------------------------------------------------------- single cells


def convert(meaning: str, cell: Any, exact_below: int = EXACT_BELOW[64]) -> tuple[Any, str]:
    """One value and the kind of its fault, "" = none.

    Args:
        meaning: a key of ARROW.
        cell: as JSON or Arrow give it.
        exact_below: whole floating-point numbers from here on may have been rounded.
    """
    if isinstance(cell, bytes):
        try:
            cell = cell.decode()
        except UnicodeDecodeError:
            return None, "not UTF-8"
    if cell is None or (isinstance(cell, str) and cell == "" and meaning not in TEXTS):
        return None, ""
    if isinstance(cell, float) and math.isnan(cell) and meaning != "number":
        return None, ""  # how a column of numbers writes that there is none
    if meaning in TEXTS:
        return _text(cell, exact_below)
    if meaning == "texts":
        return _texts(cell)
    if meaning == "flag":
        flag = FLAGS.get(str(cell).strip().lower())
        return flag, "" if flag is not None else "not a flag"
    return _number(meaning, cell)


def _text(cell: Any, exact_below: int) -> tuple[str | None, str]:
    is_whole = (
        cell.is_integer() if isinstance(cell, float) else isinstance(cell, Decimal) and cell == cell.to_integral_value()
    )
    if is_whole:
        if isinstance(cell, float) and abs(cell) >= exact_below:
            return None, "digits lost"
        cell = int(cell)
    if isinstance(cell, UUID):
        cell = str(cell)
    if isinstance(cell, bool) or not isinstance(cell, (str, int)):
        return None, "not a string"
    try:
        str(cell).encode()
    except UnicodeEncodeError:
        return None, "not UTF-8"
    return str(cell), ""


def _texts(cell: Any) -> tuple[list[str] | None, str]:
    parts = list_in(cell) if isinstance(cell, str) else cell
    if isinstance(parts, list) and all(isinstance(part, (str, int)) and not isinstance(part, bool) for part in parts):
        return [str(part) for part in parts], ""
    return None, "not a list of strings"


def list_in(text: str) -> list[Any]:
    """The list that a cell of text is: JSON's or Python's between brackets, else what stands between `|`."""
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]") and len(inner) <= MAX_LIST_TEXT:
        for read in (orjson.loads, ast.literal_eval):
            try:
                parts = read(inner)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(parts, list):
                return parts
    return [part.strip() for part in text.split("|") if part.strip()]


def _number(meaning: str, cell: Any) -> tuple[float | int | None, str]:
    if isinstance(cell, str) and not _IS_NUMBER.fullmatch(cell := cell.strip()):
        # 1,234 is a thousand to one writer and a bit more than one to another; float() would read 1_000 and the digits
        # of every script
        return None, "decimal comma" if _DECIMAL_COMMA.fullmatch(cell) else "not a number"
    try:
        number = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number) and not (isinstance(cell, float | str) and meaning == "number"):
        return None, "not a number"
    if meaning == "number":
        return number, ""
    if not number.is_integer() or (isinstance(cell, str) and "e" in cell.lower()):  # 1.6E+12 has lost digits
        return None, "not an integer"
    whole = cell if isinstance(cell, int) else int(number)
    return (whole, "") if abs(whole) < 1 << 63 else (None, "out of range")
