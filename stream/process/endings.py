"""How rows end when the time to live is over, and what an epoch counts and says of it.

A user's profile ends with the row, since its versions count the row's events.
"""

from __future__ import annotations

from collections.abc import Iterator

from driftline.configs.settings import Settings
from driftline.graph.rows import Event
from driftline.llm.refresh import due_version
from driftline.stream.events.records import Changes, Outgoing
from driftline.stream.process.forget import tombstones
from driftline.stream.process.late import LateWindow
from driftline.stream.process.rows import Ended, Rows


def sweep(rows: Rows, window: LateWindow, changes: Changes) -> None:
    """Removes the rows that no event which may still be applied could find, see stream/process/ttl.py."""
    users, items = rows.sweep(window.watermark_ms - window.late_ms - rows.settings.state.ttl_ms)
    changes.users_swept += len(users)
    changes.items_swept += items
    for user_id, events in users:
        changes.outgoing += _without_profile(user_id, events, rows.settings)


def count_anew(
    ended: list[Ended], fresh: list[Event], before: dict[str, int], settings: Settings, changes: Changes
) -> None:
    """Counts the rows that fresh events started anew; what is applied again was counted before.

    Args:
        ended: see `Rows.apply`; of the fresh events and of those that were applied again.
        fresh: the events of this epoch.
        before: events of their users until now; 0 where the row was started anew.
        settings: the whole configuration.
        changes: take the counts, and take back the profiles.
    """
    first = min(event.offset for event in fresh) if ended else 0
    for event, row in ended:
        if event.offset < first:
            continue
        changes.users_anew += row is not None
        changes.items_anew += row is None
        if row is not None:
            before[event.user_id] = 0
            changes.outgoing += _without_profile(row.user_id, row.events, settings)


def _without_profile(user_id: str, events: int, settings: Settings) -> Iterator[Outgoing]:
    """What ends the profile of a user whose row ended after so many events, if one was asked for."""
    return tombstones(user_id, None) if due_version(0, events, settings.profiles) else iter(())
