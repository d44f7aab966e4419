"""Everything about items and users that is counted, not trained: learnt group by group, read at request time.

    observe(group, view_before) -> counters, item-item tables, user vectors
    read by model/recall.py and model/features.py at a request time

Popularity is kept at several half-lives by forward decay and read as a share, so seasons cancel. A first purchase
(the item was new to the user) is counted apart: what newcomers to an item buy differs from what its regulars reorder.
All state is arrays over dense item indices that grow by doubling; no constant depends on the number of items, users
or rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Arrays, grown
from driftline.graph.contexts import Contexts
from driftline.graph.counts import DecayedCounts
from driftline.graph.history import DAY_MS, TRAITS, HistoryDigest, history_of, traits_of
from driftline.graph.neighbors import PartnerTable
from driftline.graph.reverse import Reverse
from driftline.graph.rows import key64
from driftline.graph.touched import Touched
from driftline.graph.user_vectors import UserVectors

if TYPE_CHECKING:
    from driftline.configs.settings import Signals as SignalSettings
    from driftline.graph.arrays import Float32, Int32
    from driftline.graph.view import Group, UserView

Float64 = NDArray[np.float64]
TABLES = ("basket", "basket_fresh", "following", "onward")
_COLUMNS: dict[str, tuple[Any, float]] = {
    "times": (np.float64, 0),  # summed weights of all touches
    "groups": (np.float64, 0),  # groups that held the item
    "buyers": (np.float64, 0),  # users to whom it was new
    "first_ms": (np.int64, -1),
    "last_ms": (np.int64, -1),
    "interval_sum": (np.float64, 0),  # log1p of `signals.age_unit_days` between two touches of one user
    "interval_n": (np.float64, 0),
    "value_sum": (np.float64, 0),  # log1p of the event's value
    "value_n": (np.float64, 0),
    "returned": (np.float64, 0),
    "price": (np.float32, float("nan")),  # the latest
}
TRAIT_RATE = 0.02
"""An item's picture of its takers is a running mean over about its last 50 groups."""


class Signals:
    """All counted state of one stream.

    Attributes:
        n: items known.
        age_unit_ms: ages are log1p(age / age_unit_ms).
        popularity: [n, h] decayed touches; first_buyers: [n, h] decayed first touches.
        reference: number of the half-life, the second longest, at which popularity is compared with other things.
        owned: [n] decayed groups of users who had touched the item before; requests: [1] decayed groups in all.
        traits: [n, 7] running mean of the TRAITS of those who take the item.
        domains: key64 of a domain -> decayed touches within it.
        contexts: decayed touches under the circumstances of a request.
        basket: partners in one group; following: from the previous group to the next; onward: from the recent
            history to items that are new to the user.
        reverse: who acted on an item that is a user, too.
        users: vectors of the most recent users.
    """

    def __init__(self, settings: SignalSettings) -> None:
        self.settings = settings
        lives = tuple(days * DAY_MS for days in settings.half_lives_days)
        self.user_half_life_ms = settings.user_half_life_days * DAY_MS
        self.age_unit_ms = settings.age_unit_days * DAY_MS
        pair_ms = settings.pair_half_life_days * DAY_MS
        self.n = 0
        self.groups = 0
        self.read_only = False
        self._touches = (-1, -1), 0.0
        self.popularity = DecayedCounts(lives, settings.top)
        self.first_buyers = DecayedCounts(lives, settings.top)
        self.reference = max(len(lives) - 2, 0)
        self.owned = DecayedCounts((lives[self.reference],), 0)
        self.requests = DecayedCounts((lives[self.reference],), 0)
        self.requests.ensure(1)
        self.traits: Float32 = np.full((0, len(TRAITS)), np.nan, np.float32)
        self.domains: dict[int, DecayedCounts] = {}
        self.contexts = Contexts(
            settings.context,
            tuple(days * DAY_MS for days in settings.context_half_lives_days),
            settings.context_values,
            settings.top,
        )
        fresh_ms = settings.fresh_half_life_days * DAY_MS
        held = (settings.partner_items, settings.partner_ttl_days * DAY_MS)
        self.basket = PartnerTable(settings.neighbors, pair_ms, *held)
        self.basket_fresh = PartnerTable(settings.neighbors, fresh_ms, *held)
        self.following = PartnerTable(settings.neighbors, pair_ms, *held)
        self.onward = PartnerTable(settings.neighbors, pair_ms, *held)
        self.reverse = Reverse(settings.one_id_space, settings.neighbors, (pair_ms, fresh_ms), held)
        self.users = UserVectors(
            settings.users, self.user_half_life_ms, fresh_ms, settings.refresh_ms, settings.nearest
        )
        self.columns: dict[str, NDArray[Any]] = {k: np.zeros(0, dtype) for k, (dtype, _) in _COLUMNS.items()}
        self._touched = Touched()  # rows of the columns and the traits

    def __getattr__(self, name: str) -> NDArray[Any]:
        columns = self.__dict__.get("columns", {})
        if name in columns:
            return columns[name]  # type: ignore[no-any-return]
        raise AttributeError(f"Signals has no {name!r}; the item columns are {', '.join(_COLUMNS)}")

    def ensure(self, n: int) -> None:
        """Make room for items 0..n-1."""
        if n <= self.n:
            return
        self.n = n
        for name, (_, fill) in _COLUMNS.items():
            self.columns[name] = grown(self.columns[name], n, fill)
        self.traits = grown(self.traits, n, float("nan"))
        for counts in (self.popularity, self.first_buyers, self.owned, *self.domains.values()):
            counts.ensure(n)
        self.contexts.ensure(n)
        self.reverse.ensure(n)
        for table in (self.basket, self.basket_fresh, self.following, self.onward):
            table.ensure(n)

    def observe(
        self, group: Group, view_before: UserView, history: HistoryDigest | None = None, user: int = -1
    ) -> None:
        """Learn one group.

        Args:
            group: its rows.
            view_before: the user before the group.
            history: `history_of(view_before)` if the caller has it.
            user: the user's index among the items, where they share one space of ids; -1 = none.

        Raises:
            ValueError: the signals were opened read-only.
        """
        if self.read_only:
            raise ValueError("these signals were opened read-only, but a group was to be learnt; open a writable copy")
        if len(group.items) == 0:
            return
        self.ensure(int(group.items.max()) + 1)
        self.groups += 1
        past = history if history is not None else history_of(view_before)
        self._returns(group)
        wanted = (group.weight > 0) & (group.items >= 0)
        if not wanted.any():
            return
        items, row, inverse = np.unique(group.items[wanted], return_index=True, return_inverse=True)
        weight = np.bincount(inverse, group.weight[wanted], len(items)).astype(np.float64)
        at = np.full(len(items), -1, np.int64)  # place of each item in the history
        if len(past.items):
            order = np.argsort(past.items)
            place = np.minimum(np.searchsorted(past.items, items, sorter=order), len(order) - 1)
            at = np.where(past.items[order[place]] == items, order[place], -1)
        self._count(group, items, row, weight, wanted, past, at)
        self._pairs(items, weight.astype(np.float32), past, at, group.t_ms)
        self.reverse.add(user, items, group.t_ms)
        others = np.ones(len(past.items), np.bool_)
        others[at[at >= 0]] = False
        kept, last = past.items[others], past.last_ms[others]
        size = self.settings.user_items
        self.users.observe(
            group.user_id,
            np.concatenate((items, kept)).astype(np.int32)[:size],
            np.concatenate((np.full(len(items), group.t_ms, np.int64), last))[:size],
            group.t_ms,
        )

    def _returns(self, group: Group) -> None:
        back = (group.weight < 0) & (group.items >= 0)
        if back.any():
            np.add.at(self.columns["returned"], group.items[back], -group.weight[back])
            self._touched.add(group.items[back])

    def _count(
        self,
        group: Group,
        items: Int32,
        row: NDArray[np.intp],
        weight: Float64,
        wanted: NDArray[np.bool_],
        past: HistoryDigest,
        at: NDArray[np.int64],
    ) -> None:
        t, c = group.t_ms, self.columns
        new = at < 0
        self.popularity.add(items, weight, t)
        self.first_buyers.add(items[new], weight[new], t)
        self.owned.add(past.items, np.ones(len(past.items)), t)
        self.requests.add(np.zeros(1, np.int32), np.ones(1), t)
        self._traits(items, traits_of(past, t, self.age_unit_ms))
        inside = self._domain(group.domain)
        if inside is not None:
            inside.add(items, weight, t)
        self.contexts.add(group.context, items, weight, t)
        self._touched.add(items)
        c["times"][items] += weight
        c["groups"][items] += 1
        c["buyers"][items] += new
        c["first_ms"][items] = np.where(c["first_ms"][items] < 0, t, c["first_ms"][items])
        c["last_ms"][items] = np.maximum(c["last_ms"][items], t)
        again, since = items[~new], past.last_ms[at[~new]]
        c["interval_sum"][again] += np.log1p(np.maximum(t - since, 0) / self.age_unit_ms)
        c["interval_n"][again] += 1
        value, price = group.value[wanted][row], group.price[wanted][row]
        given = np.isfinite(value) & (value > -1)
        c["value_sum"][items[given]] += np.log1p(value[given])
        c["value_n"][items[given]] += 1
        priced = np.isfinite(price)
        c["price"][items[priced]] = price[priced]

    def _traits(self, items: Int32, of_user: Float32) -> None:
        held = self.traits[items]
        rate = np.maximum(1 / np.maximum(self.columns["groups"][items], 1), TRAIT_RATE).astype(np.float32)[:, None]
        mixed = held + rate * (of_user - held)
        mixed = np.where(np.isnan(held), of_user, mixed)
        self.traits[items] = np.where(np.isnan(of_user), held, mixed)

    def _domain(self, name: str) -> DecayedCounts | None:
        """The popularity within a domain, made if there is room for it."""
        key = key64(name)
        if name and key not in self.domains and len(self.domains) < self.settings.domains:
            self.domains[key] = DecayedCounts((self.settings.domain_half_life_days * DAY_MS,), self.settings.top)
            self.domains[key].ensure(len(self.columns["times"]))
        return self.domain_counts(name)

    def touches(self) -> float:
        """Summed weights of all touches of all items, summed anew once a learnt group."""
        at, total = self._touches
        if at != (self.groups, self.n):
            total = float(self.columns["times"][: self.n].sum())
            self._touches = (self.groups, self.n), total
        return total

    def domain_counts(self, name: str) -> DecayedCounts | None:
        """The popularity within a domain, None if it has none of its own."""
        return self.domains.get(key64(name)) if name else None

    def _pairs(self, items: Int32, weight: Float32, past: HistoryDigest, at: NDArray[np.int64], t_ms: int) -> None:
        limit = self.settings.recent
        if len(items) > 1:
            share = np.minimum(weight, 1)
            self.basket.add(items, items, share, share, t_ms)
            self.basket_fresh.add(items, items, share, share, t_ms)
        if past.groups == 0:
            return
        new = items[at < 0]
        previous = past.basket[:limit]
        gap = 2.0 ** (-max(t_ms - int(past.group_ms[-1]), 0) / self.user_half_life_ms)
        self.following.add(
            previous, items, np.full(len(previous), gap, np.float32), np.ones(len(items), np.float32), t_ms
        )
        source = past.items[:limit]
        faded = past.decayed(t_ms, self.user_half_life_ms, limit)
        self.onward.add(source, new, faded, np.ones(len(new), np.float32), t_ms)

    def arrays(self, latest: bool = True) -> Arrays:
        """The whole state by name; `from_arrays` continues exactly where this one stands.

        Args:
            latest: with the users' last touches, which learning goes on from and reading does not need.

        Returns:
            views: what is learnt next changes them.
        """
        out: Arrays = {f"item.{k}": v[: self.n] for k, v in self.columns.items()}
        out["counts"] = np.array([self.n, self.groups], np.int64)
        out |= self.popularity.arrays("popularity", self.n) | self.first_buyers.arrays("first_buyers", self.n)
        out |= self.owned.arrays("owned", self.n) | self.requests.arrays("requests", 1)
        out["traits"] = self.traits[: self.n]
        out["domains"] = np.fromiter(self.domains, np.uint64, len(self.domains))
        for i, counts in enumerate(self.domains.values()):
            out |= counts.arrays(f"domain.{i}", self.n)
        out |= self.contexts.arrays(self.n)
        for name in TABLES:
            out |= getattr(self, name).arrays(name)
        return out | self.reverse.arrays() | self.users.arrays("users", latest)

    def touched(self) -> dict[str, Touched]:
        """Which rows changed, for those of `arrays` that change by rows."""
        out = dict.fromkeys(("traits", *(f"item.{k}" for k in self.columns)), self._touched)
        out |= self.popularity.touched("popularity") | self.first_buyers.touched("first_buyers")
        out |= self.owned.touched("owned")
        for i, counts in enumerate(self.domains.values()):
            out |= counts.touched(f"domain.{i}")
        out |= self.contexts.touched()
        for name in TABLES:
            out |= getattr(self, name).touched(name)
        return out | self.reverse.touched()

    @classmethod
    def from_arrays(
        cls, settings: SignalSettings, arrays: Arrays, read_only: bool = False, before: Signals | None = None
    ) -> Signals:
        """The signals whose `arrays` these are.

        Args:
            settings: those under which the arrays were made.
            arrays: read-only maps are shared, not copied, when `read_only`.
            read_only: only read; `observe` raises.
            before: signals of earlier arrays, to take over what is computed of the same.
        """
        if not read_only:
            arrays = {k: np.array(v) for k, v in arrays.items()}
        self = cls(settings)
        self.read_only = read_only
        self.n, self.groups = (int(x) for x in arrays["counts"])
        self.columns = {k: np.asarray(arrays[f"item.{k}"], dtype) for k, (dtype, _) in _COLUMNS.items()}
        self.popularity.restore(arrays, "popularity")
        self.first_buyers.restore(arrays, "first_buyers")
        self.owned.restore(arrays, "owned")
        self.requests.restore(arrays, "requests")
        self.traits = np.asarray(arrays["traits"], np.float32)
        for i, key in enumerate(arrays["domains"].tolist()):
            self.domains[key] = DecayedCounts((settings.domain_half_life_days * DAY_MS,), settings.top)
            self.domains[key].restore(arrays, f"domain.{i}")
        self.contexts.restore(arrays)
        for name in TABLES:
            getattr(self, name).restore(arrays, name)
        self.reverse.restore(arrays)
        self.users.restore(arrays, "users", before.users if before is not None else None)
        return self
