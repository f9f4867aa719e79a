"""Formats: how questions and targets become token ids, and how ids become text again.

Each family of students reads one format. Only the format knows what joins the parts of a question, what ends
an input or a target, and what the ids of a target mean.
"""

import abc
import collections
import dataclasses
import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from cot_jax.batch import Texts
from cot_jax.errors import UserError
from cot_jax.files import Shape, misfit, read_json, write_json
from cot_jax.text import codec, tokenizer
from cot_jax.text.tokenizer import Tokenizer

_FILE = "format.json"
_SAVED: Shape = {"spelled": [str], "kind?": str, "chat?": bool}
_CLASSES: Shape = {"labels": [str], "parts": range(1, 1000), "multiple_choice": bool}
_SPELLED = " (spelled by the codec)"
_NO_LIMIT = 2**30

# What plain prompts put after a question, and between examples.
_ASK, _BETWEEN = "\nAnswer:", "\n\n"
_BLANK = re.compile("\n{2,}")
# Questions with nothing in common: what their prompts share, all prompts share. Digits and marks may merge
# with their neighbours, so only the first two, which are words, show what follows a word.
_QUESTIONS = (("a",), ("B",), ("0",), ('"',))

_Row = TypeVar("_Row", str, list[int])

# The parts of a question, and its target.
Shot = tuple[tuple[str, ...], str]


class Encoded(NamedTuple):
    """Token ids of some texts.

    Attributes:
      ids: of each text, without the prefix.
      report: counts, in words.
      prefix: ids that all texts begin with.
    """

    ids: list[list[int]]
    report: str
    prefix: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Format(abc.ABC):
    """Text to token ids and back.

    The defaults encode a question and its targets separately and support neither shots nor the likelihood of
    a continuation.

    Attributes:
      spelled: views whose targets are spelled by `codec`.
    """

    tokenizer: Tokenizer
    spelled: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    reader: ClassVar[str]  # who reads the format, for errors
    needs: ClassVar[tuple[str, ...]]  # special tokens that the tokenizer must have
    words: ClassVar[tuple[str, ...]] = ()  # texts that the format adds, to train a tokenizer on

    @property
    def texts(self) -> Texts:
        """What a student must know about the texts."""
        return Texts(self.tokenizer.size, self.tokenizer.hf.pad_token_id, self.tokenizer.eos_id)

    def fit(self, targets: Mapping[str, Sequence[str]], exact: Collection[str]) -> Self:
        """Returns the format for views with these targets: it spells those that it would otherwise lose.

        Args:
          targets: by the view's name.
          exact: views whose targets must decode exactly; others may lose white space.
        """
        plain, lost = dataclasses.replace(self, spelled=()), []
        for view, texts in targets.items():
            rows = plain.targets(view, texts, _NO_LIMIT).ids
            pairs = zip(rows, texts, strict=True)
            if plain.tokenizer.unknown_rate(rows) or (
                view in exact and any(plain.decode(view, row) != text for row, text in pairs)
            ):
                lost.append(view)
        return dataclasses.replace(self, spelled=tuple(lost))

    def with_shots(self, shots: Sequence[Shot]) -> Self:
        """Returns the format that shows these examples before every question. They are not saved.

        Raises:
          UserError: the format does not support examples.
        """
        if shots:
            raise UserError(f"{len(shots)} shots: {self.reader} reads the question only; use --shots=0")
        return self

    def pairs(
        self,
        view: str,
        prefix: str,
        questions: Sequence[tuple[str, ...]],
        targets: Sequence[Sequence[str]],
        most_input: int,
        most_target: int,
    ) -> tuple[Encoded, Encoded]:
        """Returns the inputs of examples in a view, and their targets, one or more each, in one list.

        Args:
          view: its name.
          prefix: put before each question.
          most_input, most_target: maximum number of ids.

        Raises:
          UserError: `most_input` has no room for a question.
        """
        texts = [text for its in targets for text in its]
        return self.inputs(prefix, questions, most_input), self.targets(view, texts, most_target)

    @abc.abstractmethod
    def inputs(self, prefix: str, questions: Sequence[tuple[str, ...]], most: int) -> Encoded:
        """Returns at most `most` ids of each question, of one or several parts, after the prefix.

        Raises:
          UserError: `most` has no room for a question.
        """

    @abc.abstractmethod
    def targets(self, view: str, texts: Sequence[str], most: int) -> Encoded:
        """Returns at most `most` ids of each text as a target of a view, whatever the question."""

    def continued(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Returns the ids of contexts and their continuations, without prompt or end token, uncut.

        Both are tokenised together. The continuation starts where the context alone ends and includes white
        space at that end, as in `_encode_pair` of lm-evaluation-harness.

        Raises:
          UserError: students of the format do not continue a text.
        """
        raise UserError(f"the student is {self.reader}: it has no likelihood of what continues a text")

    @abc.abstractmethod
    def decode(self, view: str, ids: Sequence[int]) -> str:
        """Returns the text of a target's ids; ids without meaning are dropped."""

    @abc.abstractmethod
    def sample(self, view: str, prefix: str, hf_class: str) -> str:
        """Returns a program for a model card that asks an exported student a question in a view.

        It needs PyTorch and Transformers' `hf_class`, runs in the export's directory with the text `question`
        defined, and prints the answer as `decode` returns it.
        """

    def save(self, directory: Path) -> None:
        """Writes the files that `load` reads.

        Raises:
          OSError: they cannot be written.
        """
        self.tokenizer.save(directory)
        write_json(directory / _FILE, self._saved() | {"spelled": self.spelled})

    @abc.abstractmethod
    def _saved(self) -> dict[str, Any]:
        """The kind, and what `load` cannot find in the tokenizer."""

    def _spell(self, view: str, text: str) -> str:
        return codec.encode(text) if view in self.spelled else text

    def _read(self, view: str, text: str) -> str:
        return codec.decode(text) if view in self.spelled else text

    def _targets(self, view: str, rows: Sequence[list[int]], most: int) -> Encoded:
        """Targets of a view from their ids."""
        encoded = _ended(self.tokenizer, rows, most)
        return encoded._replace(report=encoded.report + _SPELLED) if view in self.spelled else encoded


@dataclasses.dataclass(frozen=True)
class Seq2Seq(Format):
    """Inputs and targets of an encoder-decoder: a text and its end token (Raffel et al. 2020).

    The end token also joins the parts of a question, `premise</s>hypothesis`, as in the released code of
    Hsieh et al. 2023. A text that is cut keeps its end token.
    """

    reader: ClassVar[str] = "an encoder-decoder"
    needs: ClassVar[tuple[str, ...]] = ("pad_token", "eos_token")

    def inputs(self, prefix: str, questions: Sequence[tuple[str, ...]], most: int) -> Encoded:
        texts = [prefix + self.tokenizer.eos_token.join(parts) for parts in questions]
        return _ended(self.tokenizer, self.tokenizer.encode(texts), most)

    def targets(self, view: str, texts: Sequence[str], most: int) -> Encoded:
        rows = self.tokenizer.encode([self._spell(view, text) for text in texts])
        return self._targets(view, rows, most)

    def decode(self, view: str, ids: Sequence[int]) -> str:
        return self._read(view, self.tokenizer.decode(ids))

    def sample(self, view: str, prefix: str, hf_class: str) -> str:
        asking = (
            f'inputs = tokenizer({_asked(prefix)}, return_tensors="pt")\n'
            "written = tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True)\n"
        )
        return _program(hf_class, asking, spelled=view in self.spelled)

    def _saved(self) -> dict[str, Any]:
        return {"kind": "seq2seq"}


@dataclasses.dataclass(frozen=True)
class Causal(Format):
    """Prompts and completions of a decoder, which continues where the prompt ends.

    A plain prompt is the question, one part per line, then "Answer:" on its own line. In a chat the question
    is the user's turn, written by the tokenizer's template. The completion is a space, or what the template
    puts there, the target and the end token.

    Prompt and completion are tokenised together, so a student learns the tokens of running text. If the
    tokenizer merges across the seam, the prompt ends a token earlier. [as the released code of DPO-ST]

    Attributes:
      chat: whether prompts are chats.
      shots: examples shown before every question: as earlier turns of a chat, or separated by blank lines.
    """

    chat: bool
    shots: tuple[Shot, ...] = ()

    reader: ClassVar[str] = "a decoder"
    needs: ClassVar[tuple[str, ...]] = ("eos_token",)
    words: ClassVar[tuple[str, ...]] = (_ASK.strip(),)

    def with_shots(self, shots: Sequence[Shot]) -> Self:
        return dataclasses.replace(self, shots=tuple(shots))

    def pairs(
        self,
        view: str,
        prefix: str,
        questions: Sequence[tuple[str, ...]],
        targets: Sequence[Sequence[str]],
        most_input: int,
        most_target: int,
    ) -> tuple[Encoded, Encoded]:
        texts = []
        for parts, its in zip(questions, targets, strict=True):
            prompt = self._prompt(prefix, parts)
            texts += [prompt, *(prompt + self._completion(view, text) for text in its)]
        encoded = iter(self._encode(texts))
        prompts: list[_Prompt] = []
        completions: list[list[int]] = []
        for its in targets:
            alone, *joined = (next(encoded) for _ in range(1 + len(its)))
            seam = len(_common([alone, *joined]))
            prompts.append(_Prompt(alone[:seam], len(alone) - seam))
            completions += [row[seam:] for row in joined]
        return self._inputs(prefix, prompts, most_input), self._targets(view, completions, most_target)

    def inputs(self, prefix: str, questions: Sequence[tuple[str, ...]], most: int) -> Encoded:
        rows = self._encode([self._prompt(prefix, parts) for parts in questions])
        return self._inputs(prefix, [_Prompt(row) for row in rows], most)

    def targets(self, view: str, texts: Sequence[str], most: int) -> Encoded:
        before, ids = self._before
        rows = self.tokenizer.encode([before + self._completion(view, text) for text in texts])
        return self._targets(view, [row[len(_common([ids, row])) :] for row in rows], most)

    def continued(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        front = self.tokenizer.front_ids
        alone = self.tokenizer.encode([context.rstrip() for context in contexts])
        whole = self.tokenizer.encode(list(map("".join, zip(contexts, continuations, strict=True))))
        after = [ids[len(before) :] for before, ids in zip(alone, whole, strict=True)]
        return [[*front, *ids] for ids in alone], after

    def decode(self, view: str, ids: Sequence[int]) -> str:
        # Some tokenizers drop a leading space; they keep it after other text.
        _, before = self._before
        ids = list(ids)
        if self.tokenizer.eos_id in ids:
            ids = ids[: ids.index(self.tokenizer.eos_id)]
        decode = functools.partial(self.tokenizer.decode, tidy=False)
        text = decode([*before, *ids]).removeprefix(decode(before)).removeprefix(self._lead)
        if self.shots and not self.chat:
            # A model that was not taught to end continues with an example of its own.
            text = text.partition(_BETWEEN)[0]
        return self._read(view, text)

    def sample(self, view: str, prefix: str, hf_class: str) -> str:
        asking = f"prompt = {_asked(prefix)} + {_ASK!r}\n"
        if self.chat:
            options = "".join(f", {name}={value!r}" for name, value in tokenizer.TEMPLATE_OPTIONS.items())
            asking = (
                f'turns = [{{"role": "user", "content": {_asked(prefix)}}}]\n'
                "prompt = tokenizer.apply_chat_template(\n"
                f"    turns, add_generation_prompt=True, tokenize=False{options}\n"
                ")\n"
            )
        ids = "tokenizer.encode(prompt, add_special_tokens=False)"
        if front := self._front:
            ids = f"[{', '.join(map(str, front))}, *{ids}]"
        asking += (
            f"ids = torch.tensor([{ids}])\n"
            "new = model.generate(ids, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :]\n"
            "written = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)\n"
        )
        if self._lead:
            asking += f"written = written.removeprefix({self._lead!r})\n"
        return _program(hf_class, asking, "import torch\n", spelled=view in self.spelled)

    def _saved(self) -> dict[str, Any]:
        return {"kind": "causal", "chat": self.chat}

    def _prompt(self, prefix: str, parts: Sequence[str]) -> str:
        question = prefix + "\n".join(parts)
        shots = [(prefix + "\n".join(shown), target) for shown, target in self.shots]
        if not self.chat:
            # A blank line ends an example, so its target has none.
            answered = (q + _ASK + self._lead + _BLANK.sub("\n", t) + _BETWEEN for q, t in shots)
            return "".join(answered) + question + _ASK
        turns = [turn for q, t in shots for turn in (_turn("user", q), _turn("assistant", t))]
        return self.tokenizer.chat([*turns, _turn("user", question)], answers=True)

    def _completion(self, view: str, target: str) -> str:
        return self._lead + self._spell(view, target)

    @functools.cached_property
    def _lead(self) -> str:
        """The white space between a prompt and its target."""
        if not self.chat:
            return " "
        question, answer = _turn("user", "a"), _turn("assistant", "B")
        asked = self.tokenizer.chat([question], answers=True)
        whole = self.tokenizer.chat([question, answer], answers=False)
        between = whole.removeprefix(asked).partition("B")[0] if whole.startswith(asked) else ""
        return between if between.isspace() else ""

    @functools.cached_property
    def _before(self) -> tuple[str, list[int]]:
        """The end of a prompt from the last word of its question, and its ids."""
        first, second = (self._prompt("", parts) for parts in _QUESTIONS[:2])
        text = _QUESTIONS[0][0] + _common([first[::-1], second[::-1]])[::-1]
        return text, self.tokenizer.encode([text])[0]

    @functools.cached_property
    def _tail(self) -> list[int]:
        """The ids after a question that ends in a word."""
        (question,), (_, ids) = self.tokenizer.encode(_QUESTIONS[0]), self._before
        return ids[len(_common([question, ids])) :]

    @property
    def _front(self) -> list[int]:
        """The ids before a prompt; a chat template writes its own start token."""
        return [] if self.chat else self.tokenizer.front_ids

    def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """The ids of texts that begin with a prompt."""
        front = self._front
        return [[*front, *row] for row in self.tokenizer.encode(prompts)]

    def _inputs(self, prefix: str, prompts: Sequence["_Prompt"], most: int) -> Encoded:
        """Prompts with a view's prefix as inputs: cut, and without the ids that they share."""
        shared = _common(self._encode([self._prompt(prefix, parts) for parts in _QUESTIONS]))
        cut = sum(len(prompt.ids) > most for prompt in prompts)
        if cut and most <= (around := len(shared) + len(self._tail)):
            raise UserError(
                f"config.data.max_input_tokens={most}: a prompt has {around} tokens without its question; "
                "increase it, or show fewer examples"
            )
        rows = [self._shortened(prompt, most) for prompt in prompts]
        report = _report(self.tokenizer, rows, cut, most)
        if rows:
            # Every row keeps at least one id.
            shared = _common([shared, *rows])[: min(map(len, rows)) - 1]
        return Encoded([row[len(shared) :] for row in rows], report, tuple(shared))

    def _shortened(self, prompt: "_Prompt", most: int) -> list[int]:
        """The ids of a prompt, its question cut at the end."""
        if len(prompt.ids) <= most:
            return prompt.ids
        tail = self._tail[: max(len(self._tail) - prompt.moved, 0)]
        return [*prompt.ids[: most - len(tail)], *tail]


class _Prompt(NamedTuple):
    """Ids up to the seam, and how many more the prompt alone has."""

    ids: list[int]
    moved: int = 0


@dataclasses.dataclass(frozen=True)
class Classes(Format):
    """Questions of an encoder, which has a class for each label and writes nothing.

    A question of one or more texts is `[CLS] A [SEP] B [SEP]`, for RoBERTa `<s> A </s></s> B </s>`; if it is
    too long, its longest text loses tokens. With multiple choice, the texts after the first are the choices;
    each forms a pair with the first, and the pairs are concatenated. The templates are ours: Transformers'
    tokenizer of DeBERTa v1 puts two [SEP] between texts.

    Attributes:
      parts: number of texts in a question.
      multiple_choice: whether the texts after the first are the choices.
    """

    labels: tuple[str, ...]
    parts: int
    multiple_choice: bool = False

    reader: ClassVar[str] = "an encoder"
    needs: ClassVar[tuple[str, ...]] = ("cls_token", "sep_token")

    @property
    def texts(self) -> Texts:
        hf = self.tokenizer.hf
        ids = (hf.pad_token_id, hf.sep_token_id, hf.cls_token_id)
        return Texts(self.tokenizer.size, *ids, self.labels, self.multiple_choice)

    def fit(self, targets: Mapping[str, Sequence[str]], exact: Collection[str]) -> Self:
        return self

    def inputs(self, prefix: str, questions: Sequence[tuple[str, ...]], most: int) -> Encoded:
        sequences: list[tuple[str, ...]] = []
        for parts in questions:
            if len(parts) != self.parts:
                raise UserError(
                    f"a question has {in_texts(len(parts))} (the first is {parts[0][:40]!r}), the student "
                    f"reads {self.parts}"
                )
            first, *others = parts
            asked = [(other,) for other in others] if self.multiple_choice else [others]
            sequences += [(prefix + first, *rest) for rest in asked]
        encoded = iter(self.tokenizer.encode([text for parts in sequences for text in parts], plain=True))
        begin, end, between = self._marks
        rows, cut = [], 0
        for parts in sequences:
            texts = [next(encoded) for _ in parts]
            around = 2 + len(between) * (len(texts) - 1)
            if most <= around:
                raise UserError(f"config.data.max_input_tokens={most} has no room for a question")
            lengths = _shortened([len(text) for text in texts], most - around)
            cut += sum(lengths) < sum(map(len, texts))
            row = [begin]
            for n, (text, length) in enumerate(zip(texts, lengths, strict=True)):
                row += [*(between if n else []), *text[:length]]
            rows.append([*row, end])
        report = _report(self.tokenizer, rows, cut, most)
        each = self.parts - 1 if self.multiple_choice else 1
        ids = [[id for row in rows[n : n + each] for id in row] for n in range(0, len(rows), each)]
        return Encoded(ids, report)

    def targets(self, view: str, texts: Sequence[str], most: int) -> Encoded:
        counts = collections.Counter(text.strip() for text in texts)
        if unknown := sorted(counts.keys() - {*self.labels}):
            raise UserError(f"the label {unknown[0]!r} is none of the classes {', '.join(self.labels)}")
        report = ", ".join(f"{counts[label]} {label}" for label in self.labels)
        return Encoded(
            [[self.labels.index(text.strip())] for text in texts], f"{len(texts)} classes: {report}"
        )

    def decode(self, view: str, ids: Sequence[int]) -> str:
        return self.labels[ids[0]] if len(ids) else ""

    def sample(self, view: str, prefix: str, hf_class: str) -> str:
        begin, end, between = self._marks
        asking = (
            "texts = [question] if isinstance(question, str) else question\n"
            f"begin, end, between = {begin}, {end}, {between}\n"
            "\n"
            "def encode(texts):\n"
            "    ids, types = [begin], [0]\n"
            "    for n, text in enumerate(texts):\n"
            "        part = tokenizer.encode(text, add_special_tokens=False)\n"
            "        part += between if n + 1 < len(texts) else [end]\n"
            "        ids, types = ids + part, types + [min(n, 1)] * len(part)\n"
            "    return {'input_ids': torch.tensor([ids]), 'token_type_ids': torch.tensor([types])}\n"
            "\n"
        )
        if self.multiple_choice:
            asking += (
                "choices = [encode([texts[0], choice])['input_ids'] for choice in texts[1:]]\n"
                "scores = [model(input_ids=ids[None]).logits.item() for ids in choices]\n"
                "written = model.config.id2label[max(range(len(scores)), key=scores.__getitem__)]\n"
            )
        else:
            call = "**encode(texts)" if len(between) == 1 else "input_ids=encode(texts)['input_ids']"
            asking += f"written = model.config.id2label[model({call}).logits.argmax().item()]\n"
        return _program(hf_class, asking, "import torch\n", spelled=False)

    def _saved(self) -> dict[str, Any]:
        values = {"labels": self.labels, "parts": self.parts, "multiple_choice": self.multiple_choice}
        return {"kind": "classes"} | values

    @property
    def _marks(self) -> tuple[int, int, list[int]]:
        """The ids that begin a sequence, end it and separate its texts."""
        hf = self.tokenizer.hf
        # RoBERTa was trained with two between texts, and has no token types.
        return hf.cls_token_id, hf.sep_token_id, [hf.sep_token_id] * (2 if hf.cls_token == "<s>" else 1)


def _shortened(lengths: Sequence[int], most: int) -> list[int]:
    """Lengths that sum to at most `most`: the longest text loses each next token."""
    shorter = list(lengths)
    for _ in range(sum(lengths) - most):
        _, longest = max((length, n) for n, length in enumerate(shorter))
        shorter[longest] -= 1
    return shorter


FORMATS: dict[str, Any] = {"seq2seq": Seq2Seq, "causal": Causal, "classes": Classes}


def load(
    path_or_id: str | Path, kind: str, chat: str = "auto", classes: Mapping[str, Any] | None = None
) -> Any:
    """Returns the format in a directory that `save` wrote, or of a tokenizer's directory or Hub repository.

    Args:
      kind: the student's format, a key of `FORMATS`.
      chat: whether prompts are chats: template | plain | auto, as saved or else if there is a template.
      classes: the attributes of `Classes` except its tokenizer; None: as saved.

    Raises:
      UserError: the tokenizer is missing or lacks what the format needs, the directory is of another kind, or
        a file is malformed.
    """
    loaded = tokenizer.load(path_or_id)
    file = Path(path_or_id) / _FILE
    saved = read_json(file, _SAVED) if file.exists() else {"spelled": []}
    spelled = tuple(saved["spelled"])
    # The first releases had one kind and did not save it.
    if file.is_file() and classes is None and (found := saved.get("kind", "seq2seq")) != kind:
        raise UserError(
            f"{file}: the format is {found!r}, the student reads {kind!r}; take its own tokenizer"
        )
    for role in FORMATS[kind].needs:
        if getattr(loaded.hf, role) is None:
            raise UserError(f"tokenizer {path_or_id}: no {role}; name it in its tokenizer_config.json")
    if kind == "causal":
        return Causal(loaded, _chats(path_or_id, loaded, chat, saved), spelled=spelled)
    if chat == "template":
        raise UserError("config.data.chat=template: the student is not a decoder and reads no chat")
    if kind == "classes":
        if classes is None:
            if not saved.get("labels") or misfit(saved, _CLASSES):
                raise UserError(f"{file}: no labels of an encoder's classes; it must be trained first")
            classes = {key: saved[key] for key in _CLASSES} | {"labels": tuple(saved["labels"])}
        return Classes(loaded, **classes)
    return Seq2Seq(loaded, spelled=spelled)


def _chats(path_or_id: str | Path, loaded: Tokenizer, chat: str, saved: Mapping[str, Any]) -> bool:
    chats = saved.get("chat", loaded.has_chat) if chat == "auto" else chat == "template"
    if chats and not loaded.has_chat:
        raise UserError(
            f"tokenizer {path_or_id}: no chat template; put its chat_template.jinja there, or use plain "
            "prompts with --config.data.chat=plain"
        )
    return chats


def train(texts: Iterable[str], vocab_size: int, directory: str | Path, kind: str) -> Seq2Seq | Causal:
    """Returns the format, seq2seq or causal, of a tokenizer trained on `texts` (`tokenizer.train`)."""
    trained = tokenizer.train([*texts, *FORMATS[kind].words], vocab_size, directory)
    return Causal(trained, chat=False) if kind == "causal" else Seq2Seq(trained)


def _ended(tokenizer: Tokenizer, rows: Sequence[list[int]], most: int) -> Encoded:
    """Rows of at most `most` ids, including the end token, which a cut row keeps."""
    cut = sum(len(row) >= most for row in rows)
    end = tokenizer.eos_id
    ended = [[*row[: most - 1], end] for row in rows]
    return Encoded(ended, _report(tokenizer, ended, cut, most))


def _report(tokenizer: Tokenizer, rows: Sequence[Sequence[int]], cut: int, most: int) -> str:
    lengths = [len(row) for row in rows]
    return (
        f"{in_texts(len(rows))}, {sum(lengths) / max(len(lengths), 1):.1f} tokens on average, "
        f"{max(lengths, default=0)} at most, {cut} cut at {most}, "
        f"{100 * tokenizer.unknown_rate(rows):.3f} % unknown tokens"
    )


def in_texts(number: int) -> str:
    """Returns e.g. "1 text" or "2 texts"."""
    return "1 text" if number == 1 else f"{number} texts"


def _asked(prefix: str) -> str:
    """The text that a sample asks, as Python code."""
    return f"{prefix!r} + question" if prefix else "question"


def _program(hf_class: str, asking: str, imports: str = "", *, spelled: bool) -> str:
    """A program that loads `model` and `tokenizer`, runs `asking` and prints `written`."""
    return (
        f"{imports}from transformers import {hf_class}, AutoTokenizer\n"
        + ("\nfrom cot_jax.text import codec\n" if spelled else "")
        + f'\nmodel, tokenizer = {hf_class}.from_pretrained("."), AutoTokenizer.from_pretrained(".")\n'
        + asking
        + ("print(codec.decode(written))" if spelled else "print(written)")
    )


def _common(rows: Sequence[_Row]) -> _Row:
    """The common prefix of all rows: that of the least and the greatest."""
    first, last = min(rows), max(rows)
    differs = (n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(differs, len(first))]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
