"""Export of a student to Transformers and the Hub, with a model card; `cot_jax.export`."""

import dataclasses
import shlex
from operator import attrgetter
from pathlib import Path
from typing import Any

import huggingface_hub

from cot_jax import __version__
from cot_jax.config import Config, describe_keys
from cot_jax.errors import UserError, first_line
from cot_jax.files import in_bucket, refuse_full, whole_directory, write_text
from cot_jax.imports import without_torch
from cot_jax.training.result import metric_of, read_result
from cot_jax.training.saved import Saved

with without_torch():
    from transformers import GenerationConfig

_CARD = Path(__file__).parent / "model_card.md"  # a template, for str.format


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of `cot_jax.export`, whose --help explains them."""

    output: Path
    license: str = "other"
    adapter: bool = False
    push_to_hub: str = ""

    def __post_init__(self):
        if self.adapter and self.push_to_hub:
            raise UserError(
                "--push_to_hub needs the full model, --adapter writes an adapter only: give one of them"
            )
        if self.push_to_hub and in_bucket(self.output):
            raise UserError(f"--push_to_hub uploads from a disk: give a local --output, not {self.output}")
        refuse_full(self.output)


def export(student: Saved, run: Path, options: Options) -> None:
    """Writes the student of `run` to `options.output`, and prints which class loads it.

    Raises:
      UserError: there is no adapter to write, or the Hub refuses the model.
    """
    output = options.output
    result = read_result(run, shape={"versions?": {str: str}, "steps?": int})
    card = _card(student, result or {}, options)
    with whole_directory(output) as directory:
        if options.adapter:
            student.export_adapter(directory)
        else:
            student.export(directory)
            if not student.student.labels:
                _generation_config(student).save_pretrained(directory)
            write_text(directory / "README.md", card)
    reader = f"Transformers' {student.student.hf_class} and AutoTokenizer read"
    if options.adapter:
        reader = "PEFT's PeftModel.from_pretrained reads"
    print(f"written to {output}: {reader} it")
    if options.push_to_hub:
        _push(output, options.push_to_hub)


def _push(directory: Path, repository: str) -> None:
    try:
        huggingface_hub.create_repo(repository, exist_ok=True)
        url = huggingface_hub.upload_folder(
            repo_id=repository, folder_path=directory, commit_message="Student of cot_jax"
        )
    except Exception as error:  # the network and the Hub's client raise many classes
        raise UserError(
            f"--push_to_hub={repository}: {first_line(error)}; {directory} is complete: log in with "
            "`hf auth login` and upload it with `hf upload`"
        ) from None
    print(f"uploaded: {url}")


def _generation_config(student: Saved) -> GenerationConfig:
    """Returns the decoding of the student's evaluation."""
    evaluation, architecture = student.config.evaluation, student.student.architecture()
    return GenerationConfig(
        max_new_tokens=evaluation.max_new_tokens,
        num_beams=evaluation.beams,
        do_sample=False,
        decoder_start_token_id=architecture.get("decoder_start_token_id"),
        eos_token_id=list(student.student.ends),
        pad_token_id=student.student.pad_id,
    )


def _card(student: Saved, result: dict[str, Any], options: Options) -> str:
    """Returns the model card; `result` is empty if the run is not finished."""
    config = student.config
    names = {
        "label": "the answer",
        "rationale": "its rationale",
        "program": "a program that gives it",
    }
    labels, prefixes = student.student.labels, []
    if labels:
        prefixes.append(f"| one of {', '.join(labels)} | nothing | 1 |")
    for view in () if labels else student.views:
        name = "rationale, then answer" if view.path == "cot" else names[view.term]
        if view.name in student.format.spelled:
            name += ", spelled by `cot_jax.text.codec`"
        prefix = f"`{view.prefix}`" if view.prefix else "nothing"
        prefixes.append(f"| {name} | {prefix} | {student.most_tokens(view)} |")
    base, distillation = config.model.pretrained, config.self_distillation.method
    first, hf_class = student.views[0], student.student.hf_class
    metric = metric_of(result)
    measured = {split: result.get(f"{split}/{metric}") for split in ("valid", "test")}
    return _CARD.read_text(encoding="utf-8").format(
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
    """Returns the base model and how it was adapted."""
    model = student.config.model
    if not model.pretrained:
        return f"A student from scratch (preset `{model.preset}`)"
    if not model.has_lora:
        return f"`{model.pretrained}`"
    merged = "a LoRA adapter merged into its weights"
    if student.adapter:
        lora, _ = student.adapter
        merged += f" (rank {lora.rank}, alpha {lora.alpha:g}, {len(lora.modules)} matrices)"
    return f"`{model.pretrained}` with {merged}"


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.2f} %"


def _flags(config: Config) -> list[str]:
    """Returns the flags of this config, quoted for a shell."""
    values = (
        (key, attrgetter(key.removeprefix("config."))(config), usual) for key, usual, _ in describe_keys()
    )
    changed = [shlex.quote(f"--{key}={value}") for key, value, usual in values if value != usual]
    return ["--config=common", *changed]
