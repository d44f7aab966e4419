"""The engine: signals, text, profiles, plugged-in scorers and rankers behind two calls.

    slate(view, now_ms) -> candidates, recallers, features, scores          reads only
    learn(group, view, slate) -> standardiser, rankers, signals, plugs      in this order: predict, then learn

Training, replay and serving drive the same object: a snapshot is `arrays()`, serving opens it with
`from_arrays(..., read_only=True)`. Sequence and graph models are plugs: each adds a recaller and a block of columns.
Several rankers may learn side by side on one feature pass, each with its own blocks: those are the arms of the replay.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from graph.arrays import Arrays, grown
from graph.history import History, history_of
from graph.signals import Signals
from model.columns import Layout, layout
from model.features import features
from model.ranker import HEADS, Ranker
from model.recall import BASE_BITS, BIT, PROFILES, Pool, Scored, best_of, listed_base, plug_bit, pool_of, score_base
from model.standardiser import Standardiser

if TYPE_CHECKING:
    from configs.settings import Settings
    from graph.rows import Float32
    from graph.view import Group, Int32, ItemTable, UserView

MAIN = "incremental"
"""The ranker that answers requests: it sees every block."""

Which = Literal["novel", "repeat", "mix"]


class Plug(Protocol):
    """A model that maps a user at a time and all items into one space."""

    def user_vector(self, view: UserView, now_ms: int) -> Float32:
        """The user's vector [d]; zeros = no opinion."""
        ...

    def item_matrix(self) -> Float32:
        """Vectors [n, d] of the items that it knows; further items have no opinion."""
        ...


@dataclass(frozen=True, slots=True)
class Slate:
    """One request, scored.

    Attributes:
        view: the user; now_ms: the request time.
        past: the digest of the view.
        pool: candidates [c], the recallers' bitmask and opinions.
        own: [c] bool, touched by the user before.
        raw: [f, c] float32 features before standardising.
        features: [c, f] float32 as the rankers see and log them.
        scores: [3, c] float32 of the main ranker: novel, repeat, mix.
    """

    view: UserView
    now_ms: int
    past: History
    pool: Pool
    own: NDArray[np.bool_]
    raw: Float32
    features: Float32
    scores: Float32

    @property
    def candidates(self) -> Int32:
        """[c] int32 dense indices."""
        return self.pool.candidates

    @property
    def recalled(self) -> NDArray[np.uint32]:
        """[c] uint32 bitmask of recallers."""
        return self.pool.recalled

    def top(self, k: int, which: Which = "mix", exclude: Sequence[int] = ()) -> tuple[Int32, Float32]:
        """The k best items and their scores.

        Args:
            k: how many.
            which: "novel" leaves out items that the user touched, "repeat" all others, "mix" ranks both.
            exclude: dense indices to leave out.
        """
        keep = np.ones(len(self.candidates), np.bool_)
        if which != "mix":
            keep = self.own if which == "repeat" else ~self.own
        if len(exclude):
            keep = keep & ~np.isin(self.candidates, np.asarray(exclude, np.int64))
        rows = np.flatnonzero(keep)
        scores = self.scores[HEADS.index(which), rows]
        order = np.argsort(-scores, kind="stable")[:k]
        return self.candidates[rows[order]], scores[order]


class Arm:
    """A ranker and what it may see.

    Attributes:
        blocks: blocks of columns.
        bits: recallers whose candidates are its pool.
        learning: False = frozen.
        cpu_s: CPU seconds that its ranker has spent on learning.
    """

    def __init__(self, ranker: Ranker, blocks: tuple[str, ...], bits: np.uint32) -> None:
        self.ranker, self.blocks, self.bits, self.learning = ranker, blocks, bits, True
        self.cpu_s = 0.0

    def rows(self, slate: Slate) -> NDArray[np.bool_]:
        """Candidates [c] of its pool."""
        out: NDArray[np.bool_] = (slate.recalled & self.bits) != 0
        return out


class Engine:
    """Everything that is learnt about one stream.

    Attributes:
        table: the items; only their names are read from it.
        text: [n, text_dim] float32 unit vectors of the items' texts, zero rows = none.
        arms: name -> ranker with its blocks; `MAIN` answers requests.
        plugs: name -> model; its name is the name of its block.
    """

    def __init__(self, settings: Settings, table: ItemTable, plugs: Mapping[str, Plug] | None = None) -> None:
        self.settings, self.table = settings, table
        self.plugs: dict[str, Plug] = dict(plugs or {})
        self.layout: Layout = layout(settings.signals.half_lives_days, tuple(self.plugs))
        self.signals = Signals(settings.signals)
        self.standardiser = Standardiser(self.layout.present)
        self.text: Float32 = np.zeros((0, settings.ranker.text_dim), np.float32)
        self._texts = 0  # rows of `text` that were set
        self.arms: dict[str, Arm] = {}
        self.add_arm(MAIN, tuple(self.layout.blocks), settings.ranker.seed)

    def add_arm(self, name: str, blocks: tuple[str, ...], seed: int = 0) -> Arm:
        """Add a ranker that sees only some blocks; "base" is always among them.

        Raises:
            KeyError: a block does not exist.
        """
        seen = tuple(block for block in self.layout.blocks if block == "base" or block in blocks)
        columns = np.flatnonzero(self.layout.mask(tuple({*blocks, "base"})))
        bits = BASE_BITS
        for number, plug in enumerate(self.plugs):
            bits |= plug_bit(number) if plug in seen else np.uint32(0)
        bits |= BIT[PROFILES] if PROFILES in seen else np.uint32(0)
        self.arms[name] = Arm(Ranker(self.settings.ranker, columns, seed), seen, bits)
        return self.arms[name]

    def set_text(self, index: int, vector: Float32) -> None:
        """Set the unit text vector [text_dim] of an item."""
        self.text = grown(self.text, index + 1)
        self._texts = max(self._texts, index + 1)
        self.text[index] = vector

    def grow(self, n: int) -> None:
        """Make items 0..n-1 candidates; learning does so for the items of a group."""
        self.signals.ensure(n)

    def slate(self, view: UserView, now_ms: int) -> Slate:
        """Recall, features and scores for one user at one time; changes nothing.

        Args:
            view: what is known of the user before now_ms.
            now_ms: request time, unix milliseconds.
        """
        signals, ranker = self.signals, self.settings.ranker
        past = history_of(view, signals.n)
        text = self.known_text()
        scored = score_base(view, past, now_ms, signals, text, ranker)
        extra = {
            name: (plug_bit(i), self._opinion(plug, view, past, now_ms))
            for i, (name, plug) in enumerate(self.plugs.items())
            if signals.n
        }
        facets = None if view.profile is None else view.profile.facets
        if facets is not None and signals.n and facets.shape[1] == text.shape[1]:
            extra[PROFILES] = (BIT[PROFILES], best_of((text @ facets.T).mean(1), ranker.recall, past.items))
        pool = pool_of(past, scored, listed_base(view, signals, ranker), extra, signals.n, ranker)
        raw = features(view, past, now_ms, pool, signals, text, self.layout)
        standardised = self.standardiser.apply(raw)
        touched = np.zeros(signals.n, np.bool_)
        touched[past.items] = True
        own = touched[pool.candidates]
        scores = self.arms[MAIN].ranker.score(standardised)
        return Slate(view, now_ms, past, pool, own, raw, standardised, scores)

    def known_text(self) -> Float32:
        """Text vectors [n, text_dim] of exactly the known items, zeros where an item has none."""
        n = self.signals.n
        if len(self.text) < n:
            padded = np.zeros((n, self.text.shape[1]), np.float32)
            padded[: len(self.text)] = self.text
            return padded
        return self.text[:n]

    def _opinion(self, plug: Plug, view: UserView, past: History, now_ms: int) -> Scored:
        n = self.signals.n
        vector = plug.user_vector(view, now_ms)
        matrix = plug.item_matrix()[:n]
        scores = matrix @ vector if len(matrix) else np.zeros(0, np.float32)
        if not np.any(vector):
            return best_of(np.zeros(n, np.float32), 0, past.items)
        known = np.full(n, scores.min() if len(scores) else 0, np.float32)
        known[: len(scores)] = scores
        return best_of(known, self.settings.ranker.recall, past.items, above=-np.inf)

    def score(self, slate: Slate, arm: str = MAIN) -> tuple[Int32, Float32]:
        """Another arm's pool [c] and scores [3, c] on the same feature pass."""
        one = self.arms[arm]
        rows = one.rows(slate)
        return slate.candidates[rows], one.ranker.score(slate.features[rows])

    def learn(self, group: Group, view: UserView, slate: Slate | None = None) -> None:
        """Learn one group, after it was scored.

        Args:
            group: its rows.
            view: the user before the group.
            slate: what `slate(view, group.t_ms)` gave before; None = only the signals learn.
        """
        past = slate.past if slate is not None else history_of(view, self.signals.n)
        if slate is not None and len(slate.candidates):
            wanted = group.items[group.positive & (group.items >= 0)]
            positive = np.isin(slate.candidates, wanted)
            for name, arm in self.arms.items():
                before = time.process_time()
                if arm.learning and name == MAIN:  # it sees every row, and its scores are at hand
                    arm.ranker.learn(slate.features, positive, slate.own, slate.scores)
                elif arm.learning:
                    rows = arm.rows(slate)
                    arm.ranker.learn(slate.features[rows], positive[rows], slate.own[rows])
                arm.cpu_s += time.process_time() - before
            self.standardiser.update(slate.raw[:, (slate.recalled & BASE_BITS) != 0])
        self.signals.observe(group, view, past)

    def arrays(self, replay: bool = True) -> Arrays:
        """The whole state by name, plugs and item names left out.

        Args:
            replay: with the rankers' moments and replay logs, as a checkpoint needs; a snapshot does not.
        """
        out = {f"signals.{k}": v for k, v in self.signals.arrays().items()}
        out |= self.standardiser.arrays("standardiser")
        out["text"] = self.text[: self._texts].copy()
        for name, arm in self.arms.items():
            if replay or name == MAIN:
                out |= arm.ranker.arrays(f"arm.{name}", replay)
        return out

    @classmethod
    def from_arrays(
        cls,
        settings: Settings,
        table: ItemTable,
        arrays: Arrays,
        plugs: Mapping[str, Plug] | None = None,
        read_only: bool = False,
    ) -> Engine:
        """The engine whose `arrays` these are, for the same settings and plugs.

        Args:
            settings, table, plugs: as at the start.
            arrays: with `read_only` they may be memory-mapped and are not copied.
            read_only: answer only; `learn` raises.
        """
        self = cls(settings, table, plugs)
        signals = {k.removeprefix("signals."): v for k, v in arrays.items() if k.startswith("signals.")}
        self.signals = Signals.from_arrays(settings.signals, signals, read_only)
        self.standardiser.restore(arrays, "standardiser")
        self.text = np.asarray(arrays["text"], np.float32) if read_only else np.array(arrays["text"], np.float32)
        self._texts = len(self.text)
        self.arms[MAIN].ranker.restore(arrays, f"arm.{MAIN}")
        return self
