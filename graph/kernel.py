"""The rule by which events change memories, compiled: one event after the other, no batches.

Weights and columns come as arrays; what they mean stands in `graph.memory` and `graph.ctdg`. Every sum is taken in one
fixed order, no operation is fused or reordered, and the transcendental functions are the ones below and not those of a
library. So a row has the same bits in any cut of a log, in any company, and on any processor with IEEE arithmetic.

Numba keeps the machine code beside this file and knows it by this file's time and size: everything that is compiled
into it stands here, constants included.

Dimension keys: N rows, U users, I items, M memory_dim, G message_dim, T time_dim, C code, E edge.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Float32, Int32, Int64, UInt64
from driftline.graph.compiled import compiled, inlined

Arrays = tuple[NDArray[Any], ...]

_f4 = np.float32
_MS_PER_DAY = 86_400_000.0
_LOG2_E = _f4(1 / math.log(2))
_LN2_HIGH = _f4(0.693359375)  # ln 2 in two parts: the first has so few bits that its multiples are exact
_LN2_LOW = _f4(math.log(2) - 0.693359375)
_ROUND_F4 = _f4(1.5 * 2**23)  # added and taken away again, it rounds to a whole number
_ROUND_F8 = 1.5 * 2**52
_EXP = tuple(_f4(1 / math.factorial(n)) for n in range(8))
_ONE_OVER_2PI = 1 / (2 * math.pi)
_COS = tuple((-1) ** n * (2 * math.pi) ** (2 * n) / math.factorial(2 * n) for n in range(12))
_E0, _E1, _E2, _E3, _E4, _E5, _E6, _E7 = _EXP
_C0, _C1, _C2, _C3, _C4, _C5, _C6, _C7, _C8, _C9, _C10, _C11 = _COS
_SIDE = (
    "Tuple((float32[::1], float32[::1], float32[:, ::1], float32[::1], float32[:, ::1], float32[::1], "
    "float32[:, ::1], float32[::1], float32[:, ::1], float32[::1]))"
)
"""Weights of a side: time w, b [T]; message function w1 [in, G], b1, w2 [G, G], b2; GRU w_in [G, 3 M], b_in, w_hidden
[M, 3 M], b_hidden. See `graph.memory.Side.packed`."""
_USERS = (
    "Tuple((float32[:, ::1], float32[:, ::1], float32[:, ::1], int64[::1], uint64[::1], int64[::1], int64[::1], "
    "int64[::1], boolean[::1]))"
)
USERS = (
    "memory",
    "pre",
    "message_sum",
    "message_count",
    "group",
    "group_ms",
    "pre_update_ms",
    "last_update_ms",
    "behind",
)
"""Columns of the users: the first three are [U, M], [U, M], [U, G], the others [U]."""
_ITEMS = "Tuple((float32[:, ::1], float32[:, ::1], int64[::1]))"
ITEMS = ("memory", "code", "last_update_ms")
"""Columns of the items: [I, M], [I, C], [I]."""
_ROWS = "Tuple((int64[::1], int64[::1], int64[::1], float32[:, ::1]))"
_LOWEST, _HIGHEST = _f4(-87), _f4(88)  # beyond them exp leaves the normal float32
_ONE, _TWO = _f4(1), _f4(2)


@inlined
def _add_product(x: Float32, w: Float32, out: Float32) -> None:
    """out [n] += x [k] @ w [k, n], summed over k in order. Four k a step only save loads and stores of `out`."""
    n, m, k = out.shape[0], x.shape[0], 0
    while k + 4 <= m:
        x0, x1, x2, x3 = x[k], x[k + 1], x[k + 2], x[k + 3]
        for j in range(n):
            out[j] = (((out[j] + x0 * w[k, j]) + x1 * w[k + 1, j]) + x2 * w[k + 2, j]) + x3 * w[k + 3, j]
        k += 4
    while k < m:
        x0 = x[k]
        for j in range(n):
            out[j] += x0 * w[k, j]
        k += 1


@inlined
def _exponential(x: Float32, bits: Int32) -> None:
    """x [n] becomes e^x; `bits` [n] is scratch. Source: 2^m times the Taylor series of the rest, |rest| <= ln(2)/2."""
    n = x.shape[0]
    for j in range(n):
        v = x[j]
        v = v if v > _LOWEST else _LOWEST
        v = v if v < _HIGHEST else _HIGHEST
        m = (v * _LOG2_E + _ROUND_F4) - _ROUND_F4
        r = (v - m * _LN2_HIGH) - m * _LN2_LOW
        p = _E7 * r + _E6
        p = p * r + _E5
        p = p * r + _E4
        p = p * r + _E3
        p = p * r + _E2
        p = p * r + _E1
        x[j] = p * r + _E0
        bits[j] = (np.int32(m) + 127) << 23
    scale = bits.view(np.float32)
    for j in range(n):
        x[j] *= scale[j]


@inlined
def _time_encoding(days: np.float32, w: Float32, b: Float32, out: Float32) -> None:
    """out [T] = cos(w days + b). The angle is float32 as in `TimeEncoder`; its cosine is that of whole turns less."""
    for j in range(out.shape[0]):
        angle = days * w[j] + b[j]
        turns = np.float64(angle) * _ONE_OVER_2PI
        r = turns - ((turns + _ROUND_F8) - _ROUND_F8)
        s = r * r
        p = _C11 * s + _C10
        p = p * s + _C9
        p = p * s + _C8
        p = p * s + _C7
        p = p * s + _C6
        p = p * s + _C5
        p = p * s + _C4
        p = p * s + _C3
        p = p * s + _C2
        p = p * s + _C1
        out[j] = np.float32(p * s + _C0)


@inlined
def _message(raw: Float32, t_ms: int, since_ms: int, side: Arrays, hidden: Float32, out: Float32) -> None:
    """out [G] = the message of a raw message, whose last T places this fills. `hidden` [G] is scratch."""
    time_w, time_b, w1, b1, w2, b2, _, _, _, _ = side
    days = np.float32(max(t_ms - since_ms, 0) / _MS_PER_DAY) if since_ms >= 0 else np.float32(0)
    _time_encoding(days, time_w, time_b, raw[raw.shape[0] - time_w.shape[0] :])
    hidden[:] = b1
    _add_product(raw, w1, hidden)
    for j in range(hidden.shape[0]):
        hidden[j] = hidden[j] if hidden[j] > 0 else np.float32(0)
    out[:] = b2
    _add_product(hidden, w2, out)


@inlined
def _update(message: Float32, memory: Float32, side: Arrays, gates: Float32, bits: Int32, out: Float32) -> None:
    """out [M] = GRU(message [G], memory [M]); may be `memory`. `gates` [2, 3 M] and `bits` [3 M] are scratch."""
    _, _, _, _, _, _, w_in, b_in, w_hidden, b_hidden = side
    m, gate, held = memory.shape[0], gates[0], gates[1]
    gate[:] = b_in
    _add_product(message, w_in, gate)
    held[:] = b_hidden
    _add_product(memory, w_hidden, held)
    for j in range(2 * m):
        gate[j] = -(gate[j] + held[j])
    _exponential(gate[: 2 * m], bits)
    for j in range(2 * m):
        gate[j] = _ONE / (_ONE + gate[j])  # reset and update gate
    for j in range(m):
        new = gate[2 * m + j] + gate[j] * held[2 * m + j]
        gate[2 * m + j] = new + new
    _exponential(gate[2 * m :], bits)
    for j in range(m):
        new = _ONE - _TWO / (gate[2 * m + j] + _ONE)  # tanh
        z = gate[m + j]
        out[j] = (_ONE - z) * new + z * memory[j]


@inlined
def _close_group(u: int, users: Arrays, to_user: Arrays, mean: Float32, gates: Float32, bits: Int32) -> None:
    """The memory of one user after the rows so far: GRU(mean message, pre). `mean`, `gates`, `bits` are scratch."""
    memory, pre, total, count, _, _, _, _, behind = users
    n = np.float32(count[u])
    for j in range(mean.shape[0]):
        mean[j] = total[u, j] / n
    _update(mean, pre[u], to_user, gates, bits, memory[u])
    behind[u] = False


@compiled(
    f"void({_ROWS}, uint64[::1], boolean, {_USERS}, {_ITEMS}, {_SIDE}, {_SIDE}, "
    "float32[:, ::1], float32[:, ::1], int64[::1])"
)
def apply_events(
    rows: Arrays,
    groups: UInt64,
    update_items: bool,
    users: Arrays,
    items: Arrays,
    to_user: Arrays,
    to_item: Arrays,
    pre_of: Float32,
    item_of_row: Float32,
    item_ms_of_row: Int64,
) -> None:
    """Applies events in order; see `graph.ctdg.TemporalGraph.apply`.

    A user's memory is a function of the pre-group memory and of the sum and count of the group's messages. So it is
    computed when somebody reads it: when the user's next group opens, or at the end; `behind` says for whom it is due.

    Args:
        rows: (user, item, t_ms, edges) of [N] rows.
        groups: [N] key64, 0 = an event of its own.
        update_items: whether the items' memories change.
        users, items: columns of the nodes.
        to_user, to_item: weights of the sides.
        pre_of: [N, M], takes the memory of each row's user from before its group.
        item_of_row, item_ms_of_row: [N, M] and [N], take memory and time of the last update of each row's item from
            before the row; empty = nobody asks.
    """
    user_of, item_of, t_of, edges = rows
    memory, pre, total, count, group, group_ms, pre_update_ms, last_update_ms, behind = users
    item_memory, code, item_last_ms = items
    m, g, c, e = memory.shape[1], total.shape[1], code.shape[1], edges.shape[1]
    raw_user = np.empty(2 * m + c + e + to_user[0].shape[0], np.float32)
    raw_item = np.empty(2 * m + e + to_item[0].shape[0], np.float32)
    gates, bits = np.empty((2, 3 * m), np.float32), np.empty(3 * m, np.int32)
    hidden, message = np.empty(g, np.float32), np.empty(g, np.float32)
    for row in range(user_of.shape[0]):
        u, i, t = user_of[row], item_of[row], t_of[row]
        if groups[row] == 0 or groups[row] != group[u] or t != group_ms[u]:
            if behind[u]:
                _close_group(u, users, to_user, message, gates, bits)
            pre[u] = memory[u]
            total[u] = 0
            count[u] = 0
            pre_update_ms[u] = last_update_ms[u]
            group[u], group_ms[u] = groups[row], t
        pre_of[row] = pre[u]
        if item_ms_of_row.shape[0]:
            item_of_row[row], item_ms_of_row[row] = item_memory[i], item_last_ms[i]
        raw_user[:m] = pre[u]
        raw_user[m : 2 * m] = item_memory[i]
        raw_user[2 * m : 2 * m + c] = code[i]
        raw_user[2 * m + c : 2 * m + c + e] = edges[row]
        _message(raw_user, t, pre_update_ms[u], to_user, hidden, message)
        for j in range(g):
            total[u, j] += message[j]
        count[u] += 1
        last_update_ms[u] = t
        behind[u] = True
        if update_items:  # as in `apply_to_items`: one function for both, even inlined, costs a tenth of the speed
            raw_item[:m] = item_memory[i]
            raw_item[m : 2 * m] = pre[u]
            raw_item[2 * m : 2 * m + e] = edges[row]
            _message(raw_item, t, item_last_ms[i], to_item, hidden, message)
            _update(message, item_memory[i], to_item, gates, bits, item_memory[i])
            item_last_ms[i] = max(t, item_last_ms[i])
    for row in range(user_of.shape[0]):
        if behind[user_of[row]]:
            _close_group(user_of[row], users, to_user, message, gates, bits)


@compiled(f"void(int64[::1], int64[::1], float32[:, ::1], float32[:, ::1], {_ITEMS}, {_SIDE})")
def apply_to_items(
    item_of: Int64,
    t_of: Int64,
    user_memory: Float32,
    edges: Float32,
    items: Arrays,
    to_item: Arrays,
) -> None:
    """The items' half of [N] events in order; see `graph.ctdg.TemporalGraph.apply_items`."""
    memory, _, last_ms = items
    m, e, g = memory.shape[1], edges.shape[1], to_item[5].shape[0]
    raw = np.empty(2 * m + e + to_item[0].shape[0], np.float32)
    gates, bits = np.empty((2, 3 * m), np.float32), np.empty(3 * m, np.int32)
    hidden, message = np.empty(g, np.float32), np.empty(g, np.float32)
    for row in range(item_of.shape[0]):
        i, t = item_of[row], t_of[row]
        raw[:m] = memory[i]
        raw[m : 2 * m] = user_memory[row]
        raw[2 * m : 2 * m + e] = edges[row]
        _message(raw, t, last_ms[i], to_item, hidden, message)
        _update(message, memory[i], to_item, gates, bits, memory[i])
        last_ms[i] = max(t, last_ms[i])
