"""News of G1 by Globo.com, October 2017: clicks on articles by session, with device, region and referrer.

A folder of hourly CSV files, and a table of the articles where it is there. Three things to know of it. A session's
last click has no time of its own: it is always stamped 30 seconds after the one before, so that its gap would say that
the session ends. `events_drawn.parquet` holds the same clicks with a time drawn for it from the gaps between other
clicks. The size of a session, which every row has, tells the future and is left out. There are no titles.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.csv as pc

from driftline.configs.errors import InputError
from driftline.graph.arrays import Int64
from driftline.stream.convert.named.made import Made

CLICKS = "clicks_hour_*.csv"
ARTICLES = "articles_metadata.csv"
CONTEXT = {
    "device": "click_deviceGroup",
    "environment": "click_environment",
    "os": "click_os",
    "country": "click_country",
    "region": "click_region",
    "referrer": "click_referrer_type",
}
"""What is known when a click is made, by the name that it gets."""
COLUMNS = {
    name: pa.int64() for name in ("user_id", "session_id", "click_article_id", "click_timestamp", *CONTEXT.values())
}
OF_ARTICLES = {name: pa.int64() for name in ("article_id", "category_id", "created_at_ts")}
MADE_UP_MS = 30_000
"""Between the last two clicks of a session, whenever the last one was."""
LFS = b"version https://git-lfs"
DRAWN = "events_drawn.parquet"


def read(source: Path) -> Made:
    """The clicks of all hours below a folder, and its articles.

    Raises:
        InputError: there is no such file, it is a pointer of Git LFS, or something else.
    """
    hours = sorted(source.rglob(CLICKS), key=lambda path: path.name) if source.is_dir() else []
    if not hours:
        raise InputError(f"{source}: there is no {CLICKS} in it; expected a folder with these files, hour by hour")
    every = pa.concat_tables([_csv(path, COLUMNS) for path in hours])
    clicks = every.filter(
        compute.and_(compute.is_valid(every["click_timestamp"]), compute.is_valid(every["session_id"]))
    )
    t_ms = clicks["click_timestamp"].to_numpy()
    session = clicks["session_id"].to_numpy()
    names = {"user_id": "user_id", "item_id": "click_article_id", "group_id": "session_id"}
    table = {name: clicks[column].cast(pa.string()) for name, column in names.items()}
    table |= {"timestamp_ms": clicks["click_timestamp"], "action": pa.array(["click"] * len(clicks))}
    events = pa.table(table | {name: clicks[column].cast(pa.string()) for name, column in CONTEXT.items()})
    drawn, ends = drawn_times(session, t_ms)
    place = events.column_names.index("timestamp_ms")
    others = {DRAWN: events.set_column(place, "timestamp_ms", pa.array(drawn))}
    notes = [
        f"{ends:,} sessions end with a click stamped {MADE_UP_MS // 1000} s after the one before; {DRAWN} has drawn "
        "times for these: report both",
        "articles have no titles: a replay needs no items file but for their categories",
    ]
    if lost := len(every) - len(clicks):
        notes.append(f"{lost:,} of {len(every):,} clicks have no time or no session and are left out")
    sections = {"signals": {"context": list(CONTEXT)}}
    return Made(events, _articles(source), notes, preset="news", others=others, sections=sections)


def drawn_times(session: Int64, t_ms: Int64) -> tuple[Int64, int]:
    """Times [n] with another one for a session's last click where its own is made up, and how many these are.

    Args:
        session: [n] ids; t_ms: [n] times. A session may lie in several places.

    Which gap it gets depends on the session's id alone: any order of the files gives the same times.
    """
    order = np.lexsort((t_ms, session))
    same = session[order[1:]] == session[order[:-1]]
    ends = np.ones(len(order), np.bool_)
    ends[:-1] = ~same
    gap = np.diff(t_ms[order])
    made_up = np.flatnonzero(ends[1:] & same & (gap == MADE_UP_MS)) + 1
    real = np.sort(gap[same & ~ends[1:]])
    drawn = t_ms.copy()
    if len(real) and len(made_up):
        last = order[made_up]
        mixed = session[last].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # its high bits are as good as random
        at = (mixed >> np.uint64(32)).astype(np.float64) / 2.0**32
        drawn[last] = t_ms[order[made_up - 1]] + real[(at * len(real)).astype(np.int64)]
    return drawn, len(made_up)


def _articles(source: Path) -> pa.Table | None:
    """Categories and the time of publishing, from all tables of articles below a folder; None where there is none."""
    parts = [_csv(path, OF_ARTICLES) for path in sorted(source.rglob(ARTICLES))]
    if not parts:
        return None
    table = pa.concat_tables(parts)
    _, first = np.unique(table["article_id"].to_numpy(), return_index=True)
    table = table.take(pa.array(first))
    return pa.table(
        {
            "item_id": table["article_id"].cast(pa.string()),
            "categories": pa.array([[str(one)] for one in table["category_id"].to_pylist()], pa.list_(pa.string())),
            "valid_from_ms": table["created_at_ts"],
        }
    )


def _csv(path: Path, columns: dict[str, pa.DataType]) -> pa.Table:
    try:
        with path.open("rb") as file:
            if file.read(len(LFS)) == LFS:
                raise InputError(
                    f"{path} is a pointer of Git LFS and not the file that it stands for: run `git lfs pull` in its "
                    "repository, or take the data set from where its owner offers it"
                )
        options = pc.ConvertOptions(column_types=columns, include_columns=list(columns))
        return pc.read_csv(path, convert_options=options)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise InputError(
            f"{path}: {' '.join(str(error).split()):.200}; expected CSV with the columns {', '.join(columns)}"
        ) from None
