"""What goes on `profile-requests`: what a user's profile is to be written from, as of the user's last event.

`llm/offline.py` makes the same requests from a file, but that it looks after each time stamp where a worker looks after
each epoch, and that it knows the whole history and one usual price for all partitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import orjson
from numpy.typing import NDArray

from driftline.configs.settings import Settings
from driftline.graph.rows import UserRow, action_code
from driftline.llm.refresh import due_version
from driftline.llm.request import RECORD_ITEMS
from driftline.stream.events.records import Outgoing
from driftline.stream.process.items import ItemNodes
from driftline.stream.process.rows import Rows


def due_requests(rows: Rows, before: Mapping[str, int]) -> Iterator[Outgoing]:
    """A request for every user for whom a profile has fallen due.

    Args:
        rows: as they are now; the users' usual prices are taken out of them.
        before: events of the users whose rows changed, from before.
    """
    settings = rows.settings
    for user_id, events in rows.users.events_of(list(before)).items():
        version = due_version(before[user_id], events, settings.profiles)
        if version and (row := rows.users.find(user_id)) is not None:
            request = profile_request(row, version, rows.items, rows.prices.at[user_id], settings)
            yield Outgoing("profile-requests", user_id.encode(), request)
    rows.prices.at.clear()


def _latest(events: NDArray[np.void]) -> list[tuple[int, int, int]]:
    """(last time, key, times wanted) of the RECORD_ITEMS items last seen, and of those as late as the last of them."""
    keys, places = np.unique(events["item"], return_inverse=True)
    counts, last_ms = np.bincount(places[events["weight"] > 0], minlength=len(keys)), np.zeros(len(keys), np.int64)
    last_ms[places] = events["t"]  # in order of time: the last one stays
    found = np.flatnonzero(counts)
    if len(found) > RECORD_ITEMS:
        found = found[last_ms[found] >= np.partition(last_ms[found], -RECORD_ITEMS)[-RECORD_ITEMS]]
    return list(zip(last_ms[found].tolist(), keys[found].tolist(), counts[found].tolist(), strict=True))


def profile_request(
    row: UserRow, version: int, items: ItemNodes, usual_log_price: float | None, settings: Settings
) -> bytes:
    """The JSON bytes of a request: the user's latest items with counts, and what they pay of what is usual."""
    events = row.events_array()
    wanted = events["weight"] > 0
    found = [(-t, items.name(key), n) for t, key, n in _latest(events)]
    names = {action_code(name): name for name in settings.actions}
    values, prices = events["value"][wanted], events["price"][wanted]
    values, prices = values[np.isfinite(values)], prices[prices > 0]
    ratio = None
    if len(prices) and usual_log_price is not None:
        ratio = round(float(np.exp(np.log(prices, dtype=np.float64).mean() - usual_log_price)), 3)
    data = {
        "user_id": row.user_id,
        "version": version,
        "as_of_ms": row.last_update_ms,
        "events": row.events,
        "domain": row.domain,
        "actions": {names[code]: n for code, n in sorted(row.actions.items()) if code in names},
        "mean_value": round(float(values.mean(dtype=np.float64)), 3) if len(values) else None,
        "price_ratio": ratio,
        "items": [{"item_id": name, "count": n, "last_ms": -t} for t, name, n in sorted(found)[:RECORD_ITEMS]],
    }
    return orjson.dumps(data)
