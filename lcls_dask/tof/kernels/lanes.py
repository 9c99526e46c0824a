"""Arithmetic with 64 samples at once, for which numba's loops would take more instructions than the samples themselves.

Like `reduce.kernels.masks` these are written for LLVM, which cuts them into the vectors that a processor has.
"""

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from ...reduce.kernels.masks import BLOCK, lanes, same


def _folded(builder: Any, values: Any, fold: Any, to: int = 1) -> Any:
    """Lanes of a vector put together, halves with one another, until there are `to` of them."""
    size = BLOCK
    while size > to:
        size //= 2
        half = ir.VectorType(ir.IntType(32), size)
        nothing = ir.Constant(values.type, ir.Undefined)
        low, high = (
            builder.shuffle_vector(values, nothing, ir.Constant(half, list(range(first, first + size))))
            for first in (0, size)
        )
        values = fold(low, high)
    return values


def _first_lane(builder: Any, values: Any) -> Any:
    """The number that all were put together to."""
    return builder.extract_element(values, ir.Constant(ir.IntType(32), 0))


def _where(builder: Any, mask: Any, values: Any, other: float) -> Any:
    """The 64 numbers whose bits are set, and `other` for those that are not."""
    bits = builder.bitcast(mask, ir.VectorType(ir.IntType(1), BLOCK))
    return builder.select(bits, values, ir.Constant(values.type, [other] * BLOCK))


@intrinsic
def at_most_later(_: Any, x: Any, at: Any, fraction: Any, delay: Any) -> Any:
    """Which of 64 numbers from `at` on are at most `fraction` of the one `delay` behind: ``x - fraction * later <= 0``.

    Parameters
    ----------
    x : (n,) float32 array
        Contiguous; all of both must be there, which is not checked.
    at : int
    fraction : float32
    delay : int

    Returns
    -------
    uint64
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, fraction, delay = arguments
        values = lanes(context, builder, signature.args[0], array, place)
        later = lanes(context, builder, signature.args[0], array, builder.add(place, delay))
        values = builder.fsub(values, builder.fmul(same(builder, fraction, values.type), later))
        below = builder.fcmp_ordered("<=", values, ir.Constant(values.type, None))
        return builder.bitcast(below, ir.IntType(BLOCK))

    return types.uint64(x, types.intp, x.dtype, types.intp), generate


@intrinsic
def greatest_of(_: Any, x: Any, at: Any, mask: Any) -> Any:
    """Greatest of those of 64 numbers from `at` on whose bits are set in a mask.

    Parameters
    ----------
    x : (n,) float32 array
        Contiguous; all 64 must be there, which is not checked. No NaN.
    at : int
    mask : uint64

    Returns
    -------
    float32
        Minus infinity where no bit is set.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, mask = arguments
        values = _where(builder, mask, lanes(context, builder, signature.args[0], array, place), -np.inf)

        def further(one: Any, other: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", one, other), one, other)

        return _first_lane(builder, _folded(builder, values, further))

    return x.dtype(x, types.intp, types.uint64), generate


@intrinsic
def variation(_: Any, x: Any, at: Any, mask: Any) -> Any:
    """Sum of ``abs(x[j + 1] - x[j])`` over those of 64 numbers from `at` on whose bits are set in a mask.

    Parameters
    ----------
    x : (n,) float32 array
        Contiguous; 65 must be there, which is not checked.
    at : int
    mask : uint64

    Returns
    -------
    float32
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, mask = arguments
        here = lanes(context, builder, signature.args[0], array, place)
        after = lanes(context, builder, signature.args[0], array, builder.add(place, ir.Constant(place.type, 1)))
        away = builder.fsub(after, here)
        kind: Any = ir.FunctionType(away.type, [away.type])
        get_or_insert: Any = get_or_insert_function
        absolute = get_or_insert(builder.module, kind, f"llvm.fabs.v{BLOCK}f{x.dtype.bitwidth}")
        away = _where(builder, mask, builder.call(absolute, [away]), 0.0)
        return _first_lane(builder, _folded(builder, away, builder.fadd))

    return x.dtype(x, types.intp, types.uint64), generate


def _adding(parts: int) -> Any:
    """The intrinsic that adds to so many sums."""

    @intrinsic
    def add_parts(_: Any, samples: Any, at: Any, sums: Any) -> Any:
        dtype = samples.dtype

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array, place, sums = arguments
            values = lanes(context, builder, signature.args[0], array, place)
            some = ir.VectorType(ir.DoubleType(), parts)
            if isinstance(dtype, types.Float):
                if dtype.bitwidth < 64:
                    values = builder.fpext(values, ir.VectorType(ir.DoubleType(), BLOCK))
                values = _folded(builder, values, builder.fadd, parts)
            else:  # of 16 bits, so that 64 fit into 32
                values = (builder.sext if dtype.signed else builder.zext)(values, ir.VectorType(ir.IntType(32), BLOCK))
                values = builder.sitofp(_folded(builder, values, builder.add, parts), some)
            make: Any = make_array
            pointer = builder.bitcast(make(signature.args[2])(context, builder, sums).data, some.as_pointer())
            builder.store(builder.fadd(builder.load(pointer, align=8), values), pointer, align=8)
            return context.get_dummy_value()

        return types.void(samples, types.intp, sums), generate

    return add_parts


#: Add to each of the first 4, or 16, of sums (16,) float64 those of 64 samples from one on that are as far apart:
#: ``add(samples, at, sums)``. The samples are int16, uint16 or real numbers, and all of them must be there.
add_fourths, add_sixteenths = _adding(4), _adding(16)


@intrinsic
def put_signal(_: Any, samples: Any, at: Any, there: Any, factor: Any, base: Any, phase: Any, x: Any, to: Any) -> Any:
    """Put ``factor * (sample - base)`` of 64 samples from `at` on into `x`, and zero for those that are not there.

    Parameters
    ----------
    samples : (n,) array
        Contiguous; all 64 must be in it, which is not checked.
    at : int
    there : uint64
        Bits of those that count.
    factor : float
    base : (n,) float64 array
        What is taken off samples 0 to 15, again 16 to 31 and so on lies from `phase` on.
    phase : int
    x : (n,) float32 array
        Out.
    to : int
        Where in `x`.
    """
    dtype = samples.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, there, factor, base, phase, x, to = arguments
        make: Any = make_array
        values = lanes(context, builder, signature.args[0], array, place)
        wide = ir.VectorType(ir.DoubleType(), BLOCK)
        if not isinstance(dtype, types.Float):
            values = (builder.sitofp if dtype.signed else builder.uitofp)(values, wide)
        elif dtype.bitwidth < 64:
            values = builder.fpext(values, wide)
        some = ir.VectorType(ir.DoubleType(), 16)
        pointer = builder.gep(make(signature.args[4])(context, builder, base).data, [phase])
        bases = builder.load(builder.bitcast(pointer, some.as_pointer()), align=8)
        again = ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [j % 16 for j in range(BLOCK)])
        bases = builder.shuffle_vector(bases, ir.Constant(some, ir.Undefined), again)
        values = builder.fmul(same(builder, factor, wide), builder.fsub(values, bases))
        single = ir.VectorType(ir.FloatType(), BLOCK)
        values = _where(builder, there, builder.fptrunc(values, single), 0.0)
        pointer = builder.gep(make(signature.args[6])(context, builder, x).data, [to])
        builder.store(values, builder.bitcast(pointer, single.as_pointer()), align=4)
        return context.get_dummy_value()

    types_of = (samples, types.intp, types.uint64, types.float64, base, types.intp, x, types.intp)
    return types.void(*types_of), generate


@intrinsic
def prefetch(_: Any, samples: Any, at: Any) -> Any:
    """Ask for the memory of a sample, which may lie beyond the array, ahead of its use."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place = arguments
        make: Any = make_array
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        pointer = builder.bitcast(builder.gep(make(signature.args[0])(context, builder, array).data, [place]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(function, [pointer, *(ir.Constant(number, k) for k in (0, 3, 1))])  # to read, keep, data
        return context.get_dummy_value()

    return types.void(samples, types.intp), generate
