"""Adoptions of trained graph versions as a file: taken from the broker, followed by replay.

A worker adopts versions at offsets that depend on wall time; which and where it says on `graph-versions`. With that
record the state is again a function of the log. The file has one JSON object a line, in order of the offsets:

    {"partition": 0, "offset": 1200, "sha256": "...", "weights": "base64 of safetensors"}

`weights` stands only on the first line of each version.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from driftline.configs.errors import InputError, StateError
from driftline.configs.settings import Settings
from driftline.graph.memory import GraphMemory
from driftline.stream.durable import write_durably
from driftline.stream.events.files import read_messages
from driftline.stream.kafka.reading import first_offsets, read_all
from driftline.stream.owned.parts import SHA256, TOPIC, Assembler
from driftline.stream.owned.versions import decode_version, version_path
from driftline.stream.process.intake import INTERACTIONS
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.store import MemoryStore, state_sha256

LOG = logging.getLogger(__name__)
REMEDY = "write the file with `driftline state adoptions --out FILE`"
FIELDS = {"partition": int, "offset": int, "sha256": str}


@dataclass(frozen=True, slots=True)
class Adoption:
    """One change of version: records from `offset` on are applied with it."""

    partition: int
    offset: int
    sha256: str
    model: GraphMemory


def announced(settings: Settings, bootstrap: str) -> list[dict[str, Any]]:
    """The lines of an adoption file for the state that the workers of this broker keep now.

    Raises:
        BrokerError: the topic can't be read.
        StateError: an adoption or the weights of one are neither in the topic nor under `state.root`.
    """
    blobs: dict[str, bytes] = {}
    chains = read_chains(settings, bootstrap, blobs.__setitem__)
    lines, written = [], set()
    for adoption in [adoption for partition in sorted(chains) for adoption in chains[partition]]:
        sha256 = adoption["sha256"]
        line = {name: adoption[name] for name in FIELDS}
        if sha256 not in written:
            line["weights"] = base64.b64encode(_weights(settings, sha256, blobs)).decode()
            written.add(sha256)
        lines.append(line)
    return lines


def read_chains(
    settings: Settings, bootstrap: str, keep: Callable[[str, bytes], object]
) -> dict[int, list[dict[str, Any]]]:
    """The adoptions that led to the state that the workers keep now, by partition, in order.

    One that replaces what is not there is passed over where a later one goes on from before it, and where there is no
    such partition: it is of another system.

    Args:
        keep: gets sha256 and blob of each whole version in the topic.

    Raises:
        BrokerError: the topic can't be read.
        StateError: an adoption is missing.
    """
    assembler = Assembler()
    chains: dict[int, list[dict[str, Any]]] = {}
    partitions = first_offsets(settings.broker, bootstrap, INTERACTIONS)
    broken: dict[int, StateError] = {}
    for record in read_all(settings.broker, bootstrap, TOPIC):
        headers = dict(record.headers)
        if headers.get("kind") == b"weights":
            if (whole := assembler.take(record)) is not None:
                keep(*whole)
        elif headers.get("kind") == b"adoption" and (adoption := _adoption(record)) is not None:
            number = adoption["partition"]
            try:
                _chain(chains, adoption)
            except StateError as error:
                broken[number] = error
            else:
                broken.pop(number, None)
    for number, fault in broken.items():
        if number in partitions:
            raise fault
    return {number: chain for number, chain in chains.items() if number in partitions}


def write_adoptions(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Writes an adoption file, whole or not at all.

    Raises:
        InputError: it can't be written.
    """
    try:
        write_durably(path, b"".join(orjson.dumps(line) + b"\n" for line in lines))
    except OSError as error:
        raise InputError(f"{path}: can't be written: {error.strerror}; choose another --out") from None


def read_adoptions(path: Path, settings: Settings) -> list[Adoption]:
    """The adoptions of a file, for a log of one partition.

    Raises:
        InputError: a line is not an adoption, its weights are damaged or do not fit the settings.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}; {REMEDY}") from None
    adoptions: list[Adoption] = []
    models: dict[str, GraphMemory] = {}
    for number, line in enumerate(lines, 1):
        try:
            adoptions.append(_parse(line, models, settings, adoptions[-1].offset if adoptions else -1))
        except (ValueError, StateError) as error:
            what = " ".join(str(error).split())
            raise InputError(f"{path}, line {number}: {what}; {REMEDY}") from None
    return adoptions


def file_records(path: Path, limit: int | None = None) -> Iterable[Record]:
    """The events of a file in its order as `driftline produce` sends them to an empty topic of one partition.

    Raises:
        InputError: the file can't be read, or a cell is wrong.
    """
    for row, (key, value) in enumerate(islice(read_messages(path), limit)):
        yield Record(row, value, key)


def follow(
    records: Iterable[Record],
    adoptions: Sequence[Adoption],
    settings: Settings,
    say: Callable[[int], None] = lambda done: None,
) -> tuple[str, int]:
    """The state of a Processor that reads a log and adopts versions where they were adopted.

    Args:
        records: of one partition, in order of their offsets.
        adoptions: in order of their offsets.
        settings: as the worker had them.
        say: gets the number of records read so far.

    Returns:
        state_sha256, and how many of the adoptions lie within the log.
    """
    store = MemoryStore()
    adopted = drive(store, records, adoptions, settings, say)
    return state_sha256([store]), adopted


def drive(
    store: MemoryStore,
    records: Iterable[Record],
    adoptions: Sequence[Adoption],
    settings: Settings,
    say: Callable[[int], None] = lambda done: None,
) -> int:
    """As `follow`, with the state left in a store and nothing to send in it; the number of adoptions."""
    processor = Processor(settings, store)
    waiting, done = list(adoptions), 0
    epoch: list[Record] = []

    def apply() -> None:
        processor.commit(processor.apply(epoch))
        epoch.clear()
        say(done)

    def adopt_up_to(offset: int) -> None:
        while waiting and waiting[0].offset <= offset:
            apply()
            processor.commit(processor.adopt(waiting.pop(0).model))

    for record in records:
        adopt_up_to(record.offset)
        epoch.append(record)
        done += 1
        if len(epoch) >= processor.room:
            apply()
    apply()
    adopt_up_to(processor.next_offset)
    processor.acknowledged = True
    processor.clear_outbox()
    return len(adoptions) - len(waiting)


def _chain(chains: dict[int, list[dict[str, Any]]], adoption: dict[str, Any]) -> None:
    """Puts an adoption after the one that it replaces; a state that was made anew or restored forgets what came after.

    Raises:
        StateError: the one that it replaces is not there.
    """
    chain = chains.setdefault(adoption["partition"], [])
    if chain and chain[-1] == adoption:
        return  # sent again after a crash
    replaced = adoption["replaces"]
    places = [{"sha256": before["sha256"], "offset": before["offset"]} for before in chain]
    if replaced is not None and replaced not in places:
        raise StateError(
            f"the adoption at offset {adoption['offset']} of partition {adoption['partition']} replaces {replaced}, "
            f"which is not in the topic {TOPIC}: records were deleted. Expected all of them "
            "(`broker.retention_days: 0`); move state.root away to rebuild the state under new adoptions."
        )
    kept = 0 if replaced is None else places.index(replaced) + 1
    chain[kept:] = [adoption]


def _adoption(record: Any) -> dict[str, Any] | None:
    """What a worker said; None, with a word, for a record that says nothing of the kind."""
    try:
        said = orjson.loads(record.value or b"")
        known = _is_place(said) and type(said["partition"]) is int and said["partition"] >= 0
        if not known or not _is_place(said["replaces"] or said):
            raise ValueError(f"it says {said!r:.120}")
    except (ValueError, KeyError, TypeError) as error:
        LOG.warning("record %d of %s is passed over, as it is no adoption: %s", record.offset, TOPIC, error)
        return None
    return dict(said)


def _is_place(said: Any) -> bool:
    """Whether something names a version and an offset."""
    if not isinstance(said, dict) or type(said.get("offset")) is not int or said["offset"] < 0:
        return False
    return isinstance(said.get("sha256"), str) and bool(SHA256.fullmatch(said["sha256"]))


def _weights(settings: Settings, sha256: str, blobs: dict[str, bytes]) -> bytes:
    if sha256 in blobs:
        return blobs[sha256]
    try:
        return version_path(settings, sha256).read_bytes()
    except OSError:
        raise StateError(
            f"the weights of graph version {sha256[:12]} are neither in the topic {TOPIC} nor in "
            f"{version_path(settings, sha256)}; restore one of the two, or run this where the worker runs"
        ) from None


def _parse(line: bytes, models: dict[str, GraphMemory], settings: Settings, after: int) -> Adoption:
    """One line. Raises ValueError or StateError with what is wrong."""
    try:
        data = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise ValueError(f"got {line!r:.60}, expected a JSON object") from None
    if not isinstance(data, dict):
        raise ValueError(f"got {line!r:.60}, expected a JSON object")
    for name, kind in FIELDS.items():
        if type(data.get(name)) is not kind:
            raise ValueError(f"got {data.get(name)!r:.60} as {name}, expected {kind.__name__}")
    partition, offset, sha256 = (data[name] for name in FIELDS)
    if partition != 0:
        raise ValueError(f"got partition {partition}, expected 0: replay follows a log of one partition")
    if offset <= after:
        raise ValueError(f"got offset {offset} after {after}, expected rising offsets")
    if sha256 not in models:
        models[sha256] = _model(data, settings)
    return Adoption(partition, offset, sha256, models[sha256])


def _model(data: dict[str, Any], settings: Settings) -> GraphMemory:
    sha256, weights = data["sha256"], data.get("weights")
    if not isinstance(weights, str):
        raise ValueError(f"got no weights on the first line of version {sha256[:12]}, expected base64 of safetensors")
    try:
        blob = base64.b64decode(weights, validate=True)
    except binascii.Error as error:
        raise ValueError(f"got weights that are not base64 ({error})") from None
    version = decode_version(settings, blob)
    if version.sha256 != sha256:
        raise ValueError(f"got weights of version {version.sha256[:12]}, expected those of {sha256[:12]}")
    return version.model
