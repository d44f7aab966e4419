"""Sessions of a log: which groups are of one, and which of them a replay asks for under the session protocol.

A session is all groups of one user and `group_id`. Its next event is predicted from the state and from what was done in
it before, among all items but those that it holds already:

    next    every event of a session but its first
    last    the last one of each session of 2 to 20 events

What is asked for may depend on how long a session becomes; no score does, nor does a list of candidates. Sessions are
told apart by the hour of their start: figures are means over events, and over these hours.

Source: hourly windows, last click as target: de Souza Pereira Moreira et al., "Transformers4Rec", RecSys 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from driftline.configs.errors import InputError
from driftline.graph.arrays import Int64
from driftline.graph.rows import key64

if TYPE_CHECKING:
    from driftline.stream.replay.log import EventLog

Which = Literal["", "next", "last"]
PROTOCOLS: tuple[Which, ...] = ("next", "last")
LENGTHS = (2, 20)
"""Wanted events of a session whose last one is asked for: fewest, most."""
HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Sessions:
    """The session of each group of a log.

    Attributes:
        key: [g] uint64 group key, 0 = of no session.
        user_key: [g] uint64 key64 of the user's id.
        number: [g] int64 session, -1 = none.
        start_ms: [g] int64 when the session's first group came, -1 = none.
        place: [g] int64 how many groups of it came before.
    """

    key: NDArray[np.uint64]
    user_key: NDArray[np.uint64]
    number: Int64
    start_ms: Int64
    place: Int64

    @classmethod
    def of(cls, log: EventLog) -> Sessions:
        """The sessions of a log; a group with rows of several is of that of its first row."""
        n = log.groups
        key = log.group_key[log.group_rows[log.group_start[:-1]]]
        number, start_ms, place = np.full(n, -1, np.int64), np.full(n, -1, np.int64), np.zeros(n, np.int64)
        order = np.lexsort((np.arange(n), key, log.group_user))
        order = order[key[order] != 0]
        new = np.ones(len(order), np.bool_)
        new[1:] = (key[order[1:]] != key[order[:-1]]) | (log.group_user[order[1:]] != log.group_user[order[:-1]])
        found, first = np.cumsum(new) - 1, np.flatnonzero(new)
        number[order] = found
        start_ms[order] = log.group_t_ms[order[first]][found]
        place[order] = np.arange(len(order)) - first[found]
        users = np.array([key64(name) for name in log.user_ids], np.uint64)
        return cls(key, users[log.group_user], number, start_ms, place)

    def targets(self, wanted: NDArray[np.bool_], which: Which, share: float = 1.0) -> NDArray[np.bool_]:
        """Groups [g] that are asked for.

        Args:
            wanted: [g] groups with something that could be predicted.
            which: "next" or "last".
            share: of the sessions, always the same ones whatever else the log holds.

        Raises:
            InputError: nothing can be asked for.
        """
        asked = wanted & (self.place > 0)
        if not asked.any():
            raise InputError(
                "no session of the log has a second event: sessions are rows with one user_id and group_id, each at a "
                "time of its own, or in the log's order with `state: {groups: sessions}`"
            )
        if which == "last":
            mine = np.flatnonzero(wanted & (self.number >= 0))
            count = np.bincount(self.number[mine], minlength=1)
            last = np.full(len(count), -1, np.int64)
            last[self.number[mine]] = mine  # the last one of each stays
            fits = (count >= LENGTHS[0]) & (count <= LENGTHS[1])
            asked = np.zeros(len(wanted), np.bool_)
            asked[last[fits]] = True
            if not asked.any():
                raise InputError(
                    f"no session of the log has {LENGTHS[0]} to {LENGTHS[1]} wanted events, as --session last asks "
                    "for; --session next takes sessions of any length"
                )
        if share < 1:
            drawn = self.key + 3 * self.user_key  # ids of sessions may be counted anew for each user
            asked &= (drawn >> np.uint64(32)).astype(np.float64) < share * 2.0**32
        return asked
