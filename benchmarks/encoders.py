"""A classifier, ours against Transformers: training steps, prediction, DynSDPB's step.

    python -m benchmarks.encoders --model=DIR --root=DATA    # a pretrained BERT, GLUE
    python -m benchmarks.encoders --preset=bert-base         # random weights, made-up texts as long as GLUE's

Both sides train the same weights on the same random batches of a run, dropout included: ours flat, theirs
padded to the longest of each batch. Both predict the development set sorted by length. Before anything is
timed, loss and gradient norm of the first batch are compared, without dropout, and the probability of every
prediction.
"""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from transformers import BertTokenizerFast  # type: ignore[attr-defined]

from benchmarks import measure
from benchmarks.published import device, rectangle
from benchmarks.run_step import RunStep
from cot_jax.batch import Batch, Tokens
from cot_jax.config import OptimizerConfig, freeze
from cot_jax.configs import common
from cot_jax.data.batches import evaluation_rows
from cot_jax.models import student as students
from cot_jax.training.encoding import encode_questions
from cot_jax.training.experiment import Experiment, prepare
from cot_jax.training.run import Run

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

Tensors = dict[str, torch.Tensor]

_ATTENTION = ("eager", "sdpa")
# Of a task's made-up texts: how many an example has, median and spread (of the logarithm) of their words
# together, examples of each split. As measured on GLUE with BERT's vocabulary.
_MADE_UP = {
    "rte": (2, 54, 0.5, {"train": 2241, "valid": 249, "test": 277}),
    "cola": (1, 8, 0.4, {"train": 7695, "valid": 856, "test": 1043}),
}
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def main() -> None:
    options = _options()
    if options.dtype == "float32":
        # TF32 products would differ; PyTorch's default is float32 as well.
        jax.config.update("jax_default_matmul_precision", "highest")
    torch.set_flush_denormal(True)
    report = measure.Report(options)
    report.note(
        f"{options.preset or options.model.name}, batches of {options.batch} random examples, "
        f"{options.dtype}, dropout as in config.json"
    )
    with tempfile.TemporaryDirectory() as name:
        for task in options.tasks:
            directory = Path(name) / task
            directory.mkdir()
            if options.preset:
                _make_up(task, students.PRESETS[options.preset].vocab_size, directory)
            _compare(report, task, options, directory)
    report.close()


def _make_up(task: str, vocabulary: int, directory: Path) -> None:
    """Writes a vocabulary of words, so that the embedding has its usual size, and a data set of them."""
    words = [f"w{n}" for n in range(vocabulary - len(_SPECIAL))]
    (directory / "vocab.txt").write_text("\n".join([*_SPECIAL, *words]), encoding="utf-8")
    BertTokenizerFast(str(directory / "vocab.txt")).save_pretrained(directory)
    texts, median, spread, counts = _MADE_UP[task]
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        lengths = np.maximum(median * np.exp(spread * rng.normal(size=count)), 2 * texts).astype(int)
        rows = []
        for n, length in enumerate(lengths):
            parts = np.array_split(rng.choice(words, length), texts)
            label = ("no", "yes")[rng.integers(2)]
            row = {"id": f"{split}{n}", "input": [" ".join(part) for part in parts], "label": label}
            rows.append(json.dumps(row) + "\n")
        (directory / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8")


def _config(task: str, options: argparse.Namespace, made_up: Path) -> Any:
    values = common.encoder(str(options.model or ""), task, options.batch)
    values.data.root = str(options.root or "")
    if options.preset:
        values.data.task, values.data.root = "jsonl", str(made_up)
        values.model.preset, values.model.tokenizer = options.preset, str(made_up)
    values.model.compute_dtype = options.dtype
    values.evaluation.batch_size = options.batch
    return values


def _compare(report: measure.Report, task: str, options: argparse.Namespace, directory: Path) -> None:
    values = _config(task, options, directory)
    ours = RunStep(prepare(freeze(values)))
    params = jax.device_get(ours.state.params)
    saved = directory / "student"
    students.save(saved, ours.run.experiment.student, params)
    theirs = {kind: Theirs(saved, kind, options.dtype) for kind in _ATTENTION}
    sep_id = ours.run.experiment.student.config.sep_token_id
    batches = [ours.run.batches(n) for n in range(options.repeats)]
    given = [labelled(batch, sep_id) for batch in batches]
    values.model.dropout_rate, values.train.epochs, values.train.steps = 0.0, 0.0, 1
    found = RunStep(prepare(freeze(values)), like=ours.run).compare(batches[0])
    for kind, side in theirs.items():
        line = measure.agreement(found, side.compare(given[0]), 2e-2 if options.dtype == "bfloat16" else 1e-4)
        report.note(f"{task}, {kind}: {line}")
    inputs = [view.inputs for batch in batches for view in batch.views.values()]
    tokens = np.mean([x.length.sum() for x in inputs])
    slots = np.mean([x.ids.size for x in inputs])
    padded = np.mean([batch["input_ids"].numel() for batch in given])
    report.note(f"{task}: {tokens:.0f} tokens a batch, in {slots:.0f} slots ours and {padded:.0f} theirs")
    ours.warm(batches)
    # Before they are trained.
    _time_prediction(report, task, ours.run, jax.device_put(params), theirs, options)
    sides: dict[str, Callable[[int], Any]] = {"ours": lambda i: ours(batches[i])}
    sides |= {kind: measure.following(step, given) for kind, step in theirs.items()}
    _time(report, f"training step, {task}", sides, options.repeats)
    values = _config(task, options, directory)
    values.self_distillation.method = "dynsdpb"
    _time_distillation(report, task, ours.run.experiment, prepare(freeze(values)), options.repeats)


def _time_prediction(
    report: measure.Report, task: str, run: Run, params: Any, theirs: dict[str, Any], options: Any
) -> None:
    """From token ids to the classes of the whole development set, which is the test set here."""
    experiment = run.experiment
    given, order = questions(run, "test", options.batch)

    def ours(_):
        with jax.set_mesh(run.mesh):
            return run.answer(params, "test")

    answers = ours(0)
    chosen = [experiment.student.labels.index(text) for text in answers.texts]
    for kind, side in theirs.items():
        log_prob_NK = side.predict(given, order)
        apart = np.abs(log_prob_NK[np.arange(len(chosen)), chosen] - answers.log_probs).max()
        equal = int(np.sum(log_prob_NK.argmax(1) == chosen))
        line = f"{equal} of {len(chosen)} predictions equal, log-probabilities within {apart:.1e}"
        # Where both classes are as likely, rounding decides.
        beaten = (log_prob_NK.max(1) - answers.log_probs).max()
        if not max(apart, beaten) < (5e-2 if options.dtype == "bfloat16" else 1e-4):
            raise ValueError(f"the two sides do not predict the same: {kind}, {line}")
        report.note(f"{task}, {kind}: {line}")
    sides: dict[str, Callable[[int], Any]] = {"ours": ours}
    sides |= {kind: _predicting(side, given, order) for kind, side in theirs.items()}
    _time(report, f"prediction, {task}", sides, options.repeats)


def _time_distillation(
    report: measure.Report, task: str, plain: Experiment, distilling: Experiment, repeats: int
) -> None:
    """What DynSDPB adds to a step: both sides have its batches, of which half was in the one before."""
    step = RunStep(distilling)
    both = {"plain": RunStep(plain, like=step.run), "dynsdpb": step}
    batches = [step.run.batches(n) for n in range(repeats)]
    for side in both.values():
        side.warm(batches)
    sides = {name: measure.following(side, batches) for name, side in both.items()}
    seconds = measure.in_turn(sides, repeats)
    for name, time in seconds.items():
        report.row(f"overlapping batches, {task}, {name}", time)
    report.ratio(f"step time of dynsdpb, {task}", seconds["plain"], seconds["dynsdpb"], np.mean)


def _time(report: measure.Report, what: str, sides: dict[str, Callable[[int], Any]], repeats: int) -> None:
    """Reports times, and the ratio to the faster of their attentions."""
    seconds = measure.in_turn(sides, repeats)
    for name, time in seconds.items():
        report.row(f"{what}, {name}", time)
    fastest = min(_ATTENTION, key=lambda kind: seconds[kind].mean)
    report.ratio(f"times as fast, {what}", seconds["ours"], seconds[fastest], np.mean)


def _predicting(side: "Theirs", batches: Sequence[Tensors], order: np.ndarray) -> Callable[[int], Any]:
    return lambda _: side.predict(batches, order)


class Theirs:
    """Transformers' BERT with a head for classes: AdamW, a clipped gradient norm."""

    def __init__(self, directory: Path, attention: str, dtype: str, weight_decay: float = 0.01):
        model: Any = transformers.BertForSequenceClassification.from_pretrained(
            directory, attn_implementation=attention, dtype=torch.float32
        )
        self._model, self._half = model.to(device()), dtype == "bfloat16"
        # As ours: no decay of norms and biases.
        kept = [p for p in self._model.parameters() if p.ndim < 2]
        decayed = [p for p in self._model.parameters() if p.ndim > 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}],
            lr=5e-5,
            fused=attention == "sdpa",
        )
        self._clip = OptimizerConfig.clip_norm

    def _precision(self) -> Any:
        kind = device().type
        return torch.autocast(kind, torch.bfloat16) if self._half else contextlib.nullcontext()

    def _backward(self, batch: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        with self._precision():
            loss = self._model(**_on_device(batch)).loss
        loss.backward()
        return loss.detach(), torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)

    def compare(self, batch: Tensors) -> tuple[float, float]:
        """Loss and gradient norm without dropout."""
        self._model.eval()
        loss, norm = self._backward(batch)
        self._optimizer.zero_grad()
        return loss.item(), norm.item()

    def __call__(self, batch: Tensors) -> torch.Tensor:
        self._model.train()
        loss, _ = self._backward(batch)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss

    def at_rate(self, learning_rate: float) -> "Theirs":
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        return self

    def weights(self) -> Tensors:
        """A copy of the parameters."""
        return {name: x.clone() for name, x in self._model.state_dict().items()}

    def restore(self, weights: Tensors) -> None:
        self._model.load_state_dict(weights)

    def predict(self, batches: Sequence[Tensors], order: np.ndarray) -> np.ndarray:
        """(N, K) log-probabilities of batches of `order`, in the order of the questions."""
        self._model.eval()
        with torch.inference_mode(), self._precision():
            logits = [self._model(**_on_device(batch)).logits.float() for batch in batches]
        found = torch.log_softmax(torch.cat(logits), 1).cpu().numpy()
        return found[np.argsort(order)]


def _on_device(batch: Tensors) -> Tensors:
    return {name: x.to(device(), non_blocking=True) for name, x in batch.items()}


def questions(run: Run, split: str, batch_size: int) -> tuple[list[Tensors], np.ndarray]:
    """A split in batches sorted by length, and the (N,) examples in their order."""
    experiment = run.experiment
    most, sep_id = experiment.config.data.max_input_tokens, experiment.student.config.sep_token_id
    encoded, _ = encode_questions(experiment.answer_view, run.examples(split), experiment.format, most)
    rows = [part[part >= 0] for part in evaluation_rows(encoded.lengths, batch_size)]
    given = []
    for part in rows:
        shape = (int(encoded.lengths[part].sum()), int(encoded.lengths[part].max()))
        given.append(_tensors(encoded.tokens(part, shape, 0), sep_id))
    return given, np.concatenate(rows)


def _tensors(inputs: Tokens, sep_id: int) -> Tensors:
    """Sequences of one group as Transformers reads them."""
    ids, real = rectangle(inputs)
    ends = ids == sep_id
    second = (np.cumsum(ends, axis=1) - ends > 0) & real
    arrays = {"input_ids": ids, "attention_mask": real, "token_type_ids": second}
    return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}


def labelled(batch: Batch, sep_id: int) -> Tensors:
    (view,) = batch.views.values()
    (labels,) = view.targets.ids[:, : view.targets.length.size]
    return _tensors(view.inputs, sep_id) | {"labels": torch.from_numpy(labels.astype(np.int64))}


def _options() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--model", type=Path, help="directory of a pretrained BERT")
    parser.add_argument(
        "--preset", choices=students.PRESETS, help="random weights of this size instead, and made-up texts"
    )
    parser.add_argument("--root", type=Path, help="folder of GLUE")
    parser.add_argument("--tasks", nargs="+", choices=_MADE_UP, default=[*_MADE_UP])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    if not options.model and not options.preset:
        parser.error("give --model=DIR or --preset=NAME")
    return options


if __name__ == "__main__":
    main()
