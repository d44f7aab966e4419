"""What goes on `profile-requests`: what a user's profile is to be written from, as of the user's last event."""

from __future__ import annotations

import numpy as np
import orjson

from configs.settings import Settings
from graph.rows import UserRow, action_code
from stream.items import ItemNodes


def profile_request(row: UserRow, version: int, items: ItemNodes, settings: Settings) -> bytes:
    """The JSON bytes of a request: the user's latest items with counts."""
    events = row.events_array()
    keys, counts = np.unique(events["item"][events["weight"] > 0], return_counts=True)
    last = dict(zip(events["item"].tolist(), events["t"].tolist(), strict=True))
    ranked = sorted(zip(keys.tolist(), counts.tolist(), strict=True), key=lambda kn: (-last[kn[0]], kn[0]))
    names = {action_code(name): name for name in settings.actions}
    most = settings.profiles.titles
    values = events["value"][np.isfinite(events["value"])]
    data = {
        "user_id": row.user_id,
        "version": version,
        "as_of_ms": row.last_update_ms,
        "events": row.events,
        "domain": row.domain,
        "actions": {names[code]: n for code, n in sorted(row.actions.items()) if code in names},
        "mean_value": float(values.mean()) if len(values) else None,
        "items": [{"item_id": items.name(key), "count": n, "last_ms": last[key]} for key, n in ranked[:most]],
    }
    return orjson.dumps(data)
