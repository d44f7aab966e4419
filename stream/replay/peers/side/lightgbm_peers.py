"""LightGBM's LambdaRank at its defaults, over counters that are computed here: what a shop would build in a week.

Two stages, learnt and answered alike: candidates are the user's own items, those taken most in 30 days and those that
are taken most with the user's own; the trees rank them.
Each of the last EXAMPLE_WEEKS weeks of the rows is learnt from counters as they stood at its start, as a week after
the fit will be answered from counters of the fit; a user's own past is live in both. Nothing here knows the engine's
features.

Source: Burges, "From RankNet to LambdaRank to LambdaMART", 2010; Ke et al., "LightGBM", NIPS 2017.
"""

from __future__ import annotations

from typing import Any

import lightgbm  # type: ignore[import-not-found]
import numpy as np
import scipy.sparse as sp

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
EXAMPLE_WEEKS = 8
EXAMPLES = 3000
"""Groups to learn from at most, the last ones."""
CANDIDATES = 300
"""From each of two columns, the highest."""
COLUMNS = (
    *("taken_7d", "taken_30d", "taken", "days_since_taken", "days_known"),
    *("own_times", "own_days_since", "with_own", "with_last_basket", "own_rows", "own_days_quiet"),
)
TAKEN_30D, OWN_TIMES, WITH_OWN = (COLUMNS.index(name) for name in ("taken_30d", "own_times", "with_own"))


class Counters:
    """Counts of items and cosines over baskets, as they stand at a time."""

    def __init__(self, rows: Any, at_ms: int) -> None:
        before = rows.t_ms < at_ms
        item, t_ms = rows.item[before], rows.t_ms[before]
        n = self.items = rows.items

        def taken(days: float) -> Any:
            return np.log1p(np.bincount(item[t_ms >= at_ms - days * DAY_MS], minlength=n))

        first, last = np.full(n, np.inf), np.full(n, -np.inf)
        np.minimum.at(first, item, t_ms)
        np.maximum.at(last, item, t_ms)
        age = np.column_stack(((at_ms - last) / DAY_MS, (at_ms - first) / DAY_MS))
        self._of_items = np.column_stack((taken(7), taken(30), taken(1e6), np.where(np.isfinite(age), age, np.nan)))
        group = np.unique(rows.group[before], return_inverse=True)[1]
        baskets = sp.csr_matrix((np.ones(len(item), np.float32), (group, item)), (group.max(initial=-1) + 1, n))
        baskets.data[:] = 1
        count = np.maximum(np.asarray(baskets.sum(axis=0)).ravel(), 1.0)
        scaled = baskets @ sp.diags(1 / np.sqrt(count))
        self._cosine = sp.csr_matrix(scaled.T @ scaled)

    def features(self, items: Any, times: Any, groups: Any, t_ms: int) -> Any:
        """[items, COLUMNS] float32 for a user with this past."""
        out = np.full((self.items, len(COLUMNS)), np.nan, np.float32)
        out[:, :5] = self._of_items
        out[:, 5] = np.bincount(items, minlength=self.items)
        out[:, 7:9] = 0
        out[:, 9] = len(items)
        if len(items):
            last = np.full(self.items, -np.inf)
            np.maximum.at(last, items, times)
            own = np.unique(items)
            out[own, 6] = (t_ms - last[own]) / DAY_MS
            out[:, 7] = self._with(own)
            out[:, 8] = self._with(np.unique(items[groups == groups[-1]]))
            out[:, 10] = (t_ms - times.max()) / DAY_MS
        return out

    def _with(self, items: Any) -> Any:
        return np.asarray(self._cosine[items].sum(axis=0)).ravel()


class Lambda:
    """LambdaRank on examples of the last weeks."""

    def fit(self, rows: Any, seed: int, tell: Any) -> None:
        """Learns anew."""
        self._model, self._now = None, Counters(rows, rows.now_ms)
        features, labels, sizes = [], [], []
        by_user = np.lexsort((np.arange(len(rows.user)), rows.user))
        start = np.searchsorted(rows.user[by_user], np.arange(int(rows.user.max(initial=-1)) + 2))
        first_ms = rows.now_ms - EXAMPLE_WEEKS * WEEK_MS
        late = np.flatnonzero(rows.t_ms >= first_ms)
        first_rows = late[np.unique(rows.group[late], return_index=True)[1][-EXAMPLES:]].tolist()
        by_week: dict[int, list[int]] = {}
        for row in first_rows:
            by_week.setdefault((int(rows.t_ms[row]) - first_ms) // WEEK_MS, []).append(row)
        for done, (week, firsts) in enumerate(sorted(by_week.items())):
            tell(done, len(by_week) + 1)
            counters = Counters(rows, first_ms + week * WEEK_MS)
            for row in firsts:
                own = by_user[start[rows.user[row]] : start[rows.user[row] + 1]]
                past = own[(rows.group[own] != rows.group[row]) & (own < row)]
                wanted = np.unique(rows.item[own[rows.group[own] == rows.group[row]]])
                t_ms = int(rows.t_ms[row])
                table = counters.features(rows.item[past], rows.t_ms[past], rows.group[past], t_ms)
                chosen = _candidates(table)
                label = np.isin(chosen, wanted)
                if label.any():
                    features.append(table[chosen])
                    labels.append(label)
                    sizes.append(len(chosen))
        tell(len(by_week), len(by_week) + 1)
        if sizes:
            fixed = {"objective": "lambdarank", "num_threads": 1, "seed": seed, "deterministic": True, "verbose": -1}
            table = lightgbm.Dataset(np.concatenate(features), np.concatenate(labels), group=sizes)
            self._model = lightgbm.train(fixed, table)

    def score(self, query: Any) -> Any:
        """The trees' scores of the candidates; NaN for others."""
        if self._model is None:
            return None
        table = self._now.features(query.items, query.times, query.groups, query.t_ms)
        chosen = _candidates(table)
        scores = np.full(len(table), np.nan)
        scores[chosen] = self._model.predict(table[chosen])
        return scores


def _candidates(table: Any) -> Any:
    """The first stage: items, ascending, of which something speaks for the user."""
    best = [np.argsort(-table[:, column], kind="stable")[:CANDIDATES] for column in (TAKEN_30D, WITH_OWN)]
    items = np.unique(np.concatenate((np.flatnonzero(table[:, OWN_TIMES]), *best)))
    return items[(table[items][:, [TAKEN_30D, WITH_OWN, OWN_TIMES]] > 0).any(axis=1)]


MODELS = {"ranker": lambda: Lambda()}
