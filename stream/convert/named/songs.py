"""30Music, a tenth of its sessions: songs that people listened to over a year, by session.

Three things to know of it. Ids of songs follow each other in an album, so they are hashed: nothing may learn from them,
and no tie is broken by them. Times within a session are its start and the seconds played so far, so a skip shows in
`playtime` alone. There are no titles.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from driftline.stream.convert.named.made import Made, hashed, opened

NAMES = ("sessions_sample_10.parquet.snappy", "sessions.parquet.snappy")
COLUMNS = ("session_id", "user_id", "song_id", "ts", "playtime")


def read(source: Path) -> Made:
    """The plays of the file, or of the folder that has it.

    Raises:
        InputError: it is not there, or is something else.
    """
    table = opened(source, NAMES, "plays of 30Music", COLUMNS)
    songs = table["song_id"].combine_chunks().dictionary_encode()
    names = pa.array([hashed(str(song)) for song in songs.dictionary.to_pylist()])
    events = pa.table(
        {
            "user_id": table["user_id"].cast(pa.string()),
            "item_id": names.take(songs.indices),
            "timestamp_ms": pc.multiply_checked(table["ts"].cast(pa.int64()), 1000),
            "action": pa.array(["play"] * len(table)),
            "value": table["playtime"].cast(pa.float64()),
            "group_id": table["session_id"].cast(pa.string()),
        }
    )
    return Made(events, preset="sessions", notes=["a play of less than 30 seconds counts as not wanted"])
