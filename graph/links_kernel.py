"""What is counted of a link between a user and each candidate, as columns of the graph's joint score: compiled.

Everything that is compiled into a function stands in this file. Dimension keys: N items, R ring, m touches of the user,
r events on the user's own node, c candidates, F columns, C facts of the user.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Float32, Int32, Int64, UInt64
from driftline.graph.compiled import compiled, inlined

Float64 = NDArray[np.float64]

HALF_LIVES_MS = (3_600_000.0, 86_400_000.0, 7 * 86_400_000.0, 30 * 86_400_000.0)
"""An hour, a day, a week, a month: a stream has some of them."""
H = len(HALF_LIVES_MS)
OWN = ("own", "own_age", "own_count", "own_rank", "own_newest", "own_share", "own_passed", "others_since",
       "others_none", "holds", "of_ring", "own_1h", "own_1d", "own_7d", "own_30d")  # fmt: skip
REPLY = ("came", "came_age", "came_count", "came_rank", "came_newest", "came_passed", "open", "open_count", "open_rank",
         "open_first", "unmet", "unmet_rank", "came_1h", "came_1d", "came_7d", "came_30d")  # fmt: skip
ITEM = ("idle", "count", "first", "once", "new_share", "acts", "acts_age", "acts_count", "acts_new_share",
        "pop_1h", "pop_1d", "pop_7d", "pop_30d")  # fmt: skip
PATH = ("together", "together_any", "beyond", "beyond_any", "itself", "dot")
COLUMNS = (*OWN, *REPLY, *ITEM, *PATH)
"""Own events with an item; what came from it to the user; the item by itself; ways over others; what memories say.

A column is 0 where there is nothing to say. Ages are 1 now and fall with the logarithm of the time. `passed` = events
of the user since; `open` = it came after the user's last event with it; `unmet` = the user never had one.
"""
FACTS = ("one", "events", "idle", "came_idle", "distinct", "came", "new", "came_distinct", "open", "asked", "met_share",
         "open_unmet", "unmet_age", "new_lately", "same_lately", "answers_lately", "gap")  # fmt: skip
"""Of the user: same for all candidates. `lately` = of the last LATELY events."""
LATELY = 16
_O, _R, _I, _P = 0, len(OWN), len(OWN) + len(REPLY), len(OWN) + len(REPLY) + len(ITEM)
DOT = len(COLUMNS) - 1
_H0, _H1, _H2, _H3 = HALF_LIVES_MS
_LONGEST = math.log1p(3 * 365 * 86_400.0)
_NEVER = -(1 << 62)
_CONTACTS = 40

_I32, _I64, _U64, _F32, _F64 = "int32[::1]", "int64[::1]", "uint64[::1]", "float32[::1]", "float64[::1]"


@inlined
def _fresh(age_ms: Any) -> np.float32:
    """1 now, 0 after three years."""
    return np.float32(max(1 - math.log1p(max(age_ms, 0.0) / 1000) / _LONGEST, 0.0))


@inlined
def _log(count: float, scale: float) -> np.float32:
    return np.float32(math.log1p(count) / scale)


@inlined
def _fade(age_ms: Any, sums: Float32) -> None:
    """Adds an event of an age to its sums [H]."""
    age = max(age_ms, 0.0)
    sums[0] += np.float32(2.0 ** (-age / _H0))
    sums[1] += np.float32(2.0 ** (-age / _H1))
    sums[2] += np.float32(2.0 ** (-age / _H2))
    sums[3] += np.float32(2.0 ** (-age / _H3))


@compiled(
    f"void({_I32}, int64, int32, uint64, {_I32}, {_I64}, {_I32}, {_I64}, uint64[:, ::1], int32[:, ::1], int64[:, ::1], "
    + f"{_I64}, " * 6
    + f"float64[:, ::1], {_F64}, {_I32}, {_F32}, {_I32}, {_F32}, float32[:, ::1], {_F32})"
)
def link_columns(
    candidates: Int32, now_ms: int, node: int, user: Any, items: Int32, t_ms: Int64, senders: Int32, sent_ms: Int64,
    ring_key: UInt64, ring_item: Int32, ring_ms: Int64, count: Int64, takers: Int64, first_ms: Int64,
    acted_ms: Int64, acted: Int64, acted_new: Int64, popular: Float64, fade: Float64,
    together: Int32, together_score: Float32, slot: Int32, path: Float32, out: Float32, facts: Float32,
) -> None:  # fmt: skip
    """Fills the columns of some candidates.

    Args:
        candidates: [c] int32 distinct items below N; now_ms: the request time.
        node: the item that the user is itself, -1 = none; user: key64 of the user.
        items, t_ms: [m] the user's touches, oldest first.
        senders, sent_ms: [r] who touched the user's own node and when, newest first; -1 = is no item.
        ring_key, ring_item, ring_ms: [N, R] last touches of an item: key64 of the user, the item that it is or -1.
        count, takers: [N] touches of an item, by how many users; the newest is at (count - 1) % R of its ring.
        first_ms: [N] its first touch.
        acted_ms, acted, acted_new: [N] last time, number, number of first touches by the item, as a user.
        popular: [N, H] float64 decayed touches; fade: [H] what they are to be multiplied with.
        together, together_score: [p] items that occur together with the user's, and how much.
        slot: [N] scratch, all -1 before and after; path: [N] scratch, all 0 before and after.
        out: [c, F] takes the columns; facts: [C] those of the user.
    """
    m, r, ring, c = len(items), len(senders), ring_key.shape[1], len(candidates)
    # 1. the user's own touches, newest first: each item once
    own, last, times = np.empty(m, np.int32), np.empty(m, np.int64), np.zeros(m, np.float32)
    passed, sums = np.empty(m, np.int64), np.zeros((m, H), np.float32)
    k = 0
    for j in range(m - 1, -1, -1):
        s = slot[items[j]]
        if s < 0:
            s, k = k, k + 1
            slot[items[j]], own[s], last[s], passed[s] = s, items[j], t_ms[j], m - 1 - j
        times[s] += 1
        _fade(now_ms - t_ms[j], sums[s])
    # 2. what came to the user, newest first: each sender once
    who, came, came_times = np.empty(r, np.int32), np.empty(r, np.int64), np.zeros(r, np.float32)
    since, met, came_sums = np.zeros(r, np.float32), np.zeros(r, np.bool_), np.zeros((r, H), np.float32)
    came_passed = np.zeros(r, np.int64)
    q = 0
    for j in range(r):
        if senders[j] < 0:
            continue
        s = -1
        for z in range(q):
            if who[z] == senders[j]:
                s = z
                break
        if s < 0:
            s, q = q, q + 1
            who[s], came[s], met[s] = senders[j], sent_ms[j], slot[senders[j]] >= 0
            z = m
            while z > 0 and t_ms[z - 1] >= sent_ms[j]:
                z -= 1
            came_passed[s] = m - z
        came_times[s] += 1
        since[s] += not met[s] or sent_ms[j] > last[slot[senders[j]]]
        _fade(now_ms - sent_ms[j], came_sums[s])
    newest = last[0] if k else np.int64(_NEVER)
    # 3. items beyond the items of the user: those that touched them last, which are items themselves
    if node >= 0:
        for s in range(min(k, _CONTACTS)):
            weight = np.float32(2.0 ** (-max(now_ms - last[s], 0) / _H2))
            for z in range(min(count[own[s]], ring)):
                if ring_item[own[s], z] >= 0:
                    age = now_ms - ring_ms[own[s], z]
                    path[ring_item[own[s], z]] += weight * np.float32(2.0 ** (-age / _H2))
    # 4. columns of the candidates: own and item
    for n in range(c):
        x, i = out[n], candidates[n]
        x[:] = 0
        s = slot[i]
        if s >= 0:
            x[_O], x[_O + 1], x[_O + 2] = 1, _fresh(now_ms - last[s]), _log(times[s], 5)
            x[_O + 3], x[_O + 4] = np.float32(1 / (1 + s)), s == 0
            x[_O + 5], x[_O + 6] = times[s] / m, _log(passed[s], 5)
            held, between, mine, found = min(count[i], ring), 0, 0, False
            for z in range(held):
                if ring_key[i, (count[i] - 1 - z) % ring] == user:
                    mine, found = mine + 1, True
                elif not found:
                    between += 1
            x[_O + 7], x[_O + 8] = _log(between, 4), np.float32(1 / (1 + between))
            x[_O + 9], x[_O + 10] = found and between == 0, np.float32(mine / max(held, 1))
            for h in range(H):
                x[_O + 11 + h] = _log(sums[s, h], 1)
        newest_ms = ring_ms[i, (count[i] - 1) % ring] if count[i] else np.int64(_NEVER)
        if count[i]:
            x[_I], x[_I + 1] = _fresh(now_ms - newest_ms), _log(count[i], 8)
            x[_I + 2], x[_I + 3] = _fresh(now_ms - first_ms[i]), count[i] == 1
            x[_I + 4] = np.float32(takers[i] / count[i])
        if acted[i]:
            x[_I + 5], x[_I + 6], x[_I + 7] = 1, _fresh(now_ms - acted_ms[i]), _log(acted[i], 8)
            x[_I + 8] = np.float32(acted_new[i] / acted[i])
        for h in range(H):
            x[_I + 9 + h] = np.float32(math.log(1e-3 + popular[i, h] * fade[h]) / 5)
        if path[i] > 0:
            x[_P + 2], x[_P + 3] = _log(10 * path[i], 3), 1
        x[_P + 4] = i == node
    for s in range(k):
        slot[own[s]] = -1
    if node >= 0:
        for s in range(min(k, _CONTACTS)):
            for z in range(min(count[own[s]], ring)):
                if ring_item[own[s], z] >= 0:
                    path[ring_item[own[s], z]] = 0
    # 5. replies
    open_, unmet = np.zeros(q, np.int64), np.zeros(q, np.int64)  # how many open or unmet ones came later
    opened = nobody = 0
    for s in range(q):
        slot[who[s]], open_[s], unmet[s] = s, opened, nobody
        opened += since[s] > 0
        nobody += not met[s]
    for n in range(c):
        x, s = out[n], slot[candidates[n]]
        if s >= 0:
            x[_R], x[_R + 1], x[_R + 2] = 1, _fresh(now_ms - came[s]), _log(came_times[s], 3)
            x[_R + 3], x[_R + 4], x[_R + 5] = np.float32(1 / (1 + s)), s == 0, _log(came_passed[s], 5)
            if since[s] > 0:
                x[_R + 6], x[_R + 7], x[_R + 8] = 1, _log(since[s], 2), np.float32(1 / (1 + open_[s]))
            x[_R + 9] = s == 0 and came[s] > newest
            if not met[s]:
                x[_R + 10], x[_R + 11] = 1, np.float32(1 / (1 + unmet[s]))
            for h in range(H):
                x[_R + 12 + h] = _log(came_sums[s, h], 1)
    for s in range(q):
        slot[who[s]] = -1
    # 6. what occurs together
    for s in range(len(together)):
        slot[together[s]] = s
    for n in range(c):
        s = slot[candidates[n]]
        if s >= 0:
            out[n, _P], out[n, _P + 1] = _log(10 * together_score[s], 2), 1
    for s in range(len(together)):
        slot[together[s]] = -1
    # 7. the user
    facts[0], facts[1] = 1, _log(m, 8)
    facts[2] = _fresh(now_ms - t_ms[m - 1]) if m else np.float32(0)
    facts[3] = _fresh(now_ms - sent_ms[0]) if r else np.float32(0)
    facts[4], facts[5], facts[6] = np.float32(k / max(m, 1)), _log(r, 4), m == 0
    facts[7], facts[8] = _log(q, 4), _log(opened, 3)
    facts[9] = q > 0 and came[0] > newest
    facts[10] = np.float32(1 - nobody / max(q, 1))
    waits = 0
    facts[12] = 0
    for s in range(q):
        if not met[s]:
            waits += 1
            if waits == 1:
                facts[12] = _fresh(now_ms - came[s])
    facts[11] = _log(waits, 3)
    # 8. the user's last events
    new = same = answers = 0
    for j in range(max(m - LATELY, 0), m):
        first = True
        for z in range(j - 1, -1, -1):
            if items[z] == items[j]:
                first = False
                break
        new += first
        same += j > 0 and items[j - 1] == items[j]
        if first:
            for z in range(q):
                if who[z] == items[j]:
                    answers += 1
                    break
    lately = max(min(m, LATELY), 1)
    facts[13], facts[14], facts[15] = np.float32(new / lately), np.float32(same / lately), np.float32(answers / lately)
    facts[16] = _fresh(t_ms[m - 1] - t_ms[m - 2]) if m > 1 else np.float32(0)
