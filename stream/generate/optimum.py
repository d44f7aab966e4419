"""How well the truth itself would do: the best that any recommender can reach on a synthetic stream, in expectation.

Of each twentieth of the stream some requests are drawn. At each, all items seen so far are ranked by their true
probability; the expected metrics follow from the probabilities of the first places, whatever was drawn then. Who ranks
by the truth of the day without knowing the user gives the second figure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from driftline.graph.arrays import Int64
from driftline.stream.generate.draw import Day
from driftline.stream.generate.world import Float64, World, uniform

SLICES = 20
SAMPLES = 2000
"""Requests drawn of a slice, about."""
ROWS = 500
"""Requests that are ranked at once."""
PLACES = 20
DISCOUNT = 1.0 / np.log2(1.0 + np.arange(1, PLACES + 1))
"""Of a hit in each place: with one relevant item the ideal is 1."""
OPTIMUM = "optimum.json"
NEVER = np.iinfo(np.int64).max
METRICS = ("hr@10", "ndcg@10", "hr@20", "ndcg@20")


@dataclass(slots=True)
class _Slice:
    """Sums over the requests of one slice."""

    from_row: int
    to_row: int
    from_ms: int = -1
    n: int = 0
    sums: dict[str, Float64] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        means = {
            name: dict(zip(METRICS, (values / max(1, self.n)).round(6).tolist(), strict=True))
            for name, values in self.sums.items()
        }
        return {"from_row": self.from_row, "to_row": self.to_row, "from_ms": self.from_ms, "n": self.n} | means


class Optimum:
    """Follows a stream as it is drawn."""

    def __init__(self, world: World) -> None:
        self._world = world
        events = world.plan.events
        edges = [events * n // SLICES for n in range(SLICES + 1)]
        self._slices = [_Slice(a, b) for a, b in pairwise(edges) if b > a]
        self._share = min(1.0, SAMPLES * SLICES / events)
        self._first_ms: Int64 = np.full(world.plan.items, NEVER, np.int64)

    def see(self, day: Day) -> None:
        """Takes a day's events, all earlier days having been seen."""
        unseen = np.flatnonzero(self._first_ms[day.place] == NEVER)[::-1]
        self._first_ms[day.place[unseen]] = day.t_ms[unseen]  # of several, the one that is written last came first
        rows = np.arange(day.first_row, day.first_row + len(day.t_ms))
        for one in self._slices:
            inside = np.flatnonzero((rows >= one.from_row) & (rows < one.to_row))
            if len(inside) == 0:
                continue
            if one.from_ms < 0:
                one.from_ms = int(day.t_ms[inside[0]])
            drawn = uniform(self._world.plan.seed, 9, rows[inside].astype(np.uint64)) < self._share
            self._measure(day, inside[drawn], one)

    def slices(self) -> list[dict[str, Any]]:
        """What was found, in order of time."""
        return [one.as_json() for one in self._slices]

    def _measure(self, day: Day, chosen: Int64, one: _Slice) -> None:
        if len(chosen) == 0:
            return
        places, q = self._world.best(day.day)
        places, q = places.ravel(), q.ravel()
        real = places >= 0
        places, q = places[real], q[real]
        genre = self._world.genre[places]
        for start in range(0, len(chosen), ROWS):
            at = chosen[start : start + ROWS]
            t_ms = day.t_ms[at]
            wanted = self._world.wanted(day.user[at], t_ms, day.day, day.before[at])
            candidate = self._first_ms[places] < t_ms[:, None]
            truth = np.where(candidate, wanted[:, genre] * q, 0.0)
            popular = np.where(candidate, self._world.shared[day.day][genre] * q, 0.0)
            one.n += len(at)
            hit = places == day.place[at][:, None]
            for name, scores, credit in (
                ("optimum", truth, truth),
                ("impersonal", popular, truth),
                ("realised", truth, (hit & candidate).astype(np.float64)),
            ):
                one.sums[name] = one.sums.get(name, np.zeros(len(METRICS))) + _metrics(scores, credit).sum(0)


def _metrics(scores: Float64, credit: Float64) -> Float64:
    """METRICS [n, 4] where the first places by `scores` [n, m] are worth `credit` [n, m]."""
    few = min(PLACES, scores.shape[1])
    top = np.argpartition(-scores, few - 1, 1)[:, :few]
    top = np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, 1), 1, kind="stable"), 1)
    gained = np.take_along_axis(credit, top, 1)
    discounted = gained * DISCOUNT[:few]
    return np.stack([part[:, :k].sum(1) for k in (10, 20) for part in (gained, discounted)], 1)


def reachable(
    events: Path, sha256: str, from_ms: int, left_out: tuple[int, int] | None = None
) -> dict[str, Any] | None:
    """What lies beside a made events file about requests from a time on; None if nothing does, or of other events."""
    try:
        made = orjson.loads((events.parent / OPTIMUM).read_bytes())
        if made["events_sha256"] != sha256:
            return None
        found = over(made["slices"], from_ms, left_out)
    except (OSError, ValueError, KeyError, TypeError):  # somebody else's file of this name
        return None
    return found if found["n"] else None


def over(slices: list[dict[str, Any]], from_ms: int, left_out: tuple[int, int] | None = None) -> dict[str, Any]:
    """Mean of what holds from a time on, weighed by events; a slice that begins earlier is left out.

    Args:
        slices: as `Optimum.slices` gave them.
        from_ms: where the test begins.
        left_out: no slice that reaches into this span counts.
    """
    later = [one for one in slices if one["from_ms"] >= from_ms and one["n"]]
    if left_out is not None:
        ends = [other["from_ms"] for other in later[1:]] + [NEVER]
        apart = [one["from_ms"] >= left_out[1] or end <= left_out[0] for one, end in zip(later, ends, strict=True)]
        later = [one for one, counts in zip(later, apart, strict=True) if counts]
    weight = [one["to_row"] - one["from_row"] for one in later]
    means: dict[str, Any] = {"n": sum(one["n"] for one in later)}
    for name in ("optimum", "impersonal", "realised") if later else ():
        means[name] = {
            metric: round(float(np.average([one[name][metric] for one in later], weights=weight)), 6)
            for metric in METRICS
        }
    return means
