"""What replay keeps on disk between a pass and its report: one file an arm and seed, so that a run can be resumed."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from driftline.configs.errors import InputError
from driftline.stream.replay.protocol import ArmResult, Facts, Pass

FORMAT = 3
FACTS = ("number", "user", "t_ms", "relevant", "reachable", "cold_user", "gap_ms", "session_ms")


@dataclass(frozen=True, slots=True)
class Saved:
    """One arm's result with the facts of its pass and the cost of the whole pass.

    Attributes:
        seconds: wall time of the drive over the log.
        cost: wall and CPU seconds of the whole pass, the making of its arms included; equal for all arms of the pass.
        adoptions: graph versions that the state was made with; None = not known.
    """

    facts: Facts
    result: ArmResult
    split_ms: int
    events: int
    seconds: float
    cost: tuple[float, float]
    state_sha256: str
    adoptions: int | None


def arm_path(folder: Path, name: str, seed: int, key: str) -> Path:
    """Where an arm's result lies; `key` stands for the data, the protocol and the configuration."""
    safe = "".join(letter if letter.isalnum() or letter in "_-+" else "~" for letter in name)
    return folder / f"{safe}.{seed}.{key[:16]}.npz"


def save(
    path: Path, name: str, result: Pass, cost: tuple[float, float], state_sha256: str, adoptions: int | None
) -> None:
    """Write one arm of a pass, whole or not at all."""
    arm = result.arms[name]
    meta = {
        "format": FORMAT,
        "parts": arm.cost,
        "trained_share": arm.trained_share,
        "note": arm.note,
        "gate": arm.gate,
        "void": arm.void,
        "split_ms": result.split_ms,
        "events": result.events,
        "seconds": result.seconds,
        "cost": cost,
        "state_sha256": state_sha256,
        "adoptions": adoptions,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {column: getattr(result.facts, column) for column in FACTS}
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, values=arm.values, meta=np.array(json.dumps(meta)), **columns)
    unfinished.replace(path)


def load(path: Path) -> Saved:
    """Read what `save` wrote.

    Raises:
        InputError: the file is damaged or of another format.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            meta = json.loads(str(file["meta"]))
            if meta["format"] != FORMAT:
                raise ValueError(f"format {meta['format']}, expected {FORMAT}")
            facts = Facts(*(file[column] for column in FACTS))
            values = file["values"]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: can't be read as the result of an arm: {error}; delete it or leave out --resume"
        ) from error
    parts = {part: (train, score) for part, (train, score) in meta["parts"].items()}
    result = ArmResult(
        values, parts, meta["trained_share"], meta.get("note", ""), meta.get("gate", {}), meta.get("void", "")
    )
    split_ms, events, seconds, state_sha256 = (meta[key] for key in ("split_ms", "events", "seconds", "state_sha256"))
    wall, cpu = meta["cost"]
    return Saved(facts, result, split_ms, events, seconds, (wall, cpu), state_sha256, meta["adoptions"])
