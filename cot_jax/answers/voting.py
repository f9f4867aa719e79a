"""Self-consistency: one answer out of many samples.

Wang et al. 2023, "Self-Consistency Improves Chain of Thought Reasoning in Language Models", section 2: the
most frequent answer of the sampled rationales.
"""

from collections.abc import Sequence
from typing import NamedTuple

from cot_jax.answers.arithmetic import evaluate
from cot_jax.answers.equality import is_correct
from cot_jax.answers.reading import number


class Vote(NamedTuple):
    """An answer and its share of all votes, including empty ones."""

    answer: str
    share: float


def vote(answers: Sequence[str], log_probs: Sequence[float], by_value: bool) -> Vote:
    """Returns the most frequent answer, in its most probable form.

    Ties go to the highest sum of log-probabilities, then to the first answer. Blank text and, by value, text
    without a value are not answers: they win only if there is nothing else.

    Args:
      answers: as written, at least one.
      log_probs: log-probabilities of the answers.
      by_value: `( 2 + 3 )` and `5` are one answer; otherwise only equal texts are (`equality.is_correct`). A
        number as people write it ("$1,080.") counts and is returned as that number (`reading.number`).
    """
    if by_value:
        answers = [number(text) or text for text in answers]
    said = [n for n, text in enumerate(answers) if (evaluate(text) is not None if by_value else text.strip())]
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


# One path's K answers to each of N questions, those of a question together, and their log-probabilities.
Ballots = tuple[Sequence[str], Sequence[float]]


def elect(paths: Sequence[Ballots], questions: int, by_value: bool) -> list[list[str]]:
    """Returns the answers elected by the first k ballots of every path, for k = 1, ..., K."""
    each = len(paths[0][0]) // questions
    elected = []
    for k in range(1, each + 1):
        chosen = []
        for start in range(0, questions * each, each):
            first = slice(start, start + k)
            answers = [answer for given, _ in paths for answer in given[first]]
            log_probs = [value for _, values in paths for value in values[first]]
            chosen.append(vote(answers, log_probs, by_value).answer)
        elected.append(chosen)
    return elected
