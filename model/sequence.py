"""The incremental learner of one sequence backbone: observe a group, step, encode, score.

    group -> observe -> rehearsal log --windows--> batch -> backbone -> sampled softmax -> one optimiser step
    history, request time -> encode -> unit vector . item matrix / temperature + prior -> scores
                             with `copying`: the terms weighed, and those of the window's items added

`encode` and `scores` only read what `observe` and `step` were given before, so a caller that scores a group
first and observes it afterwards predicts before it learns. Everything random comes from generators that are part
of `state_dict`: a restored learner continues bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from driftline.configs.settings import Model
from driftline.graph.arrays import Arrays, Float32, Int32, Int64, grown
from driftline.graph.codes import Codes
from driftline.graph.texts import TextTable
from driftline.graph.touched import Touched
from driftline.graph.view import Group
from driftline.model.average import Average
from driftline.model.backbone import Dropout, unit
from driftline.model.batch import Batch, build_batch
from driftline.model.copying import SHARE, Copying, Weighing, terms_of
from driftline.model.encode import (
    SequenceScorer,
    build_backbone,
    cached_encoder,
    encode_each,
    encode_histories,
    largest,
    weight_arrays,
    whole_logits,
)
from driftline.model.history_cache import HistoryCache
from driftline.model.hstu import HSTU, bucket_edges_ms
from driftline.model.incremental import History, window_of
from driftline.model.item_cache import ItemCache
from driftline.model.items import BETAS, ItemVectors, as_compared, as_read
from driftline.model.loss import SoftmaxStep, distinct, draw_candidates, softmax_loss
from driftline.model.packed import Packing
from driftline.model.prior import PopularityPrior
from driftline.model.rehearsal import RehearsalLog, Window

__all__ = ["History", "SequenceLearner", "SequenceScorer"]

# B windows, L rows of the longest window, M = L + 1, D width of a vector, W of a row of the item table, R asked rows,
# C candidates, U item rows of a step, N items


WEIGHED, SAMPLED = 16_384, 4096
"""Items among which the terms of a logit are weighed: all of so many, else a sample that stands for them."""
POPULAR_GROUPS = 64
"""Groups after which the most popular items of a large catalogue are looked for anew."""
CACHE_BYTES = 8 << 20
"""Of keys and values between two steps, after which none of them hold: a few users' worth."""


class SequenceLearner:
    """Trains one backbone on the stream, one group after the other.

    Args:
        settings: section `model`; its `backbone` is not "off".
        seed: replaces `settings.seed` when given.
        text_dim: width of the text vectors that `set_text` will be given; 0 = items have no text.
        texts: a table of them that others read as well, and that its owner keeps; None = one of its own.
    """

    def __init__(
        self, settings: Model, seed: int | None = None, text_dim: int = 0, texts: TextTable | None = None
    ) -> None:
        self.settings = settings
        self._generator = torch.Generator().manual_seed(settings.seed if seed is None else seed)
        self._random = np.random.default_rng(settings.seed if seed is None else seed)
        self.backbone = build_backbone(settings, self._generator)
        self.items = ItemVectors(
            settings.dim, text_dim if settings.text else 0, self._generator, texts, settings.untied
        )
        self.log = RehearsalLog(settings.rehearsal_groups, settings.max_len)
        self.prior = PopularityPrior(settings.prior_half_life_days)
        self.copying = Copying() if settings.copying else None
        self.average = Average(settings.average, self.backbone)
        self._dropout = Dropout(settings.dropout, self._generator)
        self._histories = HistoryCache(CACHE_BYTES)
        self._encoder = cached_encoder(self.average.backbone, self._histories)
        self._seen: Int64 = np.zeros(0, np.int64)
        self._seen_n = 0
        self._is_seen: NDArray[np.bool_] = np.zeros(0, bool)
        self._fresh: list[int] = []
        self._waiting = np.zeros(2, np.int64)
        """Groups and events learnt since the last step."""
        self._most_popular: tuple[int, Int32] = 0, np.zeros(0, np.int32)
        """The group from which on it is looked for anew, and what was found."""
        self.steps = 0
        self._cache = ItemCache(self.items, self.average)

    def prepare(self) -> None:
        """Makes what a step takes, before the first one has to wait for it."""
        _ = self._optimizer

    @cached_property
    def _optimizer(self) -> torch.optim.AdamW:
        """Made for who learns: one loads torch's compiler, seconds that who only scores is spared."""
        parameters = [*self.backbone.parameters(), self.items.project, self.prior.coefficient]
        return torch.optim.AdamW(parameters, self.settings.learning_rate, BETAS, weight_decay=0.0, fused=True)

    def set_text(self, item: int, vector: Float32) -> None:
        """Gives an item the text [text_dim] that its vector starts from; nothing where the settings want no text."""
        if self.settings.text:
            self.items.set_text(item, vector)
            self._cache.touch(torch.tensor([item]))
            self._histories.clear()

    def observe(self, group: Group) -> None:
        """Remembers a group; rows whose weight is not above 0 undo something and are not read."""
        keep = (group.items >= 0) & (group.weight > 0)
        items, wanted = group.items[keep], group.positive[keep]
        if not len(items):
            return
        self.items.grow(int(items.max()) + 1)
        self._mark_seen(items)
        self.prior.observe(items[wanted], group.t_ms)
        number = self.log.add(group.user_id, items.astype(np.int32), wanted, group.t_ms)
        if self.log.has_past(number):
            self._fresh.append(number)

    def forget(self, user_id: str) -> None:
        """Drops a user's groups from the rehearsal log; the weights stay as they are."""
        self.log.forget(user_id)
        self._histories.drop(user_id)
        self._fresh = [number for number in self._fresh if self.log.has_past(number)]

    def learn(self, group: Group, history: History | None = None) -> None:
        """Observes a group; an optimiser step follows on `step_groups` groups with `step_rows` events or more.

        Args:
            group: what a user did.
            history: what the user did before; None = as much of it as the rehearsal log holds.
        """
        if self.copying is not None:
            self._weigh(self.copying, group, history or History(*self.log.history(group.user_id)))
        self.observe(group)
        self._waiting += 1, len(group.items)
        if (self._waiting >= (self.settings.step_groups, self.settings.step_rows)).all():
            self._waiting[:] = 0
            self.step()

    def _weigh(self, copying: Copying, group: Group, history: History) -> None:
        """Learns the weights of the logit's terms on a group that nothing has learnt from."""
        n = len(self.items)
        wanted = np.unique(group.items[group.positive & (group.weight > 0) & (group.items >= 0)])
        wanted = wanted[wanted < n]
        before = history.t_ms <= group.t_ms  # a late group came before what is later
        history = history if before.all() else History(history.items[before], history.t_ms[before])
        window, t_ms = window_of(history, n, self.settings.max_len)
        if not len(window) or not len(wanted):
            return
        user_D, matrix = self.encode([history], [group.t_ms])[0], self.item_matrix()
        own, terms = terms_of(window, t_ms)
        places, targets = own.astype(np.int64), wanted.astype(np.int64)
        rows_C, log_count_C = np.arange(n), np.zeros(n, np.float32)
        if n > WEIGHED:
            special = np.union1d(own, wanted)
            others = np.setdiff1d(self._random.integers(n, size=SAMPLED), special)
            rows_C, log_count_C = np.concatenate((special, others)), np.zeros(len(special) + len(others), np.float32)
            log_count_C[len(special) :] = np.log((n - len(special)) / len(others))
            places, targets = np.searchsorted(special, own), np.searchsorted(special, wanted)
        share_C = self.prior.log_share_of(rows_C, group.t_ms)
        similarity_C = (matrix if n <= WEIGHED else matrix[rows_C]) @ user_D / np.float32(self.settings.temperature)
        fixed_C = log_count_C + np.float32(self.prior.coefficient.item()) * share_C
        copying.learn(Weighing(similarity_C, share_C, fixed_C, places, terms, targets))

    def step(self) -> float:
        """One optimiser step on the newest groups and rehearsed ones; returns the loss, NaN if nothing is there."""
        windows = self.draw()
        return self.train(windows) if windows else float("nan")

    def train(self, windows: Sequence[Window]) -> float:
        """One optimiser step on given windows, each with targets; returns the loss."""
        batch = build_batch(windows, self.settings, self._random)
        candidates = draw_candidates(batch.target_T, self.seen, self._negatives(), self._generator)
        rows_U, everything = candidates.rows_C, candidates.log_q == 0.0  # then windows hold no other items
        if not everything:
            rows_U = distinct(rows_U, *map(torch.from_numpy, batch.items))
        leaf_UD = self.items.leaf(rows_U)
        x_UW = self.items.compose(leaf_UD, rows_U)
        x_UD, read_UD = as_compared(x_UW, self.items.dim), as_read(x_UW, self.items.dim)
        at_C = None if everything else torch.searchsorted(rows_U, candidates.rows_C)
        y_CD = unit(x_UD if at_C is None else x_UD.index_select(0, at_C))
        column_T = torch.searchsorted(candidates.rows_C, batch.target_T)
        prior = self.prior.at(batch.asked_ms_R, candidates.rows_C) if self.prior.on else None
        of_step = SoftmaxStep(
            candidates, batch.row_T, column_T, batch.weight_T, self.settings.temperature, self.settings.log_q, prior
        )
        loss = softmax_loss(self._asked_rows(batch, read_UD, rows_U), y_CD, of_step)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimizer.step()
        assert leaf_UD.grad is not None
        self.items.step(rows_U, leaf_UD.grad, self.settings.learning_rate)
        self.average.update(self.backbone, rows_U, x_UW)
        self.steps += 1
        self._cache.step(rows_U, self.steps)
        self._histories.clear()
        return float(loss.detach())

    @property
    def seen(self) -> Tensor:
        """Rows [n] int64 of the items seen so far, in order of first sight."""
        return torch.from_numpy(self._seen[: self._seen_n])

    def _negatives(self) -> int:
        """Negatives of a step; 0 = all seen items."""
        return 0 if self._seen_n <= self.settings.full_softmax else self.settings.negatives

    def _mark_seen(self, items: Int32) -> None:
        if len(self.items) > len(self._is_seen):
            self._is_seen = grown(self._is_seen, len(self.items))
        new, first = np.unique(items[~self._is_seen[items]], return_index=True)
        self._seen = grown(self._seen, self._seen_n + len(new))
        self._seen[self._seen_n : self._seen_n + len(new)] = new[np.argsort(first)]
        self._seen_n += len(new)
        self._is_seen[new] = True

    def draw(self) -> list[Window]:
        """Windows of one step: the newest groups, and rehearsed ones, recent ones more often."""
        size = self.settings.batch
        newest = self._fresh
        if self.settings.step_rows > 1:  # many of one user: the window of the last one holds those before
            newest = sorted({self.log.user(number): number for number in newest}.values())
        newest = newest[-max(1, round(size * (1 - self.settings.rehearsal_share))) :]
        self._fresh.clear()
        n = self.log.end - self.log.start
        rehearsed: list[int] = []
        if n and len(newest) < size:
            age = self._random.exponential(self.settings.rehearsal_age, 3 * (size - len(newest))) % 1.0
            drawn = self.log.end - 1 - (age * n).astype(np.int64)
            rehearsed = [number for number in drawn.tolist() if self.log.has_past(number)][: size - len(newest)]
        windows = self.log.windows([number for number in newest + rehearsed if self.log.has_past(number)])
        return [window for window in windows if len(window.targets)]

    def _asked_rows(self, batch: Batch, x_UD: Tensor, rows_U: Tensor) -> Tensor:
        """Outputs [R, D] of the asked rows, in their order."""
        if isinstance(self.backbone, HSTU):
            packing = Packing.of(batch.t_ms, bucket_edges_ms().numpy())
            at = torch.searchsorted(rows_U, torch.from_numpy(np.concatenate(batch.items)))
            return self.backbone.packed(x_UD.index_select(0, at), packing, self._dropout, batch.asked)
        outputs = []
        for chunk in batch.chunks():
            B, L = chunk.items_BL.shape
            at = torch.searchsorted(rows_U, chunk.items_BL.flatten())
            y_BLD = self.backbone(x_UD.index_select(0, at).view(B, L, -1), chunk.t_ms_BM, self._dropout)
            outputs.append(y_BLD.flatten(0, 1).index_select(0, chunk.asked))
        return torch.cat(outputs)

    def encode(self, histories: Sequence[History], now_ms: Sequence[int]) -> Float32:
        """Unit vectors [B, D] float32 of users at their request times; zero rows for users without known events."""
        vectors, dim = self._cache.vectors(), self.items.dim
        if self._encoder is None:
            return encode_histories(self.average.backbone, as_read(vectors, dim), histories, now_ms)
        array: Float32 = vectors.numpy()
        return encode_each(self._encoder, histories, now_ms, len(array), lambda rows: as_read(array[rows], dim))

    def item_matrix(self) -> Float32:
        """Unit vectors [N, D] float32 of all items of the table; the next step changes them in place."""
        return self._cache.matrix()

    def item_codes(self) -> Codes | None:
        """Codes of these vectors, of a large table."""
        return self._cache.codes()

    def read(self, rows: Int64) -> Float32:
        """Vectors [m, D] of item rows [m] as the backbone reads them, not normalised."""
        return as_read(self._cache.vectors().numpy()[rows], self.items.dim)

    def popular(self, now_ms: int = 0) -> Float32:
        """Popularity logits [N] float32 at a time, as of the last event at least."""
        return self.popular_of(len(self.items), now_ms=now_ms)

    def popular_of(self, n: int, items: Int32 | None = None, now_ms: int = 0) -> Float32:
        """Popularity logits [m] float32 of some items; None = items 0..n-1."""
        more = 0.0 if self.copying is None else float(self.copying.weights[SHARE])
        return self.prior.logits_now(now_ms, max(n, len(self.items)), more, items)[: n if items is None else len(items)]

    def most_popular(self, n: int, k: int) -> Int32:
        """Some k of items 0..n-1, those that are the most popular or were a while ago, any order.

        A catalogue of a million takes long to search: what was found stays for `POPULAR_GROUPS` groups, early in a
        stream for a sixteenth of those there were.
        """
        until, most = self._most_popular
        if self.log.end >= until or len(most) < min(k, n):
            most = largest(self.popular_of(n), 2 * k)
            self._most_popular = self.log.end + min(POPULAR_GROUPS, self.log.end // 16), most
        return most[:k]

    def scores(self, history: History, now_ms: int) -> Float32:
        """Logits [N] float32 of all items of the table for one user, popularity included; higher is better."""
        cosines: Float32 = self.item_matrix() @ self.encode([history], [now_ms])[0]
        window = window_of(History(*history), len(cosines), self.settings.max_len)
        return whole_logits(cosines, self.popular(now_ms), window, self.settings, self.copying)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, rehearsal log and random state, as plain values, arrays and tensors."""
        return {
            "backbone": {k: v.clone() for k, v in self.backbone.state_dict().items()},
            "items": self.items.state_dict(),
            "item_projects": self._cache.state(),
            "optimizer": self._optimizer.state_dict(),
            "log": self.log.state_dict(),
            "prior": self.prior.state_dict(),
            "copying": None if self.copying is None else self.copying.state_dict(),
            "average": self.average.state_dict(),
            "generator": self._generator.get_state(),
            "random": self._random.bit_generator.state,
            "seen": self._seen[: self._seen_n].copy(),
            "fresh": list(self._fresh),
            "waiting": self._waiting.copy(),
            "most_popular": self._most_popular,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` of a learner with the same settings returned."""
        self.backbone.load_state_dict(state["backbone"])
        self.items.load_state_dict(state["items"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.log.load_state_dict(state["log"])
        self.prior.load_state_dict(state["prior"])
        if self.copying is not None:
            self.copying.load_state_dict(state["copying"])
        self.average.load_state_dict(state["average"])
        self._generator.set_state(state["generator"])
        self._random.bit_generator.state = state["random"]
        self._seen, self._fresh = np.array(state["seen"], np.int64), list(state["fresh"])
        self._seen_n = len(self._seen)
        self._is_seen = np.zeros(len(self.items), bool)
        self._is_seen[self._seen] = True
        self._waiting, self.steps = np.array(state["waiting"], np.int64), state["steps"]
        self._most_popular = state.get("most_popular", (0, np.zeros(0, np.int32)))
        self._cache.forget_all(state["item_projects"])
        self._histories.clear()

    def arrays(self, whole: bool = True) -> Arrays:
        """What serving needs: item vectors [N, D], popularity logits [N] and the backbone's weights, float32 views.

        A large table's unit vectors and their codes are among them. Without `whole` what changes by rows alone.
        """
        if not whole:
            return self._cache.arrays()
        return {
            **self._cache.arrays(),
            "prior": self.popular(),
            **({} if self.copying is None else {"copying": self.copying.weights.copy()}),
            **weight_arrays(self.average.backbone),
        }

    def touched(self) -> dict[str, Touched]:
        """Which rows changed, for those of `arrays` that change by rows."""
        return self._cache.touched()
