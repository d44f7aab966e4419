"""The truth behind a synthetic stream: who wants what at which time.

    P(item | user, day, genre before) = W(genre) * q(item | genre, day)

    q(item | genre)   Zipf weights of the genre's items that have entered, and with share `fresh` of those that entered
                      within 30 days alone: the catalogue grows, and what is new has its month
    W(genre)          stay * [genre before] + (1 - stay) * ((1 - explore) * own(genre) + explore * all(genre))
    own(genre)        three favourites of the user, one of which is replaced every `drift_days`, times the season
    all(genre)        shares of the genres, times the season

What a user takes depends on the past through the genre before alone, so the best ranking of a request is the order of
P. Arrays over items are in an order of their own, "places": by genre, then by day of entry.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Int64
from driftline.stream.generate.plan import DAY_MS, Plan

Float64 = NDArray[np.float64]
FAVOURITES = np.array([0.6, 0.3, 0.1])
FRESH_DAYS = 30
YEAR_DAYS = 365.25
TOP = 64
"""Items of a genre that may be among the best of a request."""


def mixed(*parts: NDArray[np.uint64] | int) -> NDArray[np.uint64]:
    """Hash of arrays [n] and numbers, by the finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    h: Any = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for part in parts:
            h = (h ^ np.asarray(part, np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            h = h ^ (h >> np.uint64(31))
    return np.asarray(h)


def uniform(*parts: NDArray[np.uint64] | int) -> Float64:
    """Numbers [n] in [0, 1) by hash."""
    return np.asarray((mixed(*parts) >> np.uint64(11)) * (1.0 / (1 << 53)), np.float64)


class World:
    """Items, genres and tastes of a plan.

    Attributes:
        genre: [places] int64; born: [places] int64, day of entry; weight: [places] float64.
        number: [places] int64, the number in an item's id.
        first, last: [days, genres] int64, places of a genre that have entered are first..last-1.
        new: [days, genres] int64, the first of those that entered within 30 days, the first day's stock left out.
        season: [days, genres] float64; shared: [days, genres] float64, everybody's taste, rows sum to 1.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        rng = np.random.default_rng([plan.seed, 1])
        genres = self.genres = min(plan.genres, plan.items)
        share = np.arange(1, genres + 1) ** -0.7
        self.share: Float64 = share / share.sum()
        self._draw_items(rng)
        day = np.arange(plan.days)[:, None]
        self.season: Float64 = np.exp(plan.season * np.sin(2 * np.pi * (day / YEAR_DAYS + rng.random(genres))))
        shared = self.share * self.season
        self.shared: Float64 = shared / shared.sum(1, keepdims=True)

    def _draw_items(self, rng: np.random.Generator) -> None:
        plan, n, genres = self.plan, self.plan.items, self.genres
        genre = np.searchsorted(np.cumsum(self.share), rng.random(n)).clip(max=genres - 1)
        born = np.where(rng.random(n) < plan.growth, rng.integers(1, max(2, plan.days), n), 0)
        genre[:genres], born[:genres] = np.arange(genres), 0  # none is ever empty
        born[born >= plan.days] = 0
        weight = (1.0 + rng.permutation(n)) ** -plan.zipf
        order = np.lexsort((born, genre))
        self.genre, self.born, self.weight = genre[order], born[order], weight[order]
        self.number: Int64 = rng.permutation(n)
        self.upto: Float64 = np.concatenate([[0.0], np.cumsum(self.weight)])
        edges = np.searchsorted(self.genre, np.arange(genres + 1))
        days = np.arange(plan.days)
        self.first = np.broadcast_to(edges[:-1], (plan.days, genres))
        self.last, self.new = np.empty((plan.days, genres), np.int64), np.empty((plan.days, genres), np.int64)
        for g, (start, end) in enumerate(pairwise(edges)):
            self.last[:, g] = start + np.searchsorted(self.born[start:end], days, side="right")
            since = np.maximum(0, days - FRESH_DAYS)
            self.new[:, g] = start + np.searchsorted(self.born[start:end], since, side="right")

    @cached_property
    def user_numbers(self) -> Int64:
        """[users] int64: the number in a user's id; users are drawn by how active they are, which no id may tell."""
        return np.random.default_rng([self.plan.seed, 2]).permutation(self.plan.users)

    def favourites(self, users: Int64, t_ms: Int64) -> Int64:
        """Favourite genres [n, 3] of users [n] at times [n]; the first weighs most."""
        u = users.astype(np.uint64)
        turns = np.zeros(len(users), np.int64)
        if self.plan.drift_days:
            phase = uniform(self.plan.seed, 3, u) * len(FAVOURITES)
            turns = ((t_ms - self.plan.start_ms) / (self.plan.drift_days * DAY_MS) + phase).astype(np.int64)
        upto = np.cumsum(self.share)
        found = np.empty((len(users), len(FAVOURITES)), np.int64)
        for k in range(len(FAVOURITES)):  # each turn replaces one of them
            turn = ((turns + k) // len(FAVOURITES)).astype(np.uint64)
            found[:, k] = np.searchsorted(upto, uniform(self.plan.seed, 4 + k, u, turn)).clip(max=self.genres - 1)
        return found

    def own_weights(self, favourites: Int64, day: int) -> Float64:
        """Shares [n, 3] of favourites on a day, rows sum to 1."""
        weights = FAVOURITES * self.season[day][favourites]
        return np.asarray(weights / weights.sum(1, keepdims=True))

    def wanted(self, users: Int64, t_ms: Int64, day: int, before: Int64) -> Float64:
        """W [n, genres] of requests of one day; `before` [n] is the genre of the user's last event, -1 = none."""
        plan, rows = self.plan, np.arange(len(users))
        favourites = self.favourites(users, t_ms)
        own = np.zeros((len(users), self.genres))
        weights = self.own_weights(favourites, day)
        for k in range(len(FAVOURITES)):
            own[rows, favourites[:, k]] += weights[:, k]  # two favourites may be one genre
        want = (1 - plan.explore) * own + plan.explore * self.shared[day]
        stay = np.where(before >= 0, plan.stay, 0.0)
        want *= 1 - stay[:, None]
        want[rows, np.maximum(before, 0)] += stay
        return np.asarray(want)

    def within(self, day: int, genre: int) -> tuple[int, Float64]:
        """(first place, q [n]) of a genre's items that have entered by a day."""
        first, last, new = (int(a[day, genre]) for a in (self.first, self.last, self.new))
        weight = self.weight[first:last]
        fresh = self.plan.fresh if new < last else 0.0
        q = (1 - fresh) * weight / weight.sum()
        if fresh:
            q[new - first :] += fresh * weight[new - first :] / weight[new - first :].sum()
        return first, q

    def best(self, day: int) -> tuple[Int64, Float64]:
        """The TOP likeliest places [genres, TOP] of each genre on a day and their q; -1 and 0 past the last."""
        places = np.full((self.genres, TOP), -1, np.int64)
        q = np.zeros((self.genres, TOP))
        for genre in range(self.genres):
            first, within = self.within(day, genre)
            top = np.argpartition(-within, TOP - 1)[:TOP] if len(within) > TOP else np.arange(len(within))
            places[genre, : len(top)], q[genre, : len(top)] = first + top, within[top]
        return places, q

    def probabilities(self, users: Int64, t_ms: Int64, day: int, before: Int64) -> Float64:
        """P [n, places] of requests of one day: for tests and small catalogues."""
        want = self.wanted(users, t_ms, day, before)
        out = np.zeros((len(users), self.plan.items))
        for genre in range(self.genres):
            first, q = self.within(day, genre)
            out[:, first : first + len(q)] = want[:, genre, None] * q
        return out
