"""Which code is running: stamped on snapshots and reports."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("configs", "graph", "llm", "model", "stream")
APART = ("cli", "demo", "bench", "report", "summary", "intervals", "progress", "quality")
"""Folders and beginnings of file names in PACKAGES on which no arm's result depends."""


@cache
def git_revision() -> str:
    """The commit of this checkout, with "+" when files differ from it; "" outside a checkout."""
    try:
        head = _git(ROOT, "rev-parse", "HEAD")
        changed = _git(ROOT, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


@cache
def code_sha256(root: Path = ROOT) -> str:
    """Hash of the source files that the result of an arm may depend on."""
    sha = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        name = path.relative_to(root)
        if not any(part.startswith(APART) for part in name.parts):
            sha.update(f"{name.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return sha.hexdigest()


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
