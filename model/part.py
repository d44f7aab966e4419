"""What joins the engine: a part learns, keeps a state and has plugs; a plug is one recaller and one block of columns.

    plug.opinion(asked) -> which items, with a score of each           at every request
    plug.features(asked, ...) -> rows of numbers about candidates
    part.learn(group, view, learnt)                                     after every group, which was scored before
    part.state_dict() -> checkpoint;  part.arrays() -> snapshot -> Part.opened(...), which only answers

A plug that maps users and items into one space (`VectorPlug`) says both by its vectors alone. Training, replay and
serving iterate the parts that the settings name (model/parts.py); stream/learn/contracts.py checks what holds for each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

from driftline.graph.view import FACETS
from driftline.model.columns_kernel import opinion_columns
from driftline.model.recall import Pool, Scored, Vectors, best_of, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from driftline.configs.settings import Settings
    from driftline.graph.arrays import Arrays, Float32, Int32
    from driftline.graph.codes import Codes
    from driftline.graph.history import HistoryDigest
    from driftline.graph.texts import TextTable
    from driftline.graph.touched import Touched
    from driftline.graph.view import Group, ItemTable, UserView

# c candidates of a request, n items, d width of a space, s items that a recaller scored

NOTHING = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to the plugs.

    Attributes:
        view: the user; past: its digest.
        now_ms: request time, unix milliseconds.
        n: items that may be recommended are 0..n-1.
        k: length of a list.
    """

    view: UserView
    past: HistoryDigest
    now_ms: int
    n: int
    k: int


class Plug(Protocol):
    """One recaller and its columns.

    Attributes:
        columns: their names; the name of the block goes before each.
    """

    columns: tuple[str, ...]

    def opinion(self, asked: Asked) -> Scored | None:
        """Its best items, and a score of all that it knows; None = no opinion on this user."""

    def features(self, asked: Asked, pool: Pool, place: Int32, scored: Scored, out: Float32) -> None:
        """Fills its columns; not called without an opinion, and they are 0 then.

        Args:
            asked: the question.
            pool: candidates [c], the recallers' opinions.
            place: [n] int32 where an item stands among the candidates, -1 = nowhere.
            scored: its own opinion.
            out: [columns, c] float32 zeros.
        """


class VectorPlug(ABC):
    """A model that maps a user at a time and all items into one space: its opinion is a dot product."""

    columns: tuple[str, ...] = ("score", "rank")

    @abstractmethod
    def user_vector(self, view: UserView, now_ms: int) -> Float32:
        """The user's vector [d]; zeros = no opinion."""

    @abstractmethod
    def item_matrix(self) -> Float32:
        """Vectors [m, d] of the items that it knows; further items have no opinion."""

    def item_codes(self) -> Codes | None:
        """Codes of these vectors where there are many; None = all of them are compared."""
        return None

    def opinion(self, asked: Asked) -> Scored:
        """See Plug."""
        touched, n, k = asked.past.items, asked.n, asked.k
        vector = self.user_vector(asked.view, asked.now_ms)
        matrix = self.item_matrix()[:n]
        if not np.any(vector):
            return best_of(np.zeros(0, np.float32), 0, touched, n)
        if (codes := self.item_codes()) is not None:
            return nearest(Vectors(matrix, codes), vector, k, touched, n, above=-np.inf)
        scores = matrix @ vector
        least = float(scores.min()) if len(scores) else 0.0
        if len(scores) < min(n, k + len(touched)):  # items that it does not know yet come last, but they come
            scores = np.concatenate((scores, np.full(n - len(scores), least, np.float32)))
        return best_of(scores, k, touched, n, above=-np.inf, otherwise=least)

    def features(self, asked: Asked, pool: Pool, place: Int32, scored: Scored, out: Float32) -> None:
        """See Plug: the score below the best of the list, and the log rank."""
        opinion_block(pool.candidates, place, scored, out)


def opinion_block(candidates: Int32, place: Int32, scored: Scored, out: Float32, share: bool = False) -> None:
    """Two columns [2, c] of an opinion: score relative to the best of the list, and log rank; 0 without a list.

    Args:
        candidates, place, scored, out: as in Plug.features.
        share: the log of the score as a share of the best one, in place of its distance.
    """
    if not len(scored.best_scores):
        return
    items, scores = NOTHING if scored.items is None else scored.items, scored.scores
    if scored.exact is not None:
        items, scores = candidates, scored.exact(candidates)
    ranks = _log_ranks(len(scored.best_scores))
    opinion_columns(candidates, items, scores, scored.otherwise, place, scored.best_scores, ranks, share, out)


@cache
def _log_ranks(k: int) -> Float32:
    return np.log1p(np.arange(k + 1, dtype=np.float32))


class ProfilesPlug:
    """The user's profile against the items' texts: near its facets, and how near to each of them."""

    columns = (*(f"facet_{n}" for n in range(len(FACETS))), "best", "mean", "rank", "there")

    def __init__(self, text: TextTable) -> None:
        self.text = text

    def opinion(self, asked: Asked) -> Scored | None:
        """See Plug; None without a profile of the texts' width."""
        profile = asked.view.profile
        if profile is None or not self.text.dim or profile.facets.shape[1] != self.text.dim:
            return None
        return nearest(self.text, profile.facets.mean(0), asked.k, asked.past.items, asked.n)

    def features(self, asked: Asked, pool: Pool, place: Int32, scored: Scored, out: Float32) -> None:
        """See Plug: cosines [4, c] of an item's text to the facets, the best, the mean, the log rank, and 1."""
        profile = asked.view.profile
        assert profile is not None
        cosine = self.text[pool.candidates] @ profile.facets.T  # [c, 4]
        _, rank = scored.of(pool.candidates)
        for row, values in zip(out, (*cosine.T, cosine.max(1), cosine.mean(1), np.log1p(rank), 1.0), strict=True):
            row[:] = values


class Part:
    """A model or a signal: what it learns on the stream, what it keeps, and the plugs by which the engine asks it.

    A subclass says what differs from a part that has no state and learns nothing. It must not change while it answers.

    Attributes:
        name: of its state, its arrays and its cost; no two parts have one.
        default: "on" or "off", where `systems` does not name it.
    """

    name: ClassVar[str]
    default: ClassVar[str] = "off"

    @classmethod
    def made(cls, settings: Settings, table: ItemTable, text: TextTable) -> Self | None:
        """A fresh one that will learn; None = other settings leave it out.

        Args:
            settings: the whole configuration.
            table: the items, which grow.
            text: their unit text vectors by index; others write them.
        """
        return cls()

    @classmethod
    def opened(cls, settings: Settings, table: ItemTable, arrays: Arrays, before: Self | None) -> Self:
        """One that only answers, from what `arrays` of a learner gave; threads may share it.

        Args:
            settings: those that it was trained with.
            table: the items of the snapshot.
            arrays: read-only, perhaps memory-mapped; {} if there were none.
            before: the one of the snapshot before, which may lend what it keeps.
        """
        return cls()

    def plugs(self) -> dict[str, Plug]:
        """By the name of their block."""
        raise NotImplementedError

    def add_item(self, index: int, item_id: str) -> None:
        """An item is new in the table."""

    def set_text(self, index: int, vector: Float32) -> None:
        """The text of an item is new: its unit vector [text_dim] is in the table of texts already."""

    def set_labels(self, index: int, brand: str, categories: Sequence[str]) -> None:
        """The labels of an item are new, "" = no brand."""

    def learn(self, group: Group, view: UserView, learnt: bool) -> None:
        """Takes in a group.

        Args:
            group: with table indices; its items were added.
            view: the user before the group.
            learnt: False = weights stand still, counts and histories go on.
        """

    def refresh(self) -> None:
        """Does what the next question would do first, so that it is not charged for it."""

    def forget(self, user_id: str) -> None:
        """Drops what is kept of a user; what was learnt from it stays."""

    def freeze(self) -> None:
        """Nothing will be learnt any more."""

    def warm(self, budget_ms: float) -> None:
        """Before it answers for the first time: prepares for those who ask most, for so long at most."""

    def arrays(self, whole: bool = True) -> Arrays:
        """What answering needs, as views; without `whole` what changes by rows alone."""
        return {}

    def touched(self) -> Mapping[str, Touched]:
        """Which rows changed, for those of `arrays` that change by rows."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that learning goes on from, as plain values, arrays and tensors: copies."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` of a part with the same settings was taken, to the bit."""


class VectorPart(Part, VectorPlug):
    """A part that is its own only plug, by vectors."""

    def plugs(self) -> dict[str, Plug]:
        """See Part."""
        return {self.name: self}
