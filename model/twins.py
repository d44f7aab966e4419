"""Small rankers side by side that differ in what they see: what a part is worth once the others have adapted.

Leaving a part's columns out of a ranker that has learnt with them says what the ranker would lose today; a twin that
never saw them says what the part adds. All twins are the members of one network: they start alike, rehearse the same
rows and take their steps together, and a member has no weights for columns that it does not see. So two of them differ
by what the columns say, and not by chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from driftline.model.ranker import HEADS, Example, Ranker

if TYPE_CHECKING:
    from driftline.configs.settings import Ranker as RankerSettings
    from driftline.graph.arrays import Float32

OVERALL = HEADS.index("overall")
REHEARSED = 200
"""Groups that twins rehearse: fewer than the ranker has, for the checkpoint's sake."""


class Twins(Ranker):
    """Rankers as members, each with columns of its own.

    Args:
        settings: of the ranker whose twins they are.
        sees: [m, f] bool, which columns each member sees.
        seed: of the start, which is one for all, and of every draw.
        base: so many columns stand first and belong to no part.
    """

    def __init__(self, settings: RankerSettings, sees: NDArray[np.bool_], seed: int, base: int) -> None:
        changed = {"members": len(sees), "rehearsal_groups": min(REHEARSED, settings.rehearsal_groups)}
        super().__init__(settings.model_copy(update=changed), np.arange(sees.shape[1]), seed, base)
        h = settings.hidden
        for flat in (self.theta, self.mean):
            view = self.views(flat)
            view["w1"][:] = np.tile(view["w1"][:, :h], len(sees))
            view["w2"][:] = view["w2"][:1]
        self.show(sees)

    def show(self, sees: NDArray[np.bool_]) -> None:
        """Sets which columns members see; what is learnt of those that one no longer sees is dropped."""
        self._w1 = np.repeat(sees.T, self.settings.hidden, axis=1).astype(np.float32)
        self._skip = sees[:, :, None].astype(np.float32)
        for flat in (self.theta, self.mean, self.first, self.second):
            self._hide(flat)
        self._scores_of = -1

    def _hide(self, flat: Float32) -> None:
        view = self.views(flat)
        view["w1"] *= self._w1
        view["skip"] *= self._skip

    def swap(self, one: int, other: int) -> None:
        """Exchanges two members."""
        h = self.settings.hidden
        for flat in (self.theta, self.mean, self.first, self.second):
            view = self.views(flat)
            for members in (view["w1"].reshape(-1, self.settings.members, h).swapaxes(0, 1), view["w2"], view["skip"]):
                members[[one, other]] = members[[other, one]]
            bias = view["b1"].reshape(-1, h)
            bias[[one, other]] = bias[[other, one]]
        self._scores_of = -1

    def each(self, features: Float32) -> Float32:
        """Scores [m, c] of the members for the list over all items, for feature rows [c, f]."""
        p, h = self.views(self.mean), self.settings.hidden
        hidden = features @ p["w1"]
        hidden += p["b1"]
        np.maximum(hidden, 0, out=hidden)
        out = features @ p["skip"][:, :, OVERALL].T
        for member in range(self.settings.members):
            out[:, member] += hidden[:, member * h : (member + 1) * h] @ p["w2"][member, :, OVERALL]
        return out.T

    def loss(self, batch: list[Example]) -> tuple[float, Float32]:
        """See Ranker; nothing pulls at weights of columns that a member does not see."""
        loss, gradient = super().loss(batch)
        self._hide(gradient)
        return loss, gradient
