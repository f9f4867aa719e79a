"""Equations by value: as eval() on real equations, and nothing at all on anything else."""

import json
import math
import random
import time
import warnings

import pytest

from cot_jax.answers.arithmetic import evaluate, in_svamp_notation, same_value
from cot_jax.data.teacher import outputs


def _eval(equation):
    """What the released code computes; only ever given the data sets' own equations."""
    try:
        value = eval(equation, {"__builtins__": {}})
    except Exception:
        return None
    return None if isinstance(value, tuple) else value


@pytest.mark.parametrize("split", ["train", "test"])
def test_equals_eval_on_every_equation_of_svamp(data_root, split):
    lines = (data_root / f"svamp/svamp_{split}.json").read_text().splitlines()
    gold = [json.loads(line)["label"] for line in lines]
    said = outputs.read_outputs(data_root / "svamp/llm", split)
    assert said is not None
    labels = [outputs.parse("svamp", text, form).label for text in said for form in outputs.PARSERS]
    equations = gold + [label for label in labels if label is not None]
    assert [evaluate(e) for e in equations] == [_eval(e) for e in equations]
    assert sum(evaluate(e) is not None for e in equations) > 2.7 * len(gold)


def test_equals_eval_on_random_expressions():
    draw = random.Random(0)

    def expression(depth):
        if depth == 0 or draw.random() < 0.2:
            return draw.choice(["7", "10", "0", "2.5", ".5", "3.", "12.0"])
        a, b = expression(depth - 1), expression(depth - 1)
        return draw.choice(
            [f"({a} + {b})", f"{a}-{b}", f"( {a} * {b} )", f"({a})/ ({b})", f"-{a}", f"+({b})"]
        )

    expressions = [e for e in (expression(draw.randrange(1, 5)) for _ in range(3000)) if len(e) <= 256]
    values = [evaluate(e) for e in expressions]
    assert values == [_eval(e) for e in expressions]
    assert 100 < values.count(None) < 1500, "both numbers and divisions by zero must have been tried"


@pytest.mark.parametrize(
    ("equation", "value"),
    [
        ("( 84.0 / 2.0 )", 42.0),
        (" (16 * 17) * 4\n", 1088.0),
        ("-(3 - 5)", 2.0),
        ("- - 1", 1.0),
        ("((1))", 1.0),
        ("(8 / 4) and (6 / 4)", 1.5),
        ("0 and 1 / 0", 0.0),
        ("(2 and 3) + 4", 7.0),
        ("00", 0.0),
    ],
)
def test_values(equation, value):
    assert evaluate(equation) == value
    assert type(evaluate(equation)) is float


NOTHING = [
    *("", " ", "()", "(", "1 +", "...", "1 .5", "1 2", "(1)(2)", "1.(2)", "*1", "1/0", "0/0", "1 / (2 - 2)"),
    *("9**9**9**9", "7//2", "7%2", "1,000", "(175, 5)", "007", "1e5", "1j", "0x10", "1_000", "nan", "inf"),
    *("\uff19", "\u0664", "\u00b2", "1\u00d72", "2 * x", "8 apples", "x = 5", "(1 < 2)", "~1", "1 or 2"),
    *("__import__('os').system('true')", "().__class__", "lambda: 1", "[1]", "'1'", "1 if 1 else 2", "1#2"),
    *("1\n+1", "(1\n+1)", "1and 2", "and", "1 and ", "1;2", "1\\\n+2", "\x00", "1\x00"),
]
HOSTILE = [
    *("1" * 10**6, "(" * 10**6, "1+" * 10**6, "(" * 256, "-" * 255 + "1", "(-" * 100 + "1" + ")" * 56),
    *("(" * 100, "1/(" * 85, "(1+" * 64 + "1" + ")" * 63, "1*" * 127 + "1.", "1 and " * 42, "." * 256),
    *("9" * 256 + "0", "[" * 99, "1 " * 128, "1." * 128, "((((1" * 50),
]


@pytest.mark.parametrize("text", NOTHING, ids=ascii)
def test_everything_else_has_no_value(text):
    assert evaluate(text) is None
    assert in_svamp_notation(text) is None
    assert not same_value(text, text)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_dealt_with_at_once(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastest = math.inf
        for _ in range(3):  # the fastest of three: the machine may be busy
            start = time.perf_counter()
            value = evaluate(text)
            fastest = min(fastest, time.perf_counter() - start)
    assert value is None
    assert fastest < 0.05


def test_depth_is_limited_and_real_depth_is_not():
    nested = "1"
    for _ in range(35):
        nested = f"-({nested})"
    assert evaluate(nested) == -1.0
    assert evaluate("-" * 35 + "1") == -1.0
    assert evaluate("-" * 45 + "1") is None


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("(84 / 2)", "( 84.0 / 2.0 )", True),
        ("0.1 + 0.2", "0.3", True),  # False by ==
        ("0.3 - 0.1 - 0.2", "0", True),
        ("1 / 3", "0.333333333333", True),
        ("1 / 3", "0.33333", False),
        ("1000000", "1000001", False),
        ("42", "-42", False),
        ("x", "x", False),
        ("42", "forty-two", False),
    ],
)
def test_same_value(a, b, same):
    assert same_value(a, b) is same
    assert same_value(b, a) is same


def test_svamp_notation():
    assert in_svamp_notation("7+2") == "( 7.0 + 2.0 )"
    assert in_svamp_notation("17+15+2") == "( ( 17.0 + 15.0 ) + 2.0 )"
    assert in_svamp_notation("-5*(3-.5)") == "( -5.0 * ( 3.0 - 0.5 ) )"
    assert in_svamp_notation("+9 and 2") == "9.0 and 2.0"
    assert in_svamp_notation("1 + (2 and 3)") == "( 1.0 + ( 2.0 and 3.0 ) )"
    assert in_svamp_notation("-(2 and 3)") == "-( 2.0 and 3.0 )"
    assert in_svamp_notation("1" + "0" * 16) == "1" + "0" * 16 + ".0"
    assert in_svamp_notation("0.00001 * 2") == "( 0.00001 * 2.0 )"


@pytest.mark.parametrize("equation", ["+".join("1" * 35), "9007199254740993 - 9007199254740992"])
def test_what_would_have_another_value_has_no_svamp_notation(equation):
    assert evaluate(equation) is not None
    assert in_svamp_notation(equation) is None


def test_svamp_is_in_svamp_notation(data_root):
    lines = (data_root / "svamp/svamp_train.json").read_text().splitlines()
    gold = [json.loads(line)["label"] for line in lines]
    assert [in_svamp_notation(label) for label in gold] == gold
