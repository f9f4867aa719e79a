"""Answers in texts: those that a question offers, the one that a rationale arrives at, the number one is."""

import re
from collections.abc import Sequence

from cot_jax.answers.arithmetic import evaluate

# What follows the last "=" is what a worked solution arrives at; a rationale without "=" arrives at its last
# number ("57 + 26 + 27 is 100.") or sum ("So they planted 10 * 45 seeds.").
_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_SUM = rf"(?:[-+(][-+(\s]{{0,9}})?{_NUMBER}(?:[)\s]*[-+*/][-+(\s]*{_NUMBER})*(?:\s*\))*"
_LAST_RESULT, _LAST_SUM = re.compile(rf"=\s*({_SUM})"), re.compile(rf"(?<![\w.])({_SUM})")
# What stands before an exponent and behind a base; bold type in Markdown has no such spaces.
_BASE = re.compile(r"[\w)]( *)(?:\*\*|\^)\1[-+(]*$")
_EXPONENT = re.compile(r"( *)(?:\*\*|\^)\1[-+(.]*(?:\d|[A-Za-z]\b)")
_LETTER = re.compile(r"\(([A-E])\)|\b(?:[Aa]nswer|[Oo]ption)\b[^\n.]{0,12}?\b([A-E])\b")
_CHOICE = re.compile(r"^\([a-z]\) (.+)$", re.MULTILINE)
# An answer that is one number. No two parts of the pattern can take the same character, so that it takes time
# in proportion to the text. What follows may not continue the number: "5 * x", "5-7", "5 million" are not 5.
_CURRENCY = r"(?:(?:US|A|C)?[$\u20ac\u00a3\u00a5\u20b9]|(?:Rs|INR|USD|EUR|GBP)\b\.?)"
_ONE_NUMBER = re.compile(
    rf"(?P<sign>[-+]?) ?(?:{_CURRENCY} ?)?(?P<late_sign>-?)"
    r"(?:0+(?=\d))?(?P<number>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
    r"(?! ?(?:hundred|thousand|million|billion|trillion|k)\b)"
    r"(?P<unit>(?:[^\d=+*^<>/-]|(?<=[a-z])[-/](?=[a-z]))*)",
    re.ASCII | re.IGNORECASE,
)
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_PLAIN_NUMBER = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)", re.ASCII)


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
        for pattern in (_LAST_RESULT, _LAST_SUM):
            for found in reversed(list(pattern.finditer(text))):
                # A bracket may belong to the sentence: "(12 + 4 = 16)".
                for answer in (found[1], found[1].strip("() ")):
                    if evaluate(answer) is not None:
                        # Part of a power, which has no value here, is not what the text arrives at.
                        return None if _in_power(text, *found.span(1)) else answer
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


def _in_power(text: str, start: int, end: int) -> bool:
    return bool(_BASE.search(text[max(start - 20, 0) : start]) or _EXPONENT.match(text[end:]))


def number(answer: str) -> str | None:
    """Returns the one number that an answer is, without what people write around it, or None.

    Thousands separators, a currency, a unit or other words behind it, "%", a final dot and all before "####"
    are left out (what lm-evaluation-harness and DPO-ST leave out of GSM8K's answers, and units): "$1,234.50",
    "1234.5 dollars a year", "12 km/h", "25%", "#### 18", "18." A percentage is the number before the sign. An
    answer with a second number ("3/4", "18 or 20", "2:30", "12,34") is none, nor is one whose number goes on
    in words ("5 million") or in a sum ("5 * x"). It is text that `arithmetic.evaluate` has a value for.
    """
    said = answer.rpartition("####")[2].strip().replace("\u2212", "-")
    found = _ONE_NUMBER.fullmatch(said)
    # "5\u00bd" and "5\u00b2" are not 5.
    if found is None or found["unit"].lstrip()[:1].isnumeric() or (found["sign"] and found["late_sign"]):
        return None
    sign = (found["sign"] or found["late_sign"]).strip("+")
    text = sign + found["number"].replace(",", "").rstrip(".")
    return text if evaluate(text) is not None else None


def last_number(text: str) -> str | None:
    """Returns the last number in a text, without separators, "$" and final dot, or None.

    It is what lm-evaluation-harness's "flexible-extract" of GSM8K takes, `(-?[$0-9.,]{2,})|(-?[0-9]+)`, so
    that "10-7" ends in "-7" here too. Two things are ours: signs without a digit ("..", "$,") are passed
    over, and where the last one is not a number ("1.2.3") there is none.
    """
    for found in reversed(_FLEXIBLE.findall(text)):
        if any(character.isdigit() for character in found):
            last = found.replace(",", "").replace("$", "").rstrip(".")
            return last if _PLAIN_NUMBER.fullmatch(last) else None
    return None
