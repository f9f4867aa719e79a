"""Answers in texts: those that a question offers, and the one that a rationale arrives at."""

import re
from collections.abc import Sequence

from cot_jax.answers.arithmetic import evaluate

# What follows the last "=" is what a worked solution arrives at; a rationale without "=" arrives at its last
# number ("57 + 26 + 27 is 100.") or sum ("So they planted 10 * 45 seeds.").
_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_SUM = rf"(?:[-+(][-+(\s]{{0,9}})?{_NUMBER}(?:[)\s]*[-+*/][-+(\s]*{_NUMBER})*(?:\s*\))*"
_LAST_RESULT, _LAST_SUM = re.compile(rf"=\s*({_SUM})"), re.compile(rf"(?<![\w.])({_SUM})")
_LETTER = re.compile(r"\(([A-E])\)|\b(?:[Aa]nswer|[Oo]ption)\b[^\n.]{0,12}?\b([A-E])\b")
_CHOICE = re.compile(r"^\([a-z]\) (.+)$", re.MULTILINE)


def choices(question: str) -> tuple[str, ...]:
    """Returns the answers that a question lists, each on a line of its own behind `(a)`."""
    return tuple(_CHOICE.findall(question))


def final_answer(rationale: str, by_value: bool, candidates: Sequence[str] = ()) -> str | None:
    """Returns the answer that a rationale itself arrives at, or None where none can be read. [ours]

    Args:
      by_value: answers are equations; the answer is what the last `=` gives or, where there is none, the last
        number or sum. It is text that `arithmetic.evaluate` has a value for.
      candidates: else, the answers there can be; the answer is the one mentioned last, upper case or lower,
        as a whole word or its plural ("only hotels have .."); of two that begin at one place, the longer. A
        letter counts only where it is said to be one: "(B)", "option B", "the answer is B".
    """
    if by_value:
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", rationale).replace("$", "")
        for found in (_LAST_RESULT.findall(text), _LAST_SUM.findall(text)):
            for sum_ in reversed(found):
                # A bracket may belong to the sentence: "(12 + 4 = 16)".
                for answer in (sum_, sum_.strip("() ")):
                    if evaluate(answer) is not None:
                        return answer
        return None
    if not candidates:
        return None
    if set(candidates) <= set("ABCDE"):
        letters = ["".join(found) for found in _LETTER.findall(rationale)]
        return letters[-1] if letters else None
    known = {candidate.casefold(): candidate for candidate in sorted(candidates, key=len, reverse=True)}
    mention = rf"(?<!\w)({'|'.join(map(re.escape, known))})(?:e?s)?(?!\w)"
    mentioned = re.findall(mention, rationale.casefold())
    return known[mentioned[-1]] if mentioned else None
