"""The environment of the peers: a virtual environment of its own beside the models, with locked packages.

What the peers need never enters the engine's: RecTools wants numpy below 2. Torch is not in the lock, as it is not in
that of the engine, whose version it has: pip takes the build that it is set up for.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from driftline.configs.errors import DriftlineError, InputError
from driftline.llm.fetch import models_root

LOCK = Path(__file__).with_name("requirements.lock")
STAMP = "driftline.sha256"
"""Written last; names the lock and the torch that were installed."""
NEWEST = (3, 12)
"""The newest Python for which numpy below 2, which RecTools wants, is built."""


def peers_root() -> Path:
    """The folder of the environment: `peers` beside the folder of the models."""
    return models_root().with_name("peers")


def python_of_peers(arm: str) -> Path:
    """The interpreter of the environment.

    Raises:
        InputError: it was not made, or for other versions.
    """
    root = peers_root()
    stamp = root / STAMP
    if not stamp.is_file():
        what = f"there is none in {root}"
    elif stamp.read_text("utf-8") != _wanted():
        what = f"that in {root} has packages of another version"
    else:
        return root / "bin" / "python"
    raise InputError(
        f"arm {arm!r} runs in an environment of its own, and {what}; make it once with `driftline peers setup`"
    )


def set_up(say: Callable[[str], None]) -> Path:
    """Makes the environment, or mends it; nothing to do where it is as it should be.

    Args:
        say: gets a line on each step.

    Returns:
        Its folder.

    Raises:
        InputError: this Python is too new.
        DriftlineError: a step failed.
    """
    if sys.version_info[:2] > NEWEST:
        raise InputError(
            f"the peers' packages are built for Python up to {NEWEST[0]}.{NEWEST[1]}, this is "
            f"{sys.version.split()[0]}; run `driftline peers setup` from an installation on an older one"
        )
    root = peers_root()
    stamp = root / STAMP
    if stamp.is_file() and stamp.read_text("utf-8") == _wanted():
        return root
    stamp.unlink(missing_ok=True)
    pip = [str(root / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    for step, command in (
        (f"virtual environment in {root}", [sys.executable, "-m", "venv", "--clear", str(root)]),
        ("locked packages", [*pip, "--no-deps", "--require-hashes", "--requirement", str(LOCK)]),
        (f"torch {_torch()}", [*pip, f"torch=={_torch()}"]),
    ):
        say(step)
        if code := subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise DriftlineError(
                f"{step}: exit code {code}; mend what is said above and repeat `driftline peers setup`"
            )
    stamp.write_text(_wanted(), "utf-8")
    return root


def _torch() -> str:
    return version("torch").partition("+")[0]


def _wanted() -> str:
    return hashlib.sha256(LOCK.read_bytes() + _torch().encode()).hexdigest()
