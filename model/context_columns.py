"""Columns of the context of a request: what is taken by the same device, in the same region, and how that differs.

For each field of `signals.context` and each of its half-lives the log share of an item among the touches under the
request's value, then that less the log share among all: 0 where the value is not given or has no counts of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from driftline.model.columns_kernel import log_shares

if TYPE_CHECKING:
    from driftline.graph.arrays import Float32, Int32
    from driftline.graph.contexts import Context, Contexts

CONTEXT = "context"
"""Name of the block."""


def context_names(fields: Sequence[str], half_lives_days: Sequence[float]) -> tuple[str, ...]:
    """Names of the columns, field by field."""
    lives = [f"{days:g}d" for days in half_lives_days]
    return tuple(
        f"{CONTEXT}_{field}_{kind}_{life}" for field in fields for kind in ("log_share", "lift") for life in lives
    )


def context_columns(context: Context, contexts: Contexts, items: Int32, n: int, out: Float32) -> None:
    """Writes the columns.

    Args:
        context: of the request.
        contexts: the counted state.
        items: [c] candidates; n: number of items.
        out: [fields x 2 x half-lives, c].
    """
    everybody, known = contexts.everybody, float(max(n, 1))
    h = len(everybody.total)
    among_all = np.empty((h, len(items)), np.float32)
    log_shares(items, everybody.count, everybody.total, known, among_all)
    for field, counts in enumerate(contexts.of(context)):
        share, lift = out[2 * h * field : 2 * h * field + h], out[2 * h * field + h : 2 * h * (field + 1)]
        if counts is None:
            share[:], lift[:] = among_all, 0.0
        else:
            log_shares(items, counts.count, counts.total, known, share)
            np.subtract(share, among_all, out=lift)
