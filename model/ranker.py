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
written out in numpy, and a test holds them equal to automatic differentiation.

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
from driftline.model.compiled import compiled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from driftline.configs.settings import Ranker as RankerSettings
    from driftline.graph.arrays import Arrays

HEADS = ("novel", "repeat", "overall")
BETAS, EPSILON = (0.9, 0.999), 1e-8
OUT_OF_LIST = np.float32(-1e4)


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
        self.first += (1 - BETAS[0]) * (gradient - self.first)
        self.second += (1 - BETAS[1]) * (gradient * gradient - self.second)
        t = self.steps
        rate = self.settings.learning_rate * (1 - BETAS[1] ** t) ** 0.5 / (1 - BETAS[0] ** t)
        self.theta -= np.float32(rate) * self.first / (np.sqrt(self.second) + np.float32(EPSILON))
        keep = min(self.settings.averaging, 1 - 1 / (t + 1))
        self.mean += np.float32(1 - keep) * (self.theta - self.mean)

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
        start = np.cumsum([0] + [len(one.x) for one in batch[:-1]])
        length = [len(one.x) for one in batch]
        inside_NL, target_NL = _lists(batch, start)
        log_weight_N = np.concatenate([one.log_weight for one in batch])

        hidden_NG = x_NF @ p["w1"]  # G = M * H, member by member
        hidden_NG += p["b1"]
        np.maximum(hidden_NG, 0, out=hidden_NG)
        skip_FG = p["skip"].transpose(1, 0, 2).reshape(-1, m * heads)
        logits_NML = (x_NF @ skip_FG).reshape(-1, m, heads)
        for k in range(m):
            logits_NML[:, k] += hidden_NG[:, k * h : (k + 1) * h] @ p["w2"][k]

        z_NML = logits_NML + (log_weight_N[:, None] + np.where(inside_NL, np.float32(0), OUT_OF_LIST))[:, None]
        z_NML -= np.repeat(np.maximum.reduceat(z_NML, start), length, axis=0)
        share_NML = np.exp(z_NML)
        total = np.add.reduceat(share_NML, start)
        share_NML /= np.repeat(total, length, axis=0)
        counts = np.add.reduceat(target_NL, start)  # weight of each list, 0 = no positive row
        loss = float((counts[:, None] * np.log(total)).sum() - (z_NML * target_NL[:, None]).sum()) / len(batch)

        d_NML = share_NML * np.repeat(counts, length, axis=0)[:, None]
        d_NML -= target_NL[:, None]
        d_NML /= np.float32(len(batch))
        gradient = np.empty_like(self.theta)
        g = self.views(gradient)
        g["skip"][:] = (x_NF.T @ d_NML.reshape(-1, m * heads)).reshape(-1, m, heads).transpose(1, 0, 2)
        d_hidden_NG = np.empty_like(hidden_NG)
        for k in range(m):
            member = slice(k * h, (k + 1) * h)
            g["w2"][k] = hidden_NG[:, member].T @ d_NML[:, k]
            np.matmul(d_NML[:, k], p["w2"][k].T, out=d_hidden_NG[:, member])
        d_hidden_NG *= hidden_NG > 0
        g["w1"][:] = x_NF.T @ d_hidden_NG
        g["b1"][:] = d_hidden_NG.sum(0)
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


def _lists(batch: list[Example], start: NDArray[np.intp]) -> tuple[NDArray[np.bool_], Float32]:
    """Which rows [N, L] each head ranks, and its targets [N, L]: the positive rows, 1 / sqrt of their number each."""
    own = np.concatenate([one.own for one in batch])
    positive = np.concatenate([one.positive for one in batch])
    inside = np.stack((~own, own, np.ones_like(own)), 1)
    target = (positive[:, None] & inside).astype(np.float32)
    count = np.maximum(np.add.reduceat(target, start), 1)
    target /= np.repeat(np.sqrt(count), [len(one.x) for one in batch], axis=0)
    return inside, target


@compiled(
    "float32[:, ::1](float32[:, ::1], Array(float32, 1, 'C', readonly=True), Array(float32, 2, 'C', readonly=True))"
)
def head_scores(hidden: Float32, b1: Float32, w2: Float32) -> Float32:
    """Scores [3, N] of hidden units before their bias and, in the last three columns, the skips: [N, G + 3]."""
    units = len(b1)
    out = np.empty((len(w2), len(hidden)), np.float32)
    for r in range(len(hidden)):
        for g in range(units):
            hidden[r, g] = max(hidden[r, g] + b1[g], np.float32(0))
        for head in range(len(w2)):
            total = np.float32(0)
            for g in range(units):
                total += hidden[r, g] * w2[head, g]
            out[head, r] = total + hidden[r, units + head]
    return out
