"""Draws the events of a world, a day at a time, in order of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from driftline.graph.arrays import Int64
from driftline.stream.generate.plan import DAY_MS
from driftline.stream.generate.world import Float64, World

WEEKDAYS = np.array([1.0, 1.0, 1.05, 1.1, 1.2, 0.9, 0.75])
HOURS = np.array([2, 1, 1, 1, 1, 2, 4, 6, 8, 9, 9, 9, 8, 8, 8, 8, 8, 9, 10, 12, 13, 12, 8, 4], np.float64)
"""How busy the hours of a day are, relative to each other."""


@dataclass(frozen=True, slots=True)
class Day:
    """Events of one day in order of time.

    Attributes:
        day: its number; first_row: of its first event in the stream.
        t_ms: [n] int64, strictly rising; user: [n] int64; place: [n] int64, the item.
        before: [n] int64, genre of the user's event before, -1 = none.
    """

    day: int
    first_row: int
    t_ms: Int64
    user: Int64
    place: Int64
    before: Int64


def days(world: World) -> Iterator[Day]:
    """All days of a world that have events."""
    plan = world.plan
    rng = np.random.default_rng([plan.seed, 8])
    last_genre = np.full(plan.users, -1, np.int16 if world.genres < 1 << 15 else np.int64)
    last_ms, row = plan.start_ms - 1, 0
    for day, n in enumerate(_counts(plan.events, plan.days).tolist()):
        if n == 0:
            continue
        t_ms = _times(rng, n, plan.start_ms + day * DAY_MS, last_ms)
        user = _users(rng, n, plan.users, plan.activity)
        genre, before = _genres(rng, world, day, user, t_ms, last_genre)
        yield Day(day, row, t_ms, user, _places(rng, world, day, genre), before)
        last_ms, row = int(t_ms[-1]), row + n


def _counts(events: int, days: int) -> Int64:
    """Events of each day [days], summing to all of them."""
    upto = np.cumsum(WEEKDAYS[np.arange(days) % 7])
    return np.asarray(np.diff(np.rint(upto / upto[-1] * events).astype(np.int64), prepend=0))


def _times(rng: np.random.Generator, n: int, start_ms: int, last_ms: int) -> Int64:
    """n distinct times of a day after `last_ms`; a busy one may end a few milliseconds past midnight."""
    gaps = rng.standard_exponential(n + 1)
    share = np.cumsum(gaps)[:-1] / gaps.sum()  # sorted, as sorted uniform numbers are
    upto = np.concatenate([[0.0], np.cumsum(HOURS)]) / HOURS.sum()
    t_ms = start_ms + (np.interp(share, upto, np.arange(25)) * (DAY_MS / 24)).astype(np.int64)
    step = np.arange(n)
    return np.asarray(np.maximum(np.maximum.accumulate(t_ms - step), last_ms + 1) + step)


def _users(rng: np.random.Generator, n: int, users: int, exponent: float) -> Int64:
    """User numbers by activity, a power law of their rank, by the inverse of its continuous distribution."""
    u = rng.random(n)
    if abs(exponent - 1) < 1e-9:
        rank = np.exp(u * np.log(users + 1.0))
    else:
        power = 1 - exponent
        rank = (1 + u * ((users + 1.0) ** power - 1)) ** (1 / power)
    return np.asarray(np.minimum(rank.astype(np.int64) - 1, users - 1))


def _genres(
    rng: np.random.Generator, world: World, day: int, user: Int64, t_ms: Int64, last_genre: np.ndarray
) -> tuple[Int64, Int64]:
    """Genres [n] of a day's events and of the users' events before them; updates `last_genre`."""
    plan, n = world.plan, len(user)
    own = world.favourites(user, t_ms)
    upto = np.cumsum(world.own_weights(own, day), 1)
    chosen = (rng.random(n)[:, None] >= upto[:, :-1]).sum(1)
    drawn = own[np.arange(n), chosen]
    explore = np.flatnonzero(rng.random(n) < plan.explore)
    shared = np.cumsum(world.shared[day])
    drawn[explore] = np.searchsorted(shared, rng.random(len(explore)), side="right").clip(max=world.genres - 1)
    stay = rng.random(n) < plan.stay
    order = np.argsort(user, kind="stable")
    mine, moves = user[order], ~stay[order]
    new_user = np.ones(n, np.bool_)
    new_user[1:] = mine[1:] != mine[:-1]
    earlier = last_genre[mine].astype(np.int64)  # of the days before
    moves |= new_user & (earlier < 0)
    # who stays has the genre of the last event that moved: today's, or what the user came with
    source = np.maximum.accumulate(np.where(moves | new_user, np.arange(n), 0))
    value = np.where(moves, drawn[order], earlier)
    filled = value[source]
    before = np.where(new_user, earlier, np.roll(filled, 1))
    ends = np.append(np.flatnonzero(new_user)[1:] - 1, n - 1)
    last_genre[mine[ends]] = filled[ends]
    genre, was = np.empty(n, np.int64), np.empty(n, np.int64)
    genre[order], was[order] = filled, before
    return genre, was


def _places(rng: np.random.Generator, world: World, day: int, genre: Int64) -> Int64:
    """Items [n] of genres [n], by the inverse of the distribution within each."""
    upto, n = world.upto, len(genre)
    first, last, new = (a[day] for a in (world.first, world.last, world.new))
    fresh = (rng.random(n) < world.plan.fresh) & (new < last)[genre]
    low, high = np.where(fresh, new[genre], first[genre]), last[genre]
    x: Float64 = upto[low] + rng.random(n) * (upto[high] - upto[low])
    return np.asarray(np.clip(np.searchsorted(upto, x, side="right") - 1, low, high - 1))
