"""Comparisons of 64 samples, or pixels, at once, as bits of one number: what vector instructions give, and loops over
bits need.

numba turns loops into vector instructions where it can; a mask is not among what it can, so it is written for LLVM.
"""

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

#: Samples of a mask.
BLOCK = 64

#: Masks of none and of all, and of the first.
NONE, ALL, ONE = np.uint64(0), np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(1)


def lanes(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    """64 numbers of an array."""
    vector = ir.VectorType(context.get_data_type(kind.dtype), BLOCK)
    make: Any = make_array
    pointer = builder.gep(make(kind)(context, builder, array).data, [place])
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=kind.dtype.bitwidth // 8)


def same(builder: Any, number: Any, vector: Any) -> Any:
    """One number 64 times."""
    nothing, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    places = ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [0] * BLOCK)
    return builder.shuffle_vector(builder.insert_element(nothing, number, first), nothing, places)


def _comparing(sign: str) -> Any:
    """The intrinsic that compares 64 numbers with one."""

    @intrinsic
    def compared(_: Any, samples: Any, at: Any, limit: Any) -> Any:
        dtype = samples.dtype

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array, place, limit = arguments
            values = lanes(context, builder, signature.args[0], array, place)
            limits = same(builder, limit, values.type)
            if isinstance(dtype, types.Float):
                bits = builder.fcmp_ordered(sign, values, limits)
            else:
                bits = (builder.icmp_signed if dtype.signed else builder.icmp_unsigned)(sign, values, limits)
            return builder.bitcast(bits, ir.IntType(BLOCK))

        return types.uint64(samples, types.intp, dtype), generate

    return compared


#: Which of 64 samples from one on are a limit or less, or it or more: ``at_most(samples, at, limit)`` is a uint64, of
#: which bit j is of sample ``at + j``. The limit is of the samples' dtype. All 64 must be there, which is not checked.
at_most, at_least = _comparing("<="), _comparing(">=")


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
        values = lanes(context, builder, signature.args[0], array, place)
        below = builder.fcmp_unordered("<", values, same(builder, low, values.type))
        above = builder.fcmp_unordered(">", values, same(builder, high, values.type))
        return builder.bitcast(builder.or_(below, above), ir.IntType(BLOCK))

    return types.uint64(pixels, types.intp, dtype, dtype), generate


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
