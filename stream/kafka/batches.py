"""Record batches as aiokafka reads them, but for two things.

Header names may be other than UTF-8, see `serving/header_names.py`. aiokafka's compiled parser can't be told to read
on. A batch at which it stops is read once more by its parser in Python, from the same bytes; check sums and
transactions are judged before, as ever.

Records are handed out as the parser made them, with `offset`, `key`, `value`, `headers`, `timestamp` and
`timestamp_type`: a `ConsumerRecord` made of each would cost as much as all of the reading.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

from driftline.serving.header_names import escape_header_names, tolerate

HEAD_BYTES = 12
"""Base offset and length of a batch; the length counts what comes after them."""


class TolerantBatch:
    """A batch that can be iterated whatever its header names are; everything else is the batch's own."""

    def __init__(self, batch: Any, raw: bytes) -> None:
        self._batch, self._raw = batch, raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._batch))
        except UnicodeDecodeError:
            return iter(list(_DefaultRecordBatchPy(bytearray(self._raw))))


class TolerantRecords:
    """The batches of one fetch of one partition."""

    def __init__(self, raw: bytes) -> None:
        self._records, self._raw, self._start = MemoryRecords(raw), raw, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)

    def next_batch(self) -> TolerantBatch | None:
        """The next batch with its bytes, None after the last."""
        batch = self._records.next_batch()
        if batch is None:
            return None
        start = self._start
        self._start += HEAD_BYTES + int.from_bytes(self._raw[start + 8 : start + HEAD_BYTES], "big")
        return TolerantBatch(batch, self._raw[start : self._start])


class ParsedRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """The records of one fetch of one partition; their topic and partition are those that were asked for."""

    def _consumer_record(self, tp: Any, record: Any) -> Any:
        return record


def read_as_parsed() -> None:
    """Lets every consumer of this process read so."""
    escape_header_names()
    tolerate(_DefaultRecordBatchPy)
    fetcher.MemoryRecords, fetcher.PartitionRecords = TolerantRecords, ParsedRecords
