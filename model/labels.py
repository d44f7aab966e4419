"""Labels as a part of the engine: brands and categories that a user keeps to, and those that are taken more of late.

A new item has no counts of its own; what its labels say of it is known at its first request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from driftline.graph.history import DAY_MS
from driftline.graph.labels import Labels, Taste
from driftline.graph.labels_kernel import COLUMNS
from driftline.graph.sparse import best_rows
from driftline.model.part import Part, Plug
from driftline.model.recall import Scored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from driftline.configs.settings import Settings
    from driftline.graph.arrays import Arrays, Float32, Int32
    from driftline.graph.texts import TextTable
    from driftline.graph.touched import Touched
    from driftline.graph.view import Group, ItemTable, UserView
    from driftline.model.part import Asked
    from driftline.model.recall import Pool

READ = 100
"""Newest distinct items of a history whose labels are read."""
HALF = 20.0
"""Items after which one counts half: a taste is told by what came last, however long ago that was."""
LATEST = 5
"""Items that say what a user is at now."""
ASKED = 48
"""Labels of a taste whose items are candidates, the weightiest first."""


class LabelsPlug:
    """Recalls items that share labels with the history; see COLUMNS for what it says of a candidate."""

    columns: tuple[str, ...] = (*COLUMNS, "rank")

    def __init__(self, labels: Labels) -> None:
        self.labels = labels

    def opinion(self, asked: Asked) -> Scored:
        """See Plug: the items of the taste's weightiest labels that were taken last, by cosine."""
        labels, taste = self.labels, self._taste(asked)
        shared = np.flatnonzero(labels.logs[taste.named] > 0)  # what one item alone has leads nowhere
        order = shared[np.argsort(-taste.weight[shared], kind="stable")[:ASKED]]
        found = np.unique(labels.recent[taste.named[order]])
        found = found[(found >= 0) & (found < asked.n)].astype(np.int32)
        scores = labels.cosines(taste, found)
        return Scored(found, scores, *best_rows(found, scores, asked.k, asked.past.items, asked.n))

    def features(self, asked: Asked, pool: Pool, place: Int32, scored: Scored, out: Float32) -> None:
        """See Plug."""
        self.labels.columns(self._taste(asked), pool.candidates, out)
        ranks = np.searchsorted(-scored.best_scores, -out[0])
        out[-1] = np.log1p(ranks.astype(np.float32))

    def _taste(self, asked: Asked) -> Taste:
        items = asked.past.items[:READ]
        weight = np.exp2(np.arange(len(items), dtype=np.float32) / np.float32(-HALF))
        return self.labels.taste(items, weight, LATEST)


class LabelsPart(Part):
    """Counts what is taken of each label; weights it has none."""

    name = "labels"

    def __init__(self, labels: Labels) -> None:
        self.labels = labels

    @classmethod
    def made(cls, settings: Settings, table: ItemTable, text: TextTable) -> Self | None:
        """See Part."""
        return cls(_empty(settings))

    @classmethod
    def opened(cls, settings: Settings, table: ItemTable, arrays: Arrays, before: Self | None) -> Self:
        """See Part."""
        labels = _empty(settings)
        labels.restore(arrays)
        return cls(labels)

    def plugs(self) -> dict[str, Plug]:
        """See Part."""
        return {self.name: LabelsPlug(self.labels)}

    def add_item(self, index: int, item_id: str) -> None:
        """See Part."""
        self.labels.ensure(index + 1)

    def set_labels(self, index: int, brand: str, categories: Sequence[str]) -> None:
        """See Part."""
        self.labels.set(index, brand, categories)

    def learn(self, group: Group, view: UserView, learnt: bool) -> None:
        """See Part; counts go on where weights stand still."""
        self.labels.add(np.unique(group.items[(group.weight > 0) & (group.items >= 0)]), group.t_ms)

    def arrays(self, whole: bool = True) -> Arrays:
        """See Part."""
        return self.labels.arrays()

    def touched(self) -> Mapping[str, Touched]:
        """See Part."""
        return self.labels.touched()

    def state_dict(self) -> dict[str, Any]:
        """See Part."""
        return {name: array.copy() for name, array in self.labels.state().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Part."""
        self.labels.restore(state)


def _empty(settings: Settings) -> Labels:
    """The half-lives are the longest but one and the longest of the popularity."""
    days = settings.signals.half_lives_days
    return Labels((days[max(len(days) - 2, 0)] * DAY_MS, days[-1] * DAY_MS))
