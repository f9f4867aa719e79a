"""Fast tokenizers of Transformers, downloaded, on disk or trained here."""

import collections
import dataclasses
import io
import json
import re
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from cot_jax.errors import UserError, first_line
from cot_jax.files import read_json
from cot_jax.imports import without_torch

with without_torch():
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Tokenizer

_EXTRA_IDS = range(2**16)  # Transformers makes a token for each
_SPACE = "▁"  # stands for a space in SentencePiece's pieces
_REPOSITORY = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*")  # of the Hub: NAME or OWNER/NAME
# A text on which tokenizers of one vocabulary differ.
_SAMPLE = "Tom's 2 cats ate 31.5 kg - naïvely,\n  THE end: 1/2 * (x = 7) ?"

# For templates that otherwise put today's date into a prompt, or let the model think before it writes.
TEMPLATE_OPTIONS: dict[str, Any] = {"date_string": "26 Jul 2024", "enable_thinking": False}


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back, with a tokenizer of Transformers."""

    hf: PreTrainedTokenizerFast

    @property
    def size(self) -> int:
        """Number of ids, including special ones. T5 has 32,100; its embedding has a few more rows."""
        return len(self.hf)

    @property
    def eos_id(self) -> int:
        return self.hf.eos_token_id

    @property
    def eos_token(self) -> str:
        """The text of the end token."""
        return self.hf.eos_token

    @property
    def unk_id(self) -> int | None:
        return self.hf.unk_token_id

    @property
    def front_ids(self) -> list[int]:
        """The ids that the tokenizer puts before any text: a start token, or nothing."""
        text = "a"
        with_special, (alone,) = self.hf(text)["input_ids"], self.encode([text])
        begins = range(len(with_special) - len(alone) + 1)
        fronts = (with_special[:n] for n in begins if with_special[n : n + len(alone)] == alone)
        return next(fronts, [])

    @property
    def has_chat(self) -> bool:
        """Whether there is a chat template."""
        return bool(self.hf.chat_template)

    def chat(self, turns: Sequence[Mapping[str, str]], *, answers: bool) -> str:
        """Returns turns, each a role and its content, in the words of the chat template.

        Args:
          answers: whether the head of the assistant's next turn follows.

        Raises:
          UserError: the template fails.
        """
        conversation = [dict(turn) for turn in turns]
        try:
            return str(
                self.hf.apply_chat_template(
                    conversation, add_generation_prompt=answers, tokenize=False, **TEMPLATE_OPTIONS
                )
            )
        except Exception as error:  # a template is a program: anything can fail
            raise UserError(
                f"tokenizer {self.hf.name_or_path}: its chat template fails ({first_line(error)}); fix it, "
                "or use plain prompts with --config.data.chat=plain"
            ) from error

    def encode(self, texts: Sequence[str], *, plain: bool = False) -> list[list[int]]:
        """Returns each text's ids. No special tokens are added.

        Special tokens that are written out in a text count as such, unless `plain`.
        """
        # What `self.hf(texts)` does, which then spends a third of its time on what nobody asked for.
        backend = self.hf.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = plain or self.hf.split_special_tokens
        return [found.ids for found in backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, tidy: bool | None = None) -> str:
        """Returns the text of `ids`, without special tokens and unknown ids.

        Args:
          tidy: whether spaces before English punctuation are removed; None: the tokenizer decides.
        """
        return str(self.hf.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=tidy))

    def unknown_rate(self, ids: Iterable[Sequence[int]]) -> float:
        """Returns the share of unknown tokens, which a student can neither read nor write."""
        rows, unknown = [*ids], self.unk_id
        return sum(row.count(unknown) for row in rows) / max(sum(map(len, rows)), 1)

    def fingerprint(self) -> int:
        """Returns a checksum of all tokens in the order of their ids, and of the ids of a sample."""
        tokens = self.hf.convert_ids_to_tokens(list(range(self.size)))
        return zlib.crc32(json.dumps([tokens, self.encode([_SAMPLE])]).encode())

    def save(self, directory: str | Path) -> None:
        """Writes the files that `load` and Transformers' AutoTokenizer read.

        Raises:
          OSError: they cannot be written.
        """
        try:
            self.hf.save_pretrained(directory)
        except Exception as error:  # the Rust side raises a bare Exception
            raise OSError(str(error)) from None


def load(path_or_id: str | Path) -> Tokenizer:
    """Returns the tokenizer in a local directory or in a repository of the Hugging Face Hub.

    Raises:
      UserError: it is missing, out of reach or not a fast tokenizer.
    """
    if (file := Path(path_or_id) / "tokenizer_config.json").exists():
        read_json(file, {"extra_ids?": _EXTRA_IDS})
    fix = "give a directory with tokenizer.json and tokenizer_config.json, or a repository id in reach"
    if not (Path(path_or_id).exists() or _REPOSITORY.fullmatch(str(path_or_id))):
        raise UserError(f"tokenizer {path_or_id}: no such directory; {fix}")
    try:
        hf = AutoTokenizer.from_pretrained(path_or_id, trust_remote_code=False)
    # The Hub, Transformers and tokenizers raise a dozen types, including a bare Exception.
    except Exception as error:
        raise UserError(f"tokenizer {path_or_id}: cannot be loaded ({first_line(error)}); {fix}") from error
    if not isinstance(hf, PreTrainedTokenizerFast):
        raise UserError(f"tokenizer {path_or_id}: {type(hf).__name__} is not a fast tokenizer; use another")
    return Tokenizer(hf)


def train(texts: Iterable[str], vocab_size: int, directory: str | Path) -> Tokenizer:
    """Trains a SentencePiece unigram model and returns it as a T5 tokenizer, saved in `directory`.

    The ids begin as T5's do: padding 0, end 1, unknown 2. The same texts give the same tokenizer.

    Args:
      vocab_size: maximum number of ids; there are fewer if the texts have few words.

    Raises:
      UserError: `vocab_size` is below the number of characters in the texts.
    """
    model = _train_sentencepiece(texts, vocab_size)
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(len(model))]
    Tokenizer(T5Tokenizer(vocab=pieces, extra_ids=0)).save(directory)
    return load(directory)


def _train_sentencepiece(texts: Iterable[str], vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    """Trains with words, numbers and punctuation marks as candidate pieces.

    SentencePiece's own candidates are substrings that two *different* words share. They miss most words of a
    small vocabulary: word problems become 1.5 times as long. With whole numbers as candidates, a number that
    a label copies is one token; rare numbers that do not fit are split into digits.
    """
    lines = [" ".join(text.split()) for text in texts]
    words = collections.Counter(_SPACE + word for line in lines for word in line.split())
    candidates: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        for piece in [*re.findall(rf"{_SPACE}?(?:[^\W_]+|.)", word), *word]:
            candidates[piece] += count
    characters = {character for word in words for character in word}
    smallest = 3 + len(characters)  # padding, end and unknown
    if vocab_size < smallest:
        raise UserError(f"vocab_size={vocab_size}: the characters of the texts alone need {smallest}")
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".tsv") as file:
        file.writelines(f"{piece}\t{count}\n" for piece, count in sorted(candidates.items()))
        file.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            seed_sentencepieces_file=file.name,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,  # more threads would sum in another order
            minloglevel=2,
        )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
