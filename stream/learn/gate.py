"""The trainer's gate: which snapshots may serve, and when a lasting drop is the new level.

A snapshot whose NDCG@10 fell by more than `trainer.gate_drop` against the serving one is refused, and so is one that
has too few scored groups to tell, where the serving one has enough. A drop that lasts is
no accident of the learner but of the stream: after `trainer.gate_patience` refusals in a row snapshots are held to the
mean of the refused ones instead. Each such step counts `level` up, so that serving does not hold the new level to the
old one.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from driftline.configs.errors import SnapshotError
from driftline.configs.settings import Settings
from driftline.serving.snapshot import LEVEL, Meta, current, gate, misfit, read_meta
from driftline.stream.ops.metrics import TrainerMetrics

LOG = logging.getLogger(__name__)
METRIC = "ndcg@10"


class LevelGate:
    """Compares each snapshot with the one that serves; one of other settings, which can't serve, is none to be held to.

    Args:
        settings: the whole configuration.
        groups: scored groups without which metrics are noise.
        metrics: counts refusals and steps.
    """

    def __init__(self, settings: Settings, groups: int, metrics: TrainerMetrics) -> None:
        self._all, self._settings, self._root = settings, settings.trainer, settings.serving.snapshots
        self._groups, self._metrics = groups, metrics
        self._refused: deque[float] = deque(maxlen=self._settings.gate_patience)
        self._rose = False

    def judge(self, metrics: Mapping[str, float]) -> tuple[str, int]:
        """Why a snapshot with these metrics may not serve ("" = it may), and its level. See `note`."""
        served = self._served()
        level = int(served.extra.get(LEVEL, 0))
        compared = served.metrics if served.metrics.get("groups", 0) >= self._groups else {}
        enough = bool(compared) and self._tells(metrics)
        reason = gate(metrics, compared, self._settings.gate_drop, METRIC, self._groups)
        self._rose = False
        if reason and enough and len(self._refused) == self._settings.gate_patience:
            mean = float(np.mean(self._refused))
            if not gate(metrics, {**served.metrics, METRIC: mean}, self._settings.gate_drop):
                LOG.warning(
                    "%s; so were the %d snapshots before, at %.4f: that is the new level, and this one may serve",
                    reason, len(self._refused), mean,
                )  # fmt: skip
                reason, level, self._rose = "", level + 1, True
        return reason, level

    def note(self, written: Meta) -> None:
        """Takes note of a snapshot that is on disk, the last one that was judged."""
        if not written.gate:
            self._metrics.levels.inc(self._rose)
            self._refused.clear()
            return
        self._metrics.gated.inc()
        if self._tells(written.metrics) and np.isfinite(written.metrics.get(METRIC, np.nan)):
            self._refused.append(written.metrics[METRIC])

    def _tells(self, metrics: Mapping[str, float]) -> bool:
        return metrics.get("groups", 0) >= self._groups

    def _served(self) -> Meta:
        """Of the snapshot that CURRENT names; a new one is the cure for one that can't be read."""
        try:
            pointer = current(self._root)
            meta = read_meta(self._root, pointer.version) if pointer is not None else Meta()
            return replace(meta, metrics={}) if misfit(meta, self._all) else meta
        except SnapshotError as error:
            LOG.warning("the next snapshot is compared with none: %s", error)
            return Meta()
