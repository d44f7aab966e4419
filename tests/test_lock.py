"""The locks are whole and hashed, and an audit that looked nothing up does not pass for one that found nothing."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
HASHED = ("requirements.lock", "requirements-dev.lock", "tools/requirements.lock")
LOCK, AUDIT = (runpy.run_path(str(ROOT / "tools" / f"{name}.py")) for name in ("lock", "audit"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def entries(name):
    """The requirements of a lock with their options."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text("utf-8"), flags=re.MULTILINE).replace("\\\n", "")
    return [line.split() for line in text.splitlines() if line.strip()]


def pinned(*names):
    return {LOCK["normal"](pin.split("==")[0]): pin.split("==")[1] for name in names for pin, *_ in entries(name)}


@pytest.mark.parametrize("name", HASHED)
def test_every_line_of_a_lock_is_one_version_with_the_hashes_of_its_files(name):
    assert len(entries(name)) > 20
    for pin, *options in entries(name):
        assert re.fullmatch(r"[a-z0-9.-]+==[0-9][^\s;]*", pin), pin
        hashes = [option for option in options if option.startswith("--hash=")]
        assert hashes, pin
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), pin
    assert "://" not in (ROOT / name).read_text("utf-8")


def test_torch_alone_is_locked_without_hashes():
    assert [pin for pin, *_ in entries("requirements-torch.lock")] == [
        f"torch=={pinned('requirements-torch.lock')['torch']}"
    ]
    assert "torch" not in pinned(*HASHED)


def test_what_pyproject_names_is_locked_in_a_version_that_it_allows():
    run = pinned("requirements.lock", "requirements-torch.lock")
    everything = run | pinned("requirements-dev.lock")
    for lines, locked in ((PROJECT["dependencies"], run), (PROJECT["optional-dependencies"]["dev"], everything)):
        for requirement in map(Requirement, lines):
            name = LOCK["normal"](requirement.name)
            if name not in LOCK["OURS"]:
                assert name in locked, f"{name} is not locked: run make lock"
                assert requirement.specifier.contains(locked[name], prereleases=True), f"{requirement}: run make lock"


def test_what_the_locked_packages_need_is_locked():
    run = [Requirement(line) for line in PROJECT["dependencies"]]
    develop = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
    locked = set(pinned("requirements.lock", "requirements-torch.lock"))
    assert set(LOCK["closure"](run)) - LOCK["OURS"] <= locked
    assert set(LOCK["closure"](develop)) - LOCK["OURS"] <= locked | set(pinned("requirements-dev.lock"))
    assert not locked & set(pinned("requirements-dev.lock"))


def one(name, flaws=(), **more):
    return {"name": name, "version": "1", "vulns": [{"id": flaw, "fix_versions": ["2"]} for flaw in flaws], **more}


@pytest.mark.parametrize(
    ("found", "code", "words"),
    [
        (None, 0, "SKIPPED, nothing was audited: why"),
        ({"dependencies": [one("a", skip_reason="not found")]}, 0, "SKIPPED, nothing was audited: no server"),
        ({"dependencies": []}, 0, "SKIPPED, nothing was audited"),
        ({"dependencies": [one("a"), one("b")]}, 0, "audit: 2 packages looked up, 0 known vulnerabilities"),
        ({"dependencies": [one("a"), one("b", skip_reason="not found")]}, 0, "1 packages looked up.*NOT audited: b"),
        ({"dependencies": [one("a", ["CVE-1"]), one("b")]}, 1, "1 known vulnerabilities\n  a 1: CVE-1, mended in 2"),
    ],
)
def test_an_audit_says_what_it_looked_up(found, code, words):
    text, got = AUDIT["verdict"](found, "why")
    assert got == code
    assert re.search(words, text, re.DOTALL)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/sh\necho 'ConnectionError: no route' >&2; exit 1\n", "nothing was audited: ConnectionError: no route"),
        ("#!/bin/sh\nexit 0\n", "nothing was audited: pip-audit said nothing"),
        (None, "nothing was audited: pip-audit could not be installed"),
    ],
)
def test_an_audit_that_could_not_run_says_that_it_was_skipped(tmp_path, capsys, script, words):
    tool = tmp_path / "pip-audit"
    if script:
        tool.write_text(script)
        tool.chmod(0o755)
    assert AUDIT["main"](str(tool)) == 0
    assert words in capsys.readouterr().err
