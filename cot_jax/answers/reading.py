"""Reads answers from texts: a question's choices, a rationale's conclusion, the number in an answer."""

import re
from collections.abc import Sequence

from cot_jax.answers.arithmetic import evaluate

# A worked solution concludes after its last "="; a rationale without "=" concludes with its last number
# ("57 + 26 + 27 is 100.") or sum ("So they planted 10 * 45 seeds.").
_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_SUM = rf"(?:[-+(][-+(\s]{{0,9}})?{_NUMBER}(?:[)\s]*[-+*/][-+(\s]*{_NUMBER})*(?:\s*\))*"
_LAST_RESULT, _LAST_SUM = re.compile(rf"=\s*({_SUM})"), re.compile(rf"(?<![\w.])({_SUM})")
# The text before an exponent and after a base. Markdown's bold type has no such spaces.
_BASE = re.compile(r"[\w)]( *)(?:\*\*|\^)\1[-+(]*$")
_EXPONENT = re.compile(r"( *)(?:\*\*|\^)\1[-+(.]*(?:\d|[A-Za-z]\b)")
_LETTER = re.compile(r"\(([A-E])\)|\b(?:[Aa]nswer|[Oo]ption)\b[^\n.]{0,12}?\b([A-E])\b")
_CHOICE = re.compile(r"^\([a-z]\) (.+)$", re.MULTILINE)
# An answer that is one number. No two parts of the pattern match the same character, so matching takes linear
# time. What follows may not continue the number: "5 * x", "5-7", "5 million" are not 5.
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
    """Returns the choices that a question lists, each on its own line after `(a)`."""
    return tuple(_CHOICE.findall(question))


def final_answer(rationale: str, by_value: bool, candidates: Sequence[str] = ()) -> str | None:
    """Returns the answer that a rationale itself concludes with, or None if none can be read. [ours]

    Args:
      by_value: answers are equations; the answer is what follows the last `=` or, without one, the last
        number or sum. It is text that `arithmetic.evaluate` has a value for.
      candidates: otherwise, the possible answers; the answer is the last one mentioned, in any case, as a
        whole word or its plural ("only hotels have .."); the longer of two that begin at one place. A letter
        counts only if it is marked as an answer: "(B)", "option B", "the answer is B".
    """
    if by_value:
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", rationale).replace("$", "")
        for pattern in (_LAST_RESULT, _LAST_SUM):
            for found in reversed(list(pattern.finditer(text))):
                # A bracket may belong to the sentence: "(12 + 4 = 16)".
                for answer in (found[1], found[1].strip("() ")):
                    if evaluate(answer) is not None:
                        # A part of a power, which has no value here, is not the conclusion.
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
    """Returns the number of an answer that is one number, without what people write around it, or None.

    Thousands separators, a currency, a unit or other words after it, "%", a final dot and all before "####"
    are dropped (as lm-evaluation-harness and DPO-ST do for GSM8K's answers, and units): "$1,234.50", "1234.5
    dollars a year", "12 km/h", "25%", "#### 18", "18." A percentage is the number before the sign. An answer
    with a second number ("3/4", "18 or 20", "2:30", "12,34") is None, as is one whose number continues in
    words ("5 million") or in a sum ("5 * x"). The result is text that `arithmetic.evaluate` has a value for.
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

    This is lm-evaluation-harness's "flexible-extract" of GSM8K, `(-?[$0-9.,]{2,})|(-?[0-9]+)`, so "10-7" ends
    in "-7" here too. Two rules are ours: signs without a digit ("..", "$,") are skipped, and the result is
    None if the last match is not a number ("1.2.3").
    """
    for found in reversed(_FLEXIBLE.findall(text)):
        if any(character.isdigit() for character in found):
            last = found.replace(",", "").replace("$", "").rstrip(".")
            return last if _PLAIN_NUMBER.fullmatch(last) else None
    return None
