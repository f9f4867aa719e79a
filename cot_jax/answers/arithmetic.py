"""The value of equations, without `eval()`.

The released code scores equations with Python's `eval()`, which runs whatever a model writes. Here the text
is parsed, never executed. Only this grammar has a value, that of `eval()`:

    expression = number | (expression) | (+ | -) expression | expression (+ | - | * | / | and) expression

Numbers are those of Python without exponent: `84`, `84.0`, `.5`. So is `and`: PaLM joins two equations with
it in five rows of SVAMP, and the published accuracies take the second one (the first, if that is zero).
Everything else has no value and equals nothing: powers, integer division, a comma (`1,000`, which `eval()`
reads as the tuple `(1, 0)`), leading zeros (`007`, a syntax error in Python), digits other than 0-9, units,
variables, division by zero, values beyond float64.
"""

import ast
import functools
import math
import operator
import re
from collections.abc import Callable

import numpy as np

_TEXT = re.compile(r"[0-9.+\-*/() ]+(?: and [0-9.+\-*/() ]+)*")
# The longest equation of SVAMP, gold or PaLM's, has 46 characters. The caps bound the parser's time and
# stack: no text takes longer than about a millisecond.
_MAX_LENGTH = 256
_MAX_DEPTH = 40

_BINARY: dict[type[ast.operator], tuple[str, Callable[[float, float], float]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}
_UNARY: dict[type[ast.unaryop], tuple[str, Callable[[float], float]]] = {
    ast.USub: ("-", operator.neg),
    ast.UAdd: ("", operator.pos),
}


@functools.lru_cache(maxsize=2**16)  # votes compare the same answers repeatedly
def evaluate(equation: str) -> float | None:
    """Returns the value of `equation`, or None if it has none (see above)."""
    try:
        value = float(_value(_parse(equation), _MAX_DEPTH))
    except (ValueError, ArithmeticError):
        return None
    return value if math.isfinite(value) else None


def same_value(prediction: str, gold: str) -> bool:
    """Whether two equations have the same value.

    Values are equal within 1e-9, relative or absolute, so `0.1 + 0.2` equals `0.3`; the released code
    compares exactly. Text without a value equals nothing, not even itself (there: NaN != NaN).
    """
    a, b = evaluate(prediction), evaluate(gold)
    return a is not None and b is not None and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)


def in_svamp_notation(equation: str) -> str | None:
    """Returns `equation` as SVAMP writes it, `( ( 17.0 + 15.0 ) + 2.0 )`.

    None if it has no value, or another one in this notation: it is too long, or an integer is not a float.
    """
    if evaluate(equation) is None:
        return None
    node = _parse(equation)
    terms = node.values if isinstance(node, ast.BoolOp) else [node]
    written = " and ".join(map(_write, terms))
    return written if same_value(written, equation) else None


def _parse(equation: str) -> ast.expr:
    equation = equation.strip()
    if len(equation) > _MAX_LENGTH or not _TEXT.fullmatch(equation):
        raise ValueError("not an equation")
    try:
        return ast.parse(equation, mode="eval").body
    # The parser raises MemoryError or RecursionError if brackets are nested too deeply.
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError("not an equation") from None


def _value(node: ast.expr, depth: int) -> float:
    if depth == 0:
        raise ValueError("nested too deeply")
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op, operand) if type(op) in _UNARY:
            return _UNARY[type(op)][1](_value(operand, depth - 1))
        case ast.BinOp(left, op, right) if type(op) in _BINARY:
            return _BINARY[type(op)][1](_value(left, depth - 1), _value(right, depth - 1))
        case ast.BoolOp(ast.And(), operands):
            for operand in operands:
                if not (value := _value(operand, depth - 1)):
                    break
            return value
    raise ValueError(f"not arithmetic: {type(node).__name__}")


def _write(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=int() | float() as number):
            return np.format_float_positional(float(number), trim="0")  # an exponent has no value here
        case ast.UnaryOp(op, operand):
            return _UNARY[type(op)][0] + _write(operand)
        case ast.BinOp(left, op, right):
            return f"( {_write(left)} {_BINARY[type(op)][0]} {_write(right)} )"
        case ast.BoolOp(_, operands):
            return f"( {' and '.join(map(_write, operands))} )"
    raise AssertionError(f"has a value but no notation: {ast.dump(node)}")
