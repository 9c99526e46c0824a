"""Comparisons of 64 samples, or pixels, at once, as bits of one number: what vector instructions give, and loops over
bits need.

numba turns loops into vector instructions where it can; a mask is not among what it can, so it is written for LLVM.
"""

from typing import Any, cast

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

#: Samples of a mask, and those that are looked at together where there is nothing.
BLOCK, WIDE = 64, 512


def _lanes(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    """64 numbers of an array."""
    vector = ir.VectorType(context.get_data_type(kind.dtype), BLOCK)
    make: Any = make_array
    pointer = builder.gep(make(kind)(context, builder, array).data, [place])
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=kind.dtype.bitwidth // 8)


def _same(builder: Any, number: Any, vector: Any) -> Any:
    """One number 64 times."""
    nothing, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    places = ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [0] * BLOCK)
    return builder.shuffle_vector(builder.insert_element(nothing, number, first), nothing, places)


@intrinsic
def at_most(_: Any, samples: Any, at: Any, limit: Any) -> Any:
    """Which of 64 samples from `at` on are `limit` or less: bit j of the mask is of sample ``at + j``.

    Parameters
    ----------
    samples : (n,) int or float array
        Contiguous; all 64 must be there, which is not checked.
    at : int
    limit : scalar
        Of the samples' dtype.

    Returns
    -------
    uint64
    """
    dtype = samples.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, limit = arguments
        values = _lanes(context, builder, signature.args[0], array, place)
        limits = _same(builder, limit, values.type)
        if isinstance(dtype, types.Float):
            bits = builder.fcmp_ordered("<=", values, limits)
        else:
            bits = (builder.icmp_signed if dtype.signed else builder.icmp_unsigned)("<=", values, limits)
        return builder.bitcast(bits, ir.IntType(BLOCK))

    return types.uint64(samples, types.intp, dtype), generate


@intrinsic
def outside(_: Any, pixels: Any, at: Any, low: Any, high: Any) -> Any:
    """Which of 64 numbers from `at` on do not lie from `low` to `high`; those that are NaN are among them.

    Parameters
    ----------
    pixels : (n,) float array
        Contiguous; all 64 must be there, which is not checked.
    at : int
    low, high : float
        Of the array's dtype.

    Returns
    -------
    uint64
    """
    dtype = pixels.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, low, high = arguments
        values = _lanes(context, builder, signature.args[0], array, place)
        below = builder.fcmp_unordered("<", values, _same(builder, low, values.type))
        above = builder.fcmp_unordered(">", values, _same(builder, high, values.type))
        return builder.bitcast(builder.or_(below, above), ir.IntType(BLOCK))

    return types.uint64(pixels, types.intp, dtype, dtype), generate


def _extreme(sign: str) -> Any:
    """The intrinsic that gives the least (``"<"``) or greatest (``">"``) of `WIDE` samples."""

    @intrinsic
    def extreme(_: Any, samples: Any, at: Any) -> Any:
        dtype = samples.dtype

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array, place = arguments

            def further(one: Any, other: Any) -> Any:
                if isinstance(dtype, types.Float):
                    return builder.select(builder.fcmp_ordered(sign, one, other), one, other)
                compare = builder.icmp_signed if dtype.signed else builder.icmp_unsigned
                return builder.select(compare(sign, one, other), one, other)

            lanes, found = BLOCK, cast(Any, None)
            for k in range(0, WIDE, BLOCK):
                at = builder.add(place, ir.Constant(place.type, k))
                values = _lanes(context, builder, signature.args[0], array, at)
                found = values if found is None else further(found, values)
            while lanes > 1:  # halves with one another
                lanes //= 2
                half = ir.VectorType(ir.IntType(32), lanes)
                nothing = ir.Constant(found.type, ir.Undefined)
                low, high = (
                    builder.shuffle_vector(found, nothing, ir.Constant(half, list(range(first, first + lanes))))
                    for first in (0, lanes)
                )
                found = further(low, high)
            return builder.extract_element(found, ir.Constant(ir.IntType(32), 0))

        return dtype(samples, types.intp), generate

    return extreme


#: Least and greatest of `WIDE` samples from one on: an instruction for each vector of them. All must be there.
least, greatest = _extreme("<"), _extreme(">")


@intrinsic
def first_bit(_: Any, mask: Any) -> Any:
    """Number of the lowest bit that is set; 64 without one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


@intrinsic
def last_bit(_: Any, mask: Any) -> Any:
    """Number of the highest bit that is set; -1 without one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zeros = builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))
        return builder.sub(ir.Constant(ir.IntType(64), 63), zeros)

    return types.int64(types.uint64), generate
