"""One answer out of many: self-consistency.

Wang et al. 2023, "Self-Consistency Improves Chain of Thought Reasoning in Language Models", section 2: the
answer that most of the sampled reasonings arrive at.
"""

from collections.abc import Sequence
from typing import NamedTuple

from cot_jax.answers.arithmetic import evaluate
from cot_jax.answers.equality import is_correct
from cot_jax.answers.reading import number


class Ballots(NamedTuple):
    """What one path answers to N questions, K times each: (N * K,), those of a question together."""

    answers: Sequence[str]
    log_probs: Sequence[float]


class Vote(NamedTuple):
    """An answer and its share of all votes, those of no answer among them."""

    answer: str
    share: float


def vote(answers: Sequence[str], log_probs: Sequence[float], by_value: bool) -> Vote:
    """Returns the answer given most often, in its most probable form.

    Of equally frequent answers the one whose log-probabilities have the highest sum wins, then the first one.
    Blank text, and by value text without a value, is no answer: it wins only where there is nothing else.

    Args:
      answers: as written, at least one.
      log_probs: of the answers.
      by_value: `( 2 + 3 )` and `5` are one answer; otherwise equal texts are (`equality.is_correct`). A
        number as people write it ("$1,080.") votes, and is elected, as that number (`reading.number`).
    """
    if by_value:
        answers = [number(text) or text for text in answers]
    said = [n for n, text in enumerate(answers) if _says_something(text, by_value)]
    if not said:
        said, by_value = list(range(len(answers))), False
    alike: list[list[int]] = []
    for n in said:
        for group in alike:
            if is_correct(answers[n], answers[group[0]], by_value):
                group.append(n)
                break
        else:
            alike.append([n])
    most = max(alike, key=lambda group: (len(group), sum(log_probs[n] for n in group)))
    return Vote(answers[max(most, key=lambda n: log_probs[n])], len(most) / len(answers))


def _says_something(text: str, by_value: bool) -> bool:
    return evaluate(text) is not None if by_value else bool(text.strip())


def elect(paths: Sequence[Ballots], questions: int, by_value: bool) -> list[list[str]]:
    """Returns, for k = 1, ..., K, the answers elected by the first k ballots of every path."""
    each = len(paths[0].answers) // questions
    elected = []
    for k in range(1, each + 1):
        chosen = []
        for start in range(0, questions * each, each):
            first = slice(start, start + k)
            answers = [answer for path in paths for answer in path.answers[first]]
            log_probs = [value for path in paths for value in path.log_probs[first]]
            chosen.append(vote(answers, log_probs, by_value).answer)
        elected.append(chosen)
    return elected
