"""What the replay asks of an arm: score a request, then learn the group that answered it.

One pass over a log drives many arms. For each group, in order of arrival:

    1. request = Request(user, time, pool)          nothing of the group, nothing later
    2. past the split: arm.score(request)           of every arm
    3. arm.learn(request, arrival)                  of every arm, before and after the split

Items are dense indices in order of entry into the pool, so the candidates of a request are always 0..pool-1.
Arms that share work (one processor, one set of features) key it by `request.number`: the first arm that asks
computes, the others read. An arm that must predict during the warm-up as well does so inside `learn`, before it
learns: there the request still shows the state from before the group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Int32, Int64
from driftline.graph.view import Group, UserView

if TYPE_CHECKING:
    from pathlib import Path

    from driftline.configs.settings import Settings
    from driftline.graph.contexts import Context
    from driftline.graph.rows import Event
    from driftline.stream.events.schema import Item
    from driftline.stream.replay.log import EventLog

Cost = dict[str, tuple[float, float]]
"""By part, the CPU seconds spent on training and on scores."""
Floats = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Request:
    """One question: what will this user want at this time?

    Attributes:
        number: number of the group in the log, from 0, warm-up included.
        user: dense user index in order of first sight.
        user_id: the user's id.
        t_ms: request time; everything that may be read is of an earlier time or an earlier group.
        pool: candidates are the dense item indices 0..pool-1.
        touched: [m] int32, sorted distinct items of the user's earlier rows of positive weight, all below `pool`.
        history: [h] int64, row numbers of the user's earlier rows in the log, oldest first.
        events: earlier rows of the user (positive or not).
        groups: earlier groups of the user with a positive row.
        log: columns of the log; only rows in `history` belong to this user's past.
        session: key64 of the session that the user is in, 0 = none.
        context: of the request, one value for each field of `signals.context`.
    """

    number: int
    user: int
    user_id: str
    t_ms: int
    pool: int
    touched: Int32
    history: Int64
    events: int
    groups: int
    log: EventLog = field(repr=False)
    session: int = 0
    context: Context = ()

    @property
    def in_session(self) -> Int32:
        """Sorted distinct items of the session so far."""
        if not self.session:
            return np.zeros(0, np.int32)
        rows = self.history[self.log.group_key[self.history] == np.uint64(self.session)]
        return np.unique(self.log.item[rows])

    def view(self, limit: int = 1024) -> UserView:
        """The user's last `limit` events as scorers read them; memory and profile are left empty."""
        rows = self.history[-limit:]
        log = self.log
        empty = len(rows) == 0
        return UserView(
            user_id=self.user_id,
            items=log.item[rows],
            t_ms=log.t_ms[rows],
            weight=log.weight[rows],
            value=log.value[rows],
            price=log.price[rows],
            group=log.group_key[rows],
            action=log.action_code[rows],
            events=self.events,
            first_ms=-1 if empty else int(log.t_ms[self.history[0]]),
            domain="" if empty else log.domain_of(int(rows[-1])),
            context=self.context,
        )


@dataclass(frozen=True, slots=True)
class Ranking:
    """Scores of one list, the highest is first; only their order counts.

    Attributes:
        scores: [n] float, no NaN.
        items: [n] int32 distinct dense indices below the request's pool; None = n is the pool and entry i is item i.
            Items that are left out rank behind all that are in, tied with each other.
    """

    scores: Floats
    items: Int32 | None = None


@dataclass(frozen=True, slots=True)
class Slate:
    """An arm's answer. The protocol itself leaves out touched items on novel and untouched ones on repeat.

    Attributes:
        overall: ranks everything.
        novel: ranks items that the user never touched; None = as `overall`.
        repeat: ranks the user's own past items; None = as `overall`.
    """

    overall: Ranking
    novel: Ranking | None = None
    repeat: Ranking | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """A group that has just become known.

    Attributes:
        number: that of its request.
        user: dense user index.
        group: its rows as scorers learn them; `group.items` may hold items new to the pool.
        rows: [b] int64 row numbers in the log, ascending.
        pool: size of the pool with the group's new items.
        log: columns of the log.
    """

    number: int
    user: int
    group: Group
    rows: Int64
    pool: int
    log: EventLog = field(repr=False)

    def events(self) -> list[Event]:
        """The rows as events, in order, for a Processor; the log's offsets go to its rows in order of arrival."""
        events = [self.log.event(row) for row in self.rows.tolist()]
        for place, event in enumerate(events, int(self.log.group_start[self.number])):
            event.offset = int(self.log.offset[place])
        return events


class Arm(Protocol):
    """A scorer under test.

    Attributes:
        name: as in `--arms` and in metrics.json.
        refresh_cpu_s: CPU seconds that `score` has spent on training so far (a lazy refit); counted as training.
        trained_share: share of the log's groups that its weights were trained on; 1 unless it stops or samples.

    An arm that works together with others has an attribute `cost`: what each part that it needs has cost until now,
    whichever arm asked for it first. Others are charged for the time of their calls, as the part "whole". One whose
    `drives_state` is true takes a Processor through the whole log: the state at its end is the replay's. `note` says
    what a reader of the report should know of how it ran, `void` why it has nothing to go by, "" = it has.
    """

    name: str
    refresh_cpu_s: float
    trained_share: float

    def start(self, split_ms: int) -> None:
        """Called once, after the last warm-up group is learnt and before the first score."""

    def score(self, request: Request) -> Slate:
        """The arm's scores; must depend on earlier groups alone and change nothing that later scores depend on."""
        ...

    def learn(self, request: Request, arrival: Arrival) -> None:
        """Take in a group, positive rows and others."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What an arm may know before the first group.

    Attributes:
        log: the log; its rows are for the requests to hand out, its `item_ids` are in order of entry into the pool.
        settings: the whole configuration.
        seed: of everything random in the arm.
        items: what the items file says, by id; valid from the item's first appearance.
        profiles: file of profiles for replay, None = the template.
        shared: arms of one pass put here what they share (one processor, one set of features). An arm family that
            drives a Processor leaves callables "state_sha256" and "adoptions" (their number) here.
        say: gets (what, done, total) of what is prepared.
        learn_share: share of the groups that live learners learn from; the others are only counted.
    """

    log: EventLog
    settings: Settings
    seed: int = 0
    items: Mapping[str, Item] = field(default_factory=dict)
    profiles: Path | None = None
    shared: dict[str, Any] = field(default_factory=dict)
    say: Callable[[str, int, int], None] = field(default=lambda what, done, total: None, repr=False)
    learn_share: float = 1.0


@dataclass(frozen=True, slots=True)
class Family:
    """Arms that are made alike.

    Attributes:
        names: arms to choose from.
        build: the arm of a name, None if the name is not of this family (composed names are allowed).
        random: results depend on the seed.
    """

    names: Sequence[str]
    build: Callable[[str, Setup], Arm | None]
    random: bool = True
