"""Which code is running: stamped on snapshots and reports."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path


@cache
def git_revision() -> str:
    """The commit of this checkout, with "+" when files differ from it; "" outside a checkout."""
    root = Path(__file__).parents[1]
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
