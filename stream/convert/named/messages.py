"""CollegeMsg: private messages among the members of an online community at a university, 2004.

A line is `SENDER RECEIVER UNIX_SECONDS`. Senders and receivers share one space of ids: who is written to is the item.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.csv as pc

from driftline.configs.errors import InputError
from driftline.stream.convert.named.made import Made

NAME = "CollegeMsg.txt"
COLUMNS = {"sender": pa.string(), "receiver": pa.string(), "seconds": pa.int64()}


def read(source: Path) -> Made:
    """The messages of the file, or of the folder that has it.

    Raises:
        InputError: it is not there, or a line is no message.
    """
    path = source / NAME if source.is_dir() else source
    try:
        table = pc.read_csv(
            path,
            read_options=pc.ReadOptions(column_names=list(COLUMNS)),
            parse_options=pc.ParseOptions(delimiter=" "),
            convert_options=pc.ConvertOptions(column_types=COLUMNS),
        )
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: {' '.join(str(error).split()):.200}; expected {NAME}, lines of `SENDER RECEIVER UNIX_SECONDS`"
        ) from None
    events = pa.table(
        {
            "user_id": table["sender"],
            "item_id": table["receiver"],
            "timestamp_ms": compute.multiply_checked(table["seconds"], 1000),
            "action": pa.array(["message"] * len(table)),
        }
    )
    actions = {"message": {"weight": 1.0, "positive": True}}
    return Made(events, actions=actions, sections={"signals": {"one_id_space": True}, "ranker": {"text_dim": 0}})
