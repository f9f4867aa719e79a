"""The answer of a program of thought, by our own interpreter: no text is ever executed.

Program of Thoughts (Chen et al. 2023) leaves its answer in `ans`, PAL (Gao et al. 2023) returns it from
`solution()`; both run what a model wrote with `exec()`. Here the text is parsed and its tree is walked.
Values are numbers, strings, None, lists, tuples, dicts, ranges and the program's own functions. The only
attributes are the methods and the functions of `math` in the tables below; any other module is an empty name:
importing it is harmless, using it is refused by name. A program has the value that Python gives it or none,
with two exceptions: what Python evaluates lazily (generators, `zip`, `dict.items()`) is a list, and a
misplaced `return` or `break` fails only when it is reached.

Every node costs a step, and every operation first costs a step for each part that Python visits in it: one
bound on steps limits time and memory, also for shared, nested and self-containing lists.
"""

import ast
import builtins
import contextlib
import dataclasses
import math
import operator
import re
import time
import warnings
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from typing import Any, NamedTuple

import numpy as np

# The longest of 25,600 published programs has 2,238 characters.
_MAX_TEXT = 10_000
_MAX_STEPS = 150_000
_MAX_SECONDS = 2.0  # several times the time of _MAX_STEPS: the steps decide, not the machine
_MAX_CALLS = 60  # nested calls; Python's own stack ends soon after
_MAX_SIZE = 10_000  # characters of a string, items of a list
_MAX_KEYS = 1_000  # of a dict: keys with equal hashes take quadratic time
_MAX_BITS = 2**16  # of an integer

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, items: item in items,
    ast.NotIn: lambda item, items: item not in items,
}
_BUILTINS: dict[str, Callable[..., Any]] = {
    **{f.__name__: f for f in (abs, all, any, divmod, len, max, min, print, round, sorted)},
    **{t.__name__: t for t in (bool, dict, float, int, list, range, str, tuple)},
    "enumerate": lambda items, start=0: list(enumerate(items, start)),
    "reversed": lambda items: list(reversed(items)),
    "sum": lambda items, start=0: _sum(items, start),
    "zip": lambda *rows: list(zip(*rows, strict=False)),
}
# fmt: off
_MATH: dict[str, Any] = {name: getattr(math, name) for name in (
    "ceil", "comb", "cos", "e", "exp", "fabs", "factorial", "floor", "fmod", "fsum", "gcd", "hypot", "inf",
    "isclose", "isqrt", "log", "log10", "log2", "perm", "pi", "pow", "radians", "sin", "sqrt", "tan", "trunc",
)} | {"lcm": lambda a, b: math.lcm(a, b)}  # the lcm of many numbers grows without bound
_METHODS: dict[type, set[str]] = {
    str: {"capitalize", "count", "endswith", "find", "isdigit", "join", "lower", "lstrip", "replace",
          "rstrip", "split", "startswith", "strip", "title", "upper"},
    list: {"append", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"},
    dict: {"copy", "get", "items", "keys", "pop", "setdefault", "values"},
    tuple: {"count", "index"},
    float: {"is_integer"},
}
# fmt: on
_CHEAP_METHODS = {"append", "get", "insert", "pop", "setdefault"}  # they access one item only
_COMBINATORICS = (math.comb, math.factorial, math.perm)
_FORMAT = re.compile(r"(.?[<>=^])?[-+ ]?#?0?\d{0,2}[,_]?(\.\d{1,2})?[bcdeEfFgGosxX%]?")
_CONVERSIONS: dict[int, Callable[[Any], Any]] = {ord("r"): repr, ord("s"): str, ord("a"): ascii}


class Result(NamedTuple):
    """The outcome of a program: its answer, or why there is none.

    Attributes:
      answer: a finite number, a truth value or a text; None if there is none.
      failure: None, or "SyntaxError", "Unsupported", "Budget", "NoAnswer" or the name of Python's exception,
        such as "ZeroDivisionError".
      detail: the construct, the budget or the name at which it failed.
    """

    answer: int | float | str | None
    failure: str | None = None
    detail: str = ""

    @property
    def text(self) -> str:
        """The answer in the form of labels: a number without exponent, yes or no; '' if there is none."""
        match self.answer:
            case None:
                return ""
            case bool():
                return "yes" if self.answer else "no"
            case float():
                return np.format_float_positional(self.answer, trim="-")
        return str(self.answer)


# Returns the answer of a program: `run`, possibly with a sandbox (`answers.sandbox.make_interpreter`).
Interpreter = Callable[[str], Result]


def run(program: str, sandbox: Interpreter | None = None) -> Result:
    """Returns the answer of a program; never raises, never takes much longer than `_MAX_SECONDS`.

    The answer is the value of `ans` or `answer`; without either, the result of `solution()` or `solver()`;
    without those, the last printed line, as a number if it is one.

    Args:
      sandbox: runs programs that are refused as unsupported or over budget (`answers.sandbox`).
    """
    result = _interpret(program)
    return sandbox(program) if sandbox and result.failure in ("Unsupported", "Budget") else result


def _interpret(program: str) -> Result:
    try:
        return answered(_Interpreter().answer(_parse(program)))
    except _Failure as failure:
        return Result(None, failure.kind, failure.detail[:100])
    except RecursionError:
        return Result(None, "Budget", "depth")
    # Any exception of Python is a failure of the program.
    except Exception as error:
        detail = error.args[0] if error.args and isinstance(error.args[0], str) else ""
        return Result(None, type(error).__name__, detail[:100])


class _Failure(Exception):
    def __init__(self, kind: str, detail: str):
        self.kind, self.detail = kind, detail


def _unsupported(node: ast.AST) -> _Failure:
    return _Failure("Unsupported", type(node).__name__)


def _check(size: int, most: int) -> None:
    if size > most:
        raise _Failure("Budget", "size")


def _sum(items: Any, start: Any) -> Any:
    if not isinstance(start, int | float):  # lists are concatenated in quadratic time
        raise _Failure("Unsupported", "a sum that does not start with a number")
    return sum(items, start)


def _parse(program: str) -> list[ast.stmt]:
    _check(len(program), _MAX_TEXT)
    try:
        with warnings.catch_warnings(action="ignore"):  # of "\d" and the like
            return ast.parse(program).body
    # ValueError: invalid characters; MemoryError: brackets nested too deeply.
    except (SyntaxError, ValueError, MemoryError) as error:
        raise _Failure("SyntaxError", str(getattr(error, "msg", error))) from None


def answered(value: Any) -> Result:
    """Returns the result for a program's value."""
    if not isinstance(value, int | float | str):
        return Result(None, "NoAnswer", "None" if value is None else type(value).__name__.lstrip("_"))
    try:
        if isinstance(value, str):
            value.encode()
        if not isinstance(value, str) and not math.isfinite(value):
            return Result(None, "NoAnswer", str(value))
    except OverflowError as error:  # an integer beyond float64
        return Result(None, "OverflowError", str(error))
    except UnicodeEncodeError:  # a lone surrogate, which no file can hold
        return Result(None, "NoAnswer", "str")
    return Result(value)


@dataclasses.dataclass
class _Scope:
    """Names of the program, a running function or a comprehension."""

    names: dict[str, Any]
    parent: "_Scope | None" = None
    local: frozenset[str] = frozenset()  # assigned in the function, so not looked up outside it


@dataclasses.dataclass(frozen=True)
class _Function:
    node: ast.FunctionDef
    defaults: dict[str, Any]
    scope: _Scope
    local: frozenset[str]


@dataclasses.dataclass(frozen=True)
class _Module:
    name: str


def _bound(block: ast.AST) -> Iterator[str]:
    """Yields the names that are assigned, defined or imported in a block, without inner scopes."""
    for node in ast.iter_child_nodes(block):
        match node:
            case ast.Name(name, ast.Store()) | ast.FunctionDef(name):
                yield name
            case ast.alias(name, asname):
                yield asname or name.partition(".")[0]
        if not isinstance(node, ast.FunctionDef | ast.ListComp | ast.GeneratorExp):
            yield from _bound(node)


class _Return(NamedTuple):
    value: Any


_Jump = _Return | ast.Break | ast.Continue | None  # None: the next statement follows


class _Interpreter:
    """One running program. Its methods raise _Failure and whatever Python raises."""

    def __init__(self) -> None:
        self.scope = _Scope({"__name__": "__main__"})
        self.output = ""
        self.steps = self.calls = 0
        self.deadline = time.monotonic() + _MAX_SECONDS

    def answer(self, body: list[ast.stmt]) -> Any:
        if self.block(body):
            raise _Failure("SyntaxError", "a misplaced jump")
        names = self.scope.names
        for name in ("ans", "answer"):
            if name in names:
                return names[name]
        for name in ("solution", "solver"):
            if isinstance(names.get(name), _Function):
                return self.call(names[name], [], {})
        line = self.output.strip().rpartition("\n")[2]
        for number in (int, float):
            with contextlib.suppress(ValueError):
                return number(line)
        return line or None

    # Budgets.

    def tick(self, steps: int = 1) -> None:
        self.steps += steps
        if self.steps > _MAX_STEPS:
            raise _Failure("Budget", "steps")
        if time.monotonic() > self.deadline:
            raise _Failure("Budget", "time")

    def pay(self, *values: Any) -> None:
        """Charges a step for every part of `values`, once per path to it."""
        rest = list(values)
        while rest:
            value = rest.pop()
            if isinstance(value, int):
                _check(value.bit_length(), _MAX_BITS)
                self.tick(1 + value.bit_length() // 64)
            elif isinstance(value, str | range):
                _check(len(value), _MAX_SIZE)
                self.tick(1 + len(value) // 8)
            elif isinstance(value, list | tuple | dict):
                _check(len(value), _MAX_KEYS if isinstance(value, dict) else _MAX_SIZE)
                self.tick(1 + len(value))
                rest += [*value, *value.values()] if isinstance(value, dict) else value
            elif value is not None and not isinstance(value, float):
                raise _Failure("Unsupported", f"{type(value).__name__.lstrip('_')} as a value")

    def native(self, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """Calls Python; pays for the arguments first and for the result. Every Python call is made here."""
        self.pay(*args, *named.values())
        result = function(*args, **named)
        if isinstance(result, KeysView | ValuesView | ItemsView):
            result = list(result)
        if not isinstance(result, range):  # takes no memory, whatever its length
            self.pay(result)
        return result

    # Statements.

    def block(self, statements: list[ast.stmt]) -> _Jump:
        for statement in statements:
            self.tick()
            if jump := self.execute(statement):
                return jump
        return None

    def execute(self, statement: ast.stmt) -> _Jump:
        match statement:
            case ast.Assign(targets, expression):
                value = self.value(expression)
                for target in targets:
                    self.assign(target, value)
            case ast.AugAssign(target, op, expression):
                container, key = self.place(target)
                old = self.lookup(key) if isinstance(target, ast.Name) else container[key]
                new = self.operate(op, old, self.value(expression))
                if isinstance(old, list):  # other names may hold the same list
                    old[:] = new
                container[key] = old if isinstance(old, list) else new
            case ast.Expr(expression):
                self.value(expression)
            case ast.If(test, body, orelse):
                return self.block(body if self.value(test) else orelse)
            case ast.For() | ast.While():
                for _ in self.rounds(statement):
                    jump = self.block(statement.body)
                    if isinstance(jump, ast.Break):
                        return None
                    if isinstance(jump, _Return):
                        return jump
                return self.block(statement.orelse)
            case ast.FunctionDef(name):
                self.scope.names[name] = self.function(statement)
            case ast.Return(expression):
                return _Return(expression and self.value(expression))
            case ast.Break() | ast.Continue():
                return statement
            case ast.Import(names):
                for alias in names:
                    self.scope.names[alias.asname or alias.name.partition(".")[0]] = _Module(alias.name)
            case ast.ImportFrom(module, names):
                for alias in names:
                    self.scope.names[alias.asname or alias.name] = self.member(str(module), alias.name)
            case ast.AnnAssign(target, _, expression):
                if expression:
                    self.assign(target, self.value(expression))
            case ast.Pass():
                pass
            case _:
                raise _unsupported(statement)
        return None

    def rounds(self, loop: ast.For | ast.While) -> Iterator[None]:
        if isinstance(loop, ast.While):
            while self.value(loop.test):
                yield
        else:
            for item in self.items(self.value(loop.iter)):
                self.assign(loop.target, item)
                yield

    def items(self, value: Any) -> Iterator[Any]:
        for item in value:
            self.tick()
            yield item

    def assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            for part, item in zip(target.elts, self.items(value), strict=True):
                self.assign(part, item)
        else:
            container, key = self.place(target)
            container[key] = value
            if isinstance(container, dict):
                _check(len(container), _MAX_KEYS)

    def place(self, target: ast.expr) -> tuple[Any, Any]:
        """Returns the container that an assignment changes, and its name, key or index."""
        match target:
            case ast.Name(name):
                return self.scope.names, name
            case ast.Subscript(owner, index) if not isinstance(index, ast.Slice):
                container, key = self.value(owner), self.key(index)
                if isinstance(container, list | dict):
                    return container, key
        raise _unsupported(target)

    # Expressions.

    def value(self, node: ast.expr) -> Any:
        self.tick()
        match node:
            case ast.Constant(None | int() | float() | str()):
                return node.value
            case ast.Name(name):
                return self.lookup(name)
            case ast.BinOp(left, op, right):
                return self.operate(op, self.value(left), self.value(right))
            case ast.UnaryOp(op, operand):
                return self.operate(op, self.value(operand))
            case ast.Compare(first, ops, others):
                left = self.value(first)
                for comparison, other in zip(ops, others, strict=True):
                    right = self.value(other)
                    if not (result := self.operate(comparison, left, right)):
                        break
                    left = right
                return result
            case ast.BoolOp(op, operands):
                for operand in operands:
                    value = self.value(operand)
                    if bool(value) is isinstance(op, ast.Or):
                        break
                return value
            case ast.IfExp(test, body, orelse):
                return self.value(body if self.value(test) else orelse)
            case ast.Call():
                return self.called(node)
            case ast.List(parts):
                return [self.value(part) for part in parts]
            case ast.Tuple(parts):
                return tuple([self.value(part) for part in parts])
            case ast.Dict(keys, values) if None not in keys:
                return self.native(
                    dict, [(self.value(k), self.value(v)) for k, v in zip(keys, values, strict=True) if k]
                )
            case ast.ListComp(element, generators) | ast.GeneratorExp(element, generators):
                outer, self.scope = self.scope, _Scope({}, self.scope)
                collected = [self.value(element) for _ in self.bindings(generators)]
                self.scope = outer
                return collected
            case ast.Subscript(owner, index):
                container, key = self.value(owner), self.key(index)
                if isinstance(container, str | list | tuple | dict | range):
                    part = container[key]
                    if isinstance(key, slice) and not isinstance(part, range):
                        self.tick(1 + len(part) // 8)  # a copy
                    return part
            case ast.JoinedStr(parts):
                return self.native("".join, [self.value(part) for part in parts])
            case ast.FormattedValue(expression, conversion, spec):
                value, form = self.value(expression), self.value(spec) if spec else ""
                if not _FORMAT.fullmatch(form):
                    raise _Failure("Unsupported", f"format {form}")
                if conversion in _CONVERSIONS:
                    value = self.native(_CONVERSIONS[conversion], value)
                return self.native(format, value, form)
            case ast.Attribute(owner, name) if isinstance(module := self.value(owner), _Module):
                return self.member(module.name, name)
        raise _unsupported(node)

    def key(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Slice):
            return slice(*[end and self.key(end) for end in (node.lower, node.upper, node.step)])
        key = self.value(node)
        self.pay(key)
        return key

    def lookup(self, name: str) -> Any:
        scope: _Scope | None = self.scope
        while scope:
            if name in scope.names:
                return scope.names[name]
            if name in scope.local:
                raise UnboundLocalError(name)
            scope = scope.parent
        if name in _BUILTINS:
            return _BUILTINS[name]
        raise _Failure("Unsupported" if hasattr(builtins, name) else "NameError", name)

    def member(self, module: str, name: str) -> Any:
        if module != "math" or name not in _MATH:
            raise _Failure("Unsupported", f"{module}.{name}")
        return _MATH[name]

    def operate(self, op: ast.AST, *operands: Any) -> Any:
        if type(op) not in _OPERATORS:
            raise _unsupported(op)
        match op, operands:
            case ast.Mult(), (str() | list() | tuple() as items, int(times)):
                _check(len(items) * times, _MAX_SIZE)
            case ast.Mult(), (int(times), str() | list() | tuple() as items):
                _check(len(items) * times, _MAX_SIZE)
            case ast.Pow(), (int(base), int(exponent)) if abs(base) > 1:
                _check(base.bit_length() * exponent, _MAX_BITS)
            case ast.Mod(), (str(), _):
                raise _Failure("Unsupported", "% of a text")
            # Of other values, Python's compiler decides: 1000 is 1000.
            case ast.Is() | ast.IsNot(), _ if not any(isinstance(each, bool | None) for each in operands):
                raise _Failure("Unsupported", "identity of values")
        return self.native(_OPERATORS[type(op)], *operands)

    def bindings(self, generators: list[ast.comprehension]) -> Iterator[None]:
        if not generators:
            yield
            return
        for item in self.items(self.value(generators[0].iter)):
            self.assign(generators[0].target, item)
            if all(self.value(test) for test in generators[0].ifs):
                yield from self.bindings(generators[1:])

    # Functions.

    def function(self, node: ast.FunctionDef) -> _Function:
        form = node.args
        self.tick(sum(1 for _ in ast.walk(node)))
        if node.decorator_list or form.vararg or form.kwarg or form.kwonlyargs or form.posonlyargs:
            raise _Failure("Unsupported", "a decorator or a parameter that is not plain")
        names = [arg.arg for arg in form.args[len(form.args) - len(form.defaults) :]]
        defaults = dict(zip(names, map(self.value, form.defaults), strict=True))
        return _Function(node, defaults, self.scope, frozenset(_bound(node)))

    def called(self, node: ast.Call) -> Any:
        owner, name = None, ""
        if isinstance(node.func, ast.Attribute):
            owner, name = self.value(node.func.value), node.func.attr
        if isinstance(owner, _Module):
            function = self.member(owner.name, name)
        elif name:
            if name not in _METHODS.get(type(owner), ()):
                raise _Failure("Unsupported", f"{type(owner).__name__.lstrip('_')}.{name}")
            function = getattr(owner, name)
        else:
            function = self.value(node.func)
        args = [self.value(arg) for arg in node.args]
        if not all(keyword.arg for keyword in node.keywords):
            raise _Failure("Unsupported", "** in a call")
        named = {str(keyword.arg): self.value(keyword.value) for keyword in node.keywords}
        if isinstance(function, _Function):
            return self.call(function, args, named)
        if function is print:
            separator = named.get("sep", " ")
            _check(len(separator) * len(args), _MAX_SIZE)
            text = self.native(separator.join, [self.native(str, arg) for arg in args])
            self.output = (self.output + text + named.get("end", "\n"))[-_MAX_SIZE:]
            return None
        if not isinstance(owner, _Module | None) and name not in _CHEAP_METHODS:
            self.pay(owner)
        if isinstance(owner, str):  # replace and join multiply lengths
            sized = [arg for arg in args if isinstance(arg, str | list | tuple | dict)]
            longest = max(map(len, sized), default=0)
            _check(len(owner) * longest, 100 * _MAX_SIZE)
        if isinstance(owner, list | dict):
            _check(len(owner) + 1, _MAX_SIZE if isinstance(owner, list) else _MAX_KEYS)
        integers = [arg for arg in args if isinstance(arg, int)]
        if function is round:
            for places in (*args[1:], *named.values()):
                _check(abs(places) if isinstance(places, int) else 0, 400)
        if function in _COMBINATORICS and integers:
            _check(integers[0].bit_length() * integers[-1], _MAX_BITS)
        if function is dict and args:
            _check(len(args[0]), _MAX_KEYS)
        return self.native(function, *args, **named)

    def call(self, function: _Function, args: list[Any], named: dict[str, Any]) -> Any:
        names = [arg.arg for arg in function.node.args.args]
        given = dict(zip(names, args, strict=False))
        bound = {**function.defaults, **given, **named}
        if len(args) > len(names) or given.keys() & named.keys() or bound.keys() != set(names):
            raise TypeError(f"{function.node.name}() does not take these arguments")
        self.calls += 1
        if self.calls > _MAX_CALLS:
            raise RecursionError
        outer, self.scope = self.scope, _Scope(bound, function.scope, function.local)
        jump = self.block(function.node.body)
        self.scope = outer
        self.calls -= 1
        if isinstance(jump, ast.Break | ast.Continue):
            raise _Failure("SyntaxError", "a misplaced jump")
        return jump.value if jump else None
