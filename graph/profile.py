"""A written profile, and how it travels: a record of the topics `profiles` and `profiles.log`, a line of a file.

    {"user_id": ..., "as_of_ms": ..., "valid_from_ms": ..., "version": ..., "facets": {...}, "text": ..., ...}

`embedding` is base64 of little-endian float16 [4, 384], one unit vector for each facet in the order of FACETS; it may
also be an array of numbers. What is a profile and what is none is decided here, for whoever reads one.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from driftline.configs.errors import InputError
from driftline.graph.arrays import Float32
from driftline.graph.view import FACETS, ProfileVectors


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

    def view(self) -> ProfileVectors:
        """What scorers read of it.

        Raises:
            ValueError: it was not encoded.
        """
        if self.vectors is None:
            raise ValueError(f"the profile of {self.user_id!r} has no vectors; encode it with `with_vectors` first")
        return ProfileVectors(self.vectors, self.valid_from_ms, self.version, self.source)

    def to_json(self, embedding: bool = True) -> bytes:
        """The record as bytes."""
        return orjson.dumps(self.to_dict(embedding))


def parse_profile(data: bytes) -> Profile:
    """The profile that `to_json` wrote.

    Raises:
        InputError: it is not JSON, lacks a field or has one of another kind, a number too large, a vector not finite.
    """
    try:
        record: dict[str, Any] = orjson.loads(data)
        return Profile(
            user_id=str(record["user_id"]),
            facets={facet: str(record["facets"].get(facet, "")) for facet in FACETS},
            text=str(record["text"]),
            source=str(record["source"]),
            facet_sources={str(k): str(v) for k, v in dict(record.get("facet_sources") or {}).items()},
            version=_whole(record["version"], 32),
            valid_from_ms=_whole(record["valid_from_ms"], 64),
            as_of_ms=_whole(record.get("as_of_ms", record["valid_from_ms"]), 64),
            prompt_sha256=str(record.get("prompt_sha256", "")),
            model=str(record.get("model", "")),
            vectors=_vectors(record.get("embedding")),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"not a profile: {data[:80]!r} ({type(error).__name__}: {error}); expected the JSON object that "
            "`driftline profiler` writes"
        ) from None


def _whole(value: Any, bits: int) -> int:
    """A number that fits into a signed one of so many bits, as answers carry it."""
    number, end = int(value), 2 ** (bits - 1)
    if not -end <= number < end:
        raise ValueError(f"got {number}, expected a signed number of {bits} bits")
    return number


def _vectors(embedding: Any) -> Float32 | None:
    """[4, width] float32, None where nothing was encoded."""
    if not embedding:
        return None
    if isinstance(embedding, str):
        flat = np.frombuffer(base64.b64decode(embedding), "<f2").astype(np.float32)
    else:
        flat = np.asarray(embedding, np.float32).ravel()
    if flat.size % len(FACETS) or not np.isfinite(flat).all():
        raise ValueError(f"embedding has {flat.size} finite or other values, expected {len(FACETS)} equal unit vectors")
    return flat.reshape(len(FACETS), -1)
