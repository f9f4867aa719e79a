"""A reversible spelling of any text, programs above all, that T5's tokenizer reads and writes unchanged.

T5's SentencePiece model drops newlines, tabs, repeated and outer spaces, rewrites what Unicode calls
compatible (`½`), and has no `{ } < ^ ~ \\`, no backtick and few letters beyond ASCII; Transformers' decoding
then removes spaces before punctuation ("is 3 ." becomes "is 3."). Here each of them is spelled with
characters that are single pieces of T5's vocabulary and rare in code and English:

    •                newline
    »  «             four spaces, one space, wherever a plain space would be lost
    д л и ...        \\ { } < ^ ~ ` and tab, see `_MARKS`
    ®HEX;            any other character, including the marks, by its code point

A space between `•`, `»` or `«` and a word carries no information: with it T5 tokenizes whole words instead of
letters. The spelling depends on no vocabulary: a tokenizer trained on encoded texts learns the marks.
"""

import re

_NEWLINE, _SPACES, _SPACE, _ESCAPE = "•»«®"
_INDENT = 4
_MARKS = {"\\": "д", "{": "л", "}": "и", "<": "„", "^": "ț", "~": "ă", "`": "ş", "\t": "т"}
_SIGNS = {mark: sign for sign, mark in _MARKS.items()}
# Other characters that T5 has a piece for.
_LETTERS = "ÉÜßàáâäçèéêîóôöùûü€£°\u2013\u2014\u2018\u2019\u201c\u201d"  # dashes and quotation marks

# A space is lost in a run, at either end, beside a newline, and where Transformers tidies English up.
_TO_SPELL = re.compile(rf" {{2,}}|^ | $| (?=[\n.?!,']|n't)|(?<=\n) |[^ !-;=-\[\]_a-z|{_LETTERS}]")
_BEFORE_WORD = re.compile(rf"(?<=[{_NEWLINE}{_SPACES}{_SPACE}])(?=\w)")
_SPELLED = re.compile(rf"{_ESCAPE}([0-9a-f]{{1,6}});|([{_NEWLINE}{_SPACES}{_SPACE}]) ?|([{''.join(_SIGNS)}])")


def encode(text: str) -> str:
    """Returns `text` on one line, in characters that T5 keeps; `decode` restores any text."""
    return _BEFORE_WORD.sub(" ", _TO_SPELL.sub(_spell, text))


def decode(text: str) -> str:
    """Returns the text that `encode` spelled; never fails, whatever a student writes."""
    return _SPELLED.sub(_read, text)


def _spell(match: re.Match[str]) -> str:
    sign = match[0]
    if sign[0] == " ":
        return _SPACES * (len(sign) // _INDENT) + _SPACE * (len(sign) % _INDENT)
    if sign == "\n":
        return _NEWLINE
    return _MARKS.get(sign) or f"{_ESCAPE}{ord(sign):x};"


def _read(match: re.Match[str]) -> str:
    code, space, mark = match.groups()
    if code:
        return chr(int(code, 16)) if int(code, 16) < 0x110000 else match[0]
    if space:
        return {_NEWLINE: "\n", _SPACES: " " * _INDENT, _SPACE: " "}[space]
    return _SIGNS[mark]
