"""The loops over candidates that write columns of features: compiled, a column of all candidates after another.

What each column means stands in model/columns.py and model/features.py. Numbers are float32 or float64 where they are
so in the counted state; a logarithm of a count is taken in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Float32, Int32, Int64
from driftline.graph.compiled import compiled, inlined

Float64 = NDArray[np.float64]

SHARE_FLOOR = np.float32(0.02)
_TINY, _SCORE_FLOOR = np.float32(1e-2), np.float32(3e-3)
_LARGEST = np.float32(np.finfo(np.float32).max)

_I, _F, _D, _L = (f"Array({kind}, 1, 'C', readonly=True)" for kind in ("int32", "float32", "float64", "int64"))
_FF, _DD = "Array(float32, 2, 'C', readonly=True)", "Array(float64, 2, 'C', readonly=True)"
_OUT = "float32[:, ::1]"


@inlined
def _age(ms: Any, per: Any) -> Any:
    """log1p of an age in units, of which a millisecond is `per`; 0 for the past of the past."""
    return np.log1p(np.float32(max(ms, 0)) * per)


@inlined
def _number(x: Any) -> Any:
    """0 for none, and the largest number for infinity."""
    if np.isnan(x):
        return np.float32(0)
    return min(max(np.float32(x), -_LARGEST), _LARGEST)


@compiled(f"void({_I}, {_DD}, {_D}, float64, {_OUT})")
def log_shares(rows: Int32, count: Float64, total: Float64, items: float, out: Float32) -> None:
    """Logs [h, c] of the shares of all counts that rows have, 1 = the average of so many items."""
    for h in range(len(total)):
        scale = items / max(total[h], 1e-300)
        for i in range(len(rows)):
            out[h, i] = np.log(np.float32(count[rows[i], h] * scale) + SHARE_FLOOR)


@compiled(
    f"void({_I}, int64, float32, float64, {_D}, {_D}, {_D}, {_L}, {_L}, {_D}, {_D}, {_D}, {_D}, {_D}, {_F}, {_F},"
    f" {_OUT}, {_OUT})"
)
def item_columns(
    items: Int32,
    now_ms: int,
    per: float,
    average: float,
    times: Float64,
    groups: Float64,
    buyers: Float64,
    first_ms: Int64,
    last_ms: Int64,
    interval_sum: Float64,
    interval_n: Float64,
    value_sum: Float64,
    value_n: Float64,
    returned: Float64,
    prices: Float32,
    longest: Float32,
    out: Float32,
    raw: Float32,
) -> None:
    """The ITEM columns [12, c], and what others need of them: raw [4, c] log age, log price, interval, value.

    Args:
        items: [c] rows; now_ms: request time; per: units of ages in a millisecond.
        average: items / touches of all items.
        longest: [c] log shares at the longest half-life.
    """
    for i in range(len(items)):
        item = items[i]
        seen = first_ms[item] >= 0
        since_ms = max(now_ms - last_ms[item], 0) if seen else 0
        held, users = max(groups[item], 1.0), max(buyers[item], 1.0)
        gap = max(last_ms[item] - first_ms[item], 1) / held
        price = prices[item]
        raw[0, i] = _age(now_ms - first_ms[item], per) if seen else np.float32(0)
        raw[1, i] = np.log1p(max(price, np.float32(0))) if np.isfinite(price) else np.float32(np.nan)
        raw[2, i] = interval_sum[item] / max(interval_n[item], 1.0)
        raw[3, i] = value_sum[item] / max(value_n[item], 1.0)
        log_times = np.log(times[item] * average + 0.02)
        out[0, i] = log_times
        out[1, i] = raw[0, i]
        out[2, i] = _age(since_ms, per)
        out[3, i] = np.log1p(since_ms / gap)
        out[4, i] = np.log1p(buyers[item])
        out[5, i] = 1 - (users + 1) / (held + 2)
        out[6, i] = np.log(held / users)
        out[7, i] = raw[2, i]
        out[8, i] = raw[3, i]
        out[9, i] = _number(raw[1, i])
        out[10, i] = returned[item] / (times[item] + 1)
        out[11, i] = longest[i] - log_times


@compiled(f"void({_I}, {_DD}, {_DD}, {_DD}, int64, {_D}, float64, {_OUT})")
def chance_columns(
    items: Int32, taken: Float64, first: Float64, owned: Float64, at: int, fade: Float64, requests: float, out: Float32
) -> None:
    """Log chances [2, c] that a user without the item takes it, and that one with it does again.

    Args:
        taken, first: decayed counts, of which column `at` is read; owned: those of column 0.
        fade: [3] what each of them has decayed since its origin.
        requests: decayed number of all groups.
    """
    for i in range(len(items)):
        item = items[i]
        touches, new, had = taken[item, at] * fade[0], first[item, at] * fade[1], owned[item, 0] * fade[2]
        out[0, i] = np.log((new + 0.05) / (max(requests - had, 0.0) + 1))
        out[1, i] = np.log((max(touches - new, 0.0) + 0.05) / (had + 1))


@compiled(f"void({_I}, {_F}, {_FF}, {_L}, {_L}, float32, {_F}, {_OUT})")
def user_item_columns(
    items: Int32,
    of_user: Float32,
    traits: Float32,
    group_ms: Int64,
    first_ms: Int64,
    since: float,
    interval: Float32,
    out: Float32,
) -> None:
    """How the item's takers and its entry relate to the user: traits [7], due, missed groups, missed share.

    Args:
        of_user: [7] the user's traits, NaN = not known; traits: [n, 7] the items'.
        group_ms: [g] times of the user's groups; first_ms: [n] of the items' first touch.
        since: log days since the user's last group; interval: [c] the items' usual log days.
    """
    width, groups = len(of_user), len(group_ms)
    for i in range(len(items)):
        item = items[i]
        for t in range(width):
            out[t, i] = _number(of_user[t] - traits[item, t])
        out[width, i] = since - interval[i]
        low, high = 0, groups
        while low < high:
            middle = (low + high) // 2
            if group_ms[middle] < first_ms[item]:
                low = middle + 1
            else:
                high = middle
        out[width + 1, i] = np.log1p(float(groups - low))
        out[width + 2, i] = (groups - low) / max(groups, 1)


@compiled(
    f"void({_I}, {_I}, int64, float32, int64, {_L}, {_L}, {_L}, {_F}, {_F}, {_I}, {_I}, {_F}, {_F}, {_F}, {_L}, {_L},"
    f" {_D}, {_D}, {_F}, {_F}, {_OUT})"
)
def personal_columns(
    items: Int32,
    place: Int32,
    now_ms: int,
    per: float,
    groups: int,
    first_ms: Int64,
    last_ms: Int64,
    previous_ms: Int64,
    times: Float32,
    weight: Float32,
    last_group: Int32,
    group_age: Int32,
    value: Float32,
    paid: Float32,
    returned: Float32,
    row_ms: Int64,
    row_start: Int64,
    interval_sum: Float64,
    interval_n: Float64,
    prices: Float32,
    rates: Float32,
    out: Float32,
) -> None:
    """The PERSONAL columns of those of the user's items [m] that are candidates, at `place` [n], where it is not -1.

    Args:
        per: units of ages in a millisecond.
        rates: [d] -1 / half-life in ms of each decayed count. Others: see HistoryDigest and Signals.columns.
    """
    for m in range(len(items)):
        i = place[items[m]]
        if i < 0:
            continue
        n, span = times[m], last_ms[m] - first_ms[m]
        again = n > 1
        known = _age(span / max(n - 1, np.float32(1)), per) if again else np.float32(0)
        last_gap = _age(last_ms[m] - previous_ms[m], per)
        expected = float(known) if again else interval_sum[items[m]] / max(interval_n[items[m]], 1.0)
        elapsed = _age(now_ms - last_ms[m], per)
        out[0, i] = 1
        out[1, i] = np.log1p(n)
        out[2, i] = np.log1p(weight[m])
        out[3, i] = elapsed + _TINY
        out[4, i] = _age(now_ms - first_ms[m], per) + _TINY
        out[5, i] = known + _TINY if again else np.float32(0)
        out[6, i] = elapsed - expected
        out[7, i] = last_gap + _TINY if again else np.float32(0)
        out[8, i] = elapsed - last_gap if again else np.float32(0)
        out[9, i] = n / groups
        out[10, i] = n / group_age[m]
        out[11, i] = np.log1p(float(last_group[m])) + 0.01
        out[12, i] = last_group[m] == 0
        out[13, i] = (_number(np.log1p(max(value[m], np.float32(0)))) if np.isfinite(value[m]) else 0) + _TINY
        out[14, i] = _number(np.log((prices[items[m]] + _TINY) / (paid[m] + _TINY)))
        out[15, i] = np.log1p(returned[m])
        end = row_start[m + 1] if m + 1 < len(row_start) else len(row_ms)
        for d in range(len(rates)):
            total = np.float32(0)
            for row in range(row_start[m], end):
                total += np.exp2(max(np.float32(now_ms - row_ms[row]), np.float32(0)) * rates[d])
            out[16 + d, i] = np.log(total + np.float32(1e-3))


@inlined
def _rank(best_scores: Float32, score: float) -> int:
    """How many scores are strictly better."""
    low, high = 0, len(best_scores)
    if score < best_scores[high - 1]:
        return high
    while low < high:
        middle = (low + high) // 2
        if best_scores[middle] > score:
            low = middle + 1
        else:
            high = middle
    return low


@compiled(f"void({_I}, {_I}, {_F}, float32, {_I}, {_F}, {_F}, boolean, {_OUT})")
def opinion_columns(
    candidates: Int32,
    items: Int32,
    scores: Float32,
    otherwise: float,
    place: Int32,
    best_scores: Float32,
    ranks: Float32,
    share: bool,
    out: Float32,
) -> None:
    """Scores and log ranks [2, c] of a recaller's opinion.

    Args:
        candidates: [c] items; place: [n] where each item is among them, -1 = nowhere.
        items: [t] of scores [t]; empty = they are those of items 0..t-1; `otherwise` is that of all other items.
        best_scores: [k] descending, k > 0; ranks: [k + 1] logs of the ranks.
        share: a score becomes the log of its share of the best one; False = what it is below the best one.
    """
    c = len(candidates)
    out[0] = otherwise
    if len(items) == 0:
        for i in range(c):
            if candidates[i] < len(scores):
                out[0, i] = scores[candidates[i]]
    for j in range(len(items)):
        i = place[items[j]]
        if i >= 0:
            out[0, i] = scores[j]
    best = best_scores[0]
    top = max(best, np.float32(1e-12))
    for i in range(c):
        score = out[0, i]
        out[1, i] = ranks[_rank(best_scores, score)]
        out[0, i] = np.log(max(score, np.float32(0)) / top + _SCORE_FLOOR) if share else score - best


@compiled(f"float64[::1]({_I}, {_F}, {_F}, {_L}, {_L}, {_DD}, {_D}, float64, int64, float32)")
def usual(
    items: Int32,
    price: Float32,
    value: Float32,
    taken_ms: Int64,
    first_ms: Int64,
    count: Float64,
    total: Float64,
    n: float,
    at: int,
    per: float,
) -> Float64:
    """What a user usually takes [5]: mean and deviation of log prices, means of log values, of log shares at half-life
    `at` and of the log ages of items when the user took them first; NaN = not known.

    Args:
        items: [m] of the history; price, value: [m] of their last touch; taken_ms: [m] of their first touch.
        first_ms: [n] of the items' first touch by anybody; count: [n, h], total: [h] and n as in `log_shares`.
        per: units of ages in a millisecond.
    """
    sums, held = np.zeros(5), np.zeros(5)
    scale = n / max(total[at], 1e-300)
    for m in range(len(items)):
        if np.isfinite(price[m]) and price[m] >= 0:
            paid = np.float64(np.log1p(price[m]))
            sums[0] += paid
            sums[1] += paid * paid
            held[:2] += 1
        if np.isfinite(value[m]) and value[m] > -1:
            sums[2] += np.log1p(value[m])
            held[2] += 1
        sums[3] += np.log(np.float32(count[items[m], at] * scale) + SHARE_FLOOR)
        sums[4] += _age(taken_ms[m] - first_ms[items[m]], per)
        held[3:] += 1
    out = sums / held
    out[1] = np.sqrt(max(out[1] - out[0] * out[0], 0.0))
    return out


@compiled(f"void({_F}, {_FF}, {_F}, {_F}, boolean, {_OUT}, {_OUT})")
def match_columns(
    of_user: Float32, raw: Float32, share: Float32, inside: Float32, has_domain: bool, out: Float32, age: Float32
) -> None:
    """How an item relates to what the user usually takes, and to the user's domain: the first MATCH columns [7, c] and
    `age_gap` [1, c].

    Args:
        of_user: [5] of `usual`; raw: [4, c] of `item_columns`.
        share: [c] log shares; inside: [c] those in the domain, if it has any of its own.
    """
    price, deviation, value, popularity, usual_age = of_user
    known = not np.isnan(price)
    width = deviation + np.float32(0.2) if known else np.float32(1)
    for i in range(len(share)):
        gap = _number(raw[1, i] - price) if known else np.float32(0)
        out[0, i] = gap
        out[1, i] = abs(gap) / width
        out[2, i] = raw[3, i] - value if not np.isnan(value) else np.float32(0)
        out[3, i] = share[i] - popularity if not np.isnan(popularity) else np.float32(0)
        out[4, i] = abs(out[3, i])
        out[5, i] = inside[i] if has_domain else share[i]
        out[6, i] = inside[i] - share[i] if has_domain else np.float32(0)
        age[0, i] = raw[0, i] - usual_age if not np.isnan(usual_age) else np.float32(0)


@compiled(f"void({_FF}, float32, {_OUT})")
def nearest_columns(cosine: Float32, near: float, out: Float32) -> None:
    """The largest of cosines [c, m] and the share of those above a bound: [2, c]."""
    for i in range(len(cosine)):
        largest, above = cosine[i, 0], 0
        for m in range(cosine.shape[1]):
            largest = max(largest, cosine[i, m])
            above += cosine[i, m] > near
        out[0, i], out[1, i] = largest, np.float32(above) / np.float32(cosine.shape[1])
