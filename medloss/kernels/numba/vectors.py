"""Values of several numbers in compiled functions: sums that stay in vector registers over nested loops.

LLVM vectorises innermost loops alone, and writes a sum to memory before the next such loop.
"""

import operator
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

#: Numbers per vector.
LANES = 32


class Vector(types.Type):
    """`LANES` numbers of one type."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(manager.lookup(kind.dtype).get_value_type(), LANES))


@type_callable(operator.add)
def _type_of_sum(context: Any) -> Any:
    def typer(left: Any, right: Any) -> Any:
        return left if isinstance(left, Vector) and left == right else None

    return typer


@lower_builtin(operator.add, Vector, Vector)
def _sum(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    add = builder.fadd if isinstance(signature.return_type.dtype, types.Float) else builder.add
    return add(*arguments)


@intrinsic
def load(typing: Any, x: Any, o: Any) -> Any:
    """x[o : o + LANES]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(context, builder, signature, arguments), align=_alignment(context, x.dtype))

    return Vector(x.dtype)(x, types.uint64), generate


@intrinsic
def store(typing: Any, x: Any, o: Any, vector: Any) -> Any:
    """x[o : o + LANES] = vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature, arguments)
        builder.store(arguments[2], pointer, align=_alignment(context, x.dtype))
        return context.get_dummy_value()

    return types.void(x, types.uint64, vector), generate


@intrinsic
def zeros(typing: Any, x: Any) -> Any:
    """Zeros of an array's type."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return cgutils.get_null_value(context.get_value_type(signature.return_type))

    return Vector(x.dtype)(x), generate


@intrinsic
def repeated(typing: Any, x: Any, o: Any) -> Any:
    """x[o] in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        number = builder.load(builder.gep(array.data, [arguments[1]]))
        kind = context.get_value_type(signature.return_type)
        first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(first, first, lanes)

    return Vector(x.dtype)(x, types.uint64), generate


@intrinsic
def widened(typing: Any, vector: Any, x: Any) -> Any:
    """Unsigned integers in an array's type, itself an integer as wide or wider; others as they are."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(signature.return_type)
        return arguments[0] if arguments[0].type == kind else builder.zext(arguments[0], kind)

    return Vector(x.dtype)(vector, x), generate


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    vector = ir.VectorType(context.get_value_type(signature.args[0].dtype), LANES)
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), vector.as_pointer())


def _alignment(context: Any, dtype: Any) -> int:
    return int(context.get_abi_sizeof(context.get_data_type(dtype)))
