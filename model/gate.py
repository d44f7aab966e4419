"""Which parts earn their place on this stream: each is compared, predict before learn, with the engine without it.

    a share of the learnt groups:  score by every twin -> bets on what each part is worth -> twins learn -> decide

Twin 0 sees what is on. A part that is on has a twin that sees all but it; a part that is off one that sees it as well
(model/twins.py); each ranks the candidates that its blocks bring. What the one's NDCG@10 is above the other's is the
part's gain, with bounds that hold whenever one looks (model/betting.py).

A part whose gain is below `worth` for sure goes off: its columns are 0 in the ranker, its candidates are left out, and
it learns from the compared groups alone. There it is still asked, so it comes back when it is above `worth` for sure.
Between the two all stays as it is. A comparison is of at most `window` groups, so what was long ago does not outvote
what is now: a wrong switch has a chance of 1 - `confidence` in each. After a switch what parts are compared with is
another engine, so all comparisons begin anew, one switch at a time: of two parts that say the same only one goes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Arrays
from driftline.model.betting import Bets
from driftline.model.ranker import lots_of
from driftline.model.standing import Gain, Standing, sentence
from driftline.model.twins import Twins

if TYPE_CHECKING:
    from driftline.configs.settings import Gate as GateSettings
    from driftline.configs.settings import Ranker as RankerSettings
    from driftline.graph.arrays import Float32, Int32
    from driftline.model.columns import Layout

LOG = logging.getLogger(__name__)
SETTLE = 200
"""Compared groups after the start and after a switch in which twins learn and nothing is counted."""
TOP = 10


class Gate:
    """The comparisons of an engine's parts, and which of them are off.

    Args:
        settings: of the gate; ranker: of the ranker whose twins compare.
        layout: of the columns.
        units: blocks by part.
        bits: of each block's candidates; whole: of all candidates.
        base: so many columns stand first and belong to no part.
        read_only: follow what a snapshot says and compare nothing.

    Attributes:
        off: parts that are off.
        silent: their blocks, which the ranker does not see; hidden: [f] bool, the columns of these.
    """

    def __init__(
        self,
        settings: GateSettings,
        ranker: RankerSettings,
        layout: Layout,
        units: Mapping[str, tuple[str, ...]],
        bits: Mapping[str, np.uint32],
        whole: np.uint32,
        base: int,
        read_only: bool = False,
    ) -> None:
        self.settings, self._layout, self._units = settings, layout, dict(units)
        self._bits, self._whole, self._read_only = dict(bits), whole, read_only
        self.off: frozenset[str] = frozenset()
        self._since_ms = dict.fromkeys(self._units, -1)
        self._spoke: set[str] = set()
        self._last: dict[str, Gain] = {}
        self._groups = self._settled = 0
        self._seed = ranker.seed
        self._bets = Bets(len(self._units), settings.confidence)
        compares = settings.mode != "off" and bool(self._units) and not read_only
        self._twins = Twins(ranker, self._sees(), ranker.seed, base) if compares else None
        self._follow()

    # -- what the engine asks ----------------------------------------------------------------------------------

    @property
    def comparing(self) -> bool:
        """Whether the next group that is learnt is one of the share: all parts are to be asked of it."""
        if self._twins is None:
            return False
        lot = int(lots_of(self._seed, self._groups, np.zeros(1, np.int64))[0])
        return lot < self.settings.share * 2.0**64

    def is_asked(self, block: str) -> bool:
        """Whether the next answer is to have a block's opinion."""
        return block not in self.silent or self.comparing

    def takes(self, recalled: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which candidates [c] are brought by what is on."""
        out: NDArray[np.bool_] = (recalled & self.bits_of(self.silent)) != 0
        return out

    def bits_of(self, silent: frozenset[str]) -> np.uint32:
        """Of the candidates of all recallers but those of some blocks."""
        bits = self._whole
        for block in silent:
            bits &= ~self._bits[block]
        return bits

    def learn(
        self,
        features: Float32,
        recalled: NDArray[np.uint32],
        positive: NDArray[np.bool_],
        own: NDArray[np.bool_],
        items: Int32,
        wanted: Int32,
        spoke: Mapping[str, Any],
    ) -> str | None:
        """Takes in a group of the share, which was scored by nobody yet; the part that is to be switched, if any.

        Args:
            features: [c, f] of all parts; recalled, positive, own, items: [c] of the candidates.
            wanted: what was taken, candidates or not.
            spoke: blocks that had an opinion.
        """
        assert self._twins is not None, "a gate that compares nothing learns nothing"
        self._spoke |= {name for name, blocks in self._units.items() if any(block in spoke for block in blocks)}
        self._settled += 1
        if self._settled > SETTLE:
            scores, of = self._twins.each(features), np.unique(wanted)
            ndcg = [self._ndcg(scores[n], recalled, items, of, n) for n in range(len(scores))]
            for place, name in enumerate(self._units):
                if name in self._spoke:
                    first, second = (ndcg[place + 1], ndcg[0]) if name in self.off else (ndcg[0], ndcg[place + 1])
                    self._bets.take(place, first, second)
        self._twins.learn(features, positive, own, items=items)
        return self._decide()

    def switch(self, name: str, t_ms: int) -> None:
        """Puts a part off, or on again: its twin is the first one from here on, and the first one is its.

        Args:
            name: of the part.
            t_ms: event time.
        """
        assert self._twins is not None, "only a gate that compares switches"
        names = list(self._units)
        was_on, gain = name not in self.off, self._bets.gain(names.index(name))
        if not gain.groups:  # its comparison was full
            gain = self._last.get(name, gain)
        self.off = self.off ^ {name}
        self._since_ms[name] = t_ms
        self._twins.swap(0, names.index(name) + 1)
        self._twins.show(self._sees())
        for place, one in enumerate(names):
            now = self._bets.gain(place)
            if now.groups >= self.settings.min_groups:
                self._last[one] = now
            self._bets.begin(place)
        self._settled = 0
        self._follow()
        LOG.info("part switched: %s", sentence(name, Standing(gain, not was_on, t_ms).told()))

    def passed(self) -> None:
        """One group was learnt, of the share or not."""
        self._groups += 1

    def standing(self) -> dict[str, Standing]:
        """Of each part that had an opinion by now."""
        found = {}
        for place, name in enumerate(self._units):
            if name in self._spoke:
                now = self._bets.gain(place)
                young = now.groups < self.settings.min_groups and name in self._last
                gain = self._last[name] if young else now
                found[name] = Standing(gain, name not in self.off, self._since_ms[name])
        return found

    # -- state -------------------------------------------------------------------------------------------------

    def arrays(self, rehearsal: bool = True) -> Arrays:
        """What is off; with `rehearsal` all that comparing goes on from."""
        names = list(self._units)
        out: Arrays = {"gate.off": np.array([name in self.off for name in names], np.uint8)}
        if not rehearsal or self._twins is None:
            return out
        nothing = Gain(math.nan, math.nan, math.nan, -1)
        last = (self._last.get(name, nothing) for name in names)
        out["gate.last"] = np.array([(g.gain, g.low, g.high, g.groups) for g in last], np.float64).reshape(-1, 4)
        out["gate.since"] = np.array([self._since_ms[name] for name in names], np.int64)
        out["gate.spoke"] = np.array([name in self._spoke for name in names], np.uint8)
        out["gate.counts"] = np.array([self._groups, self._settled], np.int64)
        return out | self._bets.arrays("gate.bets") | self._twins.arrays("gate.twins")

    def restore(self, arrays: Arrays) -> None:
        """Goes on where `arrays` of the same parts was taken; one that does not act takes nothing over that is off."""
        off = arrays.get("gate.off")
        names = list(self._units)
        if off is None or len(off) != len(names):
            return
        if self._read_only:  # a snapshot says what is on
            self.off = frozenset(name for name, is_off in zip(names, off, strict=True) if is_off)
        elif self._twins is not None and "gate.counts" in arrays and (self.settings.mode == "act" or not off.any()):
            self.off = frozenset(name for name, is_off in zip(names, off, strict=True) if is_off)
            self._since_ms = dict(zip(names, arrays["gate.since"].tolist(), strict=True))
            self._spoke = {name for name, spoke in zip(names, arrays["gate.spoke"], strict=True) if spoke}
            last = zip(names, arrays["gate.last"].tolist(), strict=True)
            self._last = {name: Gain(g, low, high, int(n)) for name, (g, low, high, n) in last if n >= 0}
            self._groups, self._settled = arrays["gate.counts"].tolist()
            self._bets.restore(arrays, "gate.bets")
            self._twins.restore(arrays, "gate.twins")
            self._twins.show(self._sees())
        self._follow()

    # -- details -----------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Brings what depends on `off` up to date."""
        self.silent = self._blocks(self.off)
        self.hidden: NDArray[np.bool_] = self._layout.mask(tuple(self.silent))

    def _blocks(self, off: frozenset[str]) -> frozenset[str]:
        return frozenset(block for name in off for block in self._units[name])

    def _seen_without(self) -> list[frozenset[str]]:
        """Parts that each twin does not see."""
        return [self.off, *(self.off ^ {name} for name in self._units)]

    def _sees(self) -> NDArray[np.bool_]:
        return ~np.array([self._layout.mask(tuple(self._blocks(off))) for off in self._seen_without()])

    def _ndcg(
        self, scores: Float32, recalled: NDArray[np.uint32], items: Int32, wanted: NDArray[np.int32], twin: int
    ) -> float:
        rows = np.flatnonzero(recalled & self.bits_of(self._blocks(self._seen_without()[twin])))
        return ndcg(items[rows[np.argsort(-scores[rows], kind="stable")[:TOP]]], wanted)

    def _decide(self) -> str | None:
        """The part to switch: of several the surest one; comparisons that are full begin anew."""
        surest, found = 0.0, None
        for place, name in enumerate(self._units):
            now, worth = self._bets.gain(place), self.settings.worth
            if now.groups < self.settings.min_groups:
                continue
            by = now.low - worth if name in self.off else worth - now.high
            if self.settings.mode == "act" and by > surest:
                surest, found = by, name
            if now.groups >= self.settings.window:
                self._last[name] = now
                self._bets.begin(place)
        return found


def ndcg(top: Int32, wanted: NDArray[np.int32]) -> float:
    """NDCG of a list's first TOP items [k] for distinct items that were taken."""
    gains = 1 / np.log2(np.arange(2, TOP + 2))
    hits = np.isin(top, wanted)
    return float((hits * gains[: len(hits)]).sum() / gains[: min(TOP, len(wanted))].sum())
