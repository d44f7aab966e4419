"""Predict, then learn, in order of arrival: one pass over a log drives many arms.

Source: Gama, Sebastião, Rodrigues, "On evaluating stream learning algorithms", 2013 (prequential evaluation).
A group is scored by every arm before any arm learns any row of it. A user touches an item by an event of positive
weight, as in learning and serving; where users are items, nobody is a candidate of oneself. Lists:

    overall     every candidate; relevant: all positive items of the group
    novel       candidates that the user never touched; relevant: those of the group; users with a past only
    repeat      the user's own past items; relevant: those of the group
    cold_items  every candidate; relevant: those of the group that entered the pool within a day
    rare_items  every candidate; relevant: those of the group that came in fewer than 5 earlier events
    held_out_items  every candidate; relevant: those of the group whose past was taken out of the log on purpose
    session     candidates that the session does not hold yet; relevant: those of the group; under a session protocol

What is kept is one row of metrics for each scored group, list and arm, so that windows, intervals and subsets are
computed afterwards.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from driftline.configs.errors import InputError
from driftline.graph.arrays import Int32, Int64
from driftline.stream.learn.allocator import return_freed_memory
from driftline.stream.replay.arms import Arrival, Request
from driftline.stream.replay.metrics import METRICS, rank_list
from driftline.stream.replay.sessions import Which

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from driftline.stream.replay.arms import Arm, Cost, Floats, Ranking, Slate
    from driftline.stream.replay.log import EventLog

LISTS = ("overall", "novel", "repeat", "cold_items", "rare_items", "held_out_items", "session")
COLD_EVENTS = 5
COLD_GROUPS = 3
COLD_ITEM_MS = 86_400_000
RARE_EVENTS = 5
FOLLOW_UP_MS = 72 * 60_000
TRIM_GROUPS = 1000
"""Groups between two trims of the heap."""
Span = tuple[int, int]
"""From a time to a later one that is no part of it, unix milliseconds."""
WHOLE = "whole"
"""The part that an arm without parts is charged as."""
ALL_EQUAL = "it never told one candidate from another: all scores of each list were equal"
"""Why an arm is void that does not say it itself."""
NO_ITEMS = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of the scored groups whatever the arm.

    Attributes:
        number: [m] int64 group in the log; user: [m] int32; t_ms: [m] int64.
        relevant: [m, len(LISTS)] int32, relevant items by list; 0 = the group does not count in that list.
        reachable: [m, len(LISTS)] int32, how many of them are candidates at all.
        cold_user: [m] bool, at most 5 earlier events or 3 earlier groups.
        gap_ms: [m] int64, since the user's positive group before, -1 = there was none.
        session_ms: [m] int64, start of the session that is asked in, -1 = none.
    """

    number: Int64
    user: Int32
    t_ms: Int64
    relevant: Int32
    reachable: Int32
    cold_user: NDArray[np.bool_]
    gap_ms: Int64
    session_ms: Int64

    @property
    def follow_up(self) -> NDArray[np.bool_]:
        """[m] bool: the user's group before was at most 72 minutes earlier."""
        return (self.gap_ms >= 0) & (self.gap_ms <= FOLLOW_UP_MS)


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What one arm did.

    Attributes:
        values: [m, len(LISTS), len(METRICS)] float64, NaN where a group does not count in a list.
        cost: CPU seconds in `learn` (and lazy refits) and in `score`, by part.
        trained_share: as the arm says.
        note: what a reader of the report should know of how the arm ran, "" = nothing.
        gate: what its parts are worth and which are on, see model/standing.py; {} = nothing was compared.
        void: why it had nothing to go by, so that its figures are those of chance; "" = it had.
    """

    values: NDArray[np.float64]
    cost: Cost
    trained_share: float
    note: str = ""
    gate: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    void: str = ""

    @property
    def train_cpu_s(self) -> float:
        """Of all parts."""
        return sum(train for train, _ in self.cost.values())

    @property
    def score_cpu_s(self) -> float:
        """Of all parts."""
        return sum(score for _, score in self.cost.values())


@dataclass(frozen=True, slots=True)
class Pass:
    """Results of one pass: shared facts, one result an arm, and the pass's own cost."""

    split_ms: int
    facts: Facts
    arms: dict[str, ArmResult]
    events: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Scope:
    """Which groups are scored.

    Attributes:
        left_out: groups of this span are learnt and not scored.
        session: "" = all; else those of the session protocol, by the start of their session.
        share: of the sessions.
    """

    left_out: Span | None = None
    session: Which = ""
    share: float = 1.0


EVERYTHING = Scope()


@dataclass(slots=True)
class _User:
    touched: Int32
    events: int = 0
    groups: int = 0
    last_ms: int | None = None


def questions(log: EventLog) -> Iterator[tuple[Request, Arrival, int | None]]:
    """Every group of a log as (request, arrival, time of the user's positive group before)."""
    by_user = np.argsort(log.user[log.group_rows], kind="stable")
    rows_by_user = log.group_rows[by_user]
    start = np.searchsorted(log.user[rows_by_user], np.arange(len(log.user_ids)))
    sessions = log.sessions.key
    users: dict[int, _User] = {}
    for number in range(log.groups):
        user = int(log.group_user[number])
        state = users.setdefault(user, _User(NO_ITEMS))
        group, rows = log.group(number), log.rows_of(number)
        request = Request(
            number=number,
            user=user,
            user_id=group.user_id,
            t_ms=group.t_ms,
            pool=int(log.pool[number]),
            touched=state.touched,
            history=rows_by_user[start[user] : start[user] + state.events],
            events=state.events,
            groups=state.groups,
            log=log,
            session=int(sessions[number]),
            context=group.context,
        )
        yield request, Arrival(number, user, group, rows, int(log.pool[number + 1]), log), state.last_ms
        state.events += len(rows)
        if group.positive.any():
            state.groups += 1
            state.last_ms = group.t_ms
        state.touched = np.union1d(state.touched, group.items[group.weight > 0])


def run(
    log: EventLog,
    arms: Sequence[Arm],
    split_ms: int,
    progress: Callable[[int, int], None] | None = None,
    worth_of: Callable[[Arrival], Floats] | None = None,
    scope: Scope = EVERYTHING,
) -> Pass:
    """Drive arms over a log.

    Args:
        log: the log.
        arms: arms with distinct names.
        split_ms: groups of this time and later are scored; all are learnt.
        progress: called with (groups done, groups in total) now and then.
        worth_of: what each item is worth to the business in this group, by dense index [arrival.pool]; None = no goals.
        scope: which groups past the split are scored.

    Raises:
        InputError: no group with a positive row lies at or past the split.
    """
    scored = scored_groups(log, split_ms, scope)
    m = len(scored)
    relevant, reachable = np.zeros((m, len(LISTS)), np.int32), np.zeros((m, len(LISTS)), np.int32)
    cold_user, gap_ms = np.zeros(m, np.bool_), np.full(m, -1, np.int64)
    values = {arm.name: np.full((m, len(LISTS), len(METRICS)), np.nan) for arm in arms}
    clocks = {arm.name: [0.0, 0.0] for arm in arms}
    telling: set[str] = set()  # arms that told one candidate from another
    started, row = time.perf_counter(), 0
    events_of = np.zeros(len(log.item_ids), np.int64)
    for request, arrival, last_ms in questions(log):
        if row < m and scored[row] == request.number:
            if row == 0:
                for arm in arms:
                    arm.start(split_ms)
            lists = list(_lists(request, arrival, events_of, bool(scope.session)))
            worth = None if worth_of is None else worth_of(arrival)
            relevant[row] = [len(items) for _, items in lists]
            reachable[row] = [_reachable(candidate, items) for candidate, items in lists]
            cold_user[row] = request.events <= COLD_EVENTS or request.groups <= COLD_GROUPS
            gap_ms[row] = -1 if last_ms is None else request.t_ms - last_ms
            for arm in arms:
                before = time.process_time()
                slate = arm.score(request)
                clocks[arm.name][1] += time.process_time() - before
                if arm.name not in telling and _tells(slate.overall, request.pool):
                    telling.add(arm.name)
                for i, (ranking, (candidate, items)) in enumerate(zip(rankings(slate), lists, strict=True)):
                    if len(items):
                        price = None if worth is None else worth[items]
                        values[arm.name][row, i] = rank_list(ranking, candidate, items, price)
            row += 1
        for arm in arms:
            before = time.process_time()
            arm.learn(request, arrival)
            clocks[arm.name][0] += time.process_time() - before
        np.add.at(events_of, arrival.group.items, 1)
        if request.number % TRIM_GROUPS == 0:
            return_freed_memory()
        if progress is not None and (request.number % 64 == 0 or request.number == log.groups - 1):
            progress(request.number + 1, log.groups)
    session_ms = log.sessions.start_ms[scored]
    facts = Facts(
        scored, log.group_user[scored], log.group_t_ms[scored], relevant, reachable, cold_user, gap_ms, session_ms
    )
    results = {
        arm.name: ArmResult(
            values[arm.name],
            getattr(arm, "cost", None)
            or {WHOLE: (clocks[arm.name][0] + arm.refresh_cpu_s, clocks[arm.name][1] - arm.refresh_cpu_s)},
            arm.trained_share,
            getattr(arm, "note", ""),
            getattr(arm, "gate", {}),
            getattr(arm, "void", "") or ("" if arm.name in telling else ALL_EQUAL),
        )
        for arm in arms
    }
    return Pass(split_ms, facts, results, len(log), time.perf_counter() - started)


def _tells(ranking: Ranking, pool: int) -> bool:
    """Whether a ranking puts any candidate before another."""
    scores = ranking.scores
    return len(scores) > 0 and bool(len(scores) < pool or scores.min() < scores.max())


def rankings(slate: Slate) -> tuple[Ranking, ...]:
    """The ranking that answers each of LISTS."""
    first = slate.overall
    return first, slate.novel or first, slate.repeat or first, first, first, first, first


def wanted_groups(log: EventLog) -> NDArray[np.bool_]:
    """Which groups [groups] have a row that counts as wanted."""
    wanted = np.zeros(log.groups, np.bool_)
    wanted[log.group_of[log.positive]] = True
    return wanted


def scored_groups(log: EventLog, split_ms: int, scope: Scope = EVERYTHING) -> Int64:
    """Numbers of the groups with a positive row from the split on that a scope takes; InputError if there is none."""
    answers, t_ms = wanted_groups(log), log.group_t_ms
    if scope.session:
        answers, t_ms = log.sessions.targets(answers, scope.session, scope.share), log.sessions.start_ms
    answers &= t_ms >= split_ms
    if scope.left_out is not None:
        answers &= (t_ms < scope.left_out[0]) | (t_ms >= scope.left_out[1])
    scored = np.flatnonzero(answers)
    if len(scored) == 0:
        sessions = " in sessions that begin there and are of the share that is drawn" if scope.session else ""
        others = " or a larger --session-share" if scope.session and scope.share < 1 else ""
        others += " or another span of --choices: its rows are not scored" if scope.left_out is not None else ""
        raise InputError(
            f"no group of {log.groups} is left to score at or past split_ms {split_ms}{sessions}; choose a smaller "
            f"--split{others}"
        )
    return scored


def _lists(
    request: Request, arrival: Arrival, events_of: Int64, session: bool
) -> Iterator[tuple[NDArray[np.bool_], Int32]]:
    """(candidate mask [pool], relevant items) for each of LISTS; `events_of` [items] counts earlier groups' events."""
    wanted = np.unique(arrival.group.items[arrival.group.positive])
    everything = np.ones(request.pool, np.bool_)
    if (oneself := int(request.log.own_item[request.user])) >= 0:
        wanted = wanted[wanted != oneself]
        everything[oneself : oneself + 1] = False
    own = np.zeros(request.pool, np.bool_)
    own[request.touched] = True
    known = wanted[wanted < request.pool]
    repeated = known[own[known]]
    yield everything, wanted
    yield everything & ~own, np.setdiff1d(wanted, repeated, assume_unique=True) if request.groups else NO_ITEMS
    yield everything & own, repeated
    yield everything, known[request.log.entered_ms[known] >= request.t_ms - COLD_ITEM_MS]
    yield everything, known[events_of[known] < RARE_EVENTS]
    yield everything, known[request.log.held_out[known]]
    others = everything.copy()
    others[request.in_session if session else NO_ITEMS] = False
    yield others, wanted[~np.isin(wanted, request.in_session)] if session else NO_ITEMS


def _reachable(candidate: NDArray[np.bool_], items: Int32) -> int:
    return int(candidate[items[items < len(candidate)]].sum())
