"""Writes the lock files: exact versions of what is installed, and the hash of every file that the index has of them.

    requirements.lock        what driftline runs with, but for torch
    requirements-dev.lock    what tests and linters need beside it
    requirements-torch.lock  torch alone, without hashes
    tools/requirements.lock  uv and pip-audit, in an environment of their own

What pyproject.toml names and is not installed yet is installed first; nothing is upgraded. uv knows the hashes from the
index without downloading. Packages that only another version of Python needs are not found from this one.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
OURS = {"driftline", "driftline-client"}
CUDA = ("nvidia-", "cuda-", "triton")
"""What PyPI's torch brings on Linux and the CPU build does not: it comes with torch, where it is wanted."""
BUILD = "setuptools"
"""Builds the two packages of this repository."""
HASHED = "`make setup` installs from here and checks the hash of each file; `make lock` writes it."
HEADS = {
    "requirements.lock": f"# What driftline runs with, in exact versions. {HASHED}\n",
    "requirements-dev.lock": f"# What tests and linters need beside requirements.lock. {HASHED}\n",
    "requirements-torch.lock": (
        "# torch, without hashes: which of its wheels is right depends on the machine. PyPI's brings CUDA packages of\n"
        "# several GB on Linux; PyTorch's CPU index has other files of the same version for each Python and platform\n"
        "# (README.md, Install). `make lock` writes it.\n"
    ),
    "tools/requirements.lock": f"# What writes the locks and audits them. {HASHED.replace('setup', 'audit')}\n",
}


def main() -> None:
    """Writes all four files, or none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    run = [Requirement(line) for line in project["dependencies"]]
    develop = [Requirement(line) for line in project["optional-dependencies"]["dev"]]
    _install_missing([*run, *develop])
    running = set(closure([*run, Requirement(BUILD)])) - OURS - {"torch"}
    others = set(closure(develop)) - running - OURS - {"torch"}
    torch = distribution("torch").version.partition("+")[0]
    texts = {
        "requirements.lock": hashed(pins(running), "--no-deps"),
        "requirements-dev.lock": hashed(pins(others), "--no-deps"),
        "requirements-torch.lock": f"torch=={torch}\n",
        "tools/requirements.lock": hashed("uv\npip-audit\n", "--universal"),
    }
    for name, text in texts.items():
        (ROOT / name).write_text(HEADS[name] + text, "utf-8")


def closure(requirements: Iterable[Requirement]) -> Iterator[str]:
    """Normal names of what some requirements need on this machine, themselves included.

    Raises:
        PackageNotFoundError: one of them is not installed.
    """
    waiting, seen = list(requirements), set()
    while waiting:
        requirement = waiting.pop()
        name = normal(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            yield name
            if name in OURS:
                continue
            found = (Requirement(line) for line in distribution(name).requires or ())
            needed = [one for one in found if one.marker is None or one.marker.evaluate({"extra": extra})]
            waiting += [one for one in needed if not normal(one.name).startswith(CUDA)]
    if OURS & {name for name, _ in seen}:
        client = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text("utf-8"))["project"]
        yield from closure([Requirement(line) for line in client["dependencies"]])


def pins(names: Iterable[str]) -> str:
    """One line for each package."""
    return "".join(f"{name}=={distribution(name).version.partition('+')[0]}\n" for name in sorted(names))


def hashed(requirements: str, *options: str) -> str:
    """The same with hashes, as uv finds them in the index."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    command = ["uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--python-version", version, *options, "-"]
    done = subprocess.run(command, input=requirements, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"uv can't lock: {done.stderr.strip()[-500:]}")
    return done.stdout


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _install_missing(requirements: Iterable[Requirement]) -> None:
    missing = [str(one) for one in requirements if normal(one.name) not in OURS and not _is_met(one)]
    if missing:
        print("installing", *missing, file=sys.stderr)
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)


def _is_met(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(distribution(requirement.name).version, prereleases=True)
    except PackageNotFoundError:
        return False


if __name__ == "__main__":
    main()
