"""Names and blocks of the ranker's features: base | one for each plug (profiles, hstu, ...) | reverse | context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from driftline.graph.history import TRAITS
from driftline.graph.reverse import REVERSE
from driftline.model.context_columns import CONTEXT, context_names
from driftline.model.recall import SCORED

if TYPE_CHECKING:
    from driftline.configs.settings import Signals

ITEM = (
    "log_times", "log_age", "log_since_sold", "log_overdue", "log_buyers", "repeat_rate", "groups_per_buyer",
    "item_interval", "item_value", "log_price", "returned_rate", "trend_all",
)  # fmt: skip
MATCH = (
    "price_gap", "price_far", "value_gap", "popularity_gap", "popularity_far", "domain_log_share", "domain_lift",
    "take_chance", "retake_chance", *(f"trait_{name}" for name in TRAITS), "item_interval_due",
    "missed_groups", "missed_share", "age_gap", "text_nearest", "text_near",
)  # fmt: skip
USER = (
    "user_events", "user_groups", "user_since_last", "user_since_first", "user_basket", "user_repeat_share",
    "user_items", "user_rhythm", "hour_sin", "hour_cos", "weekday_sin", "weekday_cos", "year_sin", "year_cos",
)  # fmt: skip
PERSONAL = (
    "own", "own_times", "own_weight", "own_since_last", "own_since_first", "own_interval", "own_elapsed",
    "own_last_interval", "own_elapsed_last", "own_share", "own_share_since", "own_groups_since", "own_in_last",
    "own_value", "own_price_change", "own_returned",
)  # fmt: skip
"""What stands before the user's own decayed counts."""


def base_columns(half_lives_days: tuple[float, ...], personal_days: tuple[float, ...]) -> tuple[str, ...]:
    """Names of the base block's columns, in order, for half-lives of popularity and of the user's own counts."""
    lives = [f"{days:g}d" for days in half_lives_days]
    popularity = [f"popularity_{life}" for life in lives] + [f"first_buyers_{life}" for life in lives]
    trends = [f"trend_{a}_{b}" for a, b in zip(lives, lives[2:], strict=False)]
    recalled = [f"{kind}_{name}" for name in SCORED for kind in ("score", "rank")]
    own = [f"own_decayed_{days:g}d" for days in personal_days]
    return (*popularity, *trends, *ITEM, *MATCH, *USER, *PERSONAL, *own, *recalled)


OF_REVERSE = tuple(f"{name}_{kind}" for name in REVERSE for kind in ("score", "rank"))


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and blocks of the columns.

    Attributes:
        names: [f] column names.
        blocks: block -> slice of columns.
        present: [f] bool, columns that are standardised among their values other than 0, which stays 0.
    """

    names: tuple[str, ...]
    blocks: dict[str, slice]
    present: NDArray[np.bool_]

    def mask(self, blocks: tuple[str, ...]) -> NDArray[np.bool_]:
        """Columns [f] of the named blocks.

        Raises:
            KeyError: a block does not exist.
        """
        out = np.zeros(len(self.names), np.bool_)
        for block in blocks:
            if block not in self.blocks:
                raise KeyError(f"no block {block!r}; there are {', '.join(self.blocks)}")
            out[self.blocks[block]] = True
        return out


def layout(settings: Signals, plugs: Mapping[str, Sequence[str]]) -> Layout:
    """The columns for these settings and the columns of these plugs, by block."""
    blocks: dict[str, slice] = {}
    names: list[str] = []
    parts = {"base": base_columns(settings.half_lives_days, settings.personal_half_lives_days)}
    parts |= {plug: tuple(f"{plug}_{column}" for column in columns) for plug, columns in plugs.items()}
    parts |= {"reverse": OF_REVERSE} if settings.one_id_space else {}
    context = context_names(settings.context, settings.context_half_lives_days)
    parts |= {CONTEXT: context} if context else {}
    for block, columns in parts.items():
        blocks[block] = slice(len(names), len(names) + len(columns))
        names += columns
    present = np.array([name.startswith("own_") for name in names])
    return Layout(tuple(names), blocks, present)
