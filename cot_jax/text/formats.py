"""Formats: how questions and targets become token ids, and what a student writes becomes text again.

Each family of students reads one format. Only the format knows what joins the parts of a question, what ends
an input or a target, and what a target's ids stand for.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from cot_jax.errors import UserError
from cot_jax.files import read_json, write_json
from cot_jax.text import codec, tokenizer
from cot_jax.text.tokenizer import Tokenizer

_FILE = "format.json"


class Encoded(NamedTuple):
    """Token ids of some texts.

    Attributes:
      ids: of each text; empty where there is no text.
      report: what was counted, in words.
    """

    ids: list[list[int]]
    report: str


class Format(Protocol):
    """Text to token ids and back.

    Attributes:
      tokenizer: of the inputs.
      spelled: names of the views whose targets are spelled by `codec`.
    """

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def spelled(self) -> tuple[str, ...]: ...

    def fit(self, targets: Mapping[str, Sequence[str]], exact: Collection[str]) -> "Format":
        """Returns the format for views that learn these targets.

        Args:
          targets: by the view's name.
          exact: views whose targets must be decoded to the letter; others may lose white space.
        """

    def inputs(self, prefix: str, questions: Sequence[tuple[str, ...] | None], most: int) -> Encoded:
        """Returns at most `most` ids of each question, which has one part or several, behind the prefix."""

    def targets(self, view: str, texts: Sequence[str | None], most: int) -> Encoded:
        """Returns at most `most` ids of each target of a view."""

    def decode(self, view: str, ids: Sequence[int]) -> str:
        """Returns the text of a target's ids; ids that stand for nothing are left out."""

    def save(self, directory: Path) -> None:
        """Writes what `load` reads.

        Raises:
          OSError: it cannot be written.
        """


@dataclasses.dataclass(frozen=True)
class Seq2Seq:
    """Inputs and targets of an encoder-decoder: a text, then the end token (Raffel et al. 2020).

    The text of the end token joins the parts of a question, `premise</s>hypothesis`, as in the released code
    of Hsieh et al. 2023. A text that is cut keeps its end token.
    """

    tokenizer: Tokenizer
    spelled: tuple[str, ...] = ()

    def fit(self, targets: Mapping[str, Sequence[str]], exact: Collection[str]) -> "Seq2Seq":
        lost = [view for view, texts in targets.items() if self._loses(texts, view in exact)]
        return dataclasses.replace(self, spelled=tuple(lost))

    def inputs(self, prefix: str, questions: Sequence[tuple[str, ...] | None], most: int) -> Encoded:
        end = self.tokenizer.eos_token
        texts = [None if parts is None else prefix + end.join(parts) for parts in questions]
        return self._encode(texts, most)

    def targets(self, view: str, texts: Sequence[str | None], most: int) -> Encoded:
        if view not in self.spelled:
            return self._encode(texts, most)
        ids, report = self._encode([None if text is None else codec.encode(text) for text in texts], most)
        return Encoded(ids, f"{report} (spelled by the codec)")

    def decode(self, view: str, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(ids)
        return codec.decode(text) if view in self.spelled else text

    def save(self, directory: Path) -> None:
        self.tokenizer.save(directory)
        write_json(directory / _FILE, {"spelled": self.spelled})

    def _loses(self, texts: Sequence[str], exact: bool) -> bool:
        """Whether the tokenizer lacks tokens for the texts or, if `exact`, decodes them differently."""
        rows = self.tokenizer.encode(texts)
        if self.tokenizer.unknown_rate(rows):
            return True
        return exact and any(
            self.tokenizer.decode(row) != text for row, text in zip(rows, texts, strict=True)
        )

    def _encode(self, texts: Sequence[str | None], most: int) -> Encoded:
        present = [text for text in texts if text is not None]
        rows = self.tokenizer.encode(present)
        cut = sum(len(row) >= most for row in rows)
        ended = [[*row[: most - 1], self.tokenizer.eos_id] for row in rows]
        lengths = [len(row) for row in ended]
        following = iter(ended)
        return Encoded(
            [next(following) if text is not None else [] for text in texts],
            f"{len(present)} texts, {sum(lengths) / max(len(lengths), 1):.1f} tokens on average, "
            f"{max(lengths, default=0)} at most, {cut} cut at {most}, "
            f"{100 * self.tokenizer.unknown_rate(ended):.3f} % unknown tokens",
        )


def load(path_or_id: str | Path) -> Seq2Seq:
    """Returns the format in a directory that `save` wrote, or of a tokenizer's directory or Hub repository.

    Raises:
      UserError: there is no tokenizer, it lacks a token that the format needs, or a file is malformed.
    """
    loaded = tokenizer.load(path_or_id)
    for role in ("pad_token", "eos_token"):
        if getattr(loaded.hf, role) is None:
            raise UserError(f"tokenizer {path_or_id}: no {role}; name it in its tokenizer_config.json")
    file = Path(path_or_id) / _FILE
    if not file.is_file():
        return Seq2Seq(loaded)
    match read_json(file):
        case {"spelled": [*spelled]}:
            return Seq2Seq(loaded, tuple(map(str, spelled)))
    raise UserError(f'{file}: "spelled" must be a list of views; take another copy')


def train(texts: Iterable[str], vocab_size: int, directory: str | Path) -> Seq2Seq:
    """Returns the format of a tokenizer that is trained on `texts` (`tokenizer.train`)."""
    return Seq2Seq(tokenizer.train(texts, vocab_size, directory))
