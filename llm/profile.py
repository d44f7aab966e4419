"""Profile files and the vectors of profiles.

A file is JSONL, gzip if its name ends in .gz; its first line is a header, the others are records (graph/profile.py):

    {"format": "driftline-profiles/1", "source": ..., "model": ..., "prompt_sha256": ..., "first_events": ..., ...}

Files leave `embedding` out: the encoder makes it again from the facets.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from driftline.configs.errors import InputError
from driftline.graph.profile import Profile, parse_profile
from driftline.graph.view import FACETS
from driftline.llm.encoder import TextEncoder

FORMAT = "driftline-profiles/1"


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
