"""Comparisons of 64 samples at once, as bits of one number: what vector instructions give, and loops over bits need.

numba turns loops into vector instructions where it can; a mask is not among what it can, so it is written for LLVM.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

#: Samples of a mask, and those that are looked at together where there is nothing.
BLOCK, WIDE = 64, 512


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
        vector = ir.VectorType(context.get_data_type(dtype), BLOCK)
        make: Any = make_array
        pointer = builder.gep(make(signature.args[0])(context, builder, array).data, [place])
        values = builder.load(builder.bitcast(pointer, vector.as_pointer()), align=dtype.bitwidth // 8)
        nothing, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        places = ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [0] * BLOCK)
        limits = builder.shuffle_vector(builder.insert_element(nothing, limit, first), nothing, places)
        if isinstance(dtype, types.Float):
            bits = builder.fcmp_ordered("<=", values, limits)
        else:
            bits = (builder.icmp_signed if dtype.signed else builder.icmp_unsigned)("<=", values, limits)
        return builder.bitcast(bits, ir.IntType(BLOCK))

    return types.uint64(samples, types.intp, dtype), generate


def _extreme(sign: str) -> Any:
    """The intrinsic that gives the least (``"<"``) or greatest (``">"``) of `WIDE` samples."""

    @intrinsic
    def extreme(_: Any, samples: Any, at: Any) -> Any:
        dtype = samples.dtype

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array, place = arguments
            make: Any = make_array
            data = make(signature.args[0])(context, builder, array).data

            def further(one: Any, other: Any) -> Any:
                if isinstance(dtype, types.Float):
                    return builder.select(builder.fcmp_ordered(sign, one, other), one, other)
                compare = builder.icmp_signed if dtype.signed else builder.icmp_unsigned
                return builder.select(compare(sign, one, other), one, other)

            lanes, whole = BLOCK, ir.VectorType(context.get_data_type(dtype), BLOCK)
            found: Any = None
            for k in range(0, WIDE, BLOCK):
                pointer = builder.gep(data, [builder.add(place, ir.Constant(place.type, k))])
                values = builder.load(builder.bitcast(pointer, whole.as_pointer()), align=dtype.bitwidth // 8)
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
