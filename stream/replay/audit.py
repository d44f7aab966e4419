"""The leak audit: no arm may know what it is asked for, nor anything that comes later.

A short log, all rows of a sample of users, some of whose groups come late, is replayed with fresh arms and every slate
past its split is kept, byte for byte. Then, at a few groups, the world is changed from that group on and the arms are
run again:

    permutation      the group and all later ones get other items: the score may not depend on which one is true
    future deletion  the group and all later ones do not exist, nor do profiles that were written after the log's end:
                     the user merely asks at that time

Later means later in arrival. Up to and including that group, every slate must be bit-identical to the first run.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from driftline.configs.errors import InputError
from driftline.graph.arrays import Int64
from driftline.graph.rows import key64
from driftline.stream.events.columns import Columns
from driftline.stream.replay.arms import Arm, Arrival, Request, Slate
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.protocol import EVERYTHING, Scope, questions, rankings, scored_groups

ArmsOf = Callable[[EventLog], Sequence[Arm]]
USERS = 500
"""Users of the short log at most."""
LATE_SHARE = 0.05
"""Of the groups, those that are made to arrive late, and how many others arrive before each at most."""
LATE_GROUPS = 40
Slates = dict[int, dict[str, str]]
AUDITS = ("permutation", "future_deletion")


@dataclass(frozen=True, slots=True)
class AuditResult:
    """Outcome: "pass", "fail: ..." naming the first arm and group that differ, or "not run: ..." with the reason.

    Attributes:
        rows, users: of the short log; late: its groups that arrived after one of a later time.
        groups: at which the world was changed; from_file: of these, how many read a profile of the file.
        compared: groups whose slates were compared.
    """

    permutation: str
    future_deletion: str
    rows: int
    users: int
    late: int
    groups: int
    from_file: int
    compared: int

    @property
    def passed(self) -> bool:
        """True if both parts passed."""
        return self.permutation == "pass" and self.future_deletion == "pass"


def audit(
    columns: Columns,
    log_of: Callable[[Columns], EventLog],
    arms_of: ArmsOf,
    rows: int = 20_000,
    split: float = 0.7,
    samples: int = 4,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    from_file: Callable[[EventLog, Int64], NDArray[np.bool_]] = lambda log, groups: np.zeros(len(groups), np.bool_),
    scope: Scope = EVERYTHING,
) -> AuditResult:
    """Run the audit on a sample of a log's users.

    Args:
        columns: the log.
        log_of: makes the log of some of its rows, with the same meaning of actions and the same rule of candidates.
        arms_of: makes the arms under test, untrained, for a log.
        rows: about how many are replayed.
        split: share of the positive rows that warm up.
        samples: groups at which the world is changed, spread over the scored part; 1 + 2 x samples short replays are
            run.
        seed: of the choice of groups and of the other items.
        progress: called with (replays done, replays in total).
        from_file: which groups read a profile of the file; one of them is chosen where there is any.
        scope: which groups are asked for.
    """
    rng = np.random.default_rng(seed)
    log = log_of(columns.take(_rows_of_users(columns, rows)))
    log = log_of(some_late(log, rng))
    late = int((log.group_t_ms < np.maximum.accumulate(log.group_t_ms)).sum())
    try:
        split_ms = log.split_ms(split)
        scored = scored_groups(log, split_ms, scope)
        changeable = scored[log.pool[scored] > 0]
        if len(changeable) == 0:
            raise InputError("no group past the split has a candidate, an item of an earlier one")
    except InputError as error:
        reason = f"not run: in a sample of {len(log.user_ids)} users {error}"
        return AuditResult(reason, reason, len(log), len(log.user_ids), late, groups=0, from_file=0, compared=0)
    with_file = changeable[from_file(log, changeable)]
    chosen = _choose(changeable, with_file, samples, rng)
    total, done = 1 + 2 * len(chosen), 0

    def slates(changed: EventLog, last: int, extra: Request | None = None) -> Slates:
        nonlocal done
        out = _slates(changed, arms_of(changed), set(scored.tolist()), last, split_ms, extra)
        done += 1
        if progress is not None:
            progress(done, total)
        return out

    truth = slates(log, int(scored[-1]))
    permutation, deletion = "pass", "pass"
    for number in chosen:
        if permutation == "pass":
            other = slates(log_of(_permuted(log, number, rng)), number)
            permutation = _compare(truth, other, number)
        if deletion == "pass":
            shorter = log_of(_cut(log, number))
            other = slates(shorter, number, _question(log, shorter, number))
            deletion = _compare(truth, other, number)
    return AuditResult(
        permutation,
        deletion,
        rows=len(log),
        users=len(log.user_ids),
        late=late,
        groups=len(chosen),
        from_file=int(np.isin(chosen, with_file).sum()),
        compared=len(scored[scored <= chosen[-1]]),
    )


def _rows_of_users(columns: Columns, rows: int) -> Int64:
    """Rows of whole users, in an order that a hash of their ids gives, until there are `rows` of them or USERS users.

    Half of the rows are of whoever comes first, the other half of those who have few, so that there are many. A user
    who has more than `rows` alone, as a guest account may, is passed over while there is another.
    """
    codes, ids = columns.user_id
    order = np.array(sorted(range(len(ids)), key=lambda user: (crc32(ids[user].encode()), ids[user])))
    sizes = np.bincount(codes, minlength=len(ids))
    order = np.concatenate((order[sizes[order] <= rows], order[sizes[order] > rows]))
    anybody = order[: max(1, np.searchsorted(np.cumsum(sizes[order]), rows / 2, side="right"))][:USERS]
    rest = order[len(anybody) :]
    few = rest[sizes[rest] <= np.median(sizes)]
    room = rows - sizes[anybody].sum()
    few = few[: np.searchsorted(np.cumsum(sizes[few]), room, side="right")][: USERS - len(anybody)]
    return np.flatnonzero(np.isin(codes, np.concatenate((anybody, few))))


def some_late(log: EventLog, rng: np.random.Generator) -> Columns:
    """The rows of a log in the order of its groups, some of which arrive after later ones; times stay."""
    place = np.arange(log.groups, dtype=np.float64)
    late = rng.random(log.groups) < LATE_SHARE
    place[late] += rng.uniform(1, LATE_GROUPS, int(late.sum()))
    order = np.argsort(place, kind="stable")
    rows = np.concatenate([log.rows_of(number) for number in order.tolist()])
    return dataclasses.replace(log.columns, offset=None).take(rows)


def _choose(scored: Int64, wanted: Int64, samples: int, rng: np.random.Generator) -> list[int]:
    """One group of each of `samples` parts of the scored ones, ascending; a wanted one among them if there is any."""
    parts = np.array_split(scored, min(samples, len(scored)))
    chosen = [int(rng.choice(part)) for part in parts]
    if len(wanted) and not np.isin(chosen, wanted).any():
        one = int(rng.choice(wanted))
        chosen = [one if one in part else other for part, other in zip(parts, chosen, strict=True)]
    return chosen


def _slates(
    log: EventLog, arms: Sequence[Arm], scored: set[int], last: int, split_ms: int, extra: Request | None
) -> Slates:
    """Digests of every arm's slate at the scored groups up to `last`, and at an extra request after the log."""
    slates: Slates = {}
    ids = np.array([key64(item_id) for item_id in log.item_ids], np.uint64)

    def ask(request: Request) -> None:
        if not slates:
            for arm in arms:
                arm.start(split_ms)
        slates[request.number] = {arm.name: _answer(arm, request, ids) for arm in arms}

    for request, arrival in _until(log, last):
        if request.number in scored:
            ask(request)
        for arm in arms:
            arm.learn(request, arrival)
    if extra is not None:
        ask(extra)
    return slates


def _answer(arm: Arm, request: Request, ids: NDArray[np.uint64]) -> str:
    try:
        return digest(arm.score(request), ids[: request.pool], ids[request.in_session])
    except LookupError as error:  # it looked for a row that was deleted
        return f"raised {error!r}"


def _until(log: EventLog, last: int) -> Iterator[tuple[Request, Arrival]]:
    for request, arrival, _ in questions(log):
        if request.number > last:
            return
        yield request, arrival


def digest(slate: Slate, ids: NDArray[np.uint64], in_session: NDArray[np.uint64]) -> str:
    """SHA-256 of everything that a slate says, bit for bit, and of the candidates in their order.

    Args:
        slate: of an arm.
        ids: [pool] of the candidates; in_session: of those that are none on the list `session`.
    """
    sha = hashlib.sha256(ids.tobytes() + b"|" + np.sort(in_session).tobytes())
    for ranking in rankings(slate):
        for array in (ranking.scores, ranking.items):
            sha.update(b"none" if array is None else array.dtype.str.encode() + array.tobytes())
    return sha.hexdigest()


def _compare(truth: Slates, other: Slates, number: int) -> str:
    """ "pass", or which arm gave another slate at or before a group."""
    for asked in sorted(other):
        for name, sha in other[asked].items():
            if truth[asked][name] != sha:
                return f"fail: arm {name!r} scores group {asked} otherwise when groups from {number} on are changed"
    return "pass"


def _permuted(log: EventLog, number: int, rng: np.random.Generator) -> Columns:
    """The log with other items, values and prices in all groups from `number` on; of unknown fields only contexts."""
    rows = log.group_rows[log.group_start[number] :]
    item = log.item.copy()
    item[rows] = rng.integers(0, log.pool[number], len(rows))
    value, price = log.value.copy(), log.price.copy()
    value[rows], price[rows] = value[rng.permutation(rows)], price[rng.permutation(rows)]
    changed = dataclasses.replace(
        log.columns, item_id=(item, log.item_ids), value=value, price=price, extra=log.contexts()
    )
    return changed.take(np.arange(len(log)))


def _cut(log: EventLog, number: int) -> Columns:
    """The log without the groups from `number` on."""
    return log.columns.take(np.sort(log.group_rows[: log.group_start[number]]))


def _question(log: EventLog, shorter: EventLog, number: int) -> Request:
    """What the user of a deleted group asks, told from the shorter log alone."""
    user_id, t_ms = log.user_ids[log.group_user[number]], int(log.group_t_ms[number])
    known = user_id in shorter.user_ids
    user = shorter.user_ids.index(user_id) if known else len(shorter.user_ids)
    history = shorter.group_rows[shorter.user[shorter.group_rows] == user]
    liked = history[shorter.positive[history]]
    return Request(
        number=number,
        user=user,
        user_id=user_id,
        t_ms=t_ms,
        pool=max(int(shorter.pool[-1]), int((shorter.entered_ms <= t_ms).sum())),
        touched=np.unique(shorter.item[history[shorter.weight[history] > 0]]),
        history=history,
        events=len(history),
        groups=len(np.unique(shorter.group_of[liked])),
        log=shorter,
        session=int(log.sessions.key[number]),
        context=log.context_of(number),
    )
