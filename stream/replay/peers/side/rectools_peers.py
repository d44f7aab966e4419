"""SASRec and HSTU of RecTools at its defaults of size, loss and rate; epochs until the validation stops.

The last row of every user is what epochs are validated on; the weights of the best one are kept. A user's sequence is
what was taken until the question; HSTU also gets its time.

Sources: RecTools 0.19, https://rectools.readthedocs.io; Kang and McAuley, arXiv 1808.09781 (SASRec); Zhai et al.,
arXiv 2402.17152 (HSTU).
"""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped, unused-ignore]
import pytorch_lightning as lightning  # type: ignore[import-not-found]
import torch
from rectools import Columns  # type: ignore[import-not-found]
from rectools.dataset import Dataset  # type: ignore[import-not-found]
from rectools.models import HSTUModel, SASRecModel  # type: ignore[import-not-found]

EPOCHS = 30
PATIENCE = 2

warnings.filterwarnings("ignore")
for library in ("pytorch_lightning", "lightning_fabric", "lightning.fabric", "lightning.pytorch"):
    logging.getLogger(library).setLevel(logging.ERROR)


class Best(lightning.Callback):  # type: ignore[misc]
    """Keeps the weights of the epoch with the lowest validation loss, and ends PATIENCE epochs after it."""

    def __init__(self, tell: Any) -> None:
        self._tell, self._loss, self._epoch = tell, np.inf, 0
        self._weights: Any = None

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        """Compares."""
        if trainer.sanity_checking:
            return
        loss, epoch = float(trainer.callback_metrics["val_loss"]), trainer.current_epoch
        if loss < self._loss:
            self._loss, self._epoch, self._weights = loss, epoch, copy.deepcopy(module.state_dict())
        trainer.should_stop = epoch - self._epoch >= PATIENCE
        self._tell(epoch + 1, EPOCHS)

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        """Puts the best weights back."""
        if self._weights is not None:
            module.load_state_dict(self._weights)


class Sequence:
    """A transformer of RecTools.

    Args:
        make: its class.
        timed: whether a question needs its time.
    """

    def __init__(self, make: Any, timed: bool) -> None:
        self._make, self._timed = make, timed

    def fit(self, rows: Any, seed: int, tell: Any) -> None:
        """Learns anew."""
        torch.set_num_threads(1)
        lightning.seed_everything(seed)
        self._items, self._model = rows.items, None
        longest = np.bincount(rows.user).max(initial=0)
        if longest < 3:  # nothing to learn from beside what is validated on
            return

        def trainer() -> Any:
            return lightning.Trainer(
                max_epochs=EPOCHS, deterministic=True, accelerator="cpu", devices=1, callbacks=[Best(tell)],
                logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                num_sanity_val_steps=0,
            )  # fmt: skip

        self._model = self._make(get_val_mask_func=last_of_each, get_trainer_func=trainer, recommend_torch_device="cpu")
        self._model.fit(Dataset.construct(_table(rows.user, rows.item, rows.t_ms)))
        self._known = set(self._model.data_preparator.get_known_item_ids().tolist())

    def score(self, query: Any) -> Any:
        """The logits of all items that it was trained on; NaN for others."""
        if self._model is None or self._known.isdisjoint(query.items.tolist()):
            return None
        dataset = Dataset.construct(_table(np.zeros(len(query.items), np.int32), query.items, query.times))
        context = _table([0], [0], [query.t_ms]) if self._timed else None
        found = self._model.recommend([0], dataset, k=len(self._known), filter_viewed=False, context=context)
        scores = np.full(self._items, np.nan, np.float32)
        scores[found[Columns.Item]] = found[Columns.Score]
        return scores


def last_of_each(interactions: Any) -> Any:
    """[n] bool: the last row of every user who has at least three."""
    ordered = interactions.sort_values(Columns.Datetime, kind="stable")
    by_user = ordered.groupby(Columns.User)[Columns.Item]
    last = (by_user.cumcount(ascending=False) == 0) & (by_user.transform("size") >= 3)
    return last.reindex(interactions.index).to_numpy()


def _table(user: Any, item: Any, t_ms: Any) -> Any:
    times = pd.to_datetime(np.asarray(t_ms), unit="ms")
    return pd.DataFrame({Columns.User: user, Columns.Item: item, Columns.Weight: 1.0, Columns.Datetime: times})


MODELS = {
    "sasrec": lambda: Sequence(SASRecModel, timed=False),
    "hstu": lambda: Sequence(HSTUModel, timed=True),
}
