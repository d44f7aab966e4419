"""The small network that joins every signal into one order, and learns on the stream.

    features [c, f] -> relu(x W1 + b1) -> W2  \\
                    -> linear skip            -> heads novel | repeat | mix   (each member; scores are averaged)

Each head is trained with a listwise softmax over its own rows: novel over items that the user never touched, repeat
over touched ones, mix over all. A learnt group becomes an example: its positive rows and sampled others with the
features that were logged when they were scored. One step takes the new example and `replay_steps` older ones.

Sampled rows carry the log of their inverse chance of being drawn into the softmax, so that its sums stay unbiased:
without it, hard negatives that are always drawn are learnt to be bad.

Source: listwise softmax, ListNet (Cao et al., ICML 2007); importance-weighted sampled softmax, Bengio & Senecal (2003);
Adam (arXiv 1412.6980). Shapes: B examples, R rows of the longest, F features, M members, H hidden, L = 3 heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from configs.settings import Ranker as RankerSettings
    from graph.neighbors import Arrays
    from graph.rows import Float32

HEADS = ("novel", "repeat", "mix")
BETAS, EPSILON = (0.9, 0.999), 1e-8
OUT_OF_LIST = -1e4


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
    """Networks, optimiser, replay log and the count of steps that seeds every draw.

    Attributes:
        columns: [f] int indices of the columns that it may see.
        steps: learnt examples so far.
    """

    def __init__(self, settings: RankerSettings, columns: NDArray[np.intp], seed: int = 0) -> None:
        """Start with small random hidden layers and zero outputs.

        Args:
            settings: sizes and rates.
            columns: [f] indices into a row of features.
            seed: of the start and of every draw.
        """
        self.settings, self.columns, self.seed = settings, columns, seed
        self.steps = 0
        self.log: list[Example] = []
        f, m, h, heads = len(columns), settings.members, settings.hidden, len(HEADS)
        self._shapes = {"w1": (f, m * h), "b1": (m * h,), "w2": (m, h, heads), "skip": (m, f, heads)}
        size = sum(int(np.prod(shape)) for shape in self._shapes.values())
        self.theta = torch.zeros(size)
        self.first, self.second = torch.zeros(size), torch.zeros(size)  # Adam's moments
        start = np.random.default_rng(seed).standard_normal((f, m * h)) * np.sqrt(2 / f)
        view = self._views(self.theta)
        view["w1"].copy_(torch.from_numpy(start.astype(np.float32)))
        w2 = np.random.default_rng(seed + 1).standard_normal((m, h, heads)) * (0.1 / np.sqrt(h))
        view["w2"].copy_(torch.from_numpy(w2.astype(np.float32)))

    def _views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        out, at = {}, 0
        for name, shape in self._shapes.items():
            size = int(np.prod(shape))
            out[name] = flat[at : at + size].view(shape)
            at += size
        return out

    def score(self, features: Float32) -> Float32:
        """Scores [3, c] of the heads novel, repeat, mix for feature rows [c, all columns], members averaged."""
        p = {k: v.numpy() for k, v in self._views(self.theta).items()}
        m = self.settings.members
        x = features[:, self.columns]
        hidden = x @ p["w1"]
        hidden += p["b1"]
        np.maximum(hidden, 0, out=hidden)
        out = hidden @ (p["w2"].reshape(-1, len(HEADS)) / m)
        out += x @ (p["skip"].sum(0) / m)
        return np.ascontiguousarray(out.T)

    def example(self, features: Float32, positive: NDArray[np.bool_], own: NDArray[np.bool_]) -> Example:
        """Positives and sampled others of one scored request.

        Half of a list's sample are its hardest rows (certain to be drawn), the rest is uniform among the others.

        Args:
            features: [c, all columns] as scored.
            positive, own: [c] bool.
        """
        rng = np.random.Generator(np.random.Philox(key=[self.seed, self.steps]))
        rows, weights = [np.flatnonzero(positive)], [np.zeros(int(positive.sum()), np.float32)]
        scores = self.score(features)
        for head, inside in ((0, ~own), (1, own)):
            others = np.flatnonzero(inside & ~positive)
            quota = self.settings.sampled
            if len(others) > quota:
                hard = int(quota * self.settings.hard)
                order = np.argsort(-scores[head, others], kind="stable")
                drawn = rng.choice(len(others) - hard, quota - hard, replace=False) + hard
                rows += [others[order[:hard]], others[order[np.sort(drawn)]]]
                rest = np.log((len(others) - hard) / (quota - hard))
                weights += [np.zeros(hard, np.float32), np.full(quota - hard, rest, np.float32)]
            else:
                rows.append(others)
                weights.append(np.zeros(len(others), np.float32))
        row = np.concatenate(rows)
        return Example(
            features[np.ix_(row, self.columns)].astype(np.float16), np.concatenate(weights), positive[row], own[row]
        )

    def learn(self, features: Float32, positive: NDArray[np.bool_], own: NDArray[np.bool_]) -> None:
        """Learn one scored request whose answer is known: log it, then one step on it and on replayed ones."""
        if positive.any() and not positive.all():
            self._learn(self.example(features, positive, own))

    def _learn(self, new: Example) -> None:
        rng = np.random.Generator(np.random.Philox(key=[self.seed + 1, self.steps]))
        count = min(self.settings.replay_steps, len(self.log))
        batch = (
            [new, *(self.log[i] for i in rng.choice(len(self.log), count, replace=False).tolist())] if count else [new]
        )
        self.steps += 1
        self._step(batch)
        if self.settings.replay_groups:
            self.log.append(new)
            if len(self.log) > self.settings.replay_groups:
                del self.log[0]

    def _step(self, batch: list[Example]) -> None:
        """One Adam step on the mean loss of a few examples."""
        theta = self.theta.requires_grad_(True)
        loss = self.loss(batch)
        (gradient,) = torch.autograd.grad(loss, theta)
        theta.requires_grad_(False)
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        t = self.steps
        rate = self.settings.learning_rate * (1 - BETAS[1] ** t) ** 0.5 / (1 - BETAS[0] ** t)
        theta.addcdiv_(self.first, self.second.sqrt().add_(EPSILON), value=-rate)

    def loss(self, batch: list[Example]) -> torch.Tensor:
        """Sum over members of the mean over examples of the three listwise losses."""
        p = self._views(self.theta)
        m, h = self.settings.members, self.settings.hidden
        longest = max(len(one.x) for one in batch)
        x_BRF = torch.zeros(len(batch), longest, len(self.columns))
        weight_BR = torch.full((len(batch), longest), OUT_OF_LIST)
        positive_BR = torch.zeros(len(batch), longest)
        own_BR = torch.zeros(len(batch), longest)
        for i, one in enumerate(batch):
            r = len(one.x)
            x_BRF[i, :r] = torch.from_numpy(one.x.astype(np.float32))
            weight_BR[i, :r] = torch.from_numpy(one.log_weight)
            positive_BR[i, :r] = torch.from_numpy(one.positive.astype(np.float32))
            own_BR[i, :r] = torch.from_numpy(one.own.astype(np.float32))
        flat = x_BRF.flatten(0, 1)
        hidden = torch.relu(torch.addmm(p["b1"], flat, p["w1"])).view(-1, m, h)
        logits = torch.einsum("nmh,mhl->nml", hidden, p["w2"]) + torch.einsum("nf,mfl->nml", flat, p["skip"])
        logits_BRML = logits.view(len(batch), longest, m, len(HEADS))
        inside_BRL = torch.stack((1 - own_BR, own_BR, torch.ones_like(own_BR)), -1)
        masked = logits_BRML + (weight_BR[..., None] + OUT_OF_LIST * (1 - inside_BRL))[:, :, None]
        total_BML = torch.logsumexp(masked, 1)
        target_BRL = positive_BR[..., None] * inside_BRL
        count_BL = target_BRL.sum(1)
        target_BRL = target_BRL / count_BL.clamp(min=1)[:, None]
        gain_BML = torch.einsum("brml,brl->bml", logits_BRML, target_BRL)
        loss_BML = (total_BML - gain_BML) * (count_BL > 0)[:, None]
        return loss_BML.sum() / len(batch)

    def arrays(self, prefix: str, replay: bool = True) -> Arrays:
        """Weights, and with `replay` moments and log: enough to continue bit-identically."""
        out: Arrays = {f"{prefix}.theta": self.theta.numpy().copy(), f"{prefix}.columns": self.columns.astype(np.int64)}
        out[f"{prefix}.steps"] = np.array([self.steps, self.seed], np.int64)
        if not replay:
            return out
        out[f"{prefix}.first"], out[f"{prefix}.second"] = self.first.numpy().copy(), self.second.numpy().copy()
        f = len(self.columns)
        out[f"{prefix}.log.rows"] = np.array([len(one.x) for one in self.log], np.int64)
        out[f"{prefix}.log.x"] = np.concatenate([one.x for one in self.log] or [np.zeros((0, f), np.float16)])
        for name, dtype in (("log_weight", np.float32), ("positive", np.bool_), ("own", np.bool_)):
            out[f"{prefix}.log.{name}"] = np.concatenate(
                [getattr(one, name) for one in self.log] or [np.zeros(0, dtype)]
            )
        return out

    def restore(self, arrays: Arrays, prefix: str) -> None:
        """Take over what `arrays` gave; without its replay part the ranker can only score."""
        self.theta = torch.from_numpy(np.array(arrays[f"{prefix}.theta"], np.float32))
        self.columns = np.asarray(arrays[f"{prefix}.columns"], np.intp)
        self.steps, self.seed = (int(x) for x in arrays[f"{prefix}.steps"])
        if f"{prefix}.first" not in arrays:
            return
        self.first = torch.from_numpy(np.array(arrays[f"{prefix}.first"], np.float32))
        self.second = torch.from_numpy(np.array(arrays[f"{prefix}.second"], np.float32))
        ends = np.cumsum(arrays[f"{prefix}.log.rows"])[:-1]
        parts = {
            name: np.split(arrays[f"{prefix}.log.{name}"], ends) for name in ("x", "log_weight", "positive", "own")
        }
        count = len(arrays[f"{prefix}.log.rows"])
        self.log = [
            Example(parts["x"][i], parts["log_weight"][i], parts["positive"][i], parts["own"][i]) for i in range(count)
        ]
