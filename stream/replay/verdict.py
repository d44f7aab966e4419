"""The sentence that a report begins with: which arm wins, by how much, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

BY_ALL = "overall", "ndcg@10"
BY_SESSION = "session", "ndcg@20"
"""The list and the metric that a winner is told by: of all groups, and where sessions are asked for."""
WHERE = {BY_ALL: "NDCG@10 {:.4f} over everything", BY_SESSION: "NDCG@20 {:.4f} within sessions"}
FEW = 10
"""Users of whom drawing some again and again says little: of one it is always the same."""
FAMILY = "first"
"""The comparison of the best arm with the next one, whichever they are."""


def first_and_next(levels: Mapping[str, float | None]) -> list[str]:
    """The arms from best to worst, without those that scored nothing."""
    scored = {name: value for name, value in levels.items() if value is not None and not math.isnan(value)}
    return sorted(scored, key=lambda name: -scored[name])


def verdict(metrics: Mapping[str, Any], simple: Sequence[str]) -> str:
    """One sentence.

    Args:
        metrics: with `arms`, those that are void among them, `comparisons` and `protocol`.
        simple: names of simple arms.
    """
    session = metrics.get("protocol", {}).get("session")
    by = BY_SESSION if session else BY_ALL
    which, metric = by
    level_of = {name: arm.get(which, {}).get(metric) for name, arm in metrics["arms"].items() if not arm.get("void")}
    order = first_and_next(level_of)
    if not level_of:
        return "No arm had anything to go by, so none wins."
    if not order:
        return (
            f"Each of the {session['targets']:,} events that were asked for is of an item that its session holds "
            "already, so no arm wins within sessions."
            if session
            else "No group was scored, so no arm wins."
        )
    best, level = order[0], WHERE[by].format(level_of[order[0]])
    if len(order) == 1:
        did = "ran" if len(level_of) == len(metrics["arms"]) else "had anything to go by"
        return f"Only {best} {did}, {level}: there is nothing to compare it with."
    rivals = {order[1]: "the next best"}
    for arm in order[1:]:
        if arm in simple and best not in simple:
            rivals[arm] = "the next best, a simple arm" if arm == order[1] else "the best simple arm"
            break
    found = {arm: _compared(metrics["comparisons"], best, arm, by) for arm in rivals}
    tails = [f"{_more(found[arm])} {arm}, {what}" for arm, what in rivals.items()]
    if _sure(found[order[1]]):
        return f"{best} wins, {level}: {', and '.join(tails)}."
    users = _users(found[order[1]])
    few = f"; {users} user{'s are' if users > 1 else ' is'} too few to tell" if 0 < users < FEW else ""
    return f"Not sure which arm wins: {best} is ahead, {level}, {', and '.join(tails)}{few}."


def _compared(
    comparisons: Sequence[Mapping[str, Any]], a: str, b: str, by: tuple[str, str]
) -> Mapping[str, Any] | None:
    """The paired comparison of two arms in a list and metric; None where none was made."""
    asked = a, b, *by
    return next((one for one in comparisons if (one["a"], one["b"], one["list"], one["metric"]) == asked), None)


def _sure(one: Mapping[str, Any] | None) -> bool:
    """Whether the interval, of more than a few users, leaves no room for 0."""
    return one is not None and None not in one["ci"] and min(one["ci"]) > 0 and _users(one) >= FEW


def _users(one: Mapping[str, Any] | None) -> int:
    """Users who were asked; 0 where nothing was compared."""
    return 0 if one is None else int(one["users"])


def _more(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return "not compared with"
    if one["lift"] is None or not math.isfinite(one["lift"]):
        return "where nothing was hit by"
    lift, low, high = (100 * value for value in (one["lift"], *one["ci"]))
    sure = "" if _sure(one) else ", which may be chance,"
    return f"{lift:.1f}% (95% interval {low:.1f} to {high:.1f}){sure} over"
