"""The spelling of programs that T5's tokenizer leaves alone: any text comes back, through T5 as well."""

import json
import random
import re

import pytest

from cot_jax.text import tokenizer as tokenizers
from cot_jax.text.codec import decode, encode

# What a tokenizer, Unicode or Transformers' decoding does something to.
PARTS = [
    *"\n\t\r\v\f\0 {}<>^~\\`|•»«®длиțăşт„;af09▁½№²ﬁ…é\u0301ü\u2019\u2013€ \u2028\ud800😀漢\ufeff",
    "    ",
    "  ",
    "\n    ",
]
PARTS += [
    " n't",
    " .",
    " , ",
    " ' ",
    " 's",
    "</s>",
    "<extra_id_0>",
    "<pad>",
    "®a7;",
    "®110000;",
    "• x",
    "x",
    "is 3",
]


def random_texts(count):
    rng = random.Random(0)
    return ["".join(rng.choices(PARTS, k=rng.randrange(12))) for _ in range(count)]


@pytest.fixture(scope="module")
def t5(tokenizers_root):
    return tokenizers.load(tokenizers_root / "t5")


def published_programs(data_root):
    """A program in each style for a few hundred problems, and every one with a sign that T5 has not."""
    folder = data_root / "pot"
    programs = []
    for file in sorted(folder.rglob("*PoT*.json")) + sorted(folder.rglob("python_*.json")):
        text = file.read_text(encoding="utf-8")
        rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        for row in rows:
            found = (row.get("program") or row.get("answer_cot")) if isinstance(row, dict) else row
            programs += found if isinstance(found, list) else [found or ""]
    for file in sorted(folder.rglob("*shot.jsonl")):
        rows = [json.loads(line)["generated"] for line in file.read_text(encoding="utf-8").splitlines()]
        programs += ["".join(row) for row in rows]
    assert len(programs) > 25_000
    strange = [program for program in programs if re.search(r"[^\n -;=-\[\]_a-z|]", program)]
    return programs, [*programs[::40], *strange]


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("", ""),
        ("ans = 3 + 4", "ans = 3 + 4"),
        ("def f():\n    return 3", "def f():•» return 3"),
        ("a\n\n      b \n", "a••»«« b«•"),
        (" a  b.c ", "« a«« b.c«"),
        ("is it , or n't 3 ?", "is it«, or« n't 3«?"),
        ("{'a': x < 2 ^ ~3}\t\\n`", "л'a': x „ 2 ț ă3итдnş"),
        ("½ • </s>", "®bd; ®2022; „/s>"),
    ],
)
def test_spelling(text, spelled):
    assert encode(text) == spelled
    assert decode(spelled) == text


def test_any_text_comes_back():
    for text in random_texts(20_000):
        spelled = encode(text)
        assert decode(spelled) == text
        assert re.fullmatch(r"(?:\S+(?: \S+)*)?", spelled)
        assert "\u2028" not in spelled


def test_every_character_comes_back():
    text = "".join(map(chr, [*range(0x3100), *range(0xD7F0, 0x110000, 97)]))
    assert decode(encode(text)) == text


def test_any_text_comes_back_through_t5(t5):
    texts = random_texts(2_000)
    rows = t5.encode([encode(text) for text in texts])
    assert t5.unknown_rate(rows) == 0.0
    assert [decode(t5.decode(row)) for row in rows] == texts


def test_every_published_program_comes_back(data_root, t5):
    programs, some = published_programs(data_root)
    assert [decode(encode(program)) for program in programs] == programs
    rows = t5.encode([encode(program) for program in some])
    assert t5.unknown_rate(rows) == 0.0
    assert [decode(t5.decode(row)) for row in rows] == some
    bare = t5.encode(some)
    assert t5.unknown_rate(bare) > 0.0
    assert sum(t5.decode(row) == program for row, program in zip(bare, some, strict=True)) < 0.01 * len(some)
    assert sum(map(len, rows)) < 1.2 * sum(map(len, bare))


def test_an_indentation_is_one_token(t5):
    (row,) = t5.encode([encode("x:\n    y = 3")])
    assert t5.hf.convert_ids_to_tokens(row) == ["▁", "x", ":", "•", "»", "▁", "y", "▁=", "▁3"]


@pytest.mark.parametrize(
    "text", ["®", "®;", "®ffffff;", "®110000;", "®a", "®a7", "®1234567;", "«»•", "• ", "ли"]
)
def test_what_no_encoding_gives_is_read_all_the_same(text):
    assert isinstance(decode(text), str)


def test_a_space_after_a_mark_says_nothing():
    assert decode("a•b") == decode("a• b") == "a\nb"
    assert decode("•  b") == "\n b"


def test_an_own_tokenizer_learns_the_marks(tmp_path):
    texts = [encode(f"def f{i}():\n    ans = {{'a': {i}}}\n    return ans") for i in range(50)]
    trained = tokenizers.train(texts, 200, tmp_path)
    rows = trained.encode(texts)
    assert trained.unknown_rate(rows) == 0.0
    assert [trained.decode(row) for row in rows] == texts
