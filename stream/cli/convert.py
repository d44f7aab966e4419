"""`driftline convert`: public data sets and git repositories to files in the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from driftline.stream.cli.common import AsJson, err, out, print_json, when


def register(app: typer.Typer) -> None:
    """Adds the command of this file."""
    app.command()(convert)


def convert(
    name: Annotated[str, typer.Argument(metavar="NAME", help="games, songs, news, messages or git.")],
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The file or folder as it was downloaded.")],
    to: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for events.parquet, items.parquet, driftline.yaml.")
    ],
    as_json: AsJson = False,
) -> None:
    """Convert a public data set that is known by name, or a git repository, to the schema.

    Example: `driftline convert git . out/repository`
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from driftline.configs.errors import InputError
    from driftline.stream.convert.named import checked, converter, write_made

    known = converter(name)
    try:
        made = checked(known.read(source))
    except InputError as error:
        raise InputError(f"{error}. SRC of {name}: {known.source}") from None
    except (pa.ArrowException, ArithmeticError, ValueError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{source}: can't be read as {name}: {why:.200}. SRC of {name}: {known.source}") from None
    files = write_made(made, to)
    times = pq.read_table(files[0], columns=["timestamp_ms"])["timestamp_ms"]
    items = 0 if made.items is None else len(made.items)
    if as_json:
        print_json(
            {"events": len(times), "items": items, "notes": list(made.notes), "licence": known.licence,
             "files": [str(path) for path in files]}
        )  # fmt: skip
        return
    for note in made.notes:
        err.print(f"note: {note}", soft_wrap=True)
    span = f"{when(times[0].as_py())} to {when(times[-1].as_py())}"
    out.print(f"{len(times):,} events, {span}; {items:,} items; licence: {known.licence}", soft_wrap=True)
    out.print(", ".join(str(path) for path in files), soft_wrap=True)
