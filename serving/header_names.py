"""Header names of any bytes: Kafka's format has bytes there, its Python clients decode them and stop at no UTF-8.

One such record would stop every reader of its partition. Where a name can't be decoded it is read with escapes, such
as `\\xff`; no name of ours has any, so the record is judged by its value like any other.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, SupportsIndex


class Escaped(bytearray):
    """Bytes whose slices decode whatever is in them."""

    def __getitem__(self, at: SupportsIndex | slice) -> Any:
        found = super().__getitem__(at)
        return _Slice(found) if isinstance(at, slice) else found


class _Slice(bytes):
    def decode(self, encoding: str = "utf-8", errors: str = "backslashreplace") -> str:
        return super().decode(encoding, "backslashreplace")


def escape_header_names() -> None:
    """Lets kafka-python read records whose header names are not UTF-8; once a process is enough."""
    from kafka.record.default_records import DefaultRecordBatch

    tolerate(DefaultRecordBatch)


def tolerate(batch: Any) -> None:
    """Lets a class of record batches of either client read such a record a second time, with escapes."""
    read = batch._read_msg
    if hasattr(read, "__wrapped__"):
        return

    @wraps(read)
    def read_escaped(self: Any, *arguments: Any) -> Any:
        start = self._pos
        try:
            return read(self, *arguments)
        except UnicodeDecodeError:
            self._buffer, self._pos = Escaped(self._buffer), start
            return read(self, *arguments)

    batch._read_msg = read_escaped
