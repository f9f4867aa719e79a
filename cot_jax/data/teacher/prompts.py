"""Prompts for a teacher: instructions, demonstrations, and their layout as text or chat.

A question has one of six styles (`style_of`): arithmetic, a choice of words, a choice of letters, entailment,
yes or no, and any other text. Each style has an instruction and the words that introduce the answer, by which
`outputs` finds it; all but the last have demonstrations. The demonstrations are ours and in no data set. Only
arithmetic questions ask for programs of thought (Chen et al. 2023).

The formats are those of the published outputs (Hsieh et al. 2023): "The answer is (84 / 2).", "So the answer
is (b) wooded area.", "So the answer is neutral." and, for e-SNLI, "Answer: neutral" on its own line.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from cot_jax.answers.arithmetic import evaluate
from cot_jax.answers.reading import choices
from cot_jax.data.examples import Example
from cot_jax.data.problems import LETTERS, YES_NO
from cot_jax.data.tasks import Splits
from cot_jax.data.teacher.outputs import NLI_LABELS

# Prompts list a task's labels if there are at most this many.
_MOST_LABELS = 10


class Demonstration(NamedTuple):
    question: str
    rationale: str
    answer: str
    program: str | None = None


@dataclasses.dataclass(frozen=True)
class Style:
    """The prompt of one kind of question.

    Attributes:
      parser: the task whose corrected parser in `outputs` reads the answers.
      closing: the text after the rationale, with {answer}.
      instruction: with {closing}.
      marks: the texts before a question and before its answer, outside a chat.
      labels: the possible answers, if the instruction lists them.
    """

    parser: str
    closing: str
    instruction: str
    placeholder: str
    demonstrations: tuple[Demonstration, ...] = ()
    marks: tuple[str, str] = ("Q: ", "A:")
    labels: tuple[str, ...] = ()

    def instructs(self, kind: str) -> str:
        """Returns the instruction for a rationale (`cot`) or a program (`pot`)."""
        if kind == "pot":
            return PROGRAM_INSTRUCTION
        closing = self.closing.format(answer=self.placeholder).strip()
        return self.instruction.format(closing=closing, labels=", ".join(self.labels))

    def answers(self, kind: str, demonstration: Demonstration) -> str:
        """Returns the teacher's answer in a demonstration."""
        if kind == "pot":
            return demonstration.program or ""
        return demonstration.rationale + self.closing.format(answer=demonstration.answer)

    def asks(self, example: Example) -> str:
        """Returns the question of an example."""
        if self.parser in ("anli1", "esnli"):
            premise, hypothesis = example.parts
            return f"Premise: {premise}\nHypothesis: {hypothesis}"
        return example.text


HINT = (
    "\n(The right answer is known: {answer}. Write what leads to it, and do not mention that you were told.)"
)
STEPS = "Let's think step by step."
PROGRAM_INSTRUCTION = (
    "Solve the problem with a short Python program. Name its variables after what they count, use plain "
    "arithmetic and at most the math module, and leave the answer, a number, in the variable ans. Write the "
    "program and nothing else."
)


def as_chat(style: Style, kind: str, few_shot: bool, question: str) -> list[dict[str, str]]:
    """Returns `question` as chat messages; demonstrations are earlier turns."""
    messages = [{"role": "system", "content": style.instructs(kind)}]
    for demonstration in style.demonstrations if few_shot else ():
        messages += [
            {"role": "user", "content": demonstration.question},
            {"role": "assistant", "content": style.answers(kind, demonstration)},
        ]
    if not few_shot and kind == "cot":
        question = f"{question}\n{STEPS}"
    return [*messages, {"role": "user", "content": question}]


def as_prompt(style: Style, kind: str, few_shot: bool, question: str) -> str:
    """Returns `question` as a text to be continued, in the published layout."""
    before, after = style.marks
    gap = "\n" if kind == "pot" else " "
    parts = [style.instructs(kind)]
    for demonstration in style.demonstrations if few_shot else ():
        answer = style.answers(kind, demonstration)
        parts.append(f"{before}{demonstration.question}\n{after}{gap}{answer}")
    thinking = f" {STEPS}" if not few_shot and kind == "cot" else ""
    return "\n\n".join([*parts, f"{before}{question}\n{after}{thinking}"])


def stops(style: Style) -> list[str]:
    """Returns the texts that end a continuation: those before the next question."""
    return ["\n" + (style.marks[0].strip() or "Premise:")]


def style_of(task: str, splits: Splits, own: Sequence[Demonstration] = ()) -> Style:
    """Returns the style of a task's questions.

    Args:
      own: demonstrations that replace ours.
    """
    if splits.label_set == NLI_LABELS:
        style = ESNLI if task == "esnli" else NLI
    elif splits.label_set == LETTERS:
        style = LETTER
    elif splits.label_set == YES_NO:
        style = BOOLEAN
    elif splits.by_value:
        style = MATH
    elif not splits.label_set and choices(splits.train[0].text):
        style = CHOICE
    else:
        labels = splits.label_set or tuple(sorted({example.label for example in splits.train}))
        style = TEXT
        if len(labels) <= _MOST_LABELS:
            style = dataclasses.replace(LABELS, labels=labels)
    return dataclasses.replace(style, demonstrations=tuple(own)) if own else style


_MATH = (
    Demonstration(
        "A library owned 342 novels. In spring it bought 58 more, and 17 old ones were thrown away.\n"
        "How many novels does the library own now?",
        "The library began with 342 novels. With 58 new ones it had 342 + 58 = 400. Then 17 were thrown "
        "away, so 400 - 17 = 383 are left.",
        "((342 + 58) - 17)",
        "novels_at_first = 342\nnovels_bought = 58\nnovels_thrown_away = 17\n"
        "ans = novels_at_first + novels_bought - novels_thrown_away",
    ),
    Demonstration(
        "Nine buses take 378 pupils to the museum, as many in each.\nHow many pupils are on each bus?",
        "All 378 pupils are spread evenly over 9 buses. That makes 378 / 9 = 42 pupils on each bus.",
        "(378 / 9)",
        "pupils = 378\nbuses = 9\nans = pupils / buses",
    ),
    Demonstration(
        "Paulo is 12 years old. His grandfather is 5 times as old as he is, and his sister is 3 years "
        "younger than he is.\nHow old is his grandfather?",
        "The question asks for the grandfather, so the sister does not matter. He is 5 times as old as "
        "Paulo, who is 12: 5 * 12 = 60.",
        "(5 * 12)",
        "age_of_paulo = 12\ntimes_as_old = 5\nans = times_as_old * age_of_paulo",
    ),
    Demonstration(
        "A tailor cut 26 metres of cloth from a roll. Now 19 metres are left on it.\n"
        "How long was the cloth on the roll before?",
        "Before the cut the roll held what was cut and what is left: 26 + 19 = 45 metres.",
        "(26 + 19)",
        "metres_cut = 26\nmetres_left = 19\nans = metres_cut + metres_left",
    ),
    Demonstration(
        "Tickets for the fair are 4 dollars for children and 7 dollars for adults. Three adults come with 8 "
        "children.\nHow much do they pay together?",
        "The children pay 8 * 4 = 32 dollars. The adults pay 3 * 7 = 21 dollars. Together they pay "
        "32 + 21 = 53 dollars.",
        "((8 * 4) + (3 * 7))",
        "price_for_child = 4\nprice_for_adult = 7\nchildren = 8\nadults = 3\n"
        "ans = children * price_for_child + adults * price_for_adult",
    ),
    Demonstration(
        "On Monday 125 letters arrived and on Tuesday 88.\n"
        "How many more letters arrived on Monday than on Tuesday?",
        "The difference between the two days is asked for. Monday had 125 and Tuesday 88, so Monday had "
        "125 - 88 = 37 more.",
        "(125 - 88)",
        "letters_on_monday = 125\nletters_on_tuesday = 88\nans = letters_on_monday - letters_on_tuesday",
    ),
    Demonstration(
        "A farmer picked 96 pears. She kept 24 for herself and packed the rest into baskets of 8.\n"
        "How many baskets did she fill?",
        "She did not pack the 24 that she kept, so 96 - 24 = 72 pears went into baskets. Each basket holds "
        "8, so she filled 72 / 8 = 9.",
        "((96 - 24) / 8)",
        "pears = 96\npears_kept = 24\npears_in_a_basket = 8\nans = (pears - pears_kept) / pears_in_a_basket",
    ),
    Demonstration(
        "Hana had some beads. She used 35 for a bracelet and then got 20 from a friend, which gave her 62.\n"
        "How many beads did she have at first?",
        "She has 62 at the end. Without the 20 of her friend it was 62 - 20 = 42. Before she used 35 it was "
        "42 + 35 = 77.",
        "((62 - 20) + 35)",
        "beads_at_the_end = 62\nbeads_from_friend = 20\nbeads_used = 35\n"
        "ans = beads_at_the_end - beads_from_friend + beads_used",
    ),
    Demonstration(
        "A printer makes 15 pages a minute.\nHow many pages does it make in 2 hours?",
        "Two hours are 2 * 60 = 120 minutes. In each the printer makes 15 pages, so it makes "
        "120 * 15 = 1800 pages.",
        "((2 * 60) * 15)",
        "pages_a_minute = 15\nhours = 2\nminutes = hours * 60\nans = minutes * pages_a_minute",
    ),
    Demonstration(
        "Of 240 seats in a cinema 5 rows with 16 seats each are closed. Last week 3 rows were closed.\n"
        "How many seats are open?",
        "Last week does not matter. Closed are 5 * 16 = 80 seats. Of 240 seats that leaves 240 - 80 = 160.",
        "(240 - (5 * 16))",
        "seats = 240\nrows_closed = 5\nseats_in_a_row = 16\nans = seats - rows_closed * seats_in_a_row",
    ),
)


def _lettered(question: str, letters: Sequence[str], options: Sequence[str]) -> tuple[str, list[str]]:
    listed = [f"({letter}) {option}" for letter, option in zip(letters, options, strict=True)]
    return "\n".join([question, "Answer Choices:", *listed]), listed


def _choose(question: str, options: Sequence[str], rationale: str, answer: int) -> Demonstration:
    asked, listed = _lettered(question, "abcde", options)
    return Demonstration(asked, rationale, listed[answer])


_CHOICE = (
    _choose(
        "Where would you keep milk so that it stays fresh for days?",
        ("oven", "refrigerator", "bucket", "window sill", "drawer"),
        "Milk spoils when it is warm. Of the choices, only a refrigerator keeps things cold.",
        1,
    ),
    _choose(
        "What does somebody hope to get by training for a marathon every day?",
        ("boredom", "a parking ticket", "endurance", "a haircut", "thunder"),
        "Training for a long race is meant to make the body last longer. That is endurance; the other "
        "choices do not come from running.",
        2,
    ),
    _choose(
        "The hikers lit a fire because the night in the mountains was what?",
        ("cold", "expensive", "delicious", "polite", "square"),
        "A fire gives warmth, and one wants warmth when it is cold. Nights in the mountains are often cold.",
        0,
    ),
    _choose(
        "Where is one most likely to hear an orchestra?",
        ("garage", "swimming pool", "tax office", "concert hall", "dairy farm"),
        "An orchestra plays music for an audience. The place built for that is a concert hall.",
        3,
    ),
    _choose(
        "What do you need in order to read a book in a dark room?",
        ("silence", "a pen", "shoes", "a friend", "a lamp"),
        "One has to see the letters in order to read, and in the dark that takes light. Of the choices, only "
        "a lamp gives light.",
        4,
    ),
    _choose(
        "If a shop has far more customers than it can serve, what will form at the counter?",
        ("a lake", "a queue", "a crystal", "an island", "a habit"),
        "Customers who cannot be served at once have to wait for their turn. People who wait in turn form a "
        "queue.",
        1,
    ),
    _choose(
        "A gardener forgot to water the roses all summer. What happened to them?",
        ("they sang", "they moved away", "they withered", "they froze", "they multiplied"),
        "Plants need water, and in summer they need more of it. Without it they dry out, which is to wither. "
        "Freezing needs cold, not summer.",
        2,
    ),
    _choose(
        "What would a referee use to stop the game?",
        ("a whistle", "a racket", "a ladder", "a recipe", "a net"),
        "All players must hear that the game stops. A whistle is loud, and referees carry one.",
        0,
    ),
    _choose(
        "Someone who tells the same story differently each time is probably doing what?",
        ("sleeping", "counting", "swimming", "lying", "listening"),
        "A true story stays the same. One that changes with every telling is at least partly made up, and "
        "making things up is lying.",
        3,
    ),
    _choose(
        "Where do passengers wait for a train?",
        ("cockpit", "harbour", "runway", "sidewalk", "platform"),
        "Trains stop at stations. In a station, passengers stand beside the track, on the platform; the "
        "other places belong to planes, ships and streets.",
        4,
    ),
)


def _infer(premise: str, hypothesis: str, rationale: str, answer: str) -> Demonstration:
    return Demonstration(f"Premise: {premise}\nHypothesis: {hypothesis}", rationale, answer)


_NLI = (
    _infer(
        "Two cyclists in red jerseys ride up a steep road.",
        "People are riding bicycles.",
        "Cyclists are people who ride bicycles, and these two are riding.",
        "entailment",
    ),
    _infer(
        "A baker puts loaves of bread into an oven.",
        "The baker has worked since four in the morning.",
        "Bakers often begin early, but the premise does not say when this one began.",
        "neutral",
    ),
    _infer(
        "A woman reads a newspaper alone on a bench.",
        "The bench is empty.",
        "A bench on which a woman sits is not empty.",
        "contradiction",
    ),
    _infer(
        "The bridge, finished in 1932, was the longest of its country until 1958.",
        "The bridge was the longest of its country in 1940.",
        "1940 lies between 1932 and 1958, the years in which the bridge was the longest.",
        "entailment",
    ),
    _infer(
        "Marta Lind (born 1961) is a Swedish chemist who taught in Lund and in Turku.",
        "Marta Lind speaks Finnish.",
        "Turku is in Finland, but one can teach there in another language, and none is named.",
        "neutral",
    ),
    _infer(
        "All four members of the band are brothers from Leeds.",
        "The band's singer is a woman.",
        "If all members are brothers, then the singer, who is one of them, is a man.",
        "contradiction",
    ),
    _infer(
        "A dog leaps over a fallen tree while its owner watches.",
        "An animal is jumping.",
        "A dog is an animal, and to leap over a tree is to jump.",
        "entailment",
    ),
    _infer(
        "Children build a castle of sand near the water.",
        "The children are on holiday with their parents.",
        "Neither a holiday nor parents are mentioned; the children may live there.",
        "neutral",
    ),
    _infer(
        "The museum is closed on Mondays and opens at ten on all other days.",
        "The museum can be visited on Monday afternoon.",
        "On Mondays the museum is closed the whole day, so nobody can visit it in the afternoon.",
        "contradiction",
    ),
    _infer(
        "The novel was written in Spanish and translated into twelve languages, among them Dutch.",
        "Someone who reads Dutch but no Spanish can read the novel.",
        "There is a Dutch translation, and for that no Spanish is needed.",
        "entailment",
    ),
)

# Five results to choose from for each of these problems.
_RESULTS = (
    (400, 383, 417, 325, 359),
    (45, 38, 42, 47, 369),
    (9, 15, 36, 57, 60),
    (45, 7, 35, 55, 26),
    (77, 44, 56, 53, 88),
    (213, 37, 47, 43, 63),
    (12, 8, 15, 9, 72),
    (97, 47, 77, 117, 7),
    (1800, 30, 900, 450, 1200),
    (80, 192, 112, 235, 160),
)
_LETTER = tuple(
    Demonstration(
        _lettered(shown.question, LETTERS, [str(result) for result in results])[0],
        shown.rationale,
        LETTERS[results.index(int(evaluate(shown.answer) or 0))],
    )
    for shown, results in zip(_MATH, _RESULTS, strict=True)
)

_YES_NO = (
    Demonstration(
        "Could a giraffe stand upright in an ordinary living room?",
        "A grown giraffe is more than four metres high. An ordinary living room has less than three.",
        "no",
    ),
    Demonstration(
        "Would a vegetarian eat a tomato soup without cream?",
        "Vegetarians eat no meat. A tomato soup without cream is made of vegetables.",
        "yes",
    ),
    Demonstration(
        "Was the telephone in use when Rome burned under Nero?",
        "Nero ruled in the first century. The telephone was invented in the nineteenth.",
        "no",
    ),
    Demonstration(
        "Can one see the Eiffel Tower without leaving France?",
        "The Eiffel Tower stands in Paris. Paris is in France.",
        "yes",
    ),
    Demonstration(
        "Would ice cream survive an hour in a running dishwasher?",
        "Ice cream melts above the freezing point. A running dishwasher is filled with hot water.",
        "no",
    ),
    Demonstration(
        "Do more people fit into a double-decker bus than into a taxi?",
        "A taxi seats about four passengers. A double-decker bus seats more than sixty.",
        "yes",
    ),
)

_SHORTLY = "Think step by step, in a few short sentences, and end with"
MATH = Style(
    "asdiv",
    " The answer is {answer}.",
    f'Solve the problem. {_SHORTLY} "{{closing}}", where between the brackets stands one calculation with '
    "the numbers of the problem.",
    "(...)",
    _MATH,
)
CHOICE = Style(
    "cqa",
    " So the answer is {answer}.",
    f'Answer the question with one of the choices. {_SHORTLY} "{{closing}}" that names your choice.',
    "(x) ...",
    _CHOICE,
)
NLI = Style(
    "anli1",
    " So the answer is {answer}.",
    "Does the hypothesis follow from the premise (entailment), does the premise rule it out (contradiction), "
    f'or neither (neutral)? {_SHORTLY} "{{closing}}" with one of these three words.',
    "...",
    _NLI,
    ("", "Reasoning:"),
)
ESNLI = dataclasses.replace(NLI, parser="esnli", closing="\nAnswer: {answer}")
LETTER = dataclasses.replace(CHOICE, parser="aqua", placeholder="(X)", demonstrations=_LETTER)
BOOLEAN = Style(
    "strategyqa",
    " So the answer is {answer}.",
    f'Answer the question with yes or no. {_SHORTLY} "{{closing}}", yes or no.',
    "...",
    _YES_NO,
)
TEXT = Style(
    "text",
    " So the answer is {answer}.",
    f'Answer the question. {_SHORTLY} "{{closing}}" with the bare answer.',
    "...",
)
LABELS = dataclasses.replace(
    TEXT,
    instruction=f'Answer the question with one of these: {{labels}}. {_SHORTLY} "{{closing}}"',
)
