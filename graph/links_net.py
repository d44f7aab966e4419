"""The small network that joins what is counted of a link with what memories say of it: one step for each event.

    columns [c, F], facts [C] -> relu(columns W + facts V) -> out  +  columns linear  ->  scores [c]

The loss is a softmax over the candidates. Sampled ones carry the log of their inverse chance of being drawn, so that
the sum stays unbiased. Scores come from a running average of the weights. Adam and the gradient are written out: at
this size a framework would cost more than its arithmetic, and a test holds them equal to automatic differentiation.

Source: Adam (arXiv 1412.6980); averaged weights, Polyak & Juditsky (1992); sampled softmax, Bengio & Senecal (2003).
"""

from __future__ import annotations

import math

import numpy as np

from driftline.graph.arrays import Arrays, Float32, Int64

BETAS, EPSILON = (0.9, 0.99), 1e-8
AVERAGING = 0.99
"""Share that scoring weights keep of themselves at a step."""
LONGEST = 5.0
"""A gradient is cut to this length."""


class LinkNet:
    """Weights of one network, its optimiser, and their running average.

    Args:
        columns: F.
        facts: C.
        hidden: units.
        rate: learning rate of Adam.
        seed: of the first weights.
        quiet: columns that start without any weight, so that what they say later is learnt and not drawn.
    """

    def __init__(
        self, columns: int, facts: int, hidden: int, rate: float, seed: int, quiet: tuple[int, ...] = ()
    ) -> None:
        self._shapes = ((columns, hidden), (facts, hidden), (hidden,), (columns,))
        self._rate = rate
        rng = np.random.default_rng(seed)
        scales = (columns**-0.5, facts**-0.5, 0.5 * hidden**-0.5, 0.0)
        drawn = [rng.standard_normal(s) * scale for s, scale in zip(self._shapes, scales, strict=True)]
        drawn[0][list(quiet)] = 0
        self.weights: Float32 = np.concatenate([x.ravel() for x in drawn]).astype(np.float32)
        self.average = self.weights.copy()
        self._mean, self._square = np.zeros_like(self.weights), np.zeros_like(self.weights)
        self.steps = 0
        self._views = self._parts(self.weights), self._parts(self.average)

    def _parts(self, flat: Float32) -> list[Float32]:
        ends = np.cumsum([math.prod(shape) for shape in self._shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), self._shapes, strict=True)]

    def scores(self, columns: Float32, facts: Float32) -> Float32:
        """[c] float32 of candidates with their columns [c, F] and the user's facts [C]."""
        wide, of_user, out, linear = self._views[1]
        hidden = columns @ wide
        hidden += facts @ of_user
        np.maximum(hidden, 0, out=hidden)
        scores: Float32 = hidden @ out + columns @ linear
        return scores

    def gradient(self, columns: Float32, facts: Float32, offset: Float32, right: Int64) -> tuple[float, Float32]:
        """Loss and flat gradient of one event.

        Args:
            columns: [c, F]; facts: [C].
            offset: [c] log of the inverse chance at which each was drawn.
            right: [r] places of the candidates that were right; they share the loss.
        """
        wide, of_user, out, linear = self._views[0]
        hidden = columns @ wide
        hidden += facts @ of_user
        np.maximum(hidden, 0, out=hidden)
        logits = hidden @ out + columns @ linear + offset
        logits -= logits.max()
        share = np.exp(logits)
        total = share.sum()
        loss = float(np.log(total) - logits[right].mean())
        share /= total
        share[right] -= np.float32(1 / len(right))
        back = share[:, None] * out
        back *= hidden > 0
        of_facts = facts[:, None] * back.sum(0)
        gradient = np.concatenate(((columns.T @ back).ravel(), of_facts.ravel(), share @ hidden, share @ columns))
        return loss, gradient

    def step(self, gradient: Float32) -> None:
        """One step of Adam."""
        self.steps += 1
        length = float(np.sqrt(gradient @ gradient))
        if length > LONGEST:
            gradient = gradient * np.float32(LONGEST / length)
        for moment, beta, value in ((self._mean, BETAS[0], gradient), (self._square, BETAS[1], gradient * gradient)):
            moment += np.float32(1 - beta) * (value - moment)
        rate = self._rate * math.sqrt(1 - BETAS[1] ** self.steps) / (1 - BETAS[0] ** self.steps)
        self.weights -= np.float32(rate) * self._mean / (np.sqrt(self._square) + np.float32(EPSILON))
        self.average += np.float32(1 - AVERAGING) * (self.weights - self.average)

    def arrays(self) -> Arrays:
        """Everything that learning goes on from, by name; views."""
        return {
            "average": self.average,
            "weights": self.weights,
            "mean": self._mean,
            "square": self._square,
            "steps": np.array([self.steps], np.int64),
        }

    def restore(self, arrays: Arrays) -> None:
        """Takes over what `arrays` gave; of a snapshot the average alone."""
        self.average = np.array(arrays["average"], np.float32)
        self.weights = np.array(arrays.get("weights", self.average), np.float32)
        self._mean = np.array(arrays.get("mean", np.zeros_like(self.weights)), np.float32)
        self._square = np.array(arrays.get("square", np.zeros_like(self.weights)), np.float32)
        self.steps = int(arrays["steps"][0]) if "steps" in arrays else 0
        self._views = self._parts(self.weights), self._parts(self.average)
