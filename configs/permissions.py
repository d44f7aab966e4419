"""Permissions of files that a library writes: those that `open` gives, so that umask and folder decide."""

from __future__ import annotations

import uuid
from pathlib import Path


def as_opened(path: Path) -> None:
    """Gives a file the permissions that a new file in its folder gets: safetensors writes for its owner alone.

    Raises:
        OSError: they can't be set, or nothing can be written beside it.
    """
    probe = path.with_name(f".{uuid.uuid4().hex}.tmp")
    probe.touch()
    try:
        path.chmod(probe.stat().st_mode & 0o777)
    finally:
        probe.unlink()
