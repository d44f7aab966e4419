"""Which code is running: the commit of a checkout, nothing for an installed package."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from driftline.llm.fetch import models_root
from driftline.stream.ops import revision


@pytest.fixture
def fresh() -> None:
    revision.git_revision.cache_clear()


def test_a_package_within_a_repository_of_somebody_else_does_not_carry_its_commit(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(revision.git_revision.cache_clear)
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*names, "commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    packages = tmp_path / "venv" / "site-packages" / "driftline"
    packages.mkdir(parents=True)
    monkeypatch.setattr(revision, "ROOT", packages)
    assert revision.git_revision() == ""
    revision.git_revision.cache_clear()
    monkeypatch.setattr(revision, "ROOT", tmp_path)
    assert len(revision.git_revision()) == 40


def test_models_of_an_installed_package_lie_in_the_cache_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from driftline.llm import fetch

    monkeypatch.delenv("DRIFTLINE_MODELS", raising=False)
    assert models_root() == revision.ROOT / ".cache" / "models"
    monkeypatch.setattr(fetch, "__file__", str(tmp_path / "driftline" / "llm" / "fetch.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert models_root() == tmp_path / "cache" / "driftline" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert models_root() == Path.home() / ".cache" / "driftline" / "models"
    monkeypatch.setenv("DRIFTLINE_MODELS", str(tmp_path))
    assert models_root() == tmp_path
