"""Compiled passes over codes of one bit a number, and dot products of the few rows that they leave (graph/codes.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba.extending import intrinsic
from numba.types import float32
from numpy.typing import NDArray

from driftline.graph.arrays import Float32, Int32, Int64, UInt64
from driftline.graph.compiled import compiled, kept

LANES = 64
"""Rows of a block: several vector registers of words, so that the loop over them is compiled to vectors."""
PLANES = 4
"""Bits of a query's numbers."""
_CONVERTS = binding.get_process_triple().startswith(("aarch64", "arm64")) or bool(
    binding.get_host_cpu_features().get("f16c")
)
"""Whether the processor converts a float16 by an instruction."""
_FAST: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}  # sums of products in whatever order the vector units take them: one and the same for all calls
_I, _F = "Array(int32, 1, 'C', readonly=True)", "Array(float32, 1, 'C', readonly=True)"
_CODES, _SCALES = "Array(uint64, 3, 'C', readonly=True)", "Array(float32, 2, 'C', readonly=True)"


@intrinsic  # type: ignore[untyped-decorator]
def _ones(context: Any, value: Any) -> Any:
    """How many bits of a word are set: one instruction of the processor."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return value(value), generate


@compiled(f"void({_CODES}, {_SCALES}, {_SCALES}, uint64[:, ::1], float32, float32, float32, float32[::1], int64[::1])")
def estimate(
    codes: UInt64,
    scales: Float32,
    lengths: Float32,
    planes: UInt64,
    step: float,
    total: float,
    slack: float,
    out: Float32,
    sums: Int64,
) -> None:
    """What dot products of a query with coded rows are at most, by estimate; minus infinity for rows that are zero.

    Args:
        codes: [blocks, words, LANES]; scales, lengths: [blocks, LANES].
        planes: [PLANES, words] bits of the query's numbers in two's complement.
        step: what one unit of these numbers is; total: sum of the query's rounded numbers.
        slack: by which the estimate of a row of length 1 may be too low.
        out: [n <= blocks * LANES]; sums: [LANES], scratch.
    """
    n, words = len(out), codes.shape[1]
    for block in range((n + LANES - 1) // LANES):
        sums[:] = 0
        for word in range(words):
            p0, p1, p2, p3 = planes[0, word], planes[1, word], planes[2, word], planes[3, word]
            for lane in range(LANES):
                code = codes[block, word, lane]
                low = np.int64(_ones(code & p0)) + (np.int64(_ones(code & p1)) << 1)
                sums[lane] += low + (np.int64(_ones(code & p2)) << 2) - (np.int64(_ones(code & p3)) << 3)
        for lane in range(min(LANES, n - block * LANES)):
            scale = scales[block, lane]
            value = scale * (np.float32(2) * step * np.float32(sums[lane]) - total) + slack * lengths[block, lane]
            out[block * LANES + lane] = value if scale > 0 else -np.inf


@compiled(f"void({_F}, int64, float32, int64[::1])")
def histogram(values: Float32, every: int, width: float, bins: Int64) -> None:
    """Counts each so-many-th value in equal bins from -width to width; below is left out, above is in the last."""
    bins[:] = 0
    per_unit = np.float32(len(bins)) / (np.float32(2) * width)
    for place in range(0, len(values), every):
        value = values[place]
        if value > -width:
            bins[int(min((value + width) * per_unit, len(bins) - 1))] += 1


@compiled(f"int64({_F}, float32, int32[::1])")
def at_least(values: Float32, bound: float, out: Int32) -> int:
    """Places [t] of the first values that reach a bound, as many as fit; returns t."""
    t = 0
    for place in range(len(values)):
        if values[place] >= bound and t < len(out):
            out[t] = place
            t += 1
    return t


def _dots(vectors: Float32, rows: Int32, query: Float32, out: Float32) -> None:
    """Dot products [t] of rows of a float32 matrix [n, d] with a query [d]."""
    for t in range(len(rows)):
        total, row = np.float32(0), rows[t]
        for d in range(len(query)):
            total += vectors[row, d] * query[d]
        out[t] = total


@intrinsic  # type: ignore[untyped-decorator]
def _wide(context: Any, word: Any) -> Any:
    """The float32 of a float16 that is given as the word that holds it; none of them infinite or NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _CONVERTS:
            return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())
        whole = builder.zext(args[0], ir.IntType(32))
        sign, rest = (builder.and_(whole, ir.Constant(whole.type, bits)) for bits in (0x8000, 0x7FFF))
        moved = builder.or_(*(builder.shl(one, ir.Constant(one.type, by)) for one, by in ((sign, 16), (rest, 13))))
        lacking = ir.Constant(ir.FloatType(), 2.0**112)  # of a float16's exponent when its bits stand in a float32
        return builder.fmul(builder.bitcast(moved, ir.FloatType()), lacking)

    return float32(word), generate


def _half_dots(vectors: NDArray[np.uint16], rows: Int32, query: Float32, out: Float32) -> None:
    """The same of a float16 matrix, given as the words that hold it."""
    for t in range(len(rows)):
        total, row = np.float32(0), rows[t]
        for d in range(len(query)):
            total += _wide(vectors[row, d]) * query[d]
        out[t] = total


@compiled("void(Array(uint16, 2, 'C', readonly=True), Array(int64, 1, 'C', readonly=True), float32[:, ::1])")
def half_rows(vectors: NDArray[np.uint16], rows: Int64, out: Float32) -> None:
    """Rows of a float16 matrix, given as the words that hold it, as float32 [t, d]."""
    for t in range(len(rows)):
        row = rows[t]
        for d in range(out.shape[1]):
            out[t, d] = _wide(vectors[row, d])


dots = kept(_dots, (f"void(Array(float32, 2, 'C', readonly=True), {_I}, {_F}, float32[::1])",), _FAST)
half_dots = kept(_half_dots, (f"void(Array(uint16, 2, 'C', readonly=True), {_I}, {_F}, float32[::1])",), _FAST)
