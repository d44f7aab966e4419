"""Which code is running: stamped on snapshots and reports."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("configs", "graph", "llm", "model", "stream")
APART = ("stream/cli/", "stream/demo/", "stream/bench/", "stream/generate/") + tuple(
    f"stream/replay/{name}.py" for name in ("content", "intervals", "progress", "quality", "report", "summary")
)
"""Beginnings of paths on which no arm's result depends."""
LIBRARIES = ("numpy", "pyarrow", "scipy", "tokenizers", "torch", "torch-geometric", "transformers")
"""What an arm's result is computed with."""


@cache
def git_revision() -> str:
    """The commit of this checkout, with "+" when files differ from it; "" outside a checkout."""
    if not (ROOT / ".git").exists():  # installed in an environment, maybe within a repository of somebody else
        return ""
    try:
        head = _git(ROOT, "rev-parse", "HEAD")
        changed = _git(ROOT, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


@cache
def code_sha256(root: Path = ROOT) -> str:
    """Hash of the source files, and of the versions of libraries, that the result of an arm may depend on."""
    sha = hashlib.sha256(" ".join(version(name) for name in LIBRARIES).encode())
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(APART):
            sha.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return sha.hexdigest()


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
