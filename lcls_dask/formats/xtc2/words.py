"""Numbers at any address of memory, for the compiled loops: what numba has no word for is written for LLVM.

Nothing is checked here: who gives an address knows that the bytes behind it are there. (numba keeps compiled loops by
the time of *their* file: who changes something here touches `kernels.py` too.)
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

#: Groups that `skips` looks at.
GROUPS = 64


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _number(bits: int, returned: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = _load(builder, arguments[0], ir.IntType(bits))
        return value if bits == 64 else builder.zext(value, ir.IntType(64))

    return returned(types.int64), generate


@intrinsic
def u16(_: Any, address: Any) -> Any:
    """Little-endian uint16 at an address, as int64."""
    return _number(16, types.int64)


@intrinsic
def u32(_: Any, address: Any) -> Any:
    """Little-endian uint32 at an address, as int64."""
    return _number(32, types.int64)


@intrinsic
def u64(_: Any, address: Any) -> Any:
    """Little-endian uint64 at an address."""
    return _number(64, types.uint64)


@intrinsic
def i64(_: Any, address: Any) -> Any:
    """Little-endian int64 at an address."""
    return _number(64, types.int64)


@intrinsic
def skips(_: Any, address: Any) -> Any:
    """Which of 64 groups of four uint16s have the top bit of their first one set: bit k is of group k.

    All 512 bytes must be memory of this process.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        groups = ir.VectorType(ir.IntType(64), GROUPS)
        up = builder.shl(_load(builder, arguments[0], groups), ir.Constant(groups, [48] * GROUPS))
        negative = builder.icmp_signed("<", up, ir.Constant(groups, [0] * GROUPS))
        return builder.bitcast(negative, ir.IntType(GROUPS))

    return types.uint64(types.int64), generate


@intrinsic
def first_bit(_: Any, mask: Any) -> Any:
    """Number of the lowest bit that is set; 64 without one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate
