"""A written profile, and how it travels: records of the topics `profiles` and `profiles.log`, lines of a profile file.

A record is a JSON object. A file is JSONL, gzip if its name ends in .gz; its first line is a header:

    {"format": "driftline-profiles/1", "source": ..., "model": ..., "prompt_sha256": ..., "first_events": ..., ...}
    {"user_id": ..., "as_of_ms": ..., "valid_from_ms": ..., "version": ..., "facets": {...}, "text": ..., ...}

`embedding` is base64 of little-endian float16 [4, 384], one unit vector for each facet in the order crowd, interests,
categories, brands. Files leave it out: the encoder makes it again from the facets.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from configs.errors import InputError
from graph.view import Profile as ProfileView
from llm.encoder import TextEncoder
from llm.prompts import FACETS

FORMAT = "driftline-profiles/1"
Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What is known of a user's taste, in words.

    Attributes:
        facets: text of each of FACETS; "" = the history supports none.
        text: one or two sentences that say them.
        source: who wrote it: "llm:smollm2-135m", "openai:<model>" or "template".
        facet_sources: for each facet "llm", "template" or "none".
        version: counts a user's profiles, from 1.
        valid_from_ms: event time from which it may be read.
        as_of_ms: time of the newest event that it knows.
        prompt_sha256: of the prompt file.
        model: name of the model, "" for the template.
        vectors: [4, 384] float32, a unit vector for each facet, zero for an empty one; None = not encoded.
    """

    user_id: str
    facets: dict[str, str]
    text: str
    source: str
    facet_sources: dict[str, str]
    version: int
    valid_from_ms: int
    as_of_ms: int
    prompt_sha256: str = ""
    model: str = ""
    vectors: Float32 | None = None

    def to_dict(self, embedding: bool = True) -> dict[str, Any]:
        """The record as a JSON object, with or without `embedding`."""
        record: dict[str, Any] = {
            "user_id": self.user_id,
            "as_of_ms": self.as_of_ms,
            "valid_from_ms": self.valid_from_ms,
            "version": self.version,
            "facets": self.facets,
            "text": self.text,
            "source": self.source,
            "facet_sources": self.facet_sources,
            "model": self.model,
            "prompt_sha256": self.prompt_sha256,
        }
        if embedding and self.vectors is not None:
            record["embedding"] = base64.b64encode(self.vectors.astype("<f2").tobytes()).decode()
        return record

    def view(self) -> ProfileView:
        """What scorers read of it.

        Raises:
            ValueError: it was not encoded.
        """
        if self.vectors is None:
            raise ValueError(f"the profile of {self.user_id!r} has no vectors; encode it with `with_vectors` first")
        return ProfileView(self.vectors, self.valid_from_ms, self.version, self.source)

    def to_json(self, embedding: bool = True) -> bytes:
        """The record as bytes."""
        return orjson.dumps(self.to_dict(embedding))


def parse_profile(data: bytes) -> Profile:
    """The profile that `to_json` wrote.

    Raises:
        InputError: it is not JSON, lacks a field or has one of another kind.
    """
    try:
        record: dict[str, Any] = orjson.loads(data)
        embedding = record.get("embedding")
        flat = np.frombuffer(base64.b64decode(embedding), "<f2").astype(np.float32) if embedding else None
        return Profile(
            user_id=str(record["user_id"]),
            facets={facet: str(record["facets"].get(facet, "")) for facet in FACETS},
            text=str(record["text"]),
            source=str(record["source"]),
            facet_sources={str(k): str(v) for k, v in dict(record.get("facet_sources") or {}).items()},
            version=int(record["version"]),
            valid_from_ms=int(record["valid_from_ms"]),
            as_of_ms=int(record["as_of_ms"]),
            prompt_sha256=str(record.get("prompt_sha256", "")),
            model=str(record.get("model", "")),
            vectors=None if flat is None else flat.reshape(len(FACETS), -1),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"not a profile: {data[:80]!r} ({type(error).__name__}: {error}); expected the JSON object that "
            "`driftline profiler` writes"
        ) from None


def with_vectors(profiles: Sequence[Profile], encoder: TextEncoder) -> list[Profile]:
    """The profiles with the vectors of their facets; each distinct text is encoded once.

    The vectors are those that travel in a record, rounded to float16, so that file and topic give equal ones.
    """
    texts = list(dict.fromkeys(text for p in profiles for text in p.facets.values() if text))
    vectors = encoder.encode(texts).astype("<f2").astype(np.float32)
    rows = {text: vectors[i] for i, text in enumerate(texts)}
    empty = np.zeros(vectors.shape[1], np.float32)
    return [
        replace(p, vectors=np.stack([rows[p.facets[f]] if p.facets[f] else empty for f in FACETS])) for p in profiles
    ]


def read_header(path: Path) -> dict[str, Any]:
    """The first line of a profile file.

    Raises:
        InputError: the file can't be read or is no profile file.
    """
    line = next(_lines(path), b"")
    try:
        header = orjson.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{path}: the first line is {line[:80]!r}; expected a JSON object with format {FORMAT!r}")
    return header


def read_profiles(path: Path, encoder: TextEncoder | None = None) -> list[Profile]:
    """The profiles of a file in its order, with vectors if an encoder is given.

    Raises:
        InputError: the file can't be read or is no profile file; the line is named.
    """
    read_header(path)
    profiles = []
    for number, line in enumerate(_lines(path), 1):
        if number > 1 and line.strip():
            try:
                profiles.append(parse_profile(line))
            except InputError as error:
                raise InputError(f"{path}:{number}: {error}") from None
    return with_vectors(profiles, encoder) if encoder else profiles


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (OSError, EOFError) as error:
        raise InputError(f"{path} can't be read: {error}; give a file that `driftline profiler --out` wrote") from None
