"""The small network that joins every signal into one order, and learns on the stream.

    features [c, f] -> relu(x W1 + b1) -> W2  \\
                    -> linear skip            -> heads novel | repeat | overall   (each member; scores are averaged)

Each head is trained with a listwise softmax over its own rows: novel over items that the user never touched, repeat
over touched ones, overall over all. A list counts with the root of the number of its positive rows: a large basket says
more than a small one, but less than its rows apart would. A learnt group becomes an example: its positive rows and
sampled others with the features that were logged when they were scored. One step takes the new example and
`rehearsal_steps` older ones.

Which rows are sampled depends on seed, step and item alone: a part that adds columns or candidates leaves the draw of
the others as it was. For the same reason columns of parts start at zero, and the scale of the others is that of the
base. So two rankers that differ in a part differ by what it says, and not by chance.

Sampled rows carry the log of their inverse chance of being drawn into the softmax, so that its sums stay unbiased:
without it, hard negatives that are always drawn are learnt to be bad.

Scores come from a running average of the weights: it follows the stream a hundred steps behind, without the noise of
single groups.

The network is so small that a framework's overhead would cost more than its arithmetic: forward, backward and Adam are
written out, products in numpy and passes compiled (model/ranker_kernel.py); a test holds them equal to automatic
differentiation.

Source: listwise softmax, ListNet (Cao et al., ICML 2007); importance-weighted sampled softmax, Bengio & Senecal (2003);
Adam (arXiv 1412.6980); averaged weights, Polyak & Juditsky (1992); random numbers by counter, Salmon et al. (SC 2011),
with splitmix64. Shapes: N rows of all examples of a step,
F features, M members, H hidden, L = 3 heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from driftline.graph.arrays import Float32, Int32
from driftline.model.ranker_kernel import BETAS, adam, head_scores, rectify, through_lists, through_rectified

if TYPE_CHECKING:
    from collections.abc import Sequence

    from driftline.configs.settings import Ranker as RankerSettings
    from driftline.graph.arrays import Arrays

HEADS = ("novel", "repeat", "overall")


@dataclass(frozen=True, slots=True)
class Example:
    """What is kept of a learnt group.

    Attributes:
        x: [r, f] float16 features as logged at scoring time.
        log_weight: [r] float32, log of the inverse chance of being drawn.
        positive: [r] bool; own: [r] bool, touched by the user before.
    """

    x: NDArray[np.float16]
    log_weight: Float32
    positive: NDArray[np.bool_]
    own: NDArray[np.bool_]

    def __deepcopy__(self, memo: dict[int, object]) -> Example:
        """Itself: examples are replaced, never changed, and a log of them is most of what a ranker holds."""
        return self


class Ranker:
    """Networks, optimiser, rehearsal log and the count of steps that seeds every draw.

    Attributes:
        columns: [f] int indices of the columns that it may see.
        theta: [p] float32 all trained parameters; mean: their running average, which scores.
        steps: learnt examples so far.
    """

    def __init__(
        self, settings: RankerSettings, columns: NDArray[np.intp], seed: int = 0, base: int | None = None
    ) -> None:
        """Start with small random hidden layers and zero outputs.

        Args:
            settings: sizes and rates.
            columns: [f] indices into a row of features.
            seed: of the start and of every draw.
            base: of the columns, how many stand first and belong to no part; None = all.
        """
        self.settings, self.columns, self.seed = settings, columns, seed
        self.base = len(columns) if base is None else base
        self.steps = 0
        self.log: list[Example] = []
        f, m, h, heads = len(columns), settings.members, settings.hidden, len(HEADS)
        self._shapes = {"w1": (f, m * h), "b1": (m * h,), "w2": (m, h, heads), "skip": (m, f, heads)}
        size = sum(int(np.prod(shape)) for shape in self._shapes.values())
        self.theta: Float32 = np.zeros(size, np.float32)
        self.first: Float32 = np.zeros(size, np.float32)  # Adam's moments
        self.second: Float32 = np.zeros(size, np.float32)
        view = self.views(self.theta)
        start = np.random.default_rng(seed).standard_normal((self.base, m * h)) * np.sqrt(2 / self.base)
        view["w1"][: self.base] = start
        view["w2"][:] = np.random.default_rng(seed + 1).standard_normal((m, h, heads)) * (0.1 / np.sqrt(h))
        self.mean: Float32 = self.theta.copy()
        self._scores_of = -1  # steps after which the next were made
        self._scoring_weights: tuple[Float32, Float32, Float32]

    def views(self, flat: Float32) -> dict[str, Float32]:
        """The network's matrices as views into one flat vector of all parameters."""
        out, at = {}, 0
        for name, shape in self._shapes.items():
            size = int(np.prod(shape))
            out[name] = flat[at : at + size].reshape(shape)
            at += size
        return out

    def score(self, features: Float32) -> Float32:
        """Scores [3, c] of the heads novel, repeat, overall for feature rows [c, all columns], members averaged."""
        w1, b1, w2 = self._scoring()
        return head_scores(self._seen(features) @ w1, b1, w2)

    def _scoring(self) -> tuple[Float32, Float32, Float32]:
        """The averaged weights as `score` takes them: hidden layers and skip [f, m * h + 3], b1, w2 [3, m * h]."""
        if self._scores_of != self.steps:
            p, m = self.views(self.mean), self.settings.members
            both = np.concatenate((p["w1"], p["skip"].sum(0) / m), axis=1, dtype=np.float32)
            self._scoring_weights = both, p["b1"].copy(), (p["w2"].reshape(-1, len(HEADS)) / np.float32(m)).T.copy()
            self._scores_of = self.steps
        return self._scoring_weights

    def example(
        self,
        features: Float32,
        positive: NDArray[np.bool_],
        own: NDArray[np.bool_],
        scores: Float32 | None = None,
        items: Int32 | None = None,
    ) -> Example:
        """Positives and sampled others of one scored request.

        Half of a list's sample are its hardest rows (certain to be drawn), the rest is uniform among the others.

        Args:
            features: [c, all columns] as scored.
            positive, own: [c] bool.
            scores: [3, c] that it gave them, if the caller has them.
            items: [c] what the rows are of; None = their numbers.
        """
        lots = lots_of(self.seed, self.steps, np.arange(len(features)) if items is None else items)
        rows, weights = [np.flatnonzero(positive)], [np.zeros(int(positive.sum()), np.float32)]
        if scores is None:
            scores = self.score(features)
        for head, inside in ((0, ~own), (1, own)):
            others = np.flatnonzero(inside & ~positive)
            quota = self.settings.sampled
            if len(others) > quota:
                hard = int(quota * self.settings.hard)
                order = np.argsort(-scores[head, others], kind="stable")
                easy = others[np.sort(order[hard:])]
                drawn = np.argpartition(lots[easy], quota - hard)[: quota - hard]
                rows += [others[order[:hard]], easy[np.sort(drawn)]]
                rest = np.log((len(others) - hard) / (quota - hard))
                weights += [np.zeros(hard, np.float32), np.full(quota - hard, rest, np.float32)]
            else:
                rows.append(others)
                weights.append(np.zeros(len(others), np.float32))
        row = np.concatenate(rows)
        x = torch.from_numpy(self._seen(features[row])).half().numpy()
        return Example(x, np.concatenate(weights), positive[row], own[row])

    def _seen(self, features: Float32) -> Float32:
        """The columns that it may see."""
        return features if len(self.columns) == features.shape[1] else features[:, self.columns]

    def learn(
        self,
        features: Float32,
        positive: NDArray[np.bool_],
        own: NDArray[np.bool_],
        scores: Float32 | None = None,
        items: Int32 | None = None,
    ) -> None:
        """Learn one scored request whose answer is known: log it, then one step on it and on rehearsed ones."""
        if positive.any() and not positive.all():
            self._learn(self.example(features, positive, own, scores, items))

    def _learn(self, new: Example) -> None:
        rng = np.random.Generator(np.random.Philox(key=[self.seed + 1, self.steps]))
        count = min(self.settings.rehearsal_steps, len(self.log))
        batch = (
            [new, *(self.log[i] for i in rng.choice(len(self.log), count, replace=False).tolist())] if count else [new]
        )
        self.step(batch)
        if self.settings.rehearsal_groups:
            self.log.append(new)
            if len(self.log) > self.settings.rehearsal_groups:
                del self.log[0]

    def step(self, batch: list[Example]) -> None:
        """One Adam step on the mean loss of a few examples, at least one."""
        self.steps += 1
        _, gradient = self.loss(batch)
        t = self.steps
        rate = self.settings.learning_rate * (1 - BETAS[1] ** t) ** 0.5 / (1 - BETAS[0] ** t)
        keep = min(self.settings.averaging, 1 - 1 / (t + 1))
        adam(gradient, self.first, self.second, self.theta, self.mean, np.float32(rate), np.float32(1 - keep))

    def drop(self, columns: NDArray[np.bool_]) -> None:
        """Begins anew with some columns [f]: it has no weights for them, and its log does not know them."""
        for flat in (self.theta, self.mean, self.first, self.second):
            view = self.views(flat)
            view["w1"][columns], view["skip"][:, columns] = 0, 0
        self.log = [replace(one, x=np.where(columns, np.float16(0), one.x)) for one in self.log]
        self._scores_of = -1

    def validate(self, examples: Sequence[Example], at_once: int = 64) -> float:
        """Mean loss of the averaged weights, which score, over examples; nothing is learnt."""
        theta, self.theta = self.theta, self.mean
        try:
            parts = [list(examples[at : at + at_once]) for at in range(0, len(examples), at_once)]
            return sum(self.loss(part)[0] * len(part) for part in parts) / len(examples)
        finally:
            self.theta = theta

    def loss(self, batch: list[Example]) -> tuple[float, Float32]:
        """Sum over members of the mean over examples of the three listwise losses, and its gradient.

        Returns:
            (loss, gradient [p] in the order of `theta`).
        """
        p = self.views(self.theta)
        m, h, heads = self.settings.members, self.settings.hidden, len(HEADS)
        x_NF = (
            torch.from_numpy(np.concatenate([one.x for one in batch])).float().numpy()
        )  # numpy takes six times longer
        ends = np.cumsum([len(one.x) for one in batch])
        log_weight_N, positive_N, own_N = (
            np.concatenate([getattr(one, name) for one in batch]) for name in ("log_weight", "positive", "own")
        )

        units = m * h
        skip_FG = p["skip"].transpose(1, 0, 2).reshape(-1, m * heads)
        wide_NG = x_NF @ np.concatenate((p["w1"], skip_FG), 1)  # hidden units member by member, then the skips
        rectify(wide_NG, p["b1"])
        logits_NML = np.ascontiguousarray(wide_NG[:, units:]).reshape(-1, m, heads)
        for k in range(m):
            logits_NML[:, k] += wide_NG[:, k * h : (k + 1) * h] @ p["w2"][k]
        loss = through_lists(logits_NML, log_weight_N, positive_N, own_N, ends) / len(batch)
        d_NML = logits_NML  # its gradient by now

        gradient = np.empty_like(self.theta)
        g = self.views(gradient)
        d_wide_NG = np.empty_like(wide_NG)
        d_wide_NG[:, units:] = d_NML.reshape(-1, m * heads)
        for k in range(m):
            member = slice(k * h, (k + 1) * h)
            g["w2"][k] = wide_NG[:, member].T @ d_NML[:, k]
            np.matmul(d_NML[:, k], p["w2"][k].T, out=d_wide_NG[:, member])
        through_rectified(d_wide_NG, wide_NG, g["b1"])
        of_wide_FG = x_NF.T @ d_wide_NG
        g["w1"][:] = of_wide_FG[:, :units]
        g["skip"][:] = of_wide_FG[:, units:].reshape(-1, m, heads).transpose(1, 0, 2)
        return loss, gradient

    def arrays(self, prefix: str, rehearsal: bool = True) -> Arrays:
        """Weights, and with `rehearsal` moments and log: enough to continue bit-identically."""
        out: Arrays = {f"{prefix}.mean": self.mean.copy(), f"{prefix}.columns": self.columns.astype(np.int64)}
        out[f"{prefix}.steps"] = np.array([self.steps, self.seed], np.int64)
        if not rehearsal:
            return out
        out[f"{prefix}.theta"] = self.theta.copy()
        out[f"{prefix}.first"], out[f"{prefix}.second"] = self.first.copy(), self.second.copy()
        f = len(self.columns)
        out[f"{prefix}.log.rows"] = np.array([len(one.x) for one in self.log], np.int64)
        out[f"{prefix}.log.x"] = np.concatenate([one.x for one in self.log] or [np.zeros((0, f), np.float16)])
        for name, dtype in (("log_weight", np.float32), ("positive", np.bool_), ("own", np.bool_)):
            out[f"{prefix}.log.{name}"] = np.concatenate(
                [getattr(one, name) for one in self.log] or [np.zeros(0, dtype)]
            )
        return out

    def restore(self, arrays: Arrays, prefix: str) -> None:
        """Take over what `arrays` gave; without its rehearsal part the ranker can only score."""
        self.mean, self._scores_of = np.array(arrays[f"{prefix}.mean"], np.float32), -1
        self.columns = np.asarray(arrays[f"{prefix}.columns"], np.intp)
        self.steps, self.seed = (int(x) for x in arrays[f"{prefix}.steps"])
        if f"{prefix}.first" not in arrays:
            return
        self.theta = np.array(arrays[f"{prefix}.theta"], np.float32)
        self.first = np.array(arrays[f"{prefix}.first"], np.float32)
        self.second = np.array(arrays[f"{prefix}.second"], np.float32)
        ends = np.cumsum(arrays[f"{prefix}.log.rows"])[:-1]
        parts = {
            name: np.split(arrays[f"{prefix}.log.{name}"], ends) for name in ("x", "log_weight", "positive", "own")
        }
        count = len(arrays[f"{prefix}.log.rows"])
        self.log = [
            Example(parts["x"][i], parts["log_weight"][i], parts["positive"][i], parts["own"][i]) for i in range(count)
        ]


def lots_of(seed: int, step: int, items: Int32 | NDArray[np.int64]) -> NDArray[np.uint64]:
    """[c] uint64, as good as random: a function of seed, step and item."""
    key = _mixed(_mixed(np.array([seed], np.uint64)) + np.uint64(step))
    return _mixed(items.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The last step of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
