"""Eight integers of 32 bits at a time in compiled kernels (:mod:`dtufc.kernels`).

    a, b = load(values, at), splat(7)
    store(out, at, select(a < b, a + b, gather(table, a & b)))

The compiler makes vector instructions of a plain loop where it can see that it may; of a loop that looks
values up in tables, or that carries eight paths of a trellis in registers, it does not. These are the
types and operations of LLVM's vectors, so that they compile for every processor: to one instruction of
AVX2, to two of SSE or NEON. Sums and products are modulo 2^32. Nothing checks bounds.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

WIDTH = 8
"""Integers of a vector."""
_I1, _I8, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_VECTOR, _BITS = ir.VectorType(_I32, WIDTH), ir.VectorType(_I1, WIDTH)


class _VectorType(types.Type):
    """Eight integers."""


class _MaskType(types.Type):
    """Eight truth values."""


VECTOR, MASK = _VectorType("int32x8"), _MaskType("boolx8")


def _register(kind: type, like: ir.Type) -> None:
    @register_model(kind)
    class Model(models.PrimitiveModel):
        def __init__(self, dmm: Any, fe_type: types.Type):
            super().__init__(dmm, fe_type, like)


_register(_VectorType, _VECTOR)
_register(_MaskType, _BITS)


def _operator(sign: Callable, made: types.Type, build: Callable, of: types.Type = VECTOR) -> None:
    """Let ``sign`` work on two vectors."""

    @infer_global(sign)
    class Template(ConcreteTemplate):
        cases = [signature(made, of, of)]  # noqa: RUF012  numba reads it from the class

    @lower_builtin(sign, of, of)
    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return build(builder, *args)


for _sign, _build in (
    (operator.add, ir.IRBuilder.add),
    (operator.sub, ir.IRBuilder.sub),
    (operator.mul, ir.IRBuilder.mul),
    (operator.and_, ir.IRBuilder.and_),
    (operator.or_, ir.IRBuilder.or_),
    (operator.xor, ir.IRBuilder.xor),
    (operator.lshift, ir.IRBuilder.shl),
    (operator.rshift, ir.IRBuilder.ashr),
):
    _operator(_sign, VECTOR, _build)
for _sign, _word in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.eq, "=="),
):
    _operator(_sign, MASK, lambda builder, a, b, word=_word: builder.icmp_signed(word, a, b))
_operator(operator.and_, MASK, ir.IRBuilder.and_, MASK)
_operator(operator.or_, MASK, ir.IRBuilder.or_, MASK)


@intrinsic
def splat(typingctx, value):
    """An integer, eight times."""

    def build(context, builder, sig, args):
        one = context.cast(builder, args[0], sig.args[0], types.int32)
        return _spread(builder, one)

    return VECTOR(value), build


def _spread(builder: ir.IRBuilder, one: ir.Value) -> ir.Value:
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), one, _I32(0))
    zero = ir.Constant(_VECTOR, [0] * WIDTH)
    return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), zero)


@intrinsic
def shift_right(typingctx, a, b):
    """a >> b, with zeros from the left."""
    return VECTOR(VECTOR, VECTOR), lambda context, builder, sig, args: builder.lshr(*args)


@intrinsic
def smaller(typingctx, a, b):
    """The smaller of each pair."""

    def build(context, builder, sig, args):
        return builder.select(builder.icmp_signed("<", *args), *args)

    return VECTOR(VECTOR, VECTOR), build


@intrinsic
def larger(typingctx, a, b):
    """The larger of each pair."""

    def build(context, builder, sig, args):
        return builder.select(builder.icmp_signed(">", *args), *args)

    return VECTOR(VECTOR, VECTOR), build


@intrinsic
def select(typingctx, mask, a, b):
    """a where the mask is true, else b."""
    return (
        VECTOR(MASK, VECTOR, VECTOR),
        lambda context, builder, sig, args: builder.select(*args),
    )


@intrinsic
def to_bits(typingctx, mask):
    """A mask as an integer 0 .. 255, the first lane in the lowest bit."""

    def build(context, builder, sig, args):
        return builder.zext(builder.bitcast(args[0], _I8), _I64)

    return types.uint64(MASK), build


def _pointer(context, builder, kind, array, index) -> tuple[ir.Value, ir.Type]:
    """Where an array's element lies, and its type as an integer."""
    data = context.make_array(kind)(context, builder, array).data
    bits = ir.IntType(kind.dtype.bitwidth)
    return builder.gep(builder.bitcast(data, bits.as_pointer()), [index]), bits


def _widen(builder: ir.IRBuilder, value: ir.Value, kind: Any, to: ir.Type) -> ir.Value:
    if kind.dtype.bitwidth == 32:
        return value
    signed = isinstance(kind.dtype, types.Integer) and kind.dtype.signed
    return builder.sext(value, to) if signed else builder.zext(value, to)


@intrinsic
def load(typingctx, array, at):
    """The eight elements of a flat array from ``at`` on, of 32 bits or fewer; floats by their bits."""

    def build(context, builder, sig, args):
        kind = sig.args[0]
        place, bits = _pointer(context, builder, kind, *args)
        vector = ir.VectorType(bits, WIDTH)
        found = builder.load(builder.bitcast(place, vector.as_pointer()))
        found.align = bits.width // 8
        return _widen(builder, found, kind, _VECTOR)

    return VECTOR(array, types.uint64), build


@intrinsic
def store(typingctx, array, at, value):
    """Write a vector's lowest bits to the eight elements from ``at`` on."""

    def build(context, builder, sig, args):
        array, at, value = args
        place, bits = _pointer(context, builder, sig.args[0], array, at)
        vector = ir.VectorType(bits, WIDTH)
        if bits.width < 32:
            value = builder.trunc(value, vector)
        written = builder.store(value, builder.bitcast(place, vector.as_pointer()))
        written.align = bits.width // 8
        return context.get_dummy_value()

    return types.void(array, types.uint64, VECTOR), build


@intrinsic
def gather(typingctx, array, places):
    """The elements of a flat array at eight places, of 32 bits or fewer; floats by their bits."""

    def build(context, builder, sig, args):
        array, places = args
        kind = sig.args[0]
        out = ir.Constant(_VECTOR, ir.Undefined)
        for lane in range(WIDTH):
            index = builder.zext(builder.extract_element(places, _I32(lane)), _I64)
            place, _ = _pointer(context, builder, kind, array, index)
            found = _widen(builder, builder.load(place), kind, _I32)
            out = builder.insert_element(out, found, _I32(lane))
        return out

    return VECTOR(array, VECTOR), build


def _has_avx2(context: Any) -> bool:
    """Whether the code is for a processor that has AVX2, as far as numba tells."""
    return "+avx2" in _features(context)


def _has_f16c(context: Any) -> bool:
    """Whether it is for one that makes float32 of float16."""
    return "+f16c" in _features(context)


def _features(context: Any) -> str:
    return str(getattr(context.codegen(), "_tm_features", ""))


@intrinsic
def permute(typingctx, a, places):
    """The elements of a at eight places 0 .. 7."""

    def build(context, builder, sig, args):
        if _has_avx2(context):
            kind = ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR])
            name = "llvm.x86.avx2.permd"
            function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
            return builder.call(function, args)
        out = ir.Constant(_VECTOR, ir.Undefined)
        for lane in range(WIDTH):
            index = builder.extract_element(args[1], _I32(lane))
            out = builder.insert_element(out, builder.extract_element(args[0], index), _I32(lane))
        return out

    return VECTOR(VECTOR, VECTOR), build


@intrinsic
def widen(typingctx, half):
    """A float16, by its bits as uint16 -> float32. Of numbers alone, not of what is infinite or none."""

    def build(context, builder, sig, args):
        if _has_f16c(context):
            return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())
        moved = builder.shl(builder.sext(args[0], _I32), _I32(13))  # sign, exponent, fraction
        bits = builder.bitcast(builder.and_(moved, _I32(0x8FFFE000)), ir.FloatType())
        return builder.fmul(bits, ir.Constant(ir.FloatType(), 2.0**112))  # between the exponents

    return types.float32(types.uint16), build
