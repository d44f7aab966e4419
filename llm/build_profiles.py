"""Makes the profile file that ships with the bundled shop: `python -m driftline.llm.build_profiles`.

Resumable: a run that was cut off, or ended by --minutes, goes on where it stopped. Reads Parquet in the event and item
schema; `driftline profiler --events F --out FILE` does the same for any file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from driftline.configs.errors import DriftlineError
from driftline.configs.load import load_settings
from driftline.llm.clients import make_client
from driftline.llm.generator import ProfileGenerator, generate_file, pack
from driftline.llm.offline import LogEvent, plan, requests_of_log
from driftline.llm.request import CatalogueItem

BUNDLED = Path(__file__).resolve().parents[1] / "stream" / "bundled"
SHIPPED = Path(__file__).resolve().parents[1] / "configs" / "profiles" / "online_retail.jsonl.gz"
MS_PER_DAY = 86_400_000


def main(
    events: Annotated[Path, typer.Option(help="Parquet in the event schema, in order of time")] = BUNDLED
    / "events.parquet",
    items: Annotated[Path, typer.Option(help="Parquet in the item schema")] = BUNDLED / "items.parquet",
    out: Annotated[Path, typer.Option(help="profile file, .jsonl or .jsonl.gz")] = SHIPPED,
    config: Annotated[str, typer.Option(help="preset or YAML file of the settings")] = "ecommerce",
    most: Annotated[int, typer.Option(help="profiles in the file at most")] = 10_000,
    minutes: Annotated[float, typer.Option(help="wall time of this run at most")] = 55.0,
    share: Annotated[float, typer.Option(help="profiles valid past this share of the events come first")] = 0.7,
    active_days: Annotated[float, typer.Option(help="older requests than this wait until last")] = 120.0,
    pack_minutes: Annotated[float, typer.Option(help="pack what is there this often")] = 10.0,
) -> None:
    """Writes profiles of a log with the configured model."""
    console = Console(stderr=True)
    settings = load_settings(config)
    rows = pq.read_table(events, columns=list(LogEvent._fields))
    times = rows["timestamp_ms"].to_numpy()
    from_ms = int(times[min(int(share * len(times)), len(times) - 1)])
    catalogue = {
        row["item_id"]: CatalogueItem(row["title"]) for row in pq.read_table(items).to_pylist() if row["title"]
    }
    requests = plan(requests_of_log(_events(rows), catalogue, settings), from_ms, int(active_days * MS_PER_DAY))
    generator = ProfileGenerator(make_client(settings.llm), settings.profiles)
    end = time.monotonic() + 60 * minutes
    plain = out.with_suffix("") if out.suffix == ".gz" else out
    packed_at = started = time.monotonic()
    columns = (TextColumn("profiles"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("profiles", total=min(len(requests), most))

        def on_progress(done: int) -> None:
            nonlocal packed_at
            progress.update(task, completed=done)
            if plain != out and time.monotonic() - packed_at > 60 * pack_minutes:
                pack(plain, out)
                packed_at = time.monotonic()

        done = generate_file(
            requests,
            out,
            generator,
            settings.profiles.batch,
            most=most,
            on_progress=on_progress,
            stop=lambda: time.monotonic() > end,
        )
    rate = generator.counts["profiles"] / max(time.monotonic() - started, 1e-9)
    console.print(f"{done} of {len(requests)} requests have a profile in {out}; {rate:.2f} profiles/s in this run")
    console.print(dict(generator.counts))


def _events(rows: object) -> Iterator[LogEvent]:
    for batch in rows.to_batches():  # type: ignore[attr-defined]
        yield from map(LogEvent._make, zip(*(batch[name].to_pylist() for name in LogEvent._fields), strict=True))


if __name__ == "__main__":
    try:
        typer.run(main)
    except DriftlineError as error:
        Console(stderr=True).print(str(error), style="red")
        raise SystemExit(error.exit_code) from None
