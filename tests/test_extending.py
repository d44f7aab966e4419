"""docs/extending.md: its part keeps the contract, is found as an installed package's, and runs through the commands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
BUNDLED = ROOT / "stream" / "bundled"


def block(language, start):
    """The fenced block of the page that begins so."""
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return next(text for text in found if text.startswith(start))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the page's files as they are installed, its test beside, and the environment that finds it."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "hours.py").write_text(block("python", '"""What is taken'))
    (source / "test_hours.py").write_text(block("python", "from driftline.stream.learn.contracts"))
    (source / "pyproject.toml").write_text(block("toml", "[project]"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", folder]
    subprocess.run([*pip, source], check=True, timeout=300)
    shutil.copy(source / "test_hours.py", folder)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return folder, os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def run(installed, *words):
    folder, environment = installed
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_part_takes_about_fifty_lines():
    lines = [line for line in block("python", '"""What is taken').splitlines() if line.strip()]
    assert len(lines) <= 50


@pytest.mark.slow
def test_the_test_of_the_page_passes(installed):
    done = run(installed, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_hours.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.slow
def test_the_part_is_an_arm_of_a_replay_and_its_placebo_too(installed, tmp_path):
    driftline = str(Path(sys.executable).with_name("driftline"))
    arms = "incremental,incremental+hours,incremental:hours=on,incremental:hours=placebo,ranker+hours"
    words = ["--events", BUNDLED / "events.parquet", "--items", BUNDLED / "items.parquet", "--limit", "900"]
    more = ["--arms", arms, "--no-audit", "--split", "0.6", "--out", tmp_path / "out", "--json"]
    done = run(installed, driftline, "replay", *map(str, words + more))
    assert done.returncode == 0, done.stderr
    found = orjson.loads(done.stdout)["arms"]
    on, short = found["incremental:hours=on"], found["incremental+hours"]
    assert on["overall"] == short["overall"]
    assert "hours" in on["cost"]
    assert "hours" not in found["incremental"]["cost"]
    placebo, whole = found["incremental:hours=placebo"]["overall"], found["incremental"]["overall"]
    assert on["overall"]["ndcg@10"] not in (placebo["ndcg@10"], whole["ndcg@10"])


def test_a_part_that_is_switched_on_and_not_installed_is_refused_with_its_name():
    driftline = str(Path(sys.executable).with_name("driftline"))
    environment = os.environ | {"DRIFTLINE__SYSTEMS__HOURS": "on"}
    done = subprocess.run(
        [driftline, "config", "validate"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 64
    assert "systems.hours: got a system that is not known here" in done.stdout + done.stderr
