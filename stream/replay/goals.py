"""What a hit is worth to a business: the weights of the weighted metrics, from the `goals` section."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from driftline.configs.settings import Goal
from driftline.graph.rows import action_code
from driftline.stream.replay.arms import Arrival
from driftline.stream.replay.log import EventLog


def worth_function(goal: Goal, log: EventLog) -> Callable[[Arrival], NDArray[np.float64]] | None:
    """Worth of every item in a group by dense index [pool]; None if no goal is set.

    An item's worth is the sum over its positive rows of the action's weight (1 if not listed) times the column that
    `goals.by` names (1 where it is empty). `margin` is read from the event's unknown fields.
    """
    if not goal.action_weights and not goal.by:
        return None
    weights = {action_code(action): weight for action, weight in goal.action_weights.items()}

    def worth(arrival: Arrival) -> NDArray[np.float64]:
        rows = arrival.rows[arrival.group.positive]
        each = np.array([weights.get(code, 1.0) for code in log.action_code[rows].tolist()])
        if goal.by == "margin":
            extra = log.columns.extra
            factor = np.array([np.nan if extra is None else _number(extra[row], "margin") for row in rows])
        elif goal.by:
            factor = {"value": log.value, "price": log.price}[goal.by][rows].astype(np.float64)
        else:
            factor = np.ones(len(rows))
        total = np.zeros(arrival.pool)
        np.add.at(total, log.item[rows], each * np.where(np.isnan(factor), 1.0, factor))
        return total

    return worth


def _number(extra: dict[str, object] | None, name: str) -> float:
    value = (extra or {}).get(name)
    return float(value) if isinstance(value, (int, float)) else np.nan
