"""A profile file from a log, ahead of a replay: the requests of a worker, answered by the configured model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from driftline.configs.settings import Settings
from driftline.llm.clients import make_client
from driftline.llm.generator import ProfileGenerator, generate_file
from driftline.llm.offline import plan, requests_of_log
from driftline.stream.events.columns import without_duplicates
from driftline.stream.events.files import read_columns, read_items
from driftline.stream.replay.inputs import catalogue_of, log_events
from driftline.stream.replay.log import EventLog

MS_PER_DAY = 86_400_000
ACTIVE_DAYS = 120
"""Requests older than this at the split wait until all others are answered."""


def write_profile_file(
    settings: Settings,
    events: Path,
    items: Path,
    out: Path,
    most: int | None,
    on_progress: Callable[[int, int], None],
    split: float = 0.7,
) -> int:
    """Writes profiles, resumable; those that are valid past `split` of the events come first.

    Args:
        on_progress: called with (profiles in the file, those that there will be).

    Returns:
        Profiles in the file.

    Raises:
        InputError: a file can't be read, or `out` was made with another model or prompt.
    """
    columns, _ = without_duplicates(read_columns(events), settings.state.dedupe_ids)
    log = EventLog(columns, settings.action)
    catalogue = catalogue_of(read_items(items))
    requests = requests_of_log(log_events(log), catalogue, settings)
    planned = plan(requests, log.split_ms(split), ACTIVE_DAYS * MS_PER_DAY)
    generator = ProfileGenerator(make_client(settings.llm), settings.profiles)
    total = min(len(planned), most or len(planned))
    return generate_file(
        planned, out, generator, settings.profiles.batch, most=most, on_progress=lambda done: on_progress(done, total)
    )
