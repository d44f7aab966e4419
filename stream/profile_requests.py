"""What goes on `profile-requests`: what a user's profile is to be written from, as of the user's last event.

`llm/offline.py` makes the same requests from a file, but that it looks after each time stamp where a worker looks after
each epoch, and that it knows the whole history and one usual price for all partitions.
"""

from __future__ import annotations

import numpy as np
import orjson

from configs.settings import Settings
from graph.rows import UserRow, action_code
from llm.request import RECORD_ITEMS
from stream.items import ItemNodes


def profile_request(
    row: UserRow, version: int, items: ItemNodes, usual_log_price: float | None, settings: Settings
) -> bytes:
    """The JSON bytes of a request: the user's latest items with counts, and what they pay of what is usual."""
    events = row.events_array()
    wanted = events[events["weight"] > 0]
    keys, counts = np.unique(wanted["item"], return_counts=True)
    last = dict(zip(events["item"].tolist(), events["t"].tolist(), strict=True))
    found = [(-last[key], items.name(key), n) for key, n in zip(keys.tolist(), counts.tolist(), strict=True)]
    names = {action_code(name): name for name in settings.actions}
    values, prices = wanted["value"][np.isfinite(wanted["value"])], wanted["price"][wanted["price"] > 0]
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
