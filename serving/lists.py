"""Whether the lists that RocksDB goes by are the ones that it wrote: what its own check sums can't tell.

    driftline-lists.json   {"manifest": name, "bytes": n, "sha256": of its first n bytes, "log": number}

CURRENT names the MANIFEST, the MANIFEST names all other files. A crash may tear its last record off, so RocksDB takes
one whose length does not fit for torn, and opens what was before: rows of an older file under those of a newer log.
Two things are held against that. Whoever writes a database notes beside it how much of a MANIFEST there is and which
write-ahead log is the newest, whenever that has changed; what was noted has to be there. And the end of a file that
grew since is read again: a record that only looks torn has the check sum of all that is left of the file.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from aiokafka.record.util import calc_crc32c

from driftline.configs.errors import StateError

NAME = "driftline-lists.json"
_MANIFEST = re.compile(r"MANIFEST-(\d{1,18})")
_BLOCK_BYTES, _HEADER_BYTES = 32_768, 7
"""Of RocksDB's log format, which MANIFEST and write-ahead logs have: a check sum of 4 bytes, a length of 2, a type."""
_MASK_DELTA = 0xA282EAD8
"""RocksDB stores check sums rotated and with this added."""


@dataclass(frozen=True, slots=True)
class Lists:
    """How far the lists of a database went.

    Attributes:
        manifest: name of the file.
        bytes: of it.
        sha256: of these bytes.
        log: number of the newest write-ahead log, 0 = there was none.
    """

    manifest: str
    bytes: int
    sha256: str
    log: int


def lists_of(path: Path) -> Lists:
    """The lists of a database as they lie there now; its writer may run.

    Raises:
        OSError: there are none.
    """
    name = (path / "CURRENT").read_text("utf-8", "replace").strip()
    content = (path / name).read_bytes()
    return Lists(name, len(content), hashlib.sha256(content).hexdigest(), _newest_log(path))


def check_lists(path: Path) -> None:
    """Returns where the lists of a database hold all that was noted of them; its writer may run.

    Raises:
        StateError: they don't, or the end of a list is damaged.
    """
    noted = _noted(path)
    try:
        name = (path / "CURRENT").read_text("utf-8", "replace").strip()
    except FileNotFoundError:
        if noted is None:
            return  # no database, or one that is just being made
        raise _damaged(path, "its CURRENT is gone") from None
    if noted is not None:
        _compare(path, name, noted)
    for file in [path / name, *path.glob("*.log")]:
        _check_end(path, file)


def _noted(path: Path) -> Lists | None:
    """What was noted; None where nothing was, as by an earlier version of driftline."""
    try:
        return Lists(**json.loads((path / NAME).read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise _damaged(path, f"its {NAME} can't be read ({error})") from None


def encode_lists(lists: Lists) -> bytes:
    """Bytes of the note."""
    return json.dumps(asdict(lists)).encode() + b"\n"


def _compare(path: Path, name: str, noted: Lists) -> None:
    number, before = _number(name), _number(noted.manifest)
    if number < before:
        raise _damaged(path, f"its CURRENT names {name[:40]!r}, expected {noted.manifest} or a later one")
    if (newest := _newest_log(path)) < noted.log:
        raise _damaged(path, f"its newest log has the number {newest}, expected {noted.log} or a later one")
    if number > before:
        return  # opened since, by one that was killed before it could note it
    try:
        content = (path / name).read_bytes()[: noted.bytes]
    except FileNotFoundError:
        return  # a writer has opened it meanwhile; if none has, RocksDB says it
    if len(content) < noted.bytes:
        raise _damaged(path, f"its {name} has {len(content)} bytes, expected {noted.bytes} at least")
    if hashlib.sha256(content).hexdigest() != noted.sha256:
        raise _damaged(path, f"its {name} is not what was written")


def _check_end(path: Path, file: Path) -> None:
    """Raises StateError if the last record of a list is whole but for its length."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            opened.seek(size // _BLOCK_BYTES * _BLOCK_BYTES)
            block = opened.read()
    except OSError:
        return  # deleted by its writer meanwhile; where it is missed, RocksDB says so
    at = 0
    while at + _HEADER_BYTES <= len(block):
        after = at + _HEADER_BYTES + int.from_bytes(block[at + 4 : at + 6], "little")
        if after > len(block):
            rotated = (int.from_bytes(block[at : at + 4], "little") - _MASK_DELTA) & 0xFFFFFFFF
            expected = (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
            if calc_crc32c(block[at + 6 :]) == expected:
                raise _damaged(path, f"the length of the last record of its {file.name} is not what was written")
            return
        at = after


def _number(name: str) -> int:
    found = _MANIFEST.fullmatch(name)
    return int(found[1]) if found else -1


def _newest_log(path: Path) -> int:
    return max((int(log.stem) for log in path.glob("*.log") if log.stem.isdigit()), default=0)


def _damaged(path: Path, what: str) -> StateError:
    remedy = "move it away to rebuild the partition from the topic"
    return StateError(f"state directory {path} is damaged: {what}; {remedy}")
