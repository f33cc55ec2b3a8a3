"""Vector registers for the CPU kernels: rows of a table and small matrix products, written once for every processor.

LLVM vectorises loops, but does not keep a block of a matrix product in registers, nor load a row of a table as one
vector. Here numba is given both: `Lanes` is a few float32 in one register, and `matmul` multiplies thin matrices, which
are all that a field has, in tiles of ROWS x COLUMNS that stay in registers. LLVM splits what is wider than the
processor's own.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, register_model

_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_CONTRACT = ("contract",)
"""Multiply and add may be one instruction."""

WIDTH = 16 if llvmlite.binding.get_host_cpu_features().get("avx512f", False) else 8
ROWS, COLUMNS = (8, 2 * WIDTH) if WIDTH == 16 else (4, 2 * WIDTH)
"""A tile's accumulators and one row of the right factor fit the registers: 32 with AVX-512, 16 with AVX2."""


def padded(n: int) -> int:
    """The next multiple of COLUMNS: what the second edge of a `matmul` must be."""
    return -(-n // COLUMNS) * COLUMNS


class Lanes(types.Type):
    """`count` float32 in one register."""

    def __init__(self, count: int):
        self.count = count
        super().__init__(name=f"Lanes({count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes):
        super().__init__(manager, kind, ir.VectorType(_FLOAT, kind.count))


def _splat(builder: Any, scalar: Any, count: int) -> Any:
    vector = ir.VectorType(_FLOAT, count)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INT, count), [0] * count))


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=_CONTRACT), c, flags=_CONTRACT)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: int) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(_FLOAT, count).as_pointer())


@intrinsic
def load(typing: Any, array: Any, index: Any, unit: Any) -> Any:
    """array [n] float32 from `index`, as many lanes as the tuple `unit` is long."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *arguments[:2], len(signature.args[2]))
        return builder.load(pointer, align=4)

    return Lanes(len(unit))(array, types.intp, unit), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, lanes: Any) -> Any:
    """array [n] float32 from `index` = lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *arguments[:2], signature.args[2].count)
        builder.store(arguments[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


@intrinsic
def scale(typing: Any, factor: Any, lanes: Any) -> Any:
    """factor float32 times lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fmul(_splat(builder, arguments[0], signature.args[1].count), arguments[1])

    return lanes(types.float32, lanes), generate


@intrinsic
def fma(typing: Any, factor: Any, lanes: Any, plus: Any) -> Any:
    """factor float32 times lanes, plus lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        factor = _splat(builder, arguments[0], signature.args[1].count)
        return _fma(builder, factor, arguments[1], arguments[2])

    return lanes(types.float32, lanes, lanes), generate


@intrinsic
def adam(
    typing: Any, table: Any, grad: Any, mean: Any, square: Any, index: Any, unit: Any, numbers: Any
) -> Any:
    """One step of Adam from `index` on, as many lanes as `unit` is long, unless all their gradients are zero.

    Clears the gradients.

    numbers: rate, beta1, beta2, epsilon, and the bias corrections of mean and square.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = len(unit)
        vector = ir.VectorType(_FLOAT, count)
        pointers = [
            _pointer(context, builder, kind, array, arguments[4], count)
            for kind, array in zip(signature.args[:4], arguments[:4])
        ]
        rate, beta1, beta2, epsilon, correction1, correction2 = (
            _splat(builder, x, count) for x in cgutils.unpack_tuple(builder, arguments[6])
        )
        zero, one = ir.Constant(vector, [0.0] * count), ir.Constant(vector, [1.0] * count)
        g = builder.load(pointers[1], align=4)
        touched = builder.bitcast(builder.fcmp_unordered("!=", g, zero), ir.IntType(count))
        with builder.if_then(builder.icmp_unsigned("!=", touched, ir.Constant(touched.type, 0))):
            m = builder.fmul(builder.load(pointers[2], align=4), beta1)
            m = _fma(builder, builder.fsub(one, beta1), g, m)
            v = builder.fmul(builder.load(pointers[3], align=4), beta2)
            v = _fma(builder, builder.fmul(builder.fsub(one, beta2), g), g, v)
            root = builder.module.declare_intrinsic(f"llvm.sqrt.v{count}f32", (), ir.FunctionType(vector, [vector]))
            scale_ = builder.fadd(builder.call(root, [builder.fmul(v, correction2)]), epsilon)
            update = builder.fdiv(builder.fmul(rate, builder.fmul(m, correction1)), scale_)
            new = builder.fsub(builder.load(pointers[0], align=4), update)
            for pointer, value in zip(pointers, (new, zero, m, v)):
                builder.store(value, pointer, align=4)
        return context.get_dummy_value()

    return types.void(table, grad, mean, square, types.intp, unit, numbers), generate


def _tile(rows: int) -> Any:
    """c[i:i+rows, j:j+COLUMNS] += a[i:i+rows] @ b[:, j:j+COLUMNS], the tile of c in registers throughout."""
    vector, vectors = ir.VectorType(_FLOAT, WIDTH), COLUMNS // WIDTH

    @intrinsic
    def tile(typing: Any, a: Any, b: Any, c: Any, i: Any, j: Any) -> Any:
        if any(x.dtype != types.float32 for x in (a, b, c)) or b.layout != "C" or c.layout != "C":
            raise TypingError("matmul takes float32 arrays; the second and third must be contiguous")

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            arrays = [context.make_array(t)(context, builder, x) for t, x in zip(signature.args[:3], arguments[:3])]
            i, j = arguments[3:]
            size = context.get_value_type(types.intp)
            strides = [cgutils.unpack_tuple(builder, x.strides) for x in arrays]

            def number(n: int) -> Any:
                return ir.Constant(size, n)

            def move(pointer: Any, offset: Any, kind: Any = None) -> Any:
                moved = builder.gep(builder.bitcast(pointer, ir.IntType(8).as_pointer()), [offset])
                return builder.bitcast(moved, (kind or vector).as_pointer())

            def at(which: int, row: Any, column: Any) -> Any:
                row_stride, column_stride = strides[which]
                offset = builder.add(builder.mul(row, row_stride), builder.mul(column, column_stride))
                return move(arrays[which].data, offset, _FLOAT)

            out = [
                move(at(2, builder.add(i, number(m)), j), number(4 * WIDTH * n))
                for m in range(rows) for n in range(vectors)
            ]  # fmt: skip
            # LLVM makes registers of these
            totals = [cgutils.alloca_once(builder, vector) for _ in out]
            for total, pointer in zip(totals, out):
                builder.store(builder.load(pointer, align=4), total)
            left = [at(0, builder.add(i, number(m)), number(0)) for m in range(rows)]
            right = at(1, number(0), j)
            depth = cgutils.unpack_tuple(builder, arrays[0].shape)[1]
            with cgutils.for_range(builder, depth, intp=size) as loop:
                row = move(right, builder.mul(loop.index, strides[1][0]))
                parts = [builder.load(move(row, number(4 * WIDTH * n)), align=4) for n in range(vectors)]
                offset = builder.mul(loop.index, strides[0][1])
                for m in range(rows):
                    x = _splat(builder, builder.load(move(left[m], offset, _FLOAT), align=4), WIDTH)
                    for n in range(vectors):
                        total = totals[m * vectors + n]
                        builder.store(_fma(builder, x, parts[n], builder.load(total)), total)
            for total, pointer in zip(totals, out):
                builder.store(builder.load(total), pointer, align=4)
            return context.get_dummy_value()

        return types.void(a, b, c, types.intp, types.intp), generate

    return tile


_tile_of_rows, _tile_of_one = _tile(ROWS), _tile(1)


@njit(nogil=True, cache=True)
def matmul(a, b, c):
    """c [M, N] += a [M, K] @ b [K, N], float32, N a multiple of COLUMNS; a may be transposed, b and c are contiguous.

    Nothing is checked: whoever calls pads.
    """
    whole = c.shape[0] - c.shape[0] % ROWS
    for j in range(0, c.shape[1], COLUMNS):
        for i in range(0, whole, ROWS):
            _tile_of_rows(a, b, c, i, j)
        for i in range(whole, c.shape[0]):
            _tile_of_one(a, b, c, i, j)
