"""Write a run's best student for Transformers: python -m cot_jax.export RUN --output=DIR

DIR receives weights, config.json, the tokenizer, generation_config.json if the student writes, and README.md,
the model card of the Hugging Face Hub: method, data, measured accuracy and the texts that the student expects
before a question.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from cot_jax import __version__
from cot_jax.config import Config, flattened
from cot_jax.errors import command
from cot_jax.files import refuse_full, whole_directory, write_text
from cot_jax.training import saved
from cot_jax.training.result import metric_of, read_result
from cot_jax.training.saved import Saved

_CARD = """\
---
library_name: transformers
license: {license}
{base}tags:
- chain-of-thought
- distillation
- cot_jax
datasets:
- {task}
---

# {title}

{origin}, taught {task} with `{method}`{self_distillation} by cot_jax {version}: {steps} steps of
{batch_size} examples, {label_source} labels, seed {seed}.

| split | {metric} | how |
|---|---|---|
| validation | {valid} | the checkpoint was chosen by it |
| test | {test} | looked at once |

## What to ask it

| to get | put before the question | longest answer, in tokens |
|---|---|---|
{prefixes}

```python
{sample}
```

`python -m cot_jax.predict . --input=questions.jsonl` answers without PyTorch. `cot_jax.json` holds
the whole configuration; `python -m cot_jax.train` with these values trains the student again:

```text
{flags}
```

The licences of the base weights and of the data apply; `license` above is what the exporter said.
"""


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a mistake in its arguments or files."""
    parser = argparse.ArgumentParser(
        "python -m cot_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="work directory of a run")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="write the adapter that LoRA trained, for PEFT",
    )
    parser.add_argument("--license", default="other", help="for the model card, e.g. apache-2.0")
    options = parser.parse_args(argv)
    refuse_full(options.output)
    student = saved.load(options.run)
    result = read_result(options.run, shape={"versions?": {str: str}, "steps?": int})
    card = _card(student, result or {}, options)
    with whole_directory(options.output):
        if options.adapter:
            student.export_adapter(options.output)
        else:
            student.export(options.output)
            if not student.student.labels:
                _generation_config(student).save_pretrained(options.output)
            write_text(options.output / "README.md", card)
    reader = f"Transformers' {student.student.hf_class} and AutoTokenizer read"
    if options.adapter:
        reader = "PEFT's PeftModel.from_pretrained reads"
    print(f"written to {options.output}: {reader} it")
    return 0


def _generation_config(student: Saved) -> GenerationConfig:
    """Decoding as the student was evaluated."""
    evaluation, architecture = student.config.evaluation, student.student.architecture()
    return GenerationConfig(
        max_new_tokens=evaluation.max_new_tokens,
        num_beams=evaluation.beams,
        do_sample=False,
        decoder_start_token_id=architecture.get("decoder_start_token_id"),
        eos_token_id=list(student.student.ends),
        pad_token_id=student.student.pad_id,
    )


def _card(student: Saved, result: dict[str, Any], options: argparse.Namespace) -> str:
    """The model card; `result` is empty of a run that is not finished."""
    config = student.config
    names = {
        "label": "the answer",
        "rationale": "its rationale",
        "joint": "rationale, then answer",
        "program": "a program that gives it",
    }
    prefixes = []
    for view in student.views:
        name = names[view.term]
        if labels := student.student.labels:
            prefixes.append(f"| one of {', '.join(labels)} | nothing | 1 |")
            continue
        if view.path == "cot":
            name = "rationale, then answer"
        if view.name in student.format.spelled:
            name += ", spelled by `cot_jax.text.codec`"
        prefix = f"`{view.prefix}`" if view.prefix else "nothing"
        prefixes.append(f"| {name} | {prefix} | {student.most_tokens(view)} |")
    base, distillation = config.model.pretrained, config.self_distillation.method
    first, hf_class = student.views[0], student.student.hf_class
    metric = metric_of(result)
    measured = {split: result.get(f"{split}/{metric}") for split in ("valid", "test")}
    return _CARD.format(
        license=options.license,
        base=f"base_model: {base}\n" if base else "",
        task=config.data.task,
        title=options.output.resolve().name,
        origin=_origin(student),
        method=config.objective.method,
        self_distillation="" if distillation == "none" else f" and `{distillation}`",
        version=(result.get("versions") or {}).get("cot_jax", __version__),
        steps=result.get("steps") or config.train.steps,
        batch_size=config.train.batch_size,
        label_source=config.data.label_source,
        seed=config.seed,
        metric=metric,
        valid=_percent(measured["valid"]),
        test=_percent(measured["test"]),
        prefixes="\n".join(prefixes),
        sample=student.format.sample(first.name, first.prefix, hf_class),
        flags="\n".join(_flags(config)),
    )


def _origin(student: Saved) -> str:
    """What was trained, and how much of it."""
    model = student.config.model
    if not model.pretrained:
        return f"A student from scratch (preset `{model.preset}`)"
    if not model.has_lora:
        return f"`{model.pretrained}`"
    merged = "an adapter of LoRA merged into its weights"
    if student.adapter:
        lora, _ = student.adapter
        merged += f" (rank {lora.rank}, alpha {lora.alpha:g}, {len(lora.modules)} matrices)"
    return f"`{model.pretrained}` with {merged}"


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.2f} %"


def _flags(config: Config) -> list[str]:
    """The keys that differ from their defaults, as flags."""
    values = dict(flattened(config))
    return [f"--config.{key}={values[key]}" for key, value in flattened(Config()) if values[key] != value]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
