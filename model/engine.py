"""The engine: signals, text, profiles, plugged-in scorers and rankers behind two calls.

    slate(view, now_ms) -> candidates, recallers, features, scores          reads only
    learn(group, view, slate) -> standardiser, rankers, signals, plugs      in this order: predict, then learn

Training, replay and serving drive the same object: a snapshot is `arrays()`, serving opens it with
`from_arrays(..., read_only=True)`. Profiles, sequence and graph models are plugs (model/part.py): each adds a recaller
and a block of columns.
Several rankers may learn side by side on one feature pass, each with its own blocks: those are the arms of the replay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Arrays
from driftline.graph.history import HistoryDigest, history_of
from driftline.graph.signals import Signals
from driftline.graph.sparse import best_rows
from driftline.graph.texts import TextTable
from driftline.graph.touched import Touched
from driftline.model.clocks import Clocks, NoClocks
from driftline.model.columns import Layout, layout
from driftline.model.context_columns import CONTEXT
from driftline.model.features import features
from driftline.model.gate import Gate
from driftline.model.part import Asked, Plug, ProfilesPlug
from driftline.model.ranker import HEADS, Ranker
from driftline.model.recall import (
    BASE_BITS,
    PROFILES,
    Pool,
    Scored,
    listed_base,
    plug_bit,
    pool_of,
    score_base,
    score_texts,
)
from driftline.model.standardiser import Standardiser

if TYPE_CHECKING:
    from driftline.configs.settings import Settings
    from driftline.graph.arrays import Float32, Int32
    from driftline.graph.view import Group, ItemTable, UserView

MAIN = "incremental"
"""The ranker that answers requests: it sees every block."""

RANKER = "ranker"
GATE = "gate"
"""What the clocks call the comparison of parts."""
NO_SCORES = np.zeros((len(HEADS), 0), np.float32)


def ranker_part(arm: str) -> str:
    """What the clocks call an arm's ranker."""
    return f"{RANKER} {arm}"


Which = Literal["novel", "repeat", "overall"]


@dataclass(frozen=True, slots=True)
class EngineSlate:
    """One request, scored.

    Attributes:
        view: the user; now_ms: the request time.
        past: the digest of the view.
        pool: candidates [c], the recallers' bitmask and opinions.
        own: [c] bool, touched by the user before.
        raw: [f, c] float32 features before standardising.
        features: [c, f] float32 as the rankers see and log them.
        scores: [3, c] float32 of the main ranker: novel, repeat, overall.
        whole: of a group whose parts are compared, what those that are off would add; None = nothing. Not scored.
    """

    view: UserView
    now_ms: int
    past: HistoryDigest
    pool: Pool
    own: NDArray[np.bool_]
    raw: Float32
    features: Float32
    scores: Float32
    whole: EngineSlate | None = None

    @property
    def candidates(self) -> Int32:
        """[c] int32 dense indices."""
        return self.pool.candidates

    @property
    def recalled(self) -> NDArray[np.uint32]:
        """[c] uint32 bitmask of recallers."""
        return self.pool.recalled

    def top(self, k: int, which: Which = "overall", exclude: Sequence[int] = ()) -> tuple[Int32, Float32]:
        """The k best items and their scores.

        Args:
            k: how many.
            which: "novel" leaves out items that the user touched, "repeat" all others, "overall" ranks both.
            exclude: dense indices to leave out.
        """
        keep = np.ones(len(self.candidates), np.bool_)
        if which != "overall":
            keep = self.own if which == "repeat" else ~self.own
        if len(exclude):
            keep = keep & ~np.isin(self.candidates, np.asarray(exclude, np.int64))
        rows = np.flatnonzero(keep)
        scores = self.scores[HEADS.index(which), rows]
        order = np.argsort(-scores, kind="stable")[:k]
        return self.candidates[rows[order]], scores[order]


class RankerArm:
    """A ranker and what it may see.

    Attributes:
        blocks: blocks of columns.
        bits: recallers whose candidates are its pool.
        learning: False = frozen.
    """

    def __init__(self, ranker: Ranker, blocks: tuple[str, ...], bits: np.uint32) -> None:
        self.ranker, self.blocks, self.bits, self.learning = ranker, blocks, bits, True

    def rows(self, slate: EngineSlate) -> NDArray[np.bool_]:
        """Candidates [c] of its pool."""
        out: NDArray[np.bool_] = (slate.recalled & self.bits) != 0
        return out


class Engine:
    """Everything that is learnt about one stream.

    Attributes:
        table: the items; only their names are read from it.
        text: unit vectors of the items' texts, which plugs may read as well.
        arms: name -> ranker with its blocks; `MAIN` answers requests.
        plugs: name -> plug; its name is the name of its block. Profiles are the first one.
        clocks: what each part costs, where somebody wants to know.
        gate: compares parts and says which are off (model/gate.py).
    """

    def __init__(
        self,
        settings: Settings,
        table: ItemTable,
        plugs: Mapping[str, Plug] | None = None,
        text: TextTable | None = None,
        units: Mapping[str, tuple[str, ...]] | None = None,
        read_only: bool = False,
    ) -> None:
        """A fresh one.

        Args:
            settings, table: as above.
            plugs: those beside the profiles' one.
            text: see above; None = one of its own.
            units: blocks by part, which the gate compares; None = it compares nothing.
            read_only: it will answer only.
        """
        self.settings, self.table = settings, table
        self.text = TextTable(settings.ranker.text_dim) if text is None else text
        self.plugs: dict[str, Plug] = {PROFILES: ProfilesPlug(self.text), **(plugs or {})}
        self.layout: Layout = layout(settings.signals, {name: plug.columns for name, plug in self.plugs.items()})
        self._own = self.layout.names.index("own")
        self.signals = Signals(settings.signals)
        self.standardiser = Standardiser(self.layout.present)
        self.arms: dict[str, RankerArm] = {}
        self.clocks: Clocks = NoClocks()
        main = self.add_arm(MAIN, tuple(self.layout.blocks), settings.ranker.seed)
        bits = {name: plug_bit(number) for number, name in enumerate(self.plugs)}
        base = self.layout.blocks["base"]
        self.gate = Gate(
            settings.model.gate, settings.ranker, self.layout, units or {}, bits, main.bits, base.stop, read_only
        )

    def add_arm(self, name: str, blocks: tuple[str, ...], seed: int = 0) -> RankerArm:
        """Add a ranker that sees only some blocks; "base", "reverse" and "context" are always among them.

        Raises:
            KeyError: a block does not exist.
        """
        seen = tuple(block for block in self.layout.blocks if block in ("base", "reverse", CONTEXT, *blocks))
        columns = np.flatnonzero(self.layout.mask(tuple({*blocks, *seen})))
        bits = BASE_BITS
        for number, plug in enumerate(self.plugs):
            bits |= plug_bit(number) if plug in seen else np.uint32(0)
        for number in range(len(self.signals.reverse.tables)):
            bits |= plug_bit(len(self.plugs) + number)
        base = self.layout.blocks["base"]
        ranker = Ranker(self.settings.ranker, columns, seed, base.stop - base.start)
        self.arms[name] = RankerArm(ranker, seen, bits)
        return self.arms[name]

    def set_text(self, index: int, vector: Float32) -> None:
        """Set the unit text vector [text_dim] of an item."""
        self.text.set(index, vector)

    def grow(self, n: int) -> None:
        """Make items 0..n-1 candidates; learning does so for the items of a group."""
        self.signals.ensure(n)

    def slate(self, view: UserView, now_ms: int) -> EngineSlate:
        """Recall, features and scores for one user at one time; changes nothing.

        Args:
            view: what is known of the user before now_ms.
            now_ms: request time, unix milliseconds.
        """
        return self.slates([view], [now_ms])[0]

    def slates(self, views: Sequence[UserView], now_ms: Sequence[int]) -> list[EngineSlate]:
        """`slate` of several users: what is read whole for each of them, the texts, is read once for all."""
        pasts = [self._past(view) for view in views]
        with self.clocks.on("text"):
            alike = score_texts(pasts, now_ms, self.signals, self.text, self.settings.ranker.recall)
        return [self._slate(*one) for one in zip(views, now_ms, pasts, alike, strict=True)]

    def _slate(self, view: UserView, now_ms: int, past: HistoryDigest, alike: dict[str, Scored]) -> EngineSlate:
        signals, ranker = self.signals, self.settings.ranker
        asked = Asked(view, past, now_ms, signals.n, ranker.recall)
        scored, extra = self._opinions(asked, alike)
        with self.clocks.on("signals"):
            oneself = self.node(view.user_id)
            pool = pool_of(past, scored, listed_base(view, signals, ranker), extra, signals.n, ranker, oneself)
            raw = features(asked, pool, signals, self.text, self.plugs, self.layout)
            standardised = self.standardiser.apply(raw)
            own = raw[self._own] != 0
            whole = EngineSlate(view, now_ms, past, pool, own, raw, standardised, NO_SCORES)
            slate = self._served(whole) if self.gate.silent else whole
        with self.clocks.on(ranker_part(MAIN)):
            return replace(slate, scores=self.arms[MAIN].ranker.score(slate.features))

    def _served(self, whole: EngineSlate) -> EngineSlate:
        """What is left of a slate where parts are off: neither their candidates nor their columns."""
        gate, pool = self.gate, whole.pool
        if not gate.comparing:  # nobody asked them
            whole.features[:, gate.hidden] = 0
            return whole
        rows = np.flatnonzero(gate.takes(pool.recalled))
        scored = {name: one for name, one in pool.scored.items() if name not in gate.silent}
        raw, seen = whole.raw.take(rows, 1), whole.features.T.take(rows, 1).T  # in memory they stay columns
        raw[gate.hidden], seen[:, gate.hidden] = 0, 0
        recalled = pool.recalled[rows] & gate.bits_of(gate.silent)
        left = Pool(pool.candidates[rows], recalled, scored)
        return replace(whole, pool=left, own=whole.own[rows], raw=raw, features=seen, whole=whole)

    def score_items(self, view: UserView, now_ms: int, items: Int32) -> Float32:
        """Scores [3, c] of the main ranker for given distinct items [c]; one need not be among the candidates."""
        signals, ranker, past = self.signals, self.settings.ranker, self._past(view)
        asked = Asked(view, past, now_ms, signals.n, ranker.recall)
        alike = score_texts([past], [now_ms], signals, self.text, ranker.recall)[0]
        scored, extra = self._opinions(asked, alike)
        scored |= {name: one for name, (_, one) in extra.items()}
        pool = Pool(items, np.zeros(len(items), np.uint32), scored)
        seen = self.standardiser.apply(features(asked, pool, signals, self.text, self.plugs, self.layout))
        seen[:, self.gate.hidden] = 0
        return self.arms[MAIN].ranker.score(seen)

    def node(self, user_id: str) -> int:
        """The index of a user among the items, -1 where there is none, or ids of users are no ids of items."""
        node = self.table.find(user_id) if self.settings.signals.one_id_space else -1
        return node if node < self.signals.n else -1

    def _past(self, view: UserView) -> HistoryDigest:
        return history_of(view, self.signals.n, self.settings.state.ordered)

    def _opinions(
        self, asked: Asked, alike: dict[str, Scored]
    ) -> tuple[dict[str, Scored], dict[str, tuple[np.uint32, Scored]]]:
        """Of the base recallers, and of the plugs with their bits."""
        signals, k = self.signals, self.settings.ranker.recall
        with self.clocks.on("signals"):
            scored = score_base(asked.view, asked.past, asked.now_ms, signals, self.settings.ranker) | alike
        extra: dict[str, tuple[np.uint32, Scored]] = {}
        for i, (name, plug) in enumerate(self.plugs.items()):
            if asked.n and self.gate.is_asked(name):
                with self.clocks.on(name):
                    one = plug.opinion(asked)
                if one is not None:
                    extra[name] = plug_bit(i), one
        node = self.node(asked.view.user_id)
        for i, (name, (items, scores)) in enumerate(signals.reverse.sums(node, asked.n).items()):
            best = best_rows(items, scores, k, asked.past.items, asked.n)
            extra[name] = plug_bit(len(self.plugs) + i), Scored(items, scores, *best)
        return scored, extra

    def score(self, slate: EngineSlate, arm: str = MAIN) -> tuple[Int32, Float32]:
        """Another arm's pool [c] and scores [3, c] on the same feature pass."""
        one = self.arms[arm]
        with self.clocks.on(ranker_part(arm)):
            rows = one.rows(slate)
            return slate.candidates[rows], one.ranker.score(slate.features[rows])

    def learn(self, group: Group, view: UserView, slate: EngineSlate | None = None) -> None:
        """Learn one group, after it was scored.

        Args:
            group: its rows.
            view: the user before the group.
            slate: what `slate(view, group.t_ms)` gave before; None = only the signals learn.
        """
        past = slate.past if slate is not None else self._past(view)
        if slate is not None and len(slate.candidates):
            wanted = group.items[group.positive & (group.items >= 0)]
            is_wanted = np.zeros(max(self.signals.n, len(self.table)), np.bool_)
            is_wanted[wanted] = True
            positive = is_wanted[slate.candidates]
            whole = slate.whole or slate
            switched = self._compare(whole, is_wanted, wanted) if self.gate.comparing else None
            self.gate.passed()
            for name, arm in self.arms.items():
                with self.clocks.on(ranker_part(name), "learn"):
                    if arm.learning and name == MAIN:  # it sees every row, and its scores are at hand
                        arm.ranker.learn(slate.features, positive, slate.own, slate.scores, slate.candidates)
                    elif arm.learning:
                        rows = arm.rows(slate)
                        arm.ranker.learn(
                            slate.features[rows], positive[rows], slate.own[rows], items=slate.candidates[rows]
                        )
            with self.clocks.on("signals", "learn"):
                unasked = self.gate.hidden if slate.whole is None else None
                self.standardiser.update(whole.raw, (whole.recalled & BASE_BITS) != 0, unasked)
            if switched is not None:
                self.switch(switched, slate.now_ms)
        with self.clocks.on("signals", "learn"):
            self.signals.observe(group, view, past, self.node(group.user_id))

    def _compare(self, slate: EngineSlate, is_wanted: NDArray[np.bool_], wanted: Int32) -> str | None:
        """Lets the gate compare parts on a group; the part that it switches."""
        if not len(wanted):
            return None
        with self.clocks.on(GATE, "learn"):
            positive, spoke = is_wanted[slate.candidates], slate.pool.scored
            return self.gate.learn(slate.features, slate.recalled, positive, slate.own, slate.candidates, wanted, spoke)

    def switch(self, part: str, t_ms: int) -> None:
        """Puts a part off, or on again; the ranker begins anew with its columns."""
        before = self.gate.hidden
        self.gate.switch(part, t_ms)
        self.arms[MAIN].ranker.drop(self.gate.hidden | before)

    def learns(self, part: str) -> bool:
        """Whether a part learns from the next group: one that is off learns from those that are compared."""
        return part not in self.gate.off or self.gate.comparing

    def arrays(self, rehearsal: bool = True) -> Arrays:
        """The whole state by name, plugs and item names left out.

        Args:
            rehearsal: with what learning goes on from alone (moments and logs of the rankers, the users' last
                touches), as a checkpoint needs; a snapshot does not.

        Returns:
            views of tables: what is learnt next changes them.
        """
        out = {f"signals.{k}": v for k, v in self.signals.arrays(latest=rehearsal).items()}
        out |= self.standardiser.arrays("standardiser")
        out |= self.text.arrays() | self.gate.arrays(rehearsal)
        for name, arm in self.arms.items():
            if rehearsal or name == MAIN:
                out |= arm.ranker.arrays(f"arm.{name}", rehearsal)
        return out

    def touched(self) -> dict[str, Touched]:
        """Which rows changed, for those of `arrays` that change by rows."""
        return self.text.touched() | {f"signals.{k}": v for k, v in self.signals.touched().items()}

    @classmethod
    def from_arrays(
        cls,
        settings: Settings,
        table: ItemTable,
        arrays: Arrays,
        plugs: Mapping[str, Plug] | None = None,
        read_only: bool = False,
        text: TextTable | None = None,
        units: Mapping[str, tuple[str, ...]] | None = None,
        before: Engine | None = None,
    ) -> Engine:
        """The engine whose `arrays` these are, for the same settings and plugs; profiles need not be among them.

        Args:
            settings, table, plugs, units: as at the start.
            arrays: with `read_only` they may be memory-mapped and are not copied.
            read_only: answer only; `learn` raises.
            text: holds the texts of `arrays` already; None = they are taken from there.
            before: an engine of earlier arrays, to take over what is computed of the same.
        """
        text = TextTable.from_arrays(arrays, read_only) if text is None else text
        self = cls(settings, table, plugs, text, units, read_only)
        signals = {k.removeprefix("signals."): v for k, v in arrays.items() if k.startswith("signals.")}
        earlier = before.signals if before is not None else None
        self.signals = Signals.from_arrays(settings.signals, signals, read_only, earlier)
        self.standardiser.restore(arrays, "standardiser")
        self.arms[MAIN].ranker.restore(arrays, f"arm.{MAIN}")
        self.gate.restore(arrays)
        return self
