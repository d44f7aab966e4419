"""Graph versions on the topic: cut into parts, and put together again from whatever order and company they come in.

Headers of a part: `kind` = weights, `part` = number/count, `sha256` of the whole version, `part_sha256` of these bytes;
its key is the sha256 of the weights alone. A part that does not hold what its headers say is left out with a sentence,
so that the version is whole as soon as a good copy of that part comes. Parts of an earlier release have no sums: they
are put together per key, and a version is then known by its weights.
"""

from __future__ import annotations

import hashlib
import logging
import re
from typing import Any

from driftline.stream.events.records import Outgoing

TOPIC = "graph-versions"
PART_BYTES = 512 * 1024
MAX_PARTS = 4096
"""Of a version: 2 GiB."""
MAX_OPEN = 4
"""Versions of which some parts are there; a further one takes the place of the oldest."""
LOG = logging.getLogger(__name__)
SHA256 = re.compile(r"[0-9a-f]{64}")
_PLACE = re.compile(rb"(\d{1,6})/(\d{1,6})")

_Name = tuple[str, str, int]
"""sha256 of weights, sha256 of the whole ("" = of an earlier release), count of parts."""


def cut(sha256: str, blob: bytes) -> list[Outgoing]:
    """The records that carry a version whose weights have this hash."""
    parts = [blob[start : start + PART_BYTES] for start in range(0, len(blob), PART_BYTES)]
    whole = hashlib.sha256(blob).hexdigest().encode()
    return [
        Outgoing(
            TOPIC, sha256.encode(), part,
            (
                ("kind", b"weights"), ("part", b"%d/%d" % (n, len(parts))), ("sha256", whole),
                ("part_sha256", hashlib.sha256(part).hexdigest().encode()),
            ),
        )
        for n, part in enumerate(parts)
    ]  # fmt: skip


class Assembler:
    """Puts versions together from the records of the topic."""

    def __init__(self) -> None:
        self._open: dict[_Name, dict[int, bytes]] = {}
        self._last: _Name | None = None
        """Became whole last: what comes of it is a part sent twice. Any other may come again, and goes back to it."""

    def take(self, record: Any) -> tuple[str, bytes] | None:
        """Takes a record of kind `weights`; (sha256 of the weights, blob) of the version that it makes whole.

        Args:
            record: with `key`, `value`, `headers` and `offset`, sent by anybody.
        """
        try:
            name, number = _place(record)
        except ValueError as fault:
            LOG.warning("record %d of %s is passed over: %s", record.offset, TOPIC, fault)
            return None
        if name == self._last and name[1]:
            return None
        if name not in self._open:
            self._make_room()
        parts = self._open.setdefault(name, {})
        parts[number] = record.value
        if len(parts) < name[2]:
            return None
        del self._open[name]
        blob = b"".join(parts[n] for n in range(name[2]))
        if name[1] and hashlib.sha256(blob).hexdigest() != name[1]:
            LOG.warning("version %s on %s is passed over: its parts are not of one version", name[0][:12], TOPIC)
            return None
        self._last = name
        return name[0], blob

    def _make_room(self) -> None:
        if len(self._open) >= MAX_OPEN:
            (sha256, _, count), parts = next(iter(self._open.items()))
            del self._open[next(iter(self._open))]
            LOG.warning(
                "version %s on %s is passed over: %d of its %d parts came, and %d newer versions began since",
                sha256[:12], TOPIC, len(parts), count, MAX_OPEN,
            )  # fmt: skip


def _place(record: Any) -> tuple[_Name, int]:
    """To which version a part belongs, and its number. Raises ValueError with what is wrong with it."""
    headers = dict(record.headers)
    found = _PLACE.fullmatch(headers.get("part") or b"")
    if found is None or not int(found[1]) < int(found[2]) <= MAX_PARTS:
        raise ValueError(f"header part is {headers.get('part')!r:.80}, expected number/count, {MAX_PARTS} at most")
    sha256 = (record.key or b"").decode(errors="replace")
    if not SHA256.fullmatch(sha256):
        raise ValueError(f"its key is {sha256!r:.80}, expected 64 hex digits")
    value, expected = record.value or b"", headers.get("part_sha256")
    if "sha256" in headers and hashlib.sha256(value).hexdigest().encode() != expected:
        raise ValueError(f"part {found[1].decode()} of version {sha256[:12]} does not have the sha256 of its header")
    whole = (headers.get("sha256") or b"").decode(errors="replace")
    return (sha256, whole, int(found[2])), int(found[1])
