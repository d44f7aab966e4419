"""Answers to people never written to: where users and items are the same people, the new pairs that can be foreseen.

A scored group counts if somebody it goes to had written to its user before, and its user to none of those it goes to.
Own pairs say nothing of them; what beats reversed pairs has read more than who wrote last.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.stream.replay.intervals import holm, interval, lift_samples, two_sided_p
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.pairs import PAIRS
from driftline.stream.replay.summary import Table

TRAINED = (("graph", "graph:random"),)
"""Arms with and without what training adds."""
LISTS = ("overall", "novel")
METRIC = "mrr"


def answers(log: EventLog, data: Table) -> dict[str, Any]:
    """MRR of the arms over answers to people never written to: `answers` of metrics.json.

    Returns:
        groups and users; by arm the mean over all people (`overall`) and over those never written to (`novel`); and
        comparisons of every other arm with those that know pairs, and of what is trained with what is not, over all
        people, with intervals over users and seeds.
    """
    mask = answering(log)[data.facts.number]
    arms = list(data.values)
    found: dict[str, Any] = {"n": int(mask.sum()), "users": len(np.unique(data.facts.user[mask])), "metric": METRIC}
    if not mask.any() or not any(np.isfinite(data.column(arm, LISTS[0], METRIC)[mask]).any() for arm in arms):
        return found
    found["arms"] = {
        arm: {which: round(float(np.nanmean(data.column(arm, which, METRIC)[mask])), 6) for which in LISTS}
        for arm in arms
    }
    claims = [one for one in product(arms, PAIRS) if one[0] not in PAIRS and one[1] in arms]
    claims += [one for one in TRAINED if set(one) <= set(arms)]
    samples = data.samples(arms, LISTS[0], METRIC, mask)
    lifts = [lift_samples(samples[:, arms.index(a)], samples[:, arms.index(b)]) for a, b in claims]
    p = [two_sided_p(one) for one in lifts]
    found["comparisons"] = [
        {
            "a": a,
            "b": b,
            "lift": round(found["arms"][a][LISTS[0]] / max(found["arms"][b][LISTS[0]], 1e-9) - 1, 6),
            "ci": [round(end, 6) for end in interval(lift)],
            "p": round(one, 6),
            "p_holm": round(corrected, 6),
        }
        for (a, b), lift, one, corrected in zip(claims, lifts, p, holm(p), strict=True)
    ]
    return found


def answering(log: EventLog) -> NDArray[np.bool_]:
    """[groups] bool: which groups of a log answer somebody, and go to nobody whom their user wrote to before."""
    user_of = {user_id: n for n, user_id in enumerate(log.user_ids)}
    as_user = [user_of.get(item_id, -1) for item_id in log.item_ids]
    wrote: set[tuple[int, int]] = set()  # user, item
    item_of = {user: item for item, user in enumerate(as_user) if user >= 0}
    found = np.zeros(log.groups, np.bool_)
    for number in range(log.groups):
        group, user = log.group(number), int(log.group_user[number])
        wanted, node = np.unique(group.items[group.positive]).tolist(), item_of.get(user, -1)
        to_new = all((user, item) not in wrote for item in wanted)
        found[number] = to_new and any((as_user[item], node) in wrote for item in wanted)
        wrote.update((user, item) for item in np.unique(group.items[group.weight > 0]).tolist())
    return found
