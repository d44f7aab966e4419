"""Compiled passes over codes, by one bit a number and by two, and products of what they leave (graph/codes.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic
from numba.types import float32, uintp, void
from numpy.typing import NDArray

from driftline.graph.arrays import Float32, Int32, Int64, UInt64
from driftline.graph.compiled import compiled, kept

LANES = 64
"""Rows of a block: several vector registers of words, so that the loop over them is compiled to vectors."""
PLANES = 4
"""Bits of a query's numbers."""
CODES_AHEAD, ROWS_AHEAD = 16, 4
"""How many rows before its turn a code, or a row, is asked for: they lie too far apart for the processor to foresee."""
LINE = 64
"""Bytes that memory gives at once."""
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


@intrinsic  # type: ignore[untyped-decorator]
def _fetch(context: Any, address: Any) -> Any:
    """Asks for the cache line of an address, which need not exist: it will be read soon."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place, number, number, number])
        function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.inttoptr(args[0], place), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return void(uintp), generate


@compiled(
    f"void({_CODES}, {_SCALES}, {_SCALES}, uint64[:, :, ::1], float32[::1], float32[::1], float32[::1],"
    " float32[:, :, ::1])"
)
def estimate(
    codes: UInt64,
    scales: Float32,
    lengths: Float32,
    planes: UInt64,
    steps: Float32,
    totals: Float32,
    slacks: Float32,
    out: Float32,
) -> None:
    """What dot products of queries with coded rows are at most, by estimate; minus infinity for rows that are zero.

    Args:
        codes: [blocks, words, LANES]; scales, lengths: [blocks, LANES].
        planes: [m, PLANES, words] bits of the queries' numbers in two's complement.
        steps: [m] what one unit of these numbers is; totals: [m] sums of the queries' rounded numbers.
        slacks: [m] by which the estimate of a row of length 1 may be too low.
        out: [m, at most so many blocks, LANES].
    """
    words, sums = codes.shape[1], np.empty(LANES, np.int64)
    for block in range(out.shape[1]):
        for i in range(len(out)):
            sums[:] = 0
            for word in range(words):
                p0, p1, p2, p3 = planes[i, 0, word], planes[i, 1, word], planes[i, 2, word], planes[i, 3, word]
                for lane in range(LANES):
                    code = codes[block, word, lane]
                    low = np.int64(_ones(code & p0)) + (np.int64(_ones(code & p1)) << 1)
                    sums[lane] += low + (np.int64(_ones(code & p2)) << 2) - (np.int64(_ones(code & p3)) << 3)
            step, total, slack = np.float32(2) * steps[i], totals[i], slacks[i]
            for lane in range(LANES):
                scale = scales[block, lane]
                value = scale * (step * np.float32(sums[lane]) - total) + slack * lengths[block, lane]
                out[i, block, lane] = value if scale > 0 else -np.inf


@compiled(
    f"void(Array(uint64, 2, 'C', readonly=True), {_F}, {_I}, {_F}, uint64[:, ::1], float32, float32, float32,"
    " float32[::1])"
)
def refine(
    seconds: UInt64,
    scales: Float32,
    rows: Int32,
    bounds: Float32,
    planes: UInt64,
    step: float,
    less: float,
    factor: float,
    out: Float32,
) -> None:
    """Closer bounds of some rows, by the second bit of their numbers.

    Args:
        seconds: [n, words]; scales: [n] those of the first bit, none zero.
        rows: [t], ascending; bounds: [n] of `estimate`.
        planes, step: of one query, as in `estimate`.
        less: what is taken from the query's sum over the second bits.
        factor: of all.
        out: [t].
    """
    words, base = seconds.shape[1], seconds.ctypes.data
    for t in range(len(rows)):
        if t + CODES_AHEAD < len(rows):
            place = base + np.int64(rows[t + CODES_AHEAD]) * words * 8
            _fetch(np.uintp(place))
            _fetch(np.uintp(place + words * 8 - 1))
        row, ones = rows[t], np.int64(0)
        for word in range(words):
            code = seconds[row, word]
            low = np.int64(_ones(code & planes[0, word])) + (np.int64(_ones(code & planes[1, word])) << 1)
            ones += (
                low + (np.int64(_ones(code & planes[2, word])) << 2) - (np.int64(_ones(code & planes[3, word])) << 3)
            )
        out[t] = factor * (bounds[row] + scales[row] * (step * np.float32(ones) - less))


@compiled(f"void({_F}, int64, float32, int64[::1])")
def histogram(values: Float32, every: int, width: float, bins: Int64) -> None:
    """Counts each so-many-th value in equal bins from -width to width; below is left out, above is in the last."""
    bins[:] = 0
    per_unit = np.float32(len(bins)) / (np.float32(2) * width)
    for place in range(0, len(values), every):
        value = values[place]
        if value > -width:
            bins[int(min((value + width) * per_unit, len(bins) - 1))] += 1


@compiled(f"int64({_SCALES}, float32, int32[::1])")
def at_least(values: Float32, bound: float, out: Int32) -> int:
    """Places [t] of the values [blocks, LANES] that reach a bound, ascending; returns t."""
    t, one = 0, np.uint64(1)
    for block in range(len(values)):
        reached = np.uint64(0)
        for lane in range(LANES):
            reached |= np.uint64(values[block, lane] >= bound) << np.uint64(lane)
        while reached:
            out[t] = block * LANES + _ones((reached & (~reached + one)) - one)  # the place of the lowest bit
            reached &= reached - one
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
    base, size = vectors.ctypes.data, vectors.shape[1] * 2
    for t in range(len(rows)):
        if t + ROWS_AHEAD < len(rows):
            for place in range(0, size, LINE):
                _fetch(np.uintp(base + np.int64(rows[t + ROWS_AHEAD]) * size + place))
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
