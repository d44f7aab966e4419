"""Training from scratch on a whole past, with all that offline training may use: shuffled epochs, its own validation.

    past, in order -> one pass: histories, signals, graph; features of each group as they were known then;
                      it is the same up to there for each longer past, so that who trains again goes on with it
      the first nine tenths -> HSTU: shuffled epochs until the last tenth stops improving
      the last tenth        -> features by that HSTU, which never saw it
                            -> ranker: shuffled epochs until the last tenth stops improving
      then both anew on all of the past, for as many epochs

The features that a ranker learns from must be those of items that HSTU has not learnt yet, or it would learn to trust
what HSTU knows by heart: so each group's are made in order. The graph is a memory that only the order makes; it learns
in the pass alone.

Source: early stopping, Prechelt, "Early stopping - but when?", 1998.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from driftline.model.engine import MAIN
from driftline.model.parts import plugs_of
from driftline.model.plugs import SequencePart
from driftline.model.ranker import Example, Ranker
from driftline.model.sequence import History, SequenceLearner

if TYPE_CHECKING:
    from driftline.configs.settings import Settings
    from driftline.graph.view import Group
    from driftline.model.rehearsal import Window
    from driftline.stream.learn.learner import StreamLearner
    from driftline.stream.replay.arms import Arrival, Request

SLICE = 0.1
"""Share of the past's groups, the last ones, on which training is validated."""
PATIENCE = 2
"""Epochs without a better validation after which training ends."""
MOST_EPOCHS = 30
VALIDATED = 2000
"""Groups that HSTU is validated on at most, spread over the slice."""


def settings_of_pass(settings: Settings, groups: int) -> Settings:
    """The settings of a pass over so many groups: every example and every window is kept."""
    every = {"rehearsal_groups": max(1, groups)}
    ranker, model = settings.ranker.model_copy(update=every), settings.model.model_copy(update=every)
    return settings.model_copy(update={"ranker": ranker, "model": model})


def before_slice(groups: int) -> int:
    """How many of a past's groups come before those that validate."""
    return max(1, round((1 - SLICE) * groups))


def fit(
    learner: StreamLearner,
    learn: Callable[[Request, Arrival], object],
    past: Sequence[tuple[Request, Arrival]],
    taken: int = 0,
) -> dict[str, int]:
    """Trains a fresh learner on a past.

    Args:
        learner: with `settings_of_pass`, after the first `taken` groups as the stream takes them.
        learn: takes a group into it as the stream does.
        past: all groups in order.
        taken: `before_slice` of them at most.

    Returns:
        epochs of each model, "hstu" and "ranker".
    """
    cut = before_slice(len(past))
    for request, arrival in past[taken:cut]:
        learn(request, arrival)
    groups = [arrival.group for _, arrival in past]
    epochs: dict[str, int] = {}
    if learner.sequence is not None:
        sequence, epochs["hstu"] = _validated_sequence(learner, groups, cut)
        _exchange(learner, sequence)
    ranker = learner.engine.arms[MAIN].ranker
    known = len(ranker.log)
    for request, arrival in past[cut:]:
        learn(request, arrival)
    epochs["ranker"] = _validated_ranker(ranker, ranker.log[:known], ranker.log[known:])
    fresh = _fresh_ranker(ranker)
    rng = np.random.default_rng(ranker.seed)
    for _ in range(epochs["ranker"]):
        _ranker_epoch(fresh, ranker.log, rng)
    learner.engine.arms[MAIN].ranker = fresh
    if learner.sequence is not None:
        sequence = _observed(learner, groups)
        rng = np.random.default_rng(learner.settings.model.seed)
        for _ in range(epochs["hstu"]):
            _sequence_epoch(sequence, sequence.log.end, rng)
        _exchange(learner, sequence)
    return epochs


def until_worse(epoch: Callable[[], None], loss: Callable[[], float]) -> int:
    """The number of epochs, at least one, after which the validation loss was the lowest."""
    best, best_loss = 1, np.inf
    for number in range(1, MOST_EPOCHS + 1):
        epoch()
        if (now := loss()) < best_loss:
            best, best_loss = number, now
        elif number - best >= PATIENCE:
            break
    return best


# -- HSTU ---------------------------------------------------------------------------------------------------------


def _observed(learner: StreamLearner, groups: Sequence[Group]) -> SequenceLearner:
    """A fresh backbone that has seen groups and learnt nothing, with the terms of its logit as they were weighed."""
    settings = learner.settings
    fresh = SequenceLearner(settings.model, text_dim=settings.ranker.text_dim, texts=learner.text)
    now_ms = learner.processor.window.watermark_ms
    for index, item_id in enumerate(learner.table.ids):
        text = None if learner.texts is None else learner.texts.at(item_id, now_ms)
        if text is not None:
            fresh.set_text(index, text)
    for group in groups:
        fresh.observe(group)
    if learner.sequence is not None:
        fresh.copying = copy.deepcopy(learner.sequence.copying)
    return fresh


def _exchange(learner: StreamLearner, sequence: SequenceLearner) -> None:
    part = SequencePart(sequence)
    learner.parts[part.name] = part
    learner.engine.plugs |= plugs_of({part.name: part}, learner.settings)


def _validated_sequence(learner: StreamLearner, groups: Sequence[Group], cut: int) -> tuple[SequenceLearner, int]:
    """A backbone trained on the groups before `cut`, as it was when those after it were told best, and its epochs."""
    sequence = _observed(learner, groups[:cut])
    later = _observed(learner, groups).log
    asked = [number for number in range(sequence.log.end, later.end) if later.has_past(number)]
    asked = asked[:: max(1, len(asked) // VALIDATED)]
    windows = [
        window for window in later.windows(asked) if len(window.rows) and window.rows[-1] == len(window.items) - 1
    ]
    rng = np.random.default_rng(learner.settings.model.seed)
    best: list[Any] = [np.inf, None]

    def loss() -> float:
        now = _sequence_loss(sequence, windows)
        if now < best[0]:
            best[:] = now, copy.deepcopy(sequence.state_dict())
        return now

    epochs = until_worse(lambda: _sequence_epoch(sequence, sequence.log.end, rng), loss)
    if best[1] is not None:
        sequence.load_state_dict(best[1])
    return sequence, epochs


def _sequence_epoch(sequence: SequenceLearner, end: int, rng: np.random.Generator) -> None:
    """A step on every window, in random order."""
    log, size = sequence.log, sequence.settings.batch
    numbers = rng.permutation([number for number in range(log.start, end) if log.has_past(number)])
    for at in range(0, len(numbers), size):
        windows = [window for window in log.windows(numbers[at : at + size].tolist()) if len(window.targets)]
        if windows:
            sequence.train(windows)


def _sequence_loss(sequence: SequenceLearner, windows: Sequence[Window]) -> float:
    """Mean over requests of the mean negative log probability of what was taken next, of items known by then."""
    losses = []
    for window in windows:
        logits = sequence.scores(History(window.items, window.t_ms[:-1]), int(window.t_ms[-1])).astype(np.float64)
        targets = window.targets[-int(window.counts[-1]) :]
        targets = targets[targets < len(logits)]
        if len(targets):
            top = logits.max()
            losses.append(float(top + np.log(np.exp(logits - top).sum()) - logits[targets].mean()))
    return float(np.mean(losses)) if losses else np.inf


# -- ranker -------------------------------------------------------------------------------------------------------


def _fresh_ranker(ranker: Ranker) -> Ranker:
    return Ranker(ranker.settings, ranker.columns, ranker.seed, ranker.base)


def _validated_ranker(ranker: Ranker, learnt: Sequence[Example], validated: Sequence[Example]) -> int:
    """Epochs over the learnt examples after which the others were ranked best."""
    fresh, rng = _fresh_ranker(ranker), np.random.default_rng(ranker.seed)
    return until_worse(
        lambda: _ranker_epoch(fresh, learnt, rng),
        lambda: fresh.validate(validated) if validated else np.inf,
    )


def _ranker_epoch(ranker: Ranker, examples: Sequence[Example], rng: np.random.Generator) -> None:
    """A step on every example, in random order, as many at once as a step of the stream takes."""
    size = 1 + ranker.settings.rehearsal_steps
    order = rng.permutation(len(examples))
    for at in range(0, len(order), size):
        ranker.step([examples[place] for place in order[at : at + size]])
