"""Generated arithmetic word problems: the demo's data, which needs no file and no network.

A problem hides a chain of a few steps in a short story of one of two kinds:

* *comparison*: people are compared with one another, in any order and in either direction ("Tom has 5
  fewer than Mia" can give what Mia has as well as what Tom has). The question picks one of them.
* *change*: somebody's things become more and fewer in the order told, while other people's things and
  other things of the same person change as well.

Sentences that do not lead to the answer use the same words as those that do, so a number tells nothing by
itself: names, things and directions decide which numbers count, in which order and how. The rationale spells
this out: each step names the quantity, inverts the relation if needed, and computes the result. The label is
the bare equation in SVAMP's notation, `( ( 3 + 4 ) * 2 )`.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cot_jax.data.examples import Example
from cot_jax.errors import UserError

T = TypeVar("T")


class Wording(NamedTuple):
    """How the rationale words a step, and the ways in which a story tells it."""

    thought: str
    stories: tuple[str, ...]


# fmt: off
NAMES = (
    "Amy", "Ana", "Ben", "Dan", "Eva", "Ida", "Jim", "Kim", "Leo", "Liz", "Max", "Mia", "Roy", "Sam", "Tom",
    "Zoe",
)
THINGS = (
    "apples", "balls", "books", "buttons", "cards", "cookies", "cups", "eggs", "flowers", "marbles", "pens",
    "shells", "stamps", "stickers",
)
# fmt: on

# In every template {a} is the person whose quantity is known and {n} the number of the step; {b} is the
# person whom a comparison leads to, {c} somebody else in a change.
FACTS = ("{a} has {n} {things}.", "{a} owns {n} {things}.")
COMPARISONS = {
    "+": Wording(
        "{b} has {n} more than {a}",
        ("{b} has {n} more than {a}.", "{a} has {n} fewer than {b}.", "{a} is {n} short of {b}."),
    ),
    "-": Wording(
        "{b} has {n} fewer than {a}",
        ("{b} has {n} fewer than {a}.", "{a} has {n} more than {b}.", "{b} is {n} short of {a}."),
    ),
    "*": Wording(
        "{b} has {n} times as many as {a}",
        ("{b} has {n} times as many as {a}.", "{b} has {n} for each one of {a}."),
    ),
    "/": Wording(
        "{a} has {n} times as many as {b}",
        ("{a} has {n} times as many as {b}.", "{a} has {n} for each one of {b}."),
    ),
}
CHANGES = {
    "+": Wording(
        "{a} gets {n}",
        (
            "{a} buys {n} {things}.",
            "{a} finds {n} {things}.",
            "{a} takes {n} {things} from {c}.",
            "{c} gives {n} {things} to {a}.",
        ),
    ),
    "-": Wording(
        "{a} loses {n}",
        (
            "{a} sells {n} {things}.",
            "{a} loses {n} {things}.",
            "{a} gives {n} {things} to {c}.",
            "{c} takes {n} {things} from {a}.",
        ),
    ),
}
BOXES = "{a} has {n} boxes of {things}."
# Follows BOXES directly.
UNPACKING = {
    "*": Wording("Each box holds {n}", ("Each box holds {n} {things}.", "There are {n} {things} in a box."))
}
# Only at the end, because they ask the question too.
ENDINGS = {
    "*": Wording(
        "Each one brings {n}",
        (
            "{a} sells all {things} for {n} coins each. How many coins does {a} get?",
            "{a} gets {n} coins for each of the {things}. How many coins is that?",
        ),
    ),
    "/": Wording(
        "There are {n} equal parts",
        (
            "{a} packs all {things} into {n} equal boxes. How many are in a box?",
            "{a} shares all {things} among {n} friends. How many does each get?",
        ),
    ),
}
QUESTIONS = ("How many {things} does {a} have?", "What number of {things} does {a} have?")
LATER_QUESTIONS = ("How many {things} does {a} have now?", "How many {things} does {a} have then?")


class Step(NamedTuple):
    operator: str
    operand: int
    result: int
    owner: str  # whose the result is
    thought: str


class Solution(NamedTuple):
    """What somebody has at the start, and the steps from there to the answer."""

    owner: str
    start: int
    thought: str
    steps: list[Step]

    def equation(self) -> str:
        text = str(self.start)
        for step in self.steps:
            text = f"( {text} {step.operator} {step.operand} )"
        return text

    def rationale(self) -> str:
        sentences, value = [f"{self.thought}."], self.start
        for step in self.steps:
            sentences.append(f"{step.thought}, so {value} {step.operator} {step.operand} = {step.result}.")
            value = step.result
        return " ".join(sentences)

    def program(self) -> str:
        """One assignment a step, to its owner's name; on one line: some tokenizers drop newlines."""
        names, values = [self.owner], [str(self.start)]
        for step in self.steps:
            values.append(f"{names[-1]} {step.operator} {step.operand}")
            names.append(step.owner)
        names[-1] = "ans"
        return "; ".join(f"{name} = {value}" for name, value in zip(names, values, strict=True))


class Draw:
    """The random choices of one problem. No person and no number is drawn twice."""

    def __init__(self, rng: np.random.Generator, max_number: int):
        self.rng = rng
        self.max_number = max_number
        self.unused = set(range(2, max_number + 1))
        self.people = iter(self.shuffled(NAMES))
        self.things, self.other_things = self.shuffled(THINGS)[:2]

    def coin(self) -> bool:
        return self.rng.random() < 0.5

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.rng.integers(len(items)))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return [items[i] for i in self.rng.permutation(len(items))]

    def number(self, among: Iterable[int]) -> int:
        number = self.pick(sorted(self.unused.intersection(among)))
        self.unused.remove(number)
        return number

    def step(self, operators: Iterable[str], value: int) -> tuple[str, int, int]:
        """Returns (operator, operand, result): the result is a whole number from 2 to max_number."""
        operands = {
            "+": range(2, self.max_number - value + 1),
            "-": range(2, value - 1),
            "*": range(2, self.max_number // value + 1),
            "/": [n for n in range(2, value) if value % n == 0],
        }
        operator = self.pick([o for o in operators if self.unused.intersection(operands[o])])
        n = self.number(operands[operator])
        return operator, n, {"+": value + n, "-": value - n, "*": value * n, "/": value // n}[operator]


# Both kinds return the sentences of a problem, its question last, and the solution.


def _comparison(draw: Draw, steps: int, distractors: int) -> tuple[list[str], Solution]:
    owner, start = next(draw.people), draw.number(draw.unused)
    solution = Solution(owner, start, f"{owner} has {start}", [])
    sentences = [draw.pick(FACTS).format(a=owner, n=start, things=draw.things)]
    path = [(owner, start)]
    for index in range(steps + distractors):
        a, value = path[-1] if index < steps else draw.pick(path)
        b = next(draw.people)
        operator, n, result = draw.step(COMPARISONS, value)
        wording, slots = COMPARISONS[operator], {"a": a, "b": b, "n": n}
        sentences.append(draw.pick(wording.stories).format(**slots))
        if index < steps:
            solution.steps.append(Step(operator, n, result, b, wording.thought.format(**slots)))
            path.append((b, result))
    question = draw.pick(QUESTIONS).format(a=path[-1][0], things=draw.things)
    return [*draw.shuffled(sentences), question], solution


def _change(draw: Draw, steps: int, distractors: int) -> tuple[list[str], Solution]:
    owner, other, value = next(draw.people), next(draw.people), draw.number(draw.unused)
    slots = {"a": owner, "c": other, "things": draw.things}
    boxes = 4 * value <= draw.max_number and draw.coin()
    solution = Solution(owner, value, f"{owner} has {value}{' boxes' if boxes else ''}", [])
    sentences = [(BOXES if boxes else draw.pick(FACTS)).format(n=value, **slots)]
    for index in range(steps):
        wordings = CHANGES if index < steps - 1 else CHANGES | ENDINGS
        if boxes and index == 0:
            wordings = UNPACKING
        operator, n, value = draw.step(wordings, value)
        sentences.append(draw.pick(wordings[operator].stories).format(n=n, **slots))
        thought = wordings[operator].thought.format(n=n, **slots)
        solution.steps.append(Step(operator, n, value, owner, thought))
    if not sentences[-1].endswith("?"):
        sentences.append(draw.pick(LATER_QUESTIONS).format(**slots))
    for _ in range(distractors):
        story = draw.pick([*FACTS, *CHANGES["+"].stories, *CHANGES["-"].stories])
        unasked = {"things": draw.other_things} if draw.coin() else {"a": other, "c": next(draw.people)}
        distractor = story.format(n=draw.number(draw.unused), **(slots | unasked))
        sentences.insert(int(draw.rng.integers(len(sentences))), distractor)
    return sentences, solution


_MOST_KNOWN = 10_000  # draws without a new problem: then nearly all are found
DIFFICULTY = {"max_steps": 2, "distractors": 1, "max_number": 20}  # the default of `generate`


def generate(
    count: int,
    seed: int,
    *,
    max_steps: int = DIFFICULTY["max_steps"],
    distractors: int = DIFFICULTY["distractors"],
    max_number: int = DIFFICULTY["max_number"],
    teacher_error_rate: float = 0.0,
) -> list[Example]:
    """Returns `count` different problems, a pure function of the arguments.

    All numbers of a problem, given or computed, are whole and from 2 to `max_number`, and no number is given
    twice. `label` is right; `teacher_label`, rationale and program are what the teacher says.

    The first problems do not depend on `count`. An id stands for one problem: it contains the seed and, if
    they are not the defaults, `max_steps`, `distractors` and `max_number`.

    Args:
      max_steps: maximum steps of a solution; all numbers of steps are equally likely.
      distractors: maximum sentences with an irrelevant number; all numbers of them are equally likely.
      teacher_error_rate: chance that the teacher omits the last step.

    Raises:
      UserError: there are not enough numbers or names for so many steps and distractors, or fewer problems.
    """
    numbers = 2 * (max_steps + distractors + 3)  # that + or - can always find one not used yet
    if max_number < numbers:
        raise UserError(
            f"max_number={max_number}: max_steps={max_steps} and distractors={distractors} need at least "
            f"{numbers}"
        )
    if max_steps + distractors >= len(NAMES):
        raise UserError(f"max_steps + distractors must be below {len(NAMES)}, the number of names")
    difficulty = [max_steps, distractors, max_number]
    series = [seed] if difficulty == [*DIFFICULTY.values()] else [seed, *difficulty]
    rng = np.random.default_rng(seed)
    examples: dict[str, Example] = {}
    known = 0  # draws since the last new problem
    while len(examples) < count:
        if known == _MOST_KNOWN:
            raise UserError(
                f"{count} word problems: only {len(examples)} different ones were found; ask for fewer, or "
                "raise max_steps, distractors or max_number"
            )
        known += 1
        tell = _comparison if rng.random() < 0.5 else _change
        steps, others = int(rng.integers(1, max_steps + 1)), int(rng.integers(distractors + 1))
        sentences, solution = tell(Draw(rng, max_number), steps, others)
        mistaken = rng.random() < teacher_error_rate
        said = solution._replace(steps=solution.steps[:-1]) if mistaken else solution
        example = Example(
            id="-".join(map(str, ("word-problem", *series, len(examples)))),
            parts=(" ".join(sentences),),
            label=solution.equation(),
            teacher_label=said.equation(),
            rationales=(said.rationale(),),
            programs=(said.program(),),
        )
        if example.text not in examples:
            examples[example.text], known = example, 0
    return list(examples.values())


def splits(train: int, valid: int, test: int, seed: int, **difficulty: Any) -> dict[str, list[Example]]:
    """Returns "train", "valid" and "test" of the given sizes without a common problem."""
    problems = generate(train + valid + test, seed, **difficulty)
    return {
        "train": problems[:train],
        "valid": problems[train : train + valid],
        "test": problems[train + valid :],
    }
