"""Joins the recallers' lists into one pool: compiled, in time of the lists and not of the catalogue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Bool, Int32, Int64
from driftline.graph.compiled import compiled
from driftline.graph.sparse import SCRATCH

UInt32 = NDArray[np.uint32]
Lists = Sequence[tuple[np.uint32, Int32]]
"""(bit of the recaller, its items, best first); a negative item is none."""

_I, _U, _L = (f"Array({kind}, 1, 'C', readonly=True)" for kind in ("int32", "uint32", "int64"))


@compiled(
    f"int64({_I}, {_L}, {_U}, {_I}, int64, {_I}, uint32, int64, boolean[::1], uint32[::1], int32[::1], int32[::1])"
)
def _base(
    items: Int32,
    ends: Int64,
    bits: UInt32,
    touched: Int32,
    k: int,
    own: Int32,
    own_bit: np.uint32,
    room: int,
    mark: Bool,
    mask: UInt32,
    place: Int32,
    pool: Int32,
) -> int:
    """Fills pool with the base candidates in index order and mask with their recallers; clears the others' masks."""
    for item in touched:
        mark[item] = True
    count, start = 0, 0
    for which in range(len(ends)):
        rank = 0
        for at in range(start, ends[which]):
            item = items[at]
            if rank >= k:
                break
            if item < 0 or mark[item]:
                continue
            if mask[item] == 0:
                pool[count], place[item] = item, rank
                count += 1
            mask[item] |= bits[which]
            place[item] = min(place[item], rank)
            rank += 1
        start = ends[which]
    for item in touched:
        mark[item] = False
    for item in own:
        if mask[item] == 0:
            pool[count] = item
            count += 1
        mask[item] |= own_bit
        place[item] = -1
    if count > room:
        of_rank = np.zeros(k + 1, np.int64)  # how many stand at each rank in their best list; those of `own` before all
        for i in range(count):
            of_rank[place[pool[i]] + 1] += 1
        last, inside = 0, 0
        while inside + of_rank[last] <= room:
            inside += of_rank[last]
            last += 1
        tied, ties, kept = np.empty(of_rank[last], np.int32), 0, 0
        for i in range(count):
            item = pool[i]
            if place[item] + 1 < last:
                pool[kept] = item
                kept += 1
            elif place[item] + 1 == last:
                tied[ties] = item
                ties += 1
            else:
                mask[item] = 0
        tied.sort()
        for i in range(ties):
            if kept < room:
                pool[kept] = tied[i]
                kept += 1
            else:
                mask[tied[i]] = 0
        count = kept
    pool[:count].sort()
    return count


@compiled(f"int64({_I}, {_L}, {_U}, int64, uint32[::1], int32[::1], uint32[::1])")
def _more(items: Int32, ends: Int64, bits: UInt32, base: int, mask: UInt32, pool: Int32, recalled: UInt32) -> int:
    """Adds the candidates of further lists behind the base ones, in index order; mask is zero again afterwards."""
    count, start = base, 0
    for i in range(base):
        mask[pool[i]] |= np.uint32(1 << 31)  # in the base pool
    for which in range(len(ends)):
        for at in range(start, ends[which]):
            if mask[items[at]] == 0:
                pool[count] = items[at]
                count += 1
            mask[items[at]] |= bits[which]
        start = ends[which]
    pool[base:count].sort()
    for i in range(count):
        recalled[i] = mask[pool[i]]
        mask[pool[i]] = 0
    for i in range(base):
        recalled[i] &= np.uint32(0x7FFFFFFF)
    return count


def join(
    base: Lists, more: Lists, touched: Int32, own: Int32, own_bit: np.uint32, k: int, room: int, n: int
) -> tuple[Int32, UInt32]:
    """Distinct candidates [c] and the bits [c] of the recallers that brought each: base ones first, each by index.

    Args:
        base: lists of which the k best untouched items count.
        more: lists that may add candidates but never displace one.
        touched: [m] int32 the user's items.
        own: those that come in whatever the lists say, with `own_bit`.
        k: length of a base list.
        room: base candidates at most; those that stand first in any list stay.
        n: number of items.
    """
    flat, ends, bits = _flat(base)
    beside, beside_ends, beside_bits = _flat(more)
    pool = np.empty(len(flat) + len(own) + len(beside), np.int32)
    mask = SCRATCH.get("mask", n, np.uint32)
    mark, place = SCRATCH.get("mark", n, np.bool_), SCRATCH.get("rank", n, np.int32)
    count = _base(flat, ends, bits, touched, k, own, own_bit, room, mark, mask, place, pool)
    recalled = np.empty(len(pool), np.uint32)
    count = _more(beside, beside_ends, beside_bits, count, mask, pool, recalled)
    return pool[:count].copy(), recalled[:count].copy()


def _flat(lists: Lists) -> tuple[Int32, NDArray[np.int64], UInt32]:
    """All items one after another, where each list ends, and its bit."""
    items = np.concatenate([np.zeros(0, np.int32), *(items for _, items in lists)])
    ends = np.cumsum([len(items) for _, items in lists], dtype=np.int64)
    return items, ends, np.array([bit for bit, _ in lists], np.uint32)
