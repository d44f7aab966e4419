"""From rows of metrics to `metrics.json`: means, intervals, windows, comparisons, the claim of incremental learning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.stream.replay.intervals import (
    LEVEL,
    RESAMPLES,
    Comparison,
    bootstrap_means,
    holm,
    interval,
    lift_samples,
    two_sided_p,
)
from driftline.stream.replay.log import NEVER_MS, EventLog
from driftline.stream.replay.metrics import METRICS
from driftline.stream.replay.protocol import LISTS, Facts
from driftline.stream.replay.results import Saved
from driftline.stream.replay.sessions import HOUR_MS
from driftline.stream.replay.verdict import BY_ALL, BY_SESSION, FAMILY, first_and_next

WEEK_MS = 7 * 86_400_000
NEW_ITEM_MS = 30 * 86_400_000
GAPS = (
    ("first", -1),
    ("an hour", 3_600_000),
    ("a day", 86_400_000),
    ("a week", WEEK_MS),
    ("a month", 30 * 86_400_000),
    ("3 months", 91 * 86_400_000),
    ("longer", NEVER_MS),
)
"""Time since the user's group before: up to so many milliseconds."""
HEADLINE = "ndcg@10"
COMPARED = ("overall", "novel", "repeat")
SESSION = ("hr@20", "ndcg@20")
"""Metrics of the session protocol, which are also means over the hours in which sessions began."""
COMPARED_BY = {"session": ("ndcg@20", "hr@20")}
"""Of lists that published figures give other metrics of than the headline; the first one says which arm is best."""
LONE_ARMS = ("hstu", "sasrec", "graph", "frozen", "weekly_frozen", "retrain", "ranker")
Values = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """All arms over the same scored groups, seeds averaged.

    Attributes:
        facts: of the scored groups.
        values: [m, lists, metrics] an arm, mean over its seeds.
        seeds: the single runs by arm and seed; arms that are not random ran with one.
        seed: of the bootstrap.
    """

    facts: Facts
    values: dict[str, Values]
    seeds: Mapping[str, Mapping[int, Saved]]
    seed: int

    def column(self, arm: str, which: str, metric: str = HEADLINE) -> Values:
        """[m] one metric of one list, NaN where a group does not count."""
        return np.asarray(self.values[arm][:, LISTS.index(which), METRICS.index(metric)])

    def counts(self, which: str) -> NDArray[np.bool_]:
        """[m] bool: groups that count in a list."""
        return np.asarray(self.facts.relevant[:, LISTS.index(which)] > 0)

    @property
    def void(self) -> dict[str, str]:
        """Why arms had nothing to go by, those that had are left out."""
        found = {arm: [saved.result.void for saved in seeds.values()] for arm, seeds in self.seeds.items()}
        return {arm: reasons[0] for arm, reasons in found.items() if all(reasons)}

    @property
    def drawn_seeds(self) -> list[int]:
        """Seeds that intervals are drawn over: those that every random arm ran with; one is never drawn."""
        ran = [set(seeds) for seeds in self.seeds.values()]
        random = [seeds for seeds in ran if len(seeds) > 1]
        return sorted(set.intersection(*random)) if random else [self.seed]

    def samples(
        self, arms: Sequence[str], which: str, metric: str = HEADLINE, some: NDArray[np.bool_] | None = None
    ) -> Values:
        """[resamples, arms] bootstrap means over the groups of a list, or `some` [m] of them, and the seeds."""
        mask = self.counts(which) if some is None else self.counts(which) & some
        i, j = LISTS.index(which), METRICS.index(metric)
        seeds = self.drawn_seeds
        columns = [
            [(runs.get(seed) or next(iter(runs.values()))).result.values[mask, i, j] for seed in seeds]
            for runs in (self.seeds[arm] for arm in arms)
        ]
        return bootstrap_means(np.array(columns).transpose(2, 0, 1), self.facts.user[mask], self.seed)


def resampling(data: Table) -> dict[str, Any]:
    """How intervals were made: `protocol.intervals` of metrics.json."""
    seeds = data.drawn_seeds
    return {"level": LEVEL, "resamples": RESAMPLES, "users": True, "seeds": seeds if len(seeds) > 1 else False}


def table(runs: Mapping[str, Mapping[int, Saved]], seed: int) -> Table:
    """Join the runs of all arms; they must have scored the same groups."""
    first = next(iter(next(iter(runs.values())).values()))
    values = {arm: np.mean([saved.result.values for saved in seeds.values()], axis=0) for arm, seeds in runs.items()}
    return Table(first.facts, values, runs, seed)


def arm_summary(data: Table, arm: str, split_ms: int, cis: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """One entry of `arms`: every list, cold users, weekly windows, cost."""
    facts, values = data.facts, data.values[arm]
    entry: dict[str, Any] = {}
    for i, which in enumerate(LISTS):
        mask = data.counts(which)
        if which in ("held_out_items", "session") and not mask.any():
            continue
        entry[which] = _means(values[mask, i])
        if which in cis:
            entry[which][f"{HEADLINE}_ci"] = list(cis[which])
        if which == "session":
            entry[which] |= _by_hour(data, arm)
        else:
            entry[which]["without_follow_ups"] = _brief(values[mask & ~facts.follow_up, i])
    entry["cold_users"] = _means(values[facts.cold_user & data.counts("overall"), 0])
    entry["windows"] = _windows(data, arm, split_ms)
    results = [saved.result for saved in data.seeds[arm].values()]
    entry["train_cpu_s"] = round(float(np.mean([result.train_cpu_s for result in results])), 3)
    entry["score_cpu_s"] = round(float(np.mean([result.score_cpu_s for result in results])), 3)
    entry["cost"] = {
        part: {
            "train_cpu_s": round(float(np.mean([result.cost[part][0] for result in results])), 3),
            "score_cpu_s": round(float(np.mean([result.cost[part][1] for result in results])), 3),
        }
        for part in results[0].cost
    }
    entry["trained_share"] = round(float(np.mean([result.trained_share for result in results])), 6)
    return entry


def _by_hour(data: Table, arm: str) -> dict[str, Any]:
    """Of the list `session`: intervals of its metrics, and their means over hours by start of a session."""
    mask = data.counts("session")
    _, hour = np.unique(data.facts.session_ms[mask] // HOUR_MS, return_inverse=True)
    size = np.bincount(hour)
    found: dict[str, Any] = {"hours": {"n": len(size)}}
    for metric in SESSION:
        column = data.column(arm, "session", metric)[mask]
        found[f"{metric}_ci"] = list(interval(data.samples([arm], "session", metric)[:, 0]))
        found["hours"][metric] = round(float((np.bincount(hour, column) / size).mean()), 6)
    return found


def intervals_of(data: Table) -> dict[str, dict[str, tuple[float, float]]]:
    """Intervals of the headline metric: list -> by arm."""
    arms = list(data.values)
    found: dict[str, dict[str, tuple[float, float]]] = {arm: {} for arm in arms}
    for which in LISTS:
        if data.counts(which).any():
            samples = data.samples(arms, which)
            for i, arm in enumerate(arms):
                found[arm][which] = interval(samples[:, i])
    return found


def _means(rows: Values) -> dict[str, Any]:
    """Mean of every metric over rows [n, metrics]; None where there are none."""
    entry: dict[str, Any] = {"n": len(rows)}
    for j, metric in enumerate(METRICS):
        column = rows[:, j][~np.isnan(rows[:, j])]
        if len(column):
            entry[metric] = round(float(column.mean()), 6)
        elif metric != "ndcg@10_weighted":
            entry[metric] = None
    return entry


def _brief(rows: Values) -> dict[str, Any]:
    means = _means(rows)
    return {"n": means["n"], HEADLINE: means[HEADLINE]}


def _windows(data: Table, arm: str, split_ms: int) -> list[dict[str, Any]]:
    """Weekly windows from the split on: n and the headline metric of the overall list, then of the others."""
    week = (data.facts.t_ms - split_ms) // WEEK_MS
    windows = []
    for w in range(int(week.max()) + 1):
        entry: dict[str, Any] = {"from_ms": split_ms + w * WEEK_MS, "to_ms": split_ms + (w + 1) * WEEK_MS}
        for i, which in enumerate(COMPARED):
            brief = _brief(data.values[arm][(week == w) & data.counts(which), i])
            entry |= brief if which == "overall" else {which: brief}
        windows.append(entry)
    return windows


# ---------------------------------------------------------------------------------------------- freshness, drift


def freshness(data: Table) -> dict[str, Any]:
    """The headline metric by time since the user's group before, of the overall list, by arm."""
    gap = data.facts.gap_ms
    found: dict[str, Any] = {arm: [] for arm in data.values}
    low = -1
    for label, high in GAPS:
        mask = (gap > low) & (gap <= high) & data.counts("overall") if label != "first" else gap < 0
        low = max(low, high)
        for arm in data.values:
            found[arm].append({"since": label, **_brief(data.values[arm][mask, 0])})
    return found


def drift(log: EventLog, split_ms: int) -> list[dict[str, Any]]:
    """How the stream itself moves, by week from the split on.

    Each week's positive rows are compared with those of the four weeks before it: Jensen-Shannon divergence of the
    item shares (0 = equal, 1 = disjoint, base 2), and the share of rows on items that entered within 30 days.
    """
    t_ms, item = log.t_ms[log.positive], log.item[log.positive]
    weeks = []
    for from_ms in range(split_ms, int(t_ms[-1]) + 1, WEEK_MS):
        now = item[(t_ms >= from_ms) & (t_ms < from_ms + WEEK_MS)]
        before = item[(t_ms >= from_ms - 4 * WEEK_MS) & (t_ms < from_ms)]
        if len(now) == 0 or len(before) == 0:
            continue
        fresh = float((log.entered_ms[now] > from_ms - NEW_ITEM_MS).mean())
        size = len(log.item_ids)
        divergence = _divergence(np.bincount(now, minlength=size), np.bincount(before, minlength=size))
        entry = {"from_ms": from_ms, "divergence": round(divergence, 6), "new_item_share": round(fresh, 6)}
        weeks.append(entry | {"n": len(now)})
    return weeks


def _divergence(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    p, q = a / a.sum(), b / b.sum()
    middle = 0.5 * (p + q)

    def entropy(share: Values) -> float:
        positive = share[share > 0]
        return float(-(positive * np.log2(positive)).sum())

    return entropy(middle) - 0.5 * (entropy(p) + entropy(q))


# ---------------------------------------------------------------------------------------------- comparisons


def claims(data: Table, simple: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """(family, a, b, list) of every claim that the arms at hand allow.

    Families: `headline` = the whole engine against the best simple arm of each list and against ease_recent;
    `backbones` = the engine against lone arms; `parts` = what one part adds or its loss costs, `rare` =
    the same on rare items; `simple` = the best simple arm of a list against the others; `first` = the best arm over
    everything, or within sessions, against the next, and against the best simple one. Arms that are void are compared
    with none.
    """
    void = data.void
    arms = [arm for arm in data.values if arm not in void]
    which, metric = BY_SESSION if data.counts(BY_SESSION[0]).any() else BY_ALL
    means = (
        {arm: float(np.nanmean(data.column(arm, which, metric))) for arm in arms} if data.counts(which).any() else {}
    )
    order = first_and_next(means)
    baseline = [arm for arm in arms if arm in simple]
    engines = [arm for arm in ("incremental", *LONE_ARMS) if arm in arms]
    rivals = dict.fromkeys(order[1:2] + [arm for arm in order[1:] if arm in simple and order[0] not in simple][:1])
    found = [(FAMILY, order[0], arm, which) for arm in rivals]
    for which in (*COMPARED, *COMPARED_BY):
        if not data.counts(which).any():
            continue
        metric, *_ = COMPARED_BY.get(which, (HEADLINE,))
        best = max(baseline, key=lambda arm: float(np.nanmean(data.column(arm, which, metric))), default=None)
        if best is not None:
            found += [("headline", arm, best, which) for arm in engines]
            found += [("simple", best, arm, which) for arm in baseline if arm != best]
        if which == "novel" and "ease_recent" in arms and best != "ease_recent":
            found += [("headline", arm, "ease_recent", which) for arm in engines]
        if "incremental" in arms:
            found += [("backbones", "incremental", arm, which) for arm in LONE_ARMS if arm in arms]
        found += [("parts", a, b, which) for a, b in _parts(arms)]
    if data.counts("rare_items").any():
        found += [("rare", a, b, "rare_items") for a, b in _parts(arms)]
    return found


def _parts(arms: Sequence[str]) -> list[tuple[str, str]]:
    """(arm with, arm without) pairs told from composed names: x+part, x-part, x:part=choice."""
    pairs = []
    for arm in arms:
        base = arm.rsplit("+", 1)[0]
        if base != arm and base in arms:
            pairs.append((arm, base))
        for mark in ("-", ":"):
            whole = arm.split(mark, 1)[0]
            if whole != arm and whole in arms:
                pairs.append((whole, arm))
    return pairs


def compare(data: Table, simple: Sequence[str]) -> list[Comparison]:
    """Every claim with its lift, interval and corrected p."""
    found: list[Comparison] = []
    wanted = claims(data, simple)
    for which in dict.fromkeys(claim[3] for claim in wanted):
        arms = list(dict.fromkeys(arm for claim in wanted if claim[3] == which for arm in claim[1:3]))
        mask = data.counts(which)
        n, users = int(mask.sum()), len(np.unique(data.facts.user[mask]))
        for metric in COMPARED_BY.get(which, (HEADLINE,)):
            samples = data.samples(arms, which, metric)
            for family, a, b, _ in (claim for claim in wanted if claim[3] == which):
                lifts = lift_samples(samples[:, arms.index(a)], samples[:, arms.index(b)])
                mean_a = float(data.column(a, which, metric)[mask].mean())
                mean_b = float(data.column(b, which, metric)[mask].mean())
                lift = float(lift_samples(np.array([mean_a]), np.array([mean_b]))[0])
                p, ci = two_sided_p(lifts), interval(lifts)
                found.append(Comparison(a, b, which, metric, family, n, users, mean_a, mean_b, lift, ci, p, p))
    for family in dict.fromkeys(one.family for one in found):
        places = [i for i, one in enumerate(found) if one.family == family]
        for i, p_holm in zip(places, holm([found[i].p for i in places]), strict=True):
            found[i] = dataclasses.replace(found[i], p_holm=p_holm)
    return found


def incremental_claim(data: Table) -> dict[str, Any] | None:
    """(incremental - frozen) / (retrain - frozen) by list, with the share of retrain's training time."""
    names = ["incremental", "frozen", "retrain"]
    if any(name not in data.values for name in names):
        return None
    claim: dict[str, Any] = {}
    for which in COMPARED:
        if not data.counts(which).any():
            continue
        samples = data.samples(names, which)
        means = [float(np.nanmean(data.column(name, which))) for name in names]
        gap = interval(samples[:, 2] - samples[:, 1])
        not_below = interval(lift_samples(samples[:, 0], samples[:, 2]))
        entry: dict[str, Any] = {"retrain_minus_frozen_ci": list(gap), "incremental_over_retrain_ci": list(not_below)}
        if gap[0] > 0:
            shares = (samples[:, 0] - samples[:, 1]) / (samples[:, 2] - samples[:, 1])
            entry |= {"share_of_gap": (means[0] - means[1]) / (means[2] - means[1]), "ci": list(interval(shares))}
        else:
            entry["non_inferior_at_3_percent"] = not_below[0] > -0.03
        claim[which] = entry
    cpu = {name: float(np.mean([saved.result.train_cpu_s for saved in data.seeds[name].values()])) for name in names}
    claim["train_cpu_s"] = cpu
    return claim
