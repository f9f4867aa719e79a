"""Formats: how questions and targets become token ids, and what a student writes becomes text again.

Each family of students reads one format. Only the format knows what joins the parts of a question, what ends
an input or a target, and what a target's ids stand for.
"""

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

# What plain prompts put behind a question, and between one example and the next.
_ASK, _BETWEEN = "\nAnswer:", "\n\n"
_BLANK = re.compile("\n{2,}")
# Questions that have nothing in common: what their prompts share, all prompts do. A digit or a mark may merge
# with what is beside it, so that the first two alone, which are words, say what stands behind a word.
_QUESTIONS = (("a",), ("B",), ("0",), ('"',))

_Row = TypeVar("_Row", str, list[int])

# The parts of a question, and its target.
Shot = tuple[tuple[str, ...], str]


class Encoded(NamedTuple):
    """Token ids of some texts.

    Attributes:
      ids: of each text, without the prefix; empty where there is no text.
      report: what was counted, in words.
      prefix: ids that all texts begin with.
    """

    ids: list[list[int]]
    report: str
    prefix: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Format:
    """Text to token ids and back.

    What is here is what most formats do: a question and its targets are encoded one apart from the other, and
    there is no place for shots and no likelihood of a continuation.

    Attributes:
      tokenizer: of the inputs.
      spelled: names of the views whose targets are spelled by `codec`.
    """

    tokenizer: Tokenizer
    spelled: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    reader: ClassVar[str]  # whose format it is, for an error
    needs: ClassVar[tuple[str, ...]]  # special tokens that the tokenizer must have
    words: ClassVar[tuple[str, ...]] = ()  # texts of the format's own, for a tokenizer's training

    @property
    def texts(self) -> Texts:
        """What a student must know of the texts."""
        return Texts(self.tokenizer.size, self.tokenizer.hf.pad_token_id, self.tokenizer.eos_id)

    def fit(self, targets: Mapping[str, Sequence[str]], exact: Collection[str]) -> Self:
        """Returns the format for views that learn these targets.

        Args:
          targets: by the view's name.
          exact: views whose targets must be decoded to the letter; others may lose white space.
        """
        return dataclasses.replace(
            self, spelled=_to_spell(dataclasses.replace(self, spelled=()), targets, exact)
        )

    def with_shots(self, shots: Sequence[Shot]) -> Self:
        """Returns the format that shows these examples before every question. They are not saved.

        Raises:
          UserError: the format has no place for them.
        """
        if shots:
            raise UserError(f"{len(shots)} shots: {self.reader} reads a question alone; show it none")
        return self

    def pairs(
        self,
        view: str,
        prefix: str,
        questions: Sequence[tuple[str, ...] | None],
        targets: Sequence[Sequence[str]],
        most_input: int,
        most_target: int,
    ) -> tuple[Encoded, Encoded]:
        """Returns what is read and what is learned to be written of some examples through a view.

        Args:
          view: its name.
          prefix: put before each question.
          questions: as `inputs` takes them; None where there is no target.
          targets: of each example, any number.
          most_input, most_target: ids at most.

        Returns:
          The inputs, one each; and the targets, those of an example next to one another, with an empty one
          for an example that has none.

        Raises:
          UserError: `most_input` has no room for a question.
        """
        texts = [text for its in targets for text in its or (None,)]
        return self.inputs(prefix, questions, most_input), self.targets(view, texts, most_target)

    def inputs(self, prefix: str, questions: Sequence[tuple[str, ...] | None], most: int) -> Encoded:
        """Returns at most `most` ids of each question, which has one part or several, behind the prefix.

        Raises:
          UserError: `most` has no room for a question.
        """
        raise NotImplementedError

    def targets(self, view: str, texts: Sequence[str | None], most: int) -> Encoded:
        """Returns at most `most` ids of each text as a target of a view that follows any question."""
        raise NotImplementedError

    def continued(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Returns the ids of texts and of what follows each of them: not asked, not ended, not cut.

        Both are tokenised together; the seam is where the context by itself ends, and white space at its end
        is the continuation's, as in `_encode_pair` of lm-evaluation-harness.

        Raises:
          UserError: students of the format do not continue a text.
        """
        raise UserError(f"the student is {self.reader}: it has no likelihood of what continues a text")

    def decode(self, view: str, ids: Sequence[int]) -> str:
        """Returns the text of a target's ids; ids that stand for nothing are left out."""
        raise NotImplementedError

    def sample(self, view: str, prefix: str, hf_class: str) -> str:
        """Returns a program that asks an exported student a question through a view, for a model card.

        It needs PyTorch and Transformers, which has `hf_class`, runs beside the student's files, finds the
        `question`, a text, and prints what the student writes, as `decode` does.
        """
        raise NotImplementedError

    def save(self, directory: Path) -> None:
        """Writes what `load` reads.

        Raises:
          OSError: it cannot be written.
        """
        self.tokenizer.save(directory)
        write_json(directory / _FILE, self._saved() | {"spelled": self.spelled})

    def _saved(self) -> dict[str, Any]:
        """The kind and what else `load` cannot find in the tokenizer."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Seq2Seq(Format):
    """Inputs and targets of an encoder-decoder: a text, then the end token (Raffel et al. 2020).

    The text of the end token joins the parts of a question, `premise</s>hypothesis`, as in the released code
    of Hsieh et al. 2023. A text that is cut keeps its end token.
    """

    reader: ClassVar[str] = "an encoder-decoder"
    needs: ClassVar[tuple[str, ...]] = ("pad_token", "eos_token")

    def inputs(self, prefix: str, questions: Sequence[tuple[str, ...] | None], most: int) -> Encoded:
        end = self.tokenizer.eos_token
        return self._encode(
            [None if parts is None else prefix + end.join(parts) for parts in questions], most
        )

    def targets(self, view: str, texts: Sequence[str | None], most: int) -> Encoded:
        if view not in self.spelled:
            return self._encode(texts, most)
        ids, report, _ = self._encode([None if text is None else codec.encode(text) for text in texts], most)
        return Encoded(ids, report + _SPELLED)

    def decode(self, view: str, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(ids)
        return codec.decode(text) if view in self.spelled else text

    def sample(self, view: str, prefix: str, hf_class: str) -> str:
        asking = (
            f'inputs = tokenizer({_asked(prefix)}, return_tensors="pt")\n'
            "written = tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True)\n"
        )
        return _program(hf_class, asking, spelled=view in self.spelled)

    def _saved(self) -> dict[str, Any]:
        return {"kind": "seq2seq"}

    def _encode(self, texts: Sequence[str | None], most: int) -> Encoded:
        present = iter(self.tokenizer.encode([text for text in texts if text is not None]))
        return _ended(self.tokenizer, [None if text is None else next(present) for text in texts], most)


@dataclasses.dataclass(frozen=True)
class Causal(Format):
    """Prompts and completions of a decoder, which goes on writing where the prompt ends.

    A plain prompt is the question, its parts one below the other, then "Answer:" on a line of its own; a chat
    is the question as the user's turn, in the words of the tokenizer's template. The completion is the target
    behind a space, or what the template puts there, then the end token.

    Prompt and completion are tokenised together, so that a student learns the tokens that a text has. Where
    the tokenizer merges over the seam, the prompt ends a token earlier. [as the released code of DPO-ST]

    Attributes:
      chat: whether prompts are chats.
      shots: examples shown before every question: as earlier turns of a chat, or with a blank line between.
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
        questions: Sequence[tuple[str, ...] | None],
        targets: Sequence[Sequence[str]],
        most_input: int,
        most_target: int,
    ) -> tuple[Encoded, Encoded]:
        asked = [None if parts is None else self._prompt(prefix, parts) for parts in questions]
        texts = []
        for prompt, its in zip(asked, targets, strict=True):
            if prompt is not None:
                texts += [prompt, *(prompt + self._completion(view, text) for text in its)]
        encoded = iter(self._encode(texts))
        prompts: list[_Prompt | None] = []
        completions: list[list[int] | None] = []
        for prompt, its in zip(asked, targets, strict=True):
            if prompt is None:
                prompts.append(None)
                completions.append(None)
                continue
            alone, *joined = (next(encoded) for _ in range(1 + len(its)))
            seam = len(_common([alone, *joined]))
            prompts.append(_Prompt(alone[:seam], len(alone) - seam))
            completions += [row[seam:] for row in joined] or [None]
        written = _ended(self.tokenizer, completions, most_target)
        return self._inputs(prefix, prompts, most_input), self._said(view, written)

    def inputs(self, prefix: str, questions: Sequence[tuple[str, ...] | None], most: int) -> Encoded:
        texts = [self._prompt(prefix, parts) for parts in questions if parts is not None]
        encoded = iter(self._encode(texts))
        rows = [None if parts is None else _Prompt(next(encoded)) for parts in questions]
        return self._inputs(prefix, rows, most)

    def targets(self, view: str, texts: Sequence[str | None], most: int) -> Encoded:
        before, ids = self._before
        present = [before + self._completion(view, text) for text in texts if text is not None]
        joined = iter(self.tokenizer.encode(present))
        behind = (row[len(_common([ids, row])) :] for row in joined)
        rows = [None if text is None else next(behind) for text in texts]
        return self._said(view, _ended(self.tokenizer, rows, most))

    def continued(
        self, contexts: Sequence[str], continuations: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]]]:
        front = self.tokenizer.front_ids
        alone = self.tokenizer.encode([context.rstrip() for context in contexts])
        whole = self.tokenizer.encode(list(map("".join, zip(contexts, continuations, strict=True))))
        behind = [ids[len(before) :] for before, ids in zip(alone, whole, strict=True)]
        return [[*front, *ids] for ids in alone], behind

    def decode(self, view: str, ids: Sequence[int]) -> str:
        # Some tokenizers drop the space that a text begins with: it is kept behind other text.
        _, before = self._before
        ids = list(ids)
        if self.tokenizer.eos_id in ids:
            ids = ids[: ids.index(self.tokenizer.eos_id)]
        decode = functools.partial(self.tokenizer.decode, tidy=False)
        text = decode([*before, *ids]).removeprefix(decode(before)).removeprefix(self._lead)
        if self.shots and not self.chat:
            # A model that was not taught to end goes on with an example of its own.
            text = text.partition(_BETWEEN)[0]
        return codec.decode(text) if view in self.spelled else text

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
            # A blank line is the end of an example: there is none inside.
            answered = (q + _ASK + self._lead + _BLANK.sub("\n", t) + _BETWEEN for q, t in shots)
            return "".join(answered) + question + _ASK
        turns = [turn for q, t in shots for turn in (_user(q), _assistant(t))]
        return self.tokenizer.chat([*turns, _user(question)], answers=True)

    def _completion(self, view: str, target: str) -> str:
        return self._lead + (codec.encode(target) if view in self.spelled else target)

    @functools.cached_property
    def _lead(self) -> str:
        """The white space between a prompt and its target."""
        if not self.chat:
            return " "
        question, answer = _user("a"), _assistant("B")
        asked = self.tokenizer.chat([question], answers=True)
        whole = self.tokenizer.chat([question, answer], answers=False)
        between = whole.removeprefix(asked).partition("B")[0] if whole.startswith(asked) else ""
        return between if between.isspace() else ""

    @functools.cached_property
    def _before(self) -> tuple[str, list[int]]:
        """The end of a prompt, from the last word of its question on, and its ids."""
        first, second = (self._prompt("", parts) for parts in _QUESTIONS[:2])
        text = _QUESTIONS[0][0] + _common([first[::-1], second[::-1]])[::-1]
        return text, self.tokenizer.encode([text])[0]

    @functools.cached_property
    def _tail(self) -> list[int]:
        """The ids of what follows a question that ends in a word."""
        (question,), (_, ids) = self.tokenizer.encode(_QUESTIONS[0]), self._before
        return ids[len(_common([question, ids])) :]

    @property
    def _front(self) -> list[int]:
        """The ids before a prompt: a chat template writes its own start token."""
        return [] if self.chat else self.tokenizer.front_ids

    def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """The ids of texts that begin with a prompt."""
        front = self._front
        return [[*front, *row] for row in self.tokenizer.encode(prompts)]

    def _inputs(self, prefix: str, prompts: Sequence["_Prompt | None"], most: int) -> Encoded:
        """Prompts behind a view's prefix as inputs: cut, and without what they share."""
        shared = _common(self._encode([self._prompt(prefix, parts) for parts in _QUESTIONS]))
        present = [prompt for prompt in prompts if prompt is not None]
        cut = sum(len(prompt.ids) > most for prompt in present)
        if cut and most <= (around := len(shared) + len(self._tail)):
            raise UserError(
                f"config.data.max_input_tokens={most}: a prompt has {around} tokens without its question; "
                "give it more, or show fewer examples"
            )
        rows = [self._shortened(prompt, most) for prompt in present]
        report = _report(self.tokenizer, rows, cut, most)
        if rows:
            # A row of none would be no question.
            shared = _common([shared, *rows])[: min(map(len, rows)) - 1]
        following = iter(rows)
        ids = [[] if prompt is None else next(following)[len(shared) :] for prompt in prompts]
        return Encoded(ids, report, tuple(shared))

    def _shortened(self, prompt: "_Prompt", most: int) -> list[int]:
        """The ids of a prompt without those at the question's end that are too many."""
        if len(prompt.ids) <= most:
            return prompt.ids
        tail = self._tail[: max(len(self._tail) - prompt.moved, 0)]
        return [*prompt.ids[: most - len(tail)], *tail]

    def _said(self, view: str, encoded: Encoded) -> Encoded:
        return encoded._replace(report=encoded.report + _SPELLED) if view in self.spelled else encoded


class _Prompt(NamedTuple):
    """Ids up to the seam, and how many more the prompt has by itself."""

    ids: list[int]
    moved: int = 0


@dataclasses.dataclass(frozen=True)
class Classes(Format):
    """Questions of an encoder, which has a class for each label and writes nothing.

    A question of one or several texts is `[CLS] A [SEP] B [SEP]`, of RoBERTa `<s> A </s></s> B </s>`; one
    that is too long loses tokens of its longest text. With multiple choice the first text is followed by the
    choices, and there is such a pair for each of them, one behind the other. The templates are ours, as
    Transformers' tokenizer of DeBERTa v1 puts two [SEP] between texts.

    Attributes:
      labels: the classes' names.
      parts: number of texts of a question.
      multiple_choice: whether the texts after the first are what is chosen among.
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

    def inputs(self, prefix: str, questions: Sequence[tuple[str, ...] | None], most: int) -> Encoded:
        sequences: list[tuple[str, ...]] = []
        for parts in questions:
            if parts is None:
                continue
            if len(parts) != self.parts:
                raise UserError(
                    f"a question of {len(parts)} texts, {parts[0][:40]!r} first: the student reads "
                    f"{self.parts}"
                )
            first, *others = parts
            asked = [(other,) for other in others] if self.multiple_choice else [others]
            sequences += [(prefix + first, *rest) for rest in asked]
        encoded = iter(self.tokenizer.encode([text for parts in sequences for text in parts], plain=True))
        begin, end = self.tokenizer.hf.cls_token_id, self.tokenizer.hf.sep_token_id
        # Between two texts, as RoBERTa was trained.
        between = [end, end] if self.tokenizer.hf.cls_token == "<s>" else [end]
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
        each, following = (self.parts - 1 if self.multiple_choice else 1), iter(rows)
        ids = [
            [] if parts is None else [id for _ in range(each) for id in next(following)]
            for parts in questions
        ]
        return Encoded(ids, report)

    def targets(self, view: str, texts: Sequence[str | None], most: int) -> Encoded:
        present = [text for text in texts if text is not None]
        if unknown := sorted({text.strip() for text in present} - {*self.labels}):
            raise UserError(f"the label {unknown[0]!r} is none of the classes {', '.join(self.labels)}")
        counts = collections.Counter(text.strip() for text in present)
        report = ", ".join(f"{counts[label]} {label}" for label in self.labels)
        rows = [[] if text is None else [self.labels.index(text.strip())] for text in texts]
        return Encoded(rows, f"{len(present)} classes: {report}")

    def decode(self, view: str, ids: Sequence[int]) -> str:
        return self.labels[ids[0]] if len(ids) else ""

    def sample(self, view: str, prefix: str, hf_class: str) -> str:
        hf = self.tokenizer.hf
        between = [hf.sep_token_id] * (2 if hf.cls_token == "<s>" else 1)
        asking = (
            "texts = [question] if isinstance(question, str) else question\n"
            f"begin, end, between = {hf.cls_token_id}, {hf.sep_token_id}, {between}\n"
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
            types = "" if hf.cls_token == "<s>" else "**"
            call = "**encode(texts)" if types else "input_ids=encode(texts)['input_ids']"
            asking += f"written = model.config.id2label[model({call}).logits.argmax().item()]\n"
        return _program(hf_class, asking, "import torch\n", spelled=False)

    def _saved(self) -> dict[str, Any]:
        values = {"labels": self.labels, "parts": self.parts, "multiple_choice": self.multiple_choice}
        return {"kind": "classes"} | values


def _shortened(lengths: Sequence[int], most: int) -> list[int]:
    """Lengths of texts that together have at most `most` tokens: the longest loses the next one."""
    shorter = list(lengths)
    while (excess := sum(shorter) - most) > 0:
        longest = max(shorter)
        others = [length for length in shorter if length < longest]
        which = [n for n, length in enumerate(shorter) if length == longest]
        # All of the longest down to the next one's length, or as far as is needed.
        step = min(longest - max(others, default=0), -(-excess // len(which)))
        for n in reversed(which):
            taken = min(step, sum(shorter) - most)
            shorter[n] -= max(taken, 0)
    return shorter


FORMATS: dict[str, Any] = {"seq2seq": Seq2Seq, "causal": Causal, "classes": Classes}


def load(
    path_or_id: str | Path, kind: str, chat: str = "auto", classes: Mapping[str, Any] | None = None
) -> Any:
    """Returns the format in a directory that `save` wrote, or of a tokenizer's directory or Hub repository.

    Args:
      kind: a key of `FORMATS`: what the student reads.
      chat: whether prompts are chats: template | plain | auto, as saved or else if there is a template.
      classes: the attributes of `Classes` but for its tokenizer; None: as saved.

    Raises:
      UserError: there is no tokenizer, it lacks what the format needs, the directory is of another kind, or
        a file is malformed.
    """
    loaded = tokenizer.load(path_or_id)
    file = Path(path_or_id) / _FILE
    saved = read_json(file, _SAVED) if file.exists() else {"spelled": []}
    spelled = tuple(saved["spelled"])
    # The first releases knew one kind and wrote none.
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
        raise UserError("config.data.chat=template: the student is no decoder, it reads no chat")
    if kind == "classes":
        return Classes(loaded, **(classes or _read_classes(file, saved)))
    return Seq2Seq(loaded, spelled=spelled)


def _read_classes(file: Path, saved: Mapping[str, Any]) -> dict[str, Any]:
    if not saved.get("labels") or misfit(saved, _CLASSES):
        raise UserError(f"{file}: no labels of an encoder's classes; it must be trained first")
    return {"labels": tuple(saved["labels"])} | {key: saved[key] for key in ("parts", "multiple_choice")}


def _chats(path_or_id: str | Path, loaded: Tokenizer, chat: str, saved: Mapping[str, Any]) -> bool:
    chats = saved.get("chat", loaded.has_chat) if chat == "auto" else chat == "template"
    if chats and not loaded.has_chat:
        raise UserError(
            f"tokenizer {path_or_id}: no chat template; put its chat_template.jinja there, or take plain "
            "prompts with --config.data.chat=plain"
        )
    return chats


def train(texts: Iterable[str], vocab_size: int, directory: str | Path, kind: str) -> Seq2Seq | Causal:
    """Returns the format, seq2seq or causal, of a tokenizer trained on `texts` (`tokenizer.train`)."""
    trained = tokenizer.train([*texts, *FORMATS[kind].words], vocab_size, directory)
    return Causal(trained, chat=False) if kind == "causal" else Seq2Seq(trained)


def _to_spell(
    format: Format, targets: Mapping[str, Sequence[str]], exact: Collection[str]
) -> tuple[str, ...]:
    """The views whose targets a format that spells nothing loses.

    They have no tokens, or, of a view in `exact`, are decoded to other texts.
    """
    lost = []
    for view, texts in targets.items():
        rows = format.targets(view, texts, _NO_LIMIT).ids
        unknown = format.tokenizer.unknown_rate(rows)
        if unknown or (
            view in exact
            and any(format.decode(view, row) != text for row, text in zip(rows, texts, strict=True))
        ):
            lost.append(view)
    return tuple(lost)


def _ended(tokenizer: Tokenizer, rows: Sequence[list[int] | None], most: int) -> Encoded:
    """Rows of at most `most` ids, the end token of which is one; a row that is cut has it, too."""
    present = [row for row in rows if row is not None]
    cut = sum(len(row) >= most for row in present)
    ended = [[*row[: most - 1], tokenizer.eos_id] for row in present]
    following = iter(ended)
    ids = [[] if row is None else next(following) for row in rows]
    return Encoded(ids, _report(tokenizer, ended, cut, most))


def _report(tokenizer: Tokenizer, rows: Sequence[Sequence[int]], cut: int, most: int) -> str:
    lengths = [len(row) for row in rows]
    return (
        f"{len(rows)} texts, {sum(lengths) / max(len(lengths), 1):.1f} tokens on average, "
        f"{max(lengths, default=0)} at most, {cut} cut at {most}, "
        f"{100 * tokenizer.unknown_rate(rows):.3f} % unknown tokens"
    )


def _asked(prefix: str) -> str:
    """What a sample asks, in Python."""
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
    """What all rows begin with: the first and the last in their order do."""
    first, last = min(rows), max(rows)
    differs = (n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(differs, len(first))]


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}
