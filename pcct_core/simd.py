"""Explicit vectors: the inner loops that compilers do not vectorise on their own.

Written as generic LLVM vectors of 64 bytes, which every target lowers to what it has (one AVX-512 register, two AVX2, four
NEON). Distances are IEEE, in the order of the dimensions, without fused multiply-add: a distance here has the same bits as
the plain loop `for c: total += (x[c] - q[c]) * (x[c] - q[c])` in NumPy, and so ties are the same ties.

Each function has a plain Python twin, which runs when Numba's JIT is switched off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from pcct_core.jit import inner

QUERIES = 8  # queries that share one load in `project_bucket`: 16 accumulators of 64 bytes, half of AVX-512's registers
PAIRS = 4  # rows that share one load in `multiply_rows`
COLUMNS = 8  # float64 of 64 bytes: rows for `multiply_rows` are padded with zeros to a multiple of it
LANES = 32  # points of a bucket and queries of a group: two float32 or four float64 vectors of 64 bytes


# For exp in float32, x = k ln 2 + r: adding _ROUND = 1.5 * 2^23 rounds to an integer, which then stands in the low bits;
# the low 9 bits of _LN2_HIGH are zero, so that k * _LN2_HIGH is exact; Taylor up to degree 7, highest first.
_LOG2_E, _LN2_HIGH, _LN2_LOW, _ROUND = 1.44269502162933349609375, 0.693145751953125, 1.428606765330187e-06, 12582912.0
_TAYLOR = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
_LOWEST = 87.0  # exp of minus it is still a normal number
_FAR = 1e6  # squared distances count as at most this, where every kernel is below 1e-38 but keeps finite factors
SINGLE_ERROR = 5 * 2.0**-24  # most that a correlation computed in float32 is off by; two thirds of it are measured


def _vector(builder: Any, context: Any, array_type: Any, array: Any, offset: Any, lanes: int) -> Any:
    """Return a pointer to `lanes` consecutive elements of a C-contiguous array, from a flat offset."""
    data = context.make_array(array_type)(context, builder, value=array).data
    element = builder.gep(data, [offset])
    return builder.bitcast(element, ir.PointerType(ir.VectorType(data.type.pointee, lanes)))


def _load(builder: Any, context: Any, array_type: Any, array: Any, offset: Any, lanes: int) -> Any:
    pointer = _vector(builder, context, array_type, array, offset, lanes)
    return builder.load(pointer, align=array_type.dtype.bitwidth // 8)


def _store(builder: Any, context: Any, array_type: Any, array: Any, offset: Any, value: Any) -> None:
    pointer = _vector(builder, context, array_type, array, offset, value.type.count)
    builder.store(value, pointer, align=array_type.dtype.bitwidth // 8)


def _prefetch(builder: Any, context: Any, array_type: Any, array: Any, offset: Any) -> None:
    """Ask for one cache line; an address behind the array is allowed and does nothing."""
    data = context.make_array(array_type)(context, builder, value=array).data
    pointer = builder.bitcast(builder.gep(data, [offset]), ir.IntType(8).as_pointer())
    number = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
    hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(hint, [pointer, ir.Constant(number, 0), ir.Constant(number, 3), ir.Constant(number, 1)])


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    vector = ir.VectorType(scalar.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def _bits(builder: Any, flags: Any) -> Any:
    """Return a vector of booleans as the low bits of an unsigned 32-bit integer, lane 0 lowest."""
    packed = builder.bitcast(flags, ir.IntType(flags.type.count))
    return packed if flags.type.count == 32 else builder.zext(packed, ir.IntType(32))


def _widest(array_type: Any) -> int:
    return int(512 // array_type.dtype.bitwidth)


def _scan_code(context: Any, builder: Any, sig: Any, args: Any, weights: Any = None) -> Any:
    """Compute squared distances to a bucket; weights: a typed array that multiplies the differences, None for none."""
    coords_t, _, _, query_t, _, ids_t, _, _, _, out_t = sig.args[:10]
    coords_v, offset_v, d_v, query_v, column_v, ids_v, first_v, limit_v, bound_v, out_v = args[:10]
    lanes = _widest(coords_t)
    parts = LANES // lanes
    intp = offset_v.type
    scalar = context.get_value_type(coords_t.dtype)
    vector = ir.VectorType(scalar, lanes)
    zero = ir.Constant(vector, [0.0] * lanes)
    totals = [cgutils.alloca_once_value(builder, zero) for _ in range(parts)]
    for total in totals:
        builder.store(zero, total)
    query_data = context.make_array(query_t)(context, builder, value=query_v).data
    with cgutils.for_range(builder, d_v, intp=intp) as loop:
        row = builder.mul(loop.index, ir.Constant(intp, LANES))
        value = builder.load(builder.gep(query_data, [builder.add(row, column_v)]))
        q = _splat(builder, value, lanes)
        weight = _weight(context, builder, weights, loop.index, lanes)
        base = builder.add(offset_v, row)
        for part, total in enumerate(totals):
            start = builder.add(base, ir.Constant(intp, part * lanes))
            difference = builder.fsub(_load(builder, context, coords_t, coords_v, start, lanes), q)
            if weight is not None:
                difference = builder.fmul(difference, weight)
            square = builder.fmul(difference, difference)
            builder.store(builder.fadd(builder.load(total), square), total)
    mask = ir.Constant(ir.IntType(32), 0)
    bounds = _splat(builder, bound_v, lanes)
    limits = _splat(builder, limit_v, lanes)
    for part, total in enumerate(totals):
        distance = builder.load(total)
        start = ir.Constant(intp, part * lanes)
        _store(builder, context, out_t, out_v, start, distance)
        near = builder.fcmp_ordered("<=", distance, bounds)
        ranks = _load(builder, context, ids_t, ids_v, builder.add(first_v, start), lanes)
        allowed = builder.icmp_signed("<", ranks, limits)
        bits = _bits(builder, builder.and_(near, allowed))
        mask = builder.or_(mask, builder.shl(bits, ir.Constant(ir.IntType(32), part * lanes)))
    return mask


def _weight(context: Any, builder: Any, weights: Any, at: Any, lanes: int) -> Any:
    """Return one weight in every lane, None where there are none."""
    if weights is None:
        return None
    data = context.make_array(weights[0])(context, builder, value=weights[1]).data
    return _splat(builder, builder.load(builder.gep(data, [at])), lanes)


@intrinsic
def _scan_bucket(typingctx, coords, offset, d, query, column, ids, first, limit, bound, out):
    signature = types.uint32(
        coords, types.intp, types.intp, query, types.intp, ids, types.intp, types.int32, coords.dtype, out
    )
    return signature, _scan_code


@intrinsic
def _scan_weighted(typingctx, coords, offset, d, query, column, ids, first, limit, bound, out, weights):
    signature = types.uint32(
        coords, types.intp, types.intp, query, types.intp, ids, types.intp, types.int32, coords.dtype, out, weights
    )

    def codegen(context, builder, sig, args):
        return _scan_code(context, builder, sig, args, (sig.args[-1], args[-1]))

    return signature, codegen


def _reach_code(context: Any, builder: Any, sig: Any, args: Any, weights: Any = None) -> Any:
    """Compare squared distances to a box with bounds; weights as in `_scan_code`."""
    queries_t, bounds_t, low_t, high_t = sig.args[:4]
    queries_v, bounds_v, low_v, high_v, node_v, d_v = args[:6]
    lanes = _widest(queries_t)
    parts = LANES // lanes
    intp = node_v.type
    scalar = context.get_value_type(queries_t.dtype)
    zero = ir.Constant(ir.VectorType(scalar, lanes), [0.0] * lanes)
    totals = [cgutils.alloca_once_value(builder, zero) for _ in range(parts)]
    for total in totals:
        builder.store(zero, total)
    low_data = context.make_array(low_t)(context, builder, value=low_v).data
    high_data = context.make_array(high_t)(context, builder, value=high_v).data
    corner = builder.mul(node_v, d_v)
    with cgutils.for_range(builder, d_v, intp=intp) as loop:
        at = builder.add(corner, loop.index)
        low_c = _splat(builder, builder.load(builder.gep(low_data, [at])), lanes)
        high_c = _splat(builder, builder.load(builder.gep(high_data, [at])), lanes)
        weight = _weight(context, builder, weights, loop.index, lanes)
        row = builder.mul(loop.index, ir.Constant(intp, LANES))
        for part, total in enumerate(totals):
            start = builder.add(row, ir.Constant(intp, part * lanes))
            q = _load(builder, context, queries_t, queries_v, start, lanes)
            below = builder.fsub(low_c, q)
            above = builder.fsub(q, high_c)
            gap = builder.select(builder.fcmp_ordered(">", below, above), below, above)
            gap = builder.select(builder.fcmp_ordered(">", gap, zero), gap, zero)
            if weight is not None:
                gap = builder.fmul(gap, weight)
            builder.store(builder.fadd(builder.load(total), builder.fmul(gap, gap)), total)
    mask = ir.Constant(ir.IntType(32), 0)
    for part, total in enumerate(totals):
        start = ir.Constant(intp, part * lanes)
        reach = builder.fcmp_ordered(
            "<=", builder.load(total), _load(builder, context, bounds_t, bounds_v, start, lanes)
        )
        mask = builder.or_(mask, builder.shl(_bits(builder, reach), ir.Constant(ir.IntType(32), part * lanes)))
    return mask


@intrinsic
def _reach_box(typingctx, queries, bounds, low, high, node, d):
    return types.uint32(queries, bounds, low, high, types.intp, types.intp), _reach_code


@intrinsic
def _reach_weighted(typingctx, queries, bounds, low, high, node, d, weights):
    signature = types.uint32(queries, bounds, low, high, types.intp, types.intp, weights)

    def codegen(context, builder, sig, args):
        return _reach_code(context, builder, sig, args, (sig.args[-1], args[-1]))

    return signature, codegen


@intrinsic
def _fit_below(typingctx, products, at, halves, first, bound):
    signature = types.uint32(products, types.intp, halves, types.intp, products.dtype)

    def codegen(context, builder, sig, args):
        products_t, _, halves_t, _, _ = sig.args
        products_v, at_v, halves_v, first_v, bound_v = args
        lanes = _widest(products_t)
        mask = ir.Constant(ir.IntType(32), 0)
        bounds = _splat(builder, bound_v, lanes)
        for part in range(LANES // lanes):
            shift = ir.Constant(at_v.type, part * lanes)
            product = _load(builder, context, products_t, products_v, builder.add(at_v, shift), lanes)
            half = _load(builder, context, halves_t, halves_v, builder.add(first_v, shift), lanes)
            fits = builder.fcmp_ordered("<=", builder.fsub(half, product), bounds)
            mask = builder.or_(mask, builder.shl(_bits(builder, fits), ir.Constant(ir.IntType(32), part * lanes)))
        return mask

    return signature, codegen


@intrinsic
def _project_bucket(typingctx, blocks, offset, count, queries, at, out, to):
    places = types.UniTuple(types.intp, QUERIES)
    signature = types.void(blocks, types.intp, types.intp, queries, places, out, places)

    def codegen(context, builder, sig, args):
        blocks_t, _, _, queries_t, _, out_t, _ = sig.args
        blocks_v, offset_v, count_v, queries_v, at_v, out_v, to_v = args
        lanes = _widest(blocks_t)
        parts = LANES // lanes
        intp = offset_v.type
        element = context.get_value_type(blocks_t.dtype)
        vector = ir.VectorType(element, lanes)
        name = f"llvm.fmuladd.v{lanes}f{blocks_t.dtype.bitwidth}"
        multiply_add = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        starts = [builder.extract_value(at_v, i) for i in range(QUERIES)]
        ends = [builder.extract_value(to_v, i) for i in range(QUERIES)]
        zero = ir.Constant(vector, [0.0] * lanes)
        totals = {}
        for i in range(QUERIES):
            for part in range(parts):
                totals[i, part] = cgutils.alloca_once(builder, vector)
                builder.store(zero, totals[i, part])
        data = context.make_array(queries_t)(context, builder, value=queries_v).data
        length = builder.mul(count_v, ir.Constant(intp, LANES))
        with cgutils.for_range(builder, count_v, intp=intp) as loop:
            row = builder.add(offset_v, builder.mul(loop.index, ir.Constant(intp, LANES)))
            values = [
                _splat(builder, builder.load(builder.gep(data, [builder.add(start, loop.index)])), lanes)
                for start in starts
            ]
            for part in range(parts):
                place = builder.add(row, ir.Constant(intp, part * lanes))
                block = _load(builder, context, blocks_t, blocks_v, place, lanes)
                # What comes next in memory is wanted next; hardware does not look across the end of a page.
                _prefetch(builder, context, blocks_t, blocks_v, builder.add(place, length))
                for i, value in enumerate(values):
                    total = totals[i, part]
                    builder.store(builder.call(multiply_add, [block, value, builder.load(total)]), total)
        for i in range(QUERIES):
            for part in range(parts):
                place = builder.add(ends[i], ir.Constant(intp, part * lanes))
                before = _load(builder, context, out_t, out_v, place, lanes)
                _store(builder, context, out_t, out_v, place, builder.fadd(before, builder.load(totals[i, part])))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _screen_bucket(typingctx, squared, at, products, to, roots, first, shape, limit, slack):
    signature = types.uint32(
        squared, types.intp, products, types.intp, roots, types.intp, shape, types.float32, types.float32
    )

    def codegen(context, builder, sig, args):
        squared_t, _, products_t, _, roots_t, _, shape_t, _, _ = sig.args
        squared_v, at_v, products_v, to_v, roots_v, first_v, shape_v, limit_v, slack_v = args
        lanes = 16
        single = ir.FloatType()
        vector, words = ir.VectorType(single, lanes), ir.VectorType(ir.IntType(32), lanes)

        def call(name: str, *values: Any) -> Any:
            kind = ir.FunctionType(vector, [vector] * len(values))
            name = f"llvm.{name}.v{lanes}f32"
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)

        def same(value: float) -> Any:
            return ir.Constant(vector, [value] * lanes)

        def least(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered("<", a, b), a, b)

        data = context.make_array(shape_t)(context, builder, value=shape_v).data
        u, c, g, h = (
            _splat(builder, builder.load(builder.gep(data, [ir.Constant(at_v.type, i)])), lanes) for i in range(4)
        )
        limits, slacks = _splat(builder, limit_v, lanes), _splat(builder, slack_v, lanes)
        mask = ir.Constant(ir.IntType(32), 0)
        for part in range(LANES // lanes):
            shift = ir.Constant(at_v.type, part * lanes)
            wide = _load(builder, context, squared_t, squared_v, builder.add(at_v, shift), lanes)
            s = least(builder.fptrunc(wide, vector), same(_FAR))
            a = builder.fmul(c, call("sqrt", s))
            x = builder.fneg(least(builder.fadd(builder.fmul(u, s), a), same(_LOWEST)))
            shifted = call("fmuladd", x, same(_LOG2_E), same(_ROUND))
            k = builder.fsub(shifted, same(_ROUND))
            r = builder.fsub(builder.fsub(x, builder.fmul(k, same(_LN2_HIGH))), builder.fmul(k, same(_LN2_LOW)))
            p = same(_TAYLOR[0])
            for coefficient in _TAYLOR[1:]:
                p = call("fmuladd", p, r, same(coefficient))
            bits = builder.add(builder.bitcast(shifted, words), ir.Constant(words, [127] * lanes))
            power = builder.bitcast(builder.shl(bits, ir.Constant(words, [23] * lanes)), vector)
            factor = call("fmuladd", call("fmuladd", h, a, g), a, same(1.0))
            correlation = builder.fmul(factor, builder.fmul(p, power))
            clamped = builder.fcmp_ordered("<=", x, same(-_LOWEST))
            correlation = builder.select(clamped, same(0.0), correlation)
            product = _load(builder, context, products_t, products_v, builder.add(to_v, shift), lanes)
            residual = call("fabs", builder.fsub(correlation, product))
            root = _load(builder, context, roots_t, roots_v, builder.add(first_v, shift), lanes)
            near = builder.fcmp_unordered("<=", builder.fsub(builder.fmul(limits, root), residual), slacks)
            near = builder.or_(near, builder.fcmp_ordered("==", s, same(0.0)))
            bits = _bits(builder, near)
            mask = builder.or_(mask, builder.shl(bits, ir.Constant(ir.IntType(32), part * lanes)))
        return mask

    return signature, codegen


@intrinsic
def _multiply_rows(typingctx, rows, at, others, starts, width, out):
    signature = types.void(rows, types.intp, others, types.UniTuple(types.intp, PAIRS), types.intp, out)

    def codegen(context, builder, sig, args):
        rows_t, _, others_t, _, _, out_t = sig.args
        rows_v, at_v, others_v, starts_v, width_v, out_v = args
        intp = at_v.type
        vector = ir.VectorType(ir.DoubleType(), COLUMNS)
        name = f"llvm.fmuladd.v{COLUMNS}f64"
        multiply_add = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        zero = ir.Constant(vector, [0.0] * COLUMNS)
        starts = [builder.extract_value(starts_v, i) for i in range(PAIRS)]
        totals = [cgutils.alloca_once(builder, vector) for _ in range(PAIRS)]
        for total in totals:
            builder.store(zero, total)
        steps = builder.sdiv(width_v, ir.Constant(intp, COLUMNS))
        with cgutils.for_range(builder, steps, intp=intp) as loop:
            shift = builder.mul(loop.index, ir.Constant(intp, COLUMNS))
            own = _load(builder, context, rows_t, rows_v, builder.add(at_v, shift), COLUMNS)
            for start, total in zip(starts, totals, strict=True):
                other = _load(builder, context, others_t, others_v, builder.add(start, shift), COLUMNS)
                builder.store(builder.call(multiply_add, [own, other, builder.load(total)]), total)
        data = context.make_array(out_t)(context, builder, value=out_v).data
        for i, total in enumerate(totals):
            builder.store(_sum(builder, builder.load(total)), builder.gep(data, [ir.Constant(intp, i)]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _dot_rows(typingctx, rows, at, others, start, width):
    signature = types.float64(rows, types.intp, others, types.intp, types.intp)

    def codegen(context, builder, sig, args):
        rows_t, _, others_t, _, _ = sig.args
        rows_v, at_v, others_v, start_v, width_v = args
        intp = at_v.type
        vector = ir.VectorType(ir.DoubleType(), COLUMNS)
        total = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * COLUMNS))
        builder.store(ir.Constant(vector, [0.0] * COLUMNS), total)

        def load(array_t: Any, array_v: Any, offset: Any) -> Any:
            values = _load(builder, context, array_t, array_v, offset, COLUMNS)
            return values if array_t.dtype.bitwidth == 64 else builder.fpext(values, vector)

        steps = builder.sdiv(width_v, ir.Constant(intp, COLUMNS))
        with cgutils.for_range(builder, steps, intp=intp) as loop:
            shift = builder.mul(loop.index, ir.Constant(intp, COLUMNS))
            own = load(rows_t, rows_v, builder.add(at_v, shift))
            other = load(others_t, others_v, builder.add(start_v, shift))
            builder.store(builder.fadd(builder.load(total), builder.fmul(own, other)), total)
        return _sum(builder, builder.load(total))

    return signature, codegen


def _sum(builder: Any, values: Any) -> Any:
    """Return the sum of a vector's elements: halves are added until one is left."""
    lanes = values.type.count
    while lanes > 1:
        lanes //= 2
        nothing = ir.Constant(values.type, ir.Undefined)
        parts = [
            builder.shuffle_vector(
                values, nothing, ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(start, start + lanes)))
            )
            for start in (0, lanes)
        ]
        values = builder.fadd(*parts)
    return builder.extract_element(values, ir.Constant(ir.IntType(32), 0))


@intrinsic
def _order_rows(typingctx, distances, ids, low, high):
    signature = types.void(distances, ids, types.intp, types.intp)

    def codegen(context, builder, sig, args):
        distances_t, ids_t, _, _ = sig.args
        distances_v, ids_v, low_v, high_v = args
        lanes = _widest(distances_t)
        intp = low_v.type
        for part in range(LANES // lanes):
            shift = ir.Constant(intp, part * lanes)
            at_low = builder.add(builder.mul(low_v, ir.Constant(intp, LANES)), shift)
            at_high = builder.add(builder.mul(high_v, ir.Constant(intp, LANES)), shift)
            a = _load(builder, context, distances_t, distances_v, at_low, lanes)
            b = _load(builder, context, distances_t, distances_v, at_high, lanes)
            i = _load(builder, context, ids_t, ids_v, at_low, lanes)
            j = _load(builder, context, ids_t, ids_v, at_high, lanes)
            tie = builder.and_(builder.fcmp_ordered("==", a, b), builder.icmp_signed("<", j, i))
            swap = builder.or_(builder.fcmp_ordered("<", b, a), tie)
            _store(builder, context, distances_t, distances_v, at_low, builder.select(swap, b, a))
            _store(builder, context, distances_t, distances_v, at_high, builder.select(swap, a, b))
            _store(builder, context, ids_t, ids_v, at_low, builder.select(swap, j, i))
            _store(builder, context, ids_t, ids_v, at_high, builder.select(swap, i, j))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _count_bits(typingctx, mask):
    def codegen(context, builder, sig, args):
        return builder.ctpop(args[0])

    return types.uint32(types.uint32), codegen


@intrinsic
def _lowest_bit(typingctx, mask):
    def codegen(context, builder, sig, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint32(types.uint32), codegen


if config.DISABLE_JIT:

    def scan_bucket(  # noqa: D103  (documented at its compiled twin below)
        coords: Any,
        offset: int,
        d: int,
        queries: Any,
        lane: int,
        ids: Any,
        first: int,
        limit: int,
        bound: Any,
        out: Any,
    ) -> int:
        weights = np.ones(d, coords.dtype)
        return scan_weighted(coords, offset, d, queries, lane, ids, first, limit, bound, out, weights)

    def scan_weighted(  # noqa: D103
        coords: Any,
        offset: int,
        d: int,
        queries: Any,
        lane: int,
        ids: Any,
        first: int,
        limit: int,
        bound: Any,
        out: Any,
        weights: Any,
    ) -> int:
        total = np.zeros(LANES, coords.dtype)
        for c in range(d):
            row = offset + c * LANES
            difference = (coords[row : row + LANES] - queries[c * LANES + lane]) * weights[c]
            total += difference * difference
        out[:] = total
        return _pack((total <= bound) & (ids[first : first + LANES] < limit))

    def reach_box(queries: Any, bounds: Any, low: Any, high: Any, node: int, d: int) -> int:  # noqa: D103
        return reach_weighted(queries, bounds, low, high, node, d, np.ones(d, queries.dtype))

    def reach_weighted(queries: Any, bounds: Any, low: Any, high: Any, node: int, d: int, weights: Any) -> int:  # noqa: D103
        total = np.zeros(LANES, queries.dtype)
        for c in range(d):
            q = queries[c * LANES : (c + 1) * LANES]
            gap = np.maximum(np.maximum(low[node * d + c] - q, q - high[node * d + c]), 0) * weights[c]
            total += gap * gap
        return _pack(total <= bounds)

    def dot_rows(rows: Any, i: int, others: Any, j: int) -> Any:  # noqa: D103
        total = np.zeros(COLUMNS)
        for c in range(0, rows.shape[1], COLUMNS):
            own = rows[i, c : c + COLUMNS].astype(np.float64)
            total += own * others[j, c : c + COLUMNS].astype(np.float64)
        while len(total) > 1:
            total = total[: len(total) // 2] + total[len(total) // 2 :]
        return total[0]

    def order_rows(distances: Any, ids: Any, low: int, high: int) -> None:  # noqa: D103
        a, b = slice(low * LANES, (low + 1) * LANES), slice(high * LANES, (high + 1) * LANES)
        swap = (distances[b] < distances[a]) | ((distances[b] == distances[a]) & (ids[b] < ids[a]))
        for rows in (distances, ids):
            rows[a], rows[b] = np.where(swap, rows[b], rows[a]), np.where(swap, rows[a], rows[b])

    def project_bucket(  # noqa: D103
        blocks: Any, offset: int, count: int, queries: Any, at: Any, out: Any, to: Any
    ) -> None:
        block = blocks[offset : offset + count * LANES].reshape(count, LANES)
        for a, b in zip(at, to, strict=True):
            out[b : b + LANES] += queries[a : a + count] @ block

    def screen_bucket(  # noqa: D103
        squared: Any, at: int, products: Any, to: int, roots: Any, first: int, shape: Any, limit: Any, slack: Any
    ) -> int:
        u, c, g, h = shape
        s = np.minimum(squared[at : at + LANES], _FAR).astype(np.float32)
        a = c * np.sqrt(s)
        exponent = u * s + a
        correlation = (np.float32(1) + (g + h * a) * a) * np.exp(-np.minimum(exponent, np.float32(_LOWEST)))
        residual = np.abs(np.where(exponent >= _LOWEST, 0, correlation) - products[to : to + LANES])
        with np.errstate(invalid="ignore"):
            return _pack(~(np.float32(limit) * roots[first : first + LANES] - residual > slack) | (s == 0))

    def multiply_rows(rows: Any, at: int, others: Any, starts: Any, width: int, out: Any) -> None:  # noqa: D103
        for i, start in enumerate(starts):
            out[i] = rows[at : at + width] @ others[start : start + width]

    def fit_below(products: Any, at: int, halves: Any, first: int, bound: Any) -> int:  # noqa: D103
        return _pack(halves[first : first + LANES] - products[at : at + LANES] <= bound)

    def lowest_bit(mask: int) -> int:  # noqa: D103
        return (mask & -mask).bit_length() - 1

    def drop_lowest_bit(mask: int) -> int:  # noqa: D103
        return mask & (mask - 1)

    def count_bits(mask: int) -> int:  # noqa: D103
        return mask.bit_count()

    def keep_bits(mask: int, other: int) -> int:  # noqa: D103
        return int(mask) & other

    def _pack(flags: Any) -> int:
        return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")

else:

    @inner
    def scan_bucket(coords, offset, d, queries, lane, ids, first, limit, bound, out):
        """Compute squared distances from one query to the 32 points of a bucket.

        coords:  T flat; the bucket's coordinates start at `offset`, dimension by dimension, LANES values each.
        queries: T flat (d * LANES); coordinate c of the query is at c * LANES + lane.
        ids:     int32 flat; the bucket's point indices start at `first`, int32 max where a place is empty.
        limit:   int32; only ids < limit count. bound: T; only squared distances ≤ bound count.
        out:     T (LANES); receives all squared distances.
        Returns uint32: bit j is set where point j counts.
        """
        return _scan_bucket(coords, offset, d, queries, lane, ids, first, np.int32(limit), bound, out)

    @inner
    def reach_box(queries, bounds, low, high, node, d):
        """Return uint32 whose bit l is set where query l may have a point of the box within its bound.

        queries: T flat (d * LANES), as in `scan_bucket`. bounds: T (LANES), squared. low, high: T flat (nodes * d).
        Proof that no neighbor is lost: for a point x of the box each |x_c - q_c| ≥ gap_c, rounding is monotone, and both
        sums run over the same dimensions in the same order, so the computed gap sum ≤ the computed squared distance.
        """
        return _reach_box(queries, bounds, low, high, node, d)

    @inner
    def scan_weighted(coords, offset, d, queries, lane, ids, first, limit, bound, out, weights):
        """Do what `scan_bucket` does, with every difference of coordinates c multiplied by weights[c]; weights: T (d,)."""
        return _scan_weighted(coords, offset, d, queries, lane, ids, first, np.int32(limit), bound, out, weights)

    @inner
    def reach_weighted(queries, bounds, low, high, node, d, weights):
        """Do what `reach_box` does for `scan_weighted`: rounding is monotone in a product with one weight, too."""
        return _reach_weighted(queries, bounds, low, high, node, d, weights)

    @inner
    def dot_rows(rows, i, others, j):
        """Return the inner product of row i and row j of others in float64, without fused multiply-add.

        rows, others: T (…, width), width a multiple of COLUMNS. It is summed by column modulo 8, then these eight in halves.
        """
        return _dot_rows(rows, i * rows.shape[1], others, j * others.shape[1], rows.shape[1])

    @inner
    def order_rows(distances, ids, low, high):
        """Exchange two rows of LANES (distance, id) pairs lane by lane where row `high` sorts before row `low`.

        This comparison, (distance, then lower index), is the only place where ties are decided.
        distances: T flat (rows * LANES). ids: int32 flat, same layout.
        """
        _order_rows(distances, ids, low, high)

    @inner
    def project_bucket(blocks, offset, count, queries, at, out, to):
        """Add the inner products of eight queries with the 32 rows of a block, over `count` of their coordinates.

        blocks:  T flat; coordinate c of row j is at offset + c * LANES + j. queries: T flat; coordinate c of query i is at
        at[i] + c. out: T flat; the products of query i are added to out[to[i] : to[i] + LANES].
        at, to: tuples of QUERIES ints. Each product is first summed in the order of the coordinates, by fused multiply-add
        where the target has it, then added: its bits do not depend on which queries came together.
        """
        _project_bucket(blocks, offset, count, queries, at, out, to)

    @inner
    def screen_bucket(squared, at, products, to, roots, first, shape, limit, slack):
        """Return uint32 whose bit j is set where point j of a bucket may have a large residual covariance with a query.

        That is where limit * root_j - |K_j - product_j| ≤ slack in float32 or is no number, with K_j the correlation at
        squared_j, computed within SINGLE_ERROR; and where squared_j is 0, since equal points are as near as can be.
        squared: float64 flat, scaled, from `at` on. products: float32 flat, from `to` on. roots: float32 flat, from `first`
        on. shape: float32 (4,), see `kernels.kernel_shape`. limit, slack: float32.
        """
        return _screen_bucket(squared, at, products, to, roots, first, shape, np.float32(limit), np.float32(slack))

    @inner
    def multiply_rows(rows, at, others, starts, width, out):
        """Write to out[:PAIRS] the inner products of one row with four others; float64.

        rows, others: flat; the row is rows[at : at + width], the others start at `starts`, a tuple of PAIRS ints.
        width: a multiple of COLUMNS. Every product is summed in one order: by column modulo 8, then these eight in halves.
        """
        _multiply_rows(rows, at, others, starts, width, out)

    @inner
    def fit_below(products, at, halves, first, bound):
        """Return uint32 whose bit j is set where halves[first + j] - products[at + j] ≤ bound, j < LANES; both T flat."""
        return _fit_below(products, at, halves, first, bound)

    @inner
    def lowest_bit(mask):
        """Return the index of the lowest set bit of a uint32 that is not zero."""
        return _lowest_bit(mask)

    @inner
    def drop_lowest_bit(mask):
        """Return the uint32 mask without its lowest set bit."""
        return np.uint32(mask & (mask - np.uint32(1)))

    @inner
    def count_bits(mask):
        """Return how many bits of a uint32 are set."""
        return np.int64(_count_bits(mask))

    @inner
    def keep_bits(mask, other):
        """Return the uint32 of the bits that two of them share."""
        return np.uint32(mask & other)
