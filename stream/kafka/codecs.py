"""How batches of records are compressed: every codec of Kafka, in both of the clients that driftline reads with."""

from __future__ import annotations

from collections.abc import Callable

from aiokafka import codec as worker_side
from kafka import codec as other_side

CODECS = ("gzip", "snappy", "lz4", "zstd")
WHEELS = ("cramjam", "python-snappy", "lz4", "zstandard")
"""What the clients need for them beside Python itself."""
_SAMPLE = b"one batch of records, one batch of records" * 50


def unreadable() -> list[str]:
    """The codecs that a client here can't write or read, each with what went wrong.

    Each client reads what the other one wrote: they use libraries of their own.
    """
    faults = []
    for name in CODECS:
        for writer, reader in ((worker_side, other_side), (other_side, worker_side)):
            try:
                encode: Callable[[bytes], bytes] = getattr(writer, f"{name}_encode")
                decode: Callable[[bytes], bytes] = getattr(reader, f"{name}_decode")
                if bytes(decode(encode(_SAMPLE))) != _SAMPLE:
                    raise ValueError("other bytes came back")
            except Exception as error:  # noqa: BLE001 - a library that is not there, or a broken one
                faults.append(f"{name} ({error!r:.120})")
                break
    return faults
