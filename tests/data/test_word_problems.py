"""Generated word problems: right, readable from the text alone, varied, and the same everywhere."""

import ast
import hashlib
import json
import re
from collections import Counter

import pytest

from cot_jax.data import word_problems
from cot_jax.data.word_problems import generate, splits
from cot_jax.errors import UserError

PROBLEMS = generate(4000, seed=7, max_steps=3, distractors=2, max_number=40)


def numbers(text):
    return [int(digits) for digits in re.findall(r"\d+", text)]


def evaluate(node, names):
    """The exact value of an expression of numbers, names and + - * /."""
    match node:
        case ast.Expression(body):
            return evaluate(body, names)
        case ast.Constant(int(value)):
            return value
        case ast.Name(name):
            return names[name]
        case ast.BinOp(left, operator, right):
            x, y = evaluate(left, names), evaluate(right, names)
            if isinstance(operator, ast.Div):
                assert x % y == 0, f"{x} / {y} is not whole"
                return x // y
            return {ast.Add: x + y, ast.Sub: x - y, ast.Mult: x * y}[type(operator)]
    raise AssertionError(ast.dump(node))


def value_of(equation):
    return evaluate(ast.parse(equation, mode="eval"), {})


def run(program):
    names = {}
    for statement in ast.parse(program).body:
        (target,) = statement.targets
        names[target.id] = evaluate(statement.value, names)
    return names["ans"]


def solve(text):
    """Answers a problem from its text alone, by what each sentence means."""
    # comparisons: X = Y + n or X = Y * n
    have, relations, boxes, asked = Counter(), [], {}, None
    number, name, thing = r"(\d+)", r"([A-Z]\w+)", r"([a-z]+)"
    for sentence in re.findall(r"[^.?]+[.?]", text):

        def told(pattern, sentence=sentence):
            if match := re.fullmatch(pattern, sentence.strip()):
                return [int(group) if group.isdigit() else group for group in match.groups()]
            return None

        if f := told(f"{name} (?:has|owns) {number} {thing}."):
            have[f[0], f[2]] = f[1]
        elif f := told(f"{name} has {number} more than {name}."):
            relations.append((f[0], "+", f[1], f[2]))
        elif f := told(f"{name} (?:has|is) {number} (?:fewer than|short of) {name}."):
            relations.append((f[2], "+", f[1], f[0]))
        elif f := told(f"{name} has {number} (?:times as many as|for each one of) {name}."):
            relations.append((f[0], "*", f[1], f[2]))
        elif f := told(f"{name} (?:buys|finds) {number} {thing}."):
            have[f[0], f[2]] += f[1]
        elif f := told(f"{name} (?:sells|loses) {number} {thing}."):
            have[f[0], f[2]] -= f[1]
        elif f := told(f"{name} takes {number} {thing} from {name}."):
            have[f[0], f[2]] += f[1]
            have[f[3], f[2]] -= f[1]
        elif f := told(f"{name} gives {number} {thing} to {name}."):
            have[f[0], f[2]] -= f[1]
            have[f[3], f[2]] += f[1]
        elif f := told(f"{name} has {number} boxes of {thing}."):
            boxes[f[2]] = f[0], f[1]
        elif f := told(f"Each box holds {number} {thing}.") or told(f"There are {number} {thing} in a box."):
            owner, count = boxes[f[1]]
            have[owner, f[1]] = count * f[0]
        elif f := told(f"{name} sells all {thing} for {number} coins each."):
            asked = have[f[0], f[1]] * f[2]
        elif f := told(f"{name} gets {number} coins for each of the {thing}."):
            asked = have[f[0], f[2]] * f[1]
        elif f := told(
            f"{name} (?:packs|shares) all {thing} (?:into|among) {number} (?:equal boxes|friends)."
        ):
            asked = have[f[0], f[1]] // f[2]
        elif f := told(rf"(?:How many|What number of) {thing} does {name} have(?: now| then)?\?"):
            asked = (
                asked or _follow(relations, {who: n for (who, what), n in have.items() if what == f[0]})[f[1]]
            )
        else:
            assert told(r"How many (are in a box|does each get|coins does \w+ get|coins is that)\?"), sentence
    return asked


def _follow(relations, known):
    for _ in relations:
        for more, operator, n, less in relations:
            if less in known:
                known[more] = known[less] + n if operator == "+" else known[less] * n
            elif more in known:
                known[less] = known[more] - n if operator == "+" else known[more] // n
    return known


def test_the_text_alone_gives_the_answer():
    for problem in PROBLEMS:
        assert solve(problem.text) == value_of(problem.label), problem


def test_equation_rationale_and_program_agree():
    for problem in PROBLEMS:
        value = value_of(problem.label)
        assert value == run(problem.programs[0]) == numbers(problem.rationale)[-1], problem
        assert 2 <= value <= 40


def test_rationale_does_the_equation_step_by_step():
    for problem in PROBLEMS:
        sums = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", problem.rationale)
        assert len(sums) == problem.label.count("(") >= 1
        equation = sums[0][0]
        for left, operator, right, result in sums:
            assert int(left) == value_of(equation)
            equation = f"( {equation} {operator} {right} )"
            assert int(result) == value_of(equation)
        assert equation == problem.label == problem.teacher_label


def test_a_sentence_of_the_rationale_names_only_what_the_text_names():
    for problem in PROBLEMS:
        for name in word_problems.NAMES:
            assert name not in problem.rationale or name in problem.text


def test_equation_takes_its_numbers_from_the_text_and_leaves_the_distractors():
    spare = Counter()
    for problem in PROBLEMS:
        given, used = numbers(problem.text), numbers(problem.label)
        assert len(set(given)) == len(given), "a number that is given twice could not be told apart"
        assert set(used) <= set(given)
        spare[len(given) - len(used)] += 1
    assert set(spare) == {0, 1, 2}
    assert min(spare.values()) > 1200


def test_without_distractors_every_number_matters():
    for problem in generate(300, seed=1, distractors=0):
        assert sorted(numbers(problem.text)) == sorted(numbers(problem.label))


def test_the_order_of_the_text_is_not_the_order_of_the_equation():
    comparisons = [p for p in PROBLEMS if " as " in p.rationale and p.label.count("(") > 1]
    in_order = [p for p in comparisons if is_subsequence(numbers(p.label), numbers(p.text))]
    assert 0 < len(in_order) < 0.5 * len(comparisons)


def is_subsequence(short, long):
    rest = iter(long)
    return all(item in rest for item in short)


def test_the_words_around_a_number_do_not_give_its_operation_away():
    """ "More" goes with + and -, "times" with * and /: the direction decides."""
    one_step = [p for p in generate(2000, seed=3, max_steps=1, distractors=0) if "than" in p.text]
    seen = Counter(
        (word, p.label.split()[2]) for p in one_step for word in ("more", "fewer") if word in p.text
    )
    assert all(seen[word, operator] > 30 for word in ("more", "fewer") for operator in "+-")


def test_lengths_and_operations_are_balanced():
    lengths = Counter(problem.label.count("(") for problem in PROBLEMS)
    assert set(lengths) == {1, 2, 3}
    assert min(lengths.values()) > 0.3 * len(PROBLEMS)
    operators = Counter(operator for problem in PROBLEMS for operator in re.findall(r"[-+*/]", problem.label))
    assert min(operators[o] for o in "+-*/") > 0.1 * operators.total()


def test_every_wording_is_used():
    tables = (
        word_problems.COMPARISONS,
        word_problems.CHANGES,
        word_problems.UNPACKING,
        word_problems.ENDINGS,
    )
    wordings = [wording for table in tables for wording in table.values()]
    stories = [story for wording in wordings for story in wording.stories]
    stories += [*word_problems.FACTS, word_problems.BOXES]
    stories += [*word_problems.QUESTIONS, *word_problems.LATER_QUESTIONS]
    inputs = "\n".join(problem.text for problem in PROBLEMS)
    rationales = "\n".join(problem.rationale for problem in PROBLEMS)
    for template, text in [(s, inputs) for s in stories] + [(w.thought, rationales) for w in wordings]:
        assert re.search(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(template)), text), template


def test_problems_are_distinct_and_named():
    """Even where so few are possible that the same ones come up again."""
    problems = generate(5000, seed=0, max_steps=1, distractors=0, max_number=8)
    assert len({problem.text for problem in problems}) == len(problems)
    assert len({problem.id for problem in problems}) == len(problems)


def test_an_id_stands_for_one_problem():
    """A teacher's file cannot be joined to problems of another seed or difficulty."""
    difficulties = ({}, {"max_steps": 3}, {"distractors": 0}, {"max_number": 30}, {"seed": 1})
    ids = [generate(1, **{"seed": 0} | difficulty)[0].id for difficulty in difficulties]
    assert ids[:2] == ["word-problem-0-0", "word-problem-0-3-1-20-0"]
    assert len(set(ids)) == len(ids)
    assert generate(1, seed=0, teacher_error_rate=1.0)[0].id == ids[0]


def test_splits_share_no_problem():
    parts = splits(300, 50, 80, seed=0, max_steps=1)
    assert [len(parts[name]) for name in ("train", "valid", "test")] == [300, 50, 80]
    assert len({problem.text for part in parts.values() for problem in part}) == 430
    assert [p for part in parts.values() for p in part] == generate(430, seed=0, max_steps=1)


def test_same_arguments_same_problems_everywhere():
    fields = [{"input": problem.text} | vars(problem) for problem in PROBLEMS[:200]]
    assert all(problem.asked is None for problem in PROBLEMS[:200])
    kept = [{k: v for k, v in row.items() if k not in ("id", "parts", "asked")} for row in fields]
    text = json.dumps(kept, sort_keys=True)
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "95216e231d6a5a6b925d16f21764cd1d3fec55f23a00c524b6793a5452586d6d"
    )
    assert generate(50, seed=7, max_steps=3, distractors=2, max_number=40) == PROBLEMS[:50]
    assert generate(50, seed=8)[0].text != generate(50, seed=7)[0].text


def test_vocabulary_is_small():
    fields = [text for p in PROBLEMS for text in (p.text, p.label, p.rationale, *p.programs)]
    types = {token for text in fields for token in re.findall(r"\w+|[^\w\s]", text)}
    assert len({token for token in types if not token.isdigit()}) == 94
    assert {int(token) for token in types if token.isdigit()} == set(range(2, 41))


def test_teacher_omits_the_last_step_at_the_given_rate():
    problems = generate(2000, seed=5, teacher_error_rate=0.25)
    assert [p.text for p in problems] == [p.text for p in generate(2000, seed=5)]
    wrong = [problem for problem in problems if problem.teacher_label != problem.label]
    assert 0.21 < len(wrong) / len(problems) < 0.29
    for problem in wrong:
        assert problem.label.startswith(f"( {problem.teacher_label} ")
        assert value_of(problem.teacher_label) == run(problem.programs[0]) == numbers(problem.rationale)[-1]


@pytest.mark.parametrize(("steps", "distractors"), [(1, 0), (3, 2), (2, 5)])
def test_the_smallest_range_of_numbers_suffices(steps, distractors):
    smallest = 2 * (steps + distractors + 3)
    generate(1000, seed=0, max_steps=steps, distractors=distractors, max_number=smallest)
    with pytest.raises(UserError, match=f"at least {smallest}"):
        generate(1, seed=0, max_steps=steps, distractors=distractors, max_number=smallest - 1)


def test_more_people_than_names_is_an_error():
    with pytest.raises(UserError, match="below 16"):
        generate(1, seed=0, max_steps=10, distractors=6, max_number=100)


def test_more_problems_than_there_are_is_an_error(monkeypatch):
    monkeypatch.setattr(word_problems, "NAMES", word_problems.NAMES[:2])
    monkeypatch.setattr(word_problems, "THINGS", word_problems.THINGS[:2])
    monkeypatch.setattr(word_problems, "_MOST_KNOWN", 500)
    with pytest.raises(
        UserError, match=r"^1000000 word problems: only \d+ different ones were found"
    ) as error:
        generate(1_000_000, seed=0, max_steps=1, distractors=0, max_number=8)
    found = int(re.findall(r"\d+", str(error.value))[1])
    assert found > 2 * word_problems._MOST_KNOWN  # a new problem begins the count anew
    assert len(generate(found, seed=0, max_steps=1, distractors=0, max_number=8)) == found
