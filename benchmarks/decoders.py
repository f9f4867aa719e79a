"""A decoder with LoRA, ours against Transformers and PEFT: training steps, their memory, greedy generation.

    python -m benchmarks.decoders --model=DIR --root=DATA                   # a pretrained decoder, real data
    python -m benchmarks.decoders --model=DIR --root=DATA --memory
    python -m benchmarks.decoders --preset=smollm2-1.7b --compile           # random weights, word problems

Both sides train the same adapter on the same random batches of a run: ours flat, with what all prompts begin
with read once, theirs padded to the longest of each batch, as PEFT's users do. Before anything is timed, loss
and gradient norm of the first batch are compared; of generation, every token. Each side's peak memory is the
most that a process of its own holds resident, with weights, libraries and, ours, the compiler.

On a GPU both sides compute in bfloat16, with weights in bfloat16 and the adapter in float32.
"""

import argparse
import contextlib
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from peft import PeftModel

from benchmarks import measure
from benchmarks.generate import check_equal
from benchmarks.published import device
from benchmarks.run_step import RunStep
from cot_jax.batch import Batch, Tokens
from cot_jax.config import LORA_LEARNING_RATE, OptimizerConfig, WordProblemsConfig, default_config, freeze
from cot_jax.data import word_problems
from cot_jax.data.batches import evaluation_rows
from cot_jax.data.lengths import needed
from cot_jax.models import student as students
from cot_jax.models.lora import write_adapter
from cot_jax.models.weights import init
from cot_jax.text import formats
from cot_jax.training.encoding import encode_questions
from cot_jax.training.evaluation import make_generate
from cot_jax.training.experiment import Experiment, prepare
from cot_jax.training.run import Run

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
_SIDES, _PEAK = ("ours", "eager", "sdpa"), "peak memory: "


def main() -> None:
    options = _options()
    if options.side:
        _take_steps(options)
        print(f"{_PEAK}{1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}")
        return
    with tempfile.TemporaryDirectory() as name:
        if options.preset:
            options.model = _random_model(options.preset, Path(name))
        _compare(options)


def _random_model(preset: str, directory: Path) -> Path:
    """A model of random weights with the preset's vocabulary; its tokenizer, of word problems, is smaller."""
    problems = word_problems.splits(seed=0, **dataclasses.asdict(WordProblemsConfig()))
    texts = [text for e in problems["train"][:2000] for text in (*e.parts, e.label, *e.rationales)]
    format = formats.train(texts, 512, directory / "scratch", "causal")
    config = dataclasses.replace(
        students.PRESETS[preset],
        pad_token_id=format.tokenizer.hf.pad_token_id,
        eos_token_ids=(format.tokenizer.eos_id,),
    )
    student = students.build(config.to_json(), students.Options())
    params = jax.device_get(jax.jit(lambda: init(student.weights, jax.random.key(0)))())
    students.save(directory, student, params)
    format.tokenizer.save(directory)
    return directory


def _compare(options: argparse.Namespace) -> None:
    experiment = prepare(_config(options))
    report = measure.Report(options)
    report.note(
        f"{options.preset or options.model.name}, {options.task} {options.method}, LoRA of rank "
        f"{options.rank} on all linear maps, batches of {options.batch} random examples, {_dtype()}, "
        "no dropout"
    )
    ours = RunStep(experiment)
    batches = [ours.run.batches(n) for n in range(options.repeats)]
    rows = [_rows(batch) for batch in batches]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        assert experiment.lora is not None
        write_adapter(directory, experiment.lora, jax.device_get(ours.state.params), str(options.model))
        plain = [[(row.tolist(), first) for row, first in batch] for batch in rows]
        (directory / "rows.json").write_text(json.dumps(plain), encoding="utf-8")
        theirs = {kind: _Theirs(options.model, directory, kind, options.compile) for kind in _SIDES[1:]}
        peaks = {side: _peak(side, directory, options.model) for side in _SIDES} if options.memory else {}
    found = ours.compare(batches[0])
    for kind, side in theirs.items():
        line = measure.agreement(found, side.compare(rows[0]), 1e-4 if measure.on_cpu() else 2e-2)
        report.note(f"{kind}: {line}")
    tokens = np.mean([sum(int(t.length.sum()) for t in _sections(batch)) for batch in batches])
    padded = np.mean([len(r) * max(len(x) for x, _ in r) for r in rows])
    report.note(f"slots of a batch: ours {tokens:.0f} tokens and the prefix, theirs {padded:.0f}")
    ours.warm(batches)
    sides: dict[str, Callable[[int], Any]] = {"ours": lambda i: ours(batches[i])}
    sides |= {kind: measure.following(step, rows) for kind, step in theirs.items()}
    seconds = measure.in_turn(sides, options.repeats)
    for name, time in seconds.items():
        report.row(f"step, {name}", time, **{"peak memory": measure.in_bytes(peaks.get(name))})
    for kind in theirs:
        report.ratio(f"training step against {kind}", seconds["ours"], seconds[kind], np.mean)
        if peaks:
            report.number(f"peak memory of {kind}", peaks["ours"] / peaks[kind])
    for batch_size in options.generate:
        _time_generation(report, experiment, batch_size, options)
    report.close()


def _config(options: argparse.Namespace) -> Any:
    values = default_config()
    values.data.task, values.data.root = options.task, str(options.root or "")
    values.model.pretrained = str(options.model)
    values.objective.method = options.method
    values.train.batch_size, values.evaluation.batch_size = options.batch, options.batch
    values.train.steps = 1000
    values.model.lora_rank = options.rank
    values.model.frozen_dtype = _dtype()
    return freeze(values)


def _dtype() -> str:
    return "float32" if measure.on_cpu() else "bfloat16"


def _load(model: Path, attention: str) -> Any:
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        model, attn_implementation=attention, dtype=getattr(torch, _dtype())
    )
    return loaded.to(device())


class _Theirs:
    """The step of Transformers and PEFT: AdamW, a clipped gradient norm, labels of the completion only."""

    def __init__(self, model: Path, adapter: Path, attention: str, compile_: bool = False):
        self._model: Any = PeftModel.from_pretrained(_load(model, attention), adapter, is_trainable=True)
        self._learned = [p for p in self._model.parameters() if p.requires_grad]
        self._forward: Any = torch.compile(self._model, dynamic=True) if compile_ else self._model
        self._clip = OptimizerConfig.clip_norm
        self._optimizer = torch.optim.AdamW(
            self._learned, lr=LORA_LEARNING_RATE, weight_decay=0.0, fused=attention == "sdpa"
        )

    def _backward(self, rows: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(ids) for ids, _ in rows)
        ids, labels = np.zeros((len(rows), width), np.int64), np.full((len(rows), width), -100)
        mask = np.zeros((len(rows), width), np.int64)
        for n, (row, first) in enumerate(rows):
            ids[n, : len(row)], mask[n, : len(row)] = row, 1
            labels[n, first : len(row)] = row[first:]
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        half = contextlib.nullcontext() if measure.on_cpu() else torch.autocast("cuda", torch.bfloat16)
        with half:
            loss = self._forward(
                **{name: torch.from_numpy(x).to(device()) for name, x in arrays.items()}
            ).loss
        loss.backward()
        return loss.detach(), torch.nn.utils.clip_grad_norm_(self._learned, self._clip)

    def compare(self, rows: list[tuple[np.ndarray, int]]) -> tuple[float, float]:
        loss, norm = self._backward(rows)
        self._optimizer.zero_grad()
        return loss.item(), norm.item()

    def __call__(self, rows: list[tuple[np.ndarray, int]]) -> torch.Tensor:
        self._model.train()
        loss, _ = self._backward(rows)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss


def _sections(batch: Batch) -> list[Tokens]:
    return [tokens for view in batch.views.values() for tokens in (view.inputs, view.targets)]


def _rows(batch: Batch) -> list[tuple[np.ndarray, int]]:
    """Every sequence of a batch of one group, and where its target begins."""
    rows = []
    for view in batch.views.values():
        prefix = view.inputs.prefix[0] if view.inputs.prefix is not None else np.zeros(0, np.int32)
        for text, target in zip(_split(view.inputs), _split(view.targets), strict=True):
            rows.append((np.concatenate([prefix, text, target]), len(prefix) + len(text)))
    return rows


def _split(tokens: Tokens) -> list[np.ndarray]:
    (length_E,), (ids_X,) = tokens.length, tokens.ids
    return np.split(ids_X[: length_E.sum()], length_E.cumsum()[:-1])


def _time_generation(
    report: measure.Report, experiment: Experiment, batch_size: int, options: argparse.Namespace
) -> None:
    """Greedy answers of the pretrained weights to test questions."""
    run, student, most = Run(experiment), experiment.student, options.tokens
    examples = run.examples("test")[: 8 * batch_size]
    questions, _ = encode_questions(experiment.answer_view, examples, experiment.format, 1024)
    order = next(iter(evaluation_rows(questions.lengths, batch_size)))
    shape = needed(questions.lengths_of(order)[None], 1)[0]
    tokens = questions.tokens(order, tuple(shape.tolist()), student.pad_id, 1)
    generate = make_generate(student, run.mesh, most, 1)
    params = jax.device_put(experiment.pretrained)
    prefix = [] if tokens.prefix is None else [tokens.prefix[0]]
    texts = [np.concatenate([*prefix, text]) for text in _split(tokens)]
    width = max(map(len, texts))
    ids, mask = np.zeros((2, len(texts), width), np.int64)
    for n, text in enumerate(texts):  # on the left, as Transformers generates
        ids[n, width - len(text) :], mask[n, width - len(text) :] = text, 1
    arrays = {"input_ids": ids, "attention_mask": mask}
    tensors = {name: torch.from_numpy(array).to(device()) for name, array in arrays.items()}
    model = _load(options.model, "sdpa").eval()

    def ours(_):
        with jax.set_mesh(run.mesh):
            return generate(params, tokens)[0]

    def theirs(_):
        with torch.inference_mode():
            return model.generate(**tensors, max_new_tokens=most, do_sample=False)

    written = np.asarray(ours(0))
    count = check_equal(written, theirs(0)[:, width:].cpu().numpy(), student.pad_id)
    names = (f"generation, ours, batch {batch_size}", f"generation, sdpa, batch {batch_size}")
    seconds = measure.in_turn(dict(zip(names, (ours, theirs), strict=True)), options.repeats)
    for name, time in seconds.items():
        report.row(name, time, **{"peak memory": "-"})
    report.note(f"generation, batch {batch_size}: {count} tokens, equal")
    report.ratio(f"generation, batch {batch_size}", seconds[names[0]], seconds[names[1]])


def _take_steps(options: argparse.Namespace) -> None:
    """Three steps of one side, which finds in `options.given` what the other process prepared."""
    if options.side == "ours":
        ours = RunStep(prepare(_config(options)))
        for n in range(3):
            measure.finish(ours(ours.run.batches(n)))
        return
    theirs = _Theirs(options.model, options.given, options.side)
    for batch in json.loads((options.given / "rows.json").read_text(encoding="utf-8"))[:3]:
        theirs([(np.array(row), first) for row, first in batch])


def _peak(side: str, given: Path, model: Path) -> int:
    """Bytes."""
    told = (f"--side={side}", f"--given={given}", f"--model={model}")
    command = [sys.executable, "-m", "benchmarks.decoders", *sys.argv[1:], *told]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    (found,) = [line for line in done.stdout.splitlines() if line.startswith(_PEAK)]
    return int(found.removeprefix(_PEAK))


def _options() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--model", type=Path, help="directory of a pretrained decoder")
    parser.add_argument(
        "--preset",
        choices=students.PRESETS,
        help="random weights of this size instead, and --task=word_problems",
    )
    parser.add_argument("--root", type=Path, help="folder of the data sets")
    parser.add_argument("--task", default="svamp")
    parser.add_argument("--compile", action="store_true", help="torch.compile their step")
    parser.add_argument("--method", default="single_task")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--generate", type=int, nargs="*", default=[1, 8], help="batch sizes")
    parser.add_argument("--tokens", type=int, default=64, help="most new tokens")
    parser.add_argument("--memory", action="store_true", help="also start a process for each side's memory")
    parser.add_argument("--side", choices=_SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--given", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.model and not options.preset:
        parser.error("give --model=DIR or --preset=NAME")
    if options.preset:
        options.task = "word_problems"
    return options


if __name__ == "__main__":
    main()
