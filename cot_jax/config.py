"""Configuration: a ConfigDict at the border, validated frozen dataclasses inside.

Every key is declared once, below, with its default, limits and meaning. `configs/common.py` takes its
ConfigDict from here; `--help` and docs/config.md list the same keys. A wrong key, type or value is a
one-line `UserError`.
"""

import dataclasses
import difflib
import importlib.util
import json
import math
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections.config_flags import config_flags

from cot_jax.data.examples import ORDERS
from cot_jax.data.tasks import TASKS
from cot_jax.data.views import METHODS
from cot_jax.errors import UserError
from cot_jax.files import place, read_json
from cot_jax.imports import make_callable
from cot_jax.limits import MOST
from cot_jax.losses.choices import DETACHABLE, OUTPUTS, REDUCTIONS, SELF_DISTILLATION, VARIANTS
from cot_jax.models.choices import PRESETS, REMAT

# AdamW: the recipe of Hsieh et al. 2023. Adafactor: Raffel et al. 2020, section 3.1.2.
LEARNING_RATES = {"adamw": 5e-5, "adafactor": 1e-3}
# The files of configs/, which the package contains too.
SHIPPED = Path(__file__).parent / "configs"
TABLES = SHIPPED / "tables"
STEPS = 10_000  # Hsieh et al. 2023 and Chen et al. 2024
# Hu et al. 2022, appendix D.1, and common practice: about ten times that of full fine-tuning.
LORA_LEARNING_RATE = 5e-4
# How Python refuses the text of a flag -> what was expected.
_WRONG_VALUES = {
    "invalid literal for int()": "a whole number",
    "could not convert string to float": "a number",
    "('Non-boolean argument": "True or False",
}
# Retired keys that older runs record, each with the value that is now the only one.
_RETIRED = (
    ("self_distillation.map_logits", "log"),
    ("self_distillation.difficulty", "clip"),
    ("self_distillation.uncertainty", "log_vocabulary"),
)


def _key(
    default: Any,
    doc: str,
    *,
    choices: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A dataclass field whose limits `_check` enforces; `low` and `high` are inclusive."""
    return dataclasses.field(
        default=default, metadata={"doc": doc, "choices": tuple(choices), "low": low, "high": high}
    )


@dataclasses.dataclass(frozen=True)
class WordProblemsConfig:
    """The embedded generator of arithmetic word problems (task=word_problems)."""

    train: int = _key(20_000, "training problems", low=1, high=MOST["examples"])
    valid: int = _key(200, "validation problems", low=1, high=MOST["examples"])
    test: int = _key(1000, "test problems", low=1, high=MOST["examples"])
    max_steps: int = _key(2, "maximum arithmetic steps of a solution", low=1)
    distractors: int = _key(1, "maximum sentences with an irrelevant number", low=0)
    max_number: int = _key(20, "largest number, given or computed", low=1, high=10**5)
    teacher_error_rate: float = _key(0.0, "chance that the teacher omits the last step", low=0.0, high=1.0)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    task: str = _key("word_problems", "data set", choices=sorted([*TASKS, "word_problems"]))
    root: str = _key(
        "",
        "folder with the published data sets; for GLUE, SuperGLUE and jsonl also a repository id on the Hub",
    )
    label_source: str = _key("gold", "labels to train on", choices=("gold", "teacher"))
    parser: str = _key("corrected", "parser of the teacher's outputs", choices=("corrected", "reference"))
    teacher: str = _key("", "a teacher's file, as rationalize writes it; replaces the data's own outputs")
    rationales: str = _key(
        "all",
        "rationales to train on; right = only those whose teacher label is correct",
        choices=("all", "right"),
    )
    sandbox: bool = _key(False, "run a teacher's programs that the interpreter refuses, in bubblewrap")
    compare: str = _key(
        "auto",
        "how task=jsonl compares answers; auto = by value if all are equations",
        choices=("auto", "text", "value"),
    )
    max_train_examples: int = _key(0, "maximum number of training examples; 0 = all", low=0)
    train_fraction: float = _key(1.0, "share of the training examples to keep", low=0.0, high=1.0)
    chat: str = _key(
        "auto",
        "prompt format of a decoder: its chat template or plain text; auto = the template, if there is one",
        choices=("auto", "plain", "template"),
    )
    max_input_tokens: int = _key(1024, "longer inputs are cut", low=2, high=MOST["max_tokens"])
    max_target_tokens: int = _key(256, "longer targets are cut", low=2, high=MOST["max_tokens"])
    order: str = _key(
        "random", "random = a new permutation every epoch; sequential = the order of the data", choices=ORDERS
    )
    word_problems: WordProblemsConfig = dataclasses.field(default_factory=WordProblemsConfig)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    pretrained: str = _key("", "Hugging Face repository id or directory; empty = from scratch")
    layers: int = _key(0, "keep only the first N layers of the pretrained model; 0 = all", low=0)
    preset: str = _key("base", "size of a student from scratch", choices=sorted(PRESETS))
    tokenizer: str = _key(
        "", "repository id or directory; empty = the model's (word_problems: one is trained)"
    )
    dropout_rate: float = _key(-1.0, "dropout rate; -1 = the family's default", low=-1.0, high=0.9)
    compute_dtype: str = _key(
        "auto", "auto = bfloat16 on GPU and TPU, float32 on CPU", choices=("auto", "float32", "bfloat16")
    )
    remat: str = _key(
        "auto",
        "what the backward pass recomputes of a layer, to save memory: elementwise = all but linear maps (on "
        "a TPU also attention's, except of decoders); auto = that, but none where the layers are unrolled",
        choices=("auto", *REMAT),
    )
    lora_rank: int = _key(
        -1,
        "rank of LoRA's updates; 0 = train all weights; -1 = the family's default: 16 for pretrained "
        "decoders, 0 for others",
        low=-1,
    )
    lora_alpha: float = _key(0.0, "LoRA scales by alpha / rank; 0 = the family's default", low=0.0)
    lora_adapter: str = _key(
        "", "directory of a PEFT adapter to start from; its rank, alpha and targets replace the other keys"
    )
    frozen_dtype: str = _key(
        "float32", "dtype of the weights that LoRA freezes", choices=("float32", "bfloat16")
    )
    lora_targets: str = _key(
        "", "regular expression for the paths of the adapted parameters; empty = the family's default"
    )

    @property
    def has_lora(self) -> bool:
        """Whether an adapter is trained in place of the weights."""
        return bool(self.lora_rank > 0 or self.lora_adapter)

    def resolved(self, usual: Mapping[str, Any]) -> "ModelConfig":
        """Returns the config with the family's defaults, `usual`, for the keys that ask for them.

        Raises:
          UserError: a dropout rate between -1 and 0.
        """
        if -1 < self.dropout_rate < 0:
            raise UserError(f"config.model.dropout_rate={self.dropout_rate}: must be -1 or from 0 to 0.9")
        unset = {"dropout_rate": -1, "lora_rank": -1, "lora_alpha": 0, "lora_targets": ""}
        given = {key: value for key, value in usual.items() if getattr(self, key) == unset[key]}
        if "lora_rank" in given and not self.pretrained:
            given["lora_rank"] = 0
        return dataclasses.replace(self, **given)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    method: str = _key("dss", "method", choices=sorted(METHODS))
    alpha: float = _key(
        0.5, "weight of the label loss; the rationale loss is weighted 1 - alpha", low=0.0, high=1.0
    )
    program_weight: float = _key(0.5, "weight of the program loss (method=mixed, mixed_mi; ours)", low=0.0)
    beta: float = _key(0.1, "weight of the mutual-information loss (method=mi, mixed_mi)", low=0.0)
    mi_variant: str = _key("reference", "form of the mutual-information loss", choices=VARIANTS)
    mi_reduction: str = _key("max", "how a view's probabilities reduce to one map", choices=REDUCTIONS)
    mi_detach: str = _key("label", "view whose map gets no gradient", choices=DETACHABLE)
    class_weights: str = _key(
        "none",
        "class weights of a classifier's loss; balanced = n / (K n_c): n examples, n_c of class c, K classes",
        choices=("none", "balanced"),
    )


@dataclasses.dataclass(frozen=True)
class SelfDistillationConfig:
    """Self-distillation from the last mini-batch, on top of any method; batches then overlap by half."""

    method: str = _key(
        "none",
        "dlb = fixed weight and temperature; dynsdpb = both per example; dynamic = dynsdpb's weights on the "
        "cross-entropy, without distillation (the paper's ablation)",
        choices=("none", *SELF_DISTILLATION),
    )
    views: str = _key(
        "all",
        "views that are distilled, by their loss term",
        choices=("label", "rationale", "program", "all"),
    )
    weight: float = _key(1.0, "weight relative to the view's cross-entropy (papers: alpha)", low=0.0)
    temperature: float = _key(3.0, "temperature of the distilled distributions (papers: tau)", low=0.01)
    output: str = _key(
        "vmm", "what is stored: vocabulary maps, all logits of every token, or its top k", choices=OUTPUTS
    )
    top_k: int = _key(64, "stored logits per token (output=top_k)", low=1)
    dtype: str = _key("float32", "dtype of stored logits", choices=("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """Distillation from a teacher, run in the same step or stored, on top of any method."""

    teacher: str = _key(
        "",
        "work directory of a run, its export, a fine-tuned model, or, for encoders, a FILE.jsonl written by "
        "`predict --log_probs`; empty = no teacher",
    )
    weight: float = _key(
        0.5,
        "weight of distillation; the cross-entropy is weighted 1 - weight (papers: alpha)",
        low=0.0,
        high=1.0,
    )
    temperature: float = _key(5.0, "temperature of both distributions (papers: T)", low=0.01)
    layers: str = _key(
        "none",
        "teacher layers that an encoder's states match (patient distillation): skip = evenly spaced, last = "
        "the last ones",
        choices=("none", "skip", "last"),
    )
    layer_weight: float = _key(100.0, "weight of matching states (PKD: beta)", low=0.0)
    gradient_weight: float = _key(
        0.0,
        "weight of matching gradients of the largest probability by embeddings and states (GKD-CLS: gamma)",
        low=0.0,
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    name: str = _key("adamw", "optimizer; adafactor has almost no state", choices=sorted(LEARNING_RATES))
    learning_rate: float = _key(
        0.0, "peak learning rate; 0 = default: AdamW 5e-5, Adafactor 1e-3, LoRA 5e-4", low=0.0
    )
    schedule: str = _key(
        "linear",
        "learning rate schedule; linear = decay to 0 at the last step",
        choices=("linear", "constant"),
    )
    warmup_steps: int = _key(0, "steps of linear warm-up", low=0)
    warmup_ratio: float = _key(
        0.0, "warm-up as a share of all steps; 0 = warmup_steps decides", low=0.0, high=1.0
    )
    clip_norm: float = _key(1.0, "maximum global norm of the gradient; 0 = no clipping", low=0.0)
    weight_decay: float = _key(0.0, "decoupled weight decay (not on norms and biases)", low=0.0)
    b1: float = _key(0.9, "decay of AdamW's first moment", low=0.0, high=1.0)
    b2: float = _key(0.999, "decay of AdamW's second moment", low=0.0, high=1.0)
    eps: float = _key(1e-8, "AdamW's epsilon", low=0.0)
    moment_dtype: str = _key(
        "float32",
        "storage dtype of AdamW's moments; bfloat16 uses stochastic rounding, so that small changes add up",
        choices=("float32", "bfloat16"),
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: int = _key(0, f"optimizer steps; 0 = epochs decides, else {STEPS:,}", low=0, high=MOST["steps"])
    epochs: float = _key(0.0, "epochs, in place of steps; 0 = steps decides", low=0.0)
    batch_size: int = _key(64, "examples per step, over all devices", low=1, high=MOST["batch_size"])
    micro_batches: int = _key(
        1, "parts that a batch is processed in: less memory, same gradient, two forward passes", low=1
    )
    eval_every: int = _key(250, "steps between evaluations on validation; 0 = one epoch", low=0)
    checkpoint_every: int = _key(250, "steps between checkpoints; 0 = one epoch", low=0)
    patience: int = _key(0, "stop after this many evaluations in a row without improvement; 0 = never", low=0)
    log_every: int = _key(50, "steps between printed lines", low=1)
    layer_norms_every: int = _key(
        0, "steps between rows of every layer's gradient norm, plotted at the end; 0 = never", low=0
    )
    wandb: bool = _key(False, "also log to Weights & Biases, answers too (pip install cot-jax[wandb])")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The device mesh; the product of its axes is the number of devices."""

    data: int = _key(-1, "data-parallel groups of devices; -1 = as many as fit", low=-1)
    fsdp: int = _key(1, "devices of a group that shard parameters, optimizer state and examples", low=-1)
    model: int = _key(1, "devices that shard heads, feed-forward and vocabulary (tensor parallel)", low=-1)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    batch_size: int = _key(64, "questions per batch, over all devices", low=1, high=MOST["batch_size"])
    max_new_tokens: int = _key(64, "longest generated answer", low=1, high=MOST["max_new_tokens"])
    answers: str = _key(
        "generate",
        "generate = write the answer; score = take the most probable label, where labels are a closed set",
        choices=("generate", "score"),
    )
    beams: int = _key(1, "beam width (answers=generate); 1 = greedy", low=1, high=MOST["beams"])
    max_examples: int = _key(0, "validation examples used during training; 0 = all", low=0)
    mutual_information: bool = _key(
        False, "also estimate the mutual information of label and rationale view (InfoNCE, on validation)"
    )
    reference_protocol: bool = _key(
        False, "also evaluate on test every eval_every steps; report last and best, as the papers do"
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that determines a run, except its work directory."""

    seed: int = _key(
        0, "seed of initialisation, dropout, data order and generated data", low=0, high=MOST["seed"]
    )
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    self_distillation: SelfDistillationConfig = dataclasses.field(default_factory=SelfDistillationConfig)
    distillation: DistillationConfig = dataclasses.field(default_factory=DistillationConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)

    def resolved(self, usual: Mapping[str, Any]) -> "Config":
        """Returns the config without placeholders such as learning rate 0; `usual`: the family's defaults."""
        model = self.model.resolved(usual)
        rate = LORA_LEARNING_RATE if model.has_lora else LEARNING_RATES[self.optimizer.name]
        steps = self.train.steps or (0 if self.train.epochs else STEPS)
        changes = {"optimizer.learning_rate": self.optimizer.learning_rate or rate, "train.steps": steps}
        return dataclasses.replace(self, model=model).changed(changes)

    def scheduled(self, steps_an_epoch: float) -> "Config":
        """Returns a resolved config with epochs and shares as steps; a config with steps is unchanged.

        Raises:
          UserError: both steps and epochs (or a share) are given, and they disagree.
        """
        train, optimizer = self.train, self.optimizer
        steps = _as_steps(train.epochs, "train.epochs", steps_an_epoch, train.steps, "train.steps")
        names = ("optimizer.warmup_ratio", steps, optimizer.warmup_steps, "optimizer.warmup_steps")
        warmup_steps = _as_steps(optimizer.warmup_ratio, *names)
        epoch = math.ceil(steps_an_epoch)
        return self.changed(
            {
                "train.steps": steps,
                "train.eval_every": train.eval_every or epoch,
                "train.checkpoint_every": train.checkpoint_every or epoch,
                "optimizer.warmup_steps": warmup_steps,
            }
        )

    def changed(self, values: Mapping[str, Any]) -> "Config":
        """Returns the config with new values for the keys "SECTION.NAME", which are not checked."""
        config = self
        for key, value in values.items():
            section, name = key.split(".")
            part = dataclasses.replace(getattr(config, section), **{name: value})
            config = dataclasses.replace(config, **{section: part})
        return config

    @property
    def unscheduled(self) -> set[str]:
        """Keys that only `scheduled` gives a value."""
        train, optimizer = self.train, self.optimizer
        missing = {
            "train.steps": not train.steps,
            "train.eval_every": not train.eval_every,
            "train.checkpoint_every": not train.checkpoint_every,
            "optimizer.warmup_steps": optimizer.warmup_ratio > 0 and not optimizer.warmup_steps,
        }
        return {key for key, is_missing in missing.items() if is_missing}


def _as_steps(share: float, name: str, whole: float, given: int, key: str) -> int:
    """Returns `share` of `whole` in steps, rounded up; `given` if the share is 0."""
    if not share:
        return given
    # 0.07 * 100 is a little more than 7.
    steps = max(1, math.ceil(round(min(share * whole, 2.0 * MOST["steps"]), 6)))
    if steps > MOST["steps"]:
        raise UserError(f"config.{name}={share:g} makes more than {MOST['steps']:,} steps: lower it")
    if given not in (0, steps):
        raise UserError(
            f"config.{name}={share:g} makes {steps:,} steps, but config.{key}={given}: give only one of "
            f"them, with --config.{key}=0 or --config.{name}=0"
        )
    return steps


def default_config() -> ml_collections.ConfigDict:
    """Returns every key with its default, for `configs/*.py` to change."""
    return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def describe_keys(cls: type = Config, path: str = "config") -> Iterator[tuple[str, Any, str]]:
    """Yields (key, default, meaning and choices) for every key, in order."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = f"{path}.{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            yield from describe_keys(hints[field.name], name)
        else:
            choices = " | ".join(field.metadata["choices"])
            yield name, field.default, field.metadata["doc"] + (f" ({choices})" if choices else "")


def freeze(values: Any, cls: type = Config, path: str = "config") -> Any:
    """Turns a ConfigDict (or a dict) into the frozen dataclass `cls`, checking every key.

    Raises:
      UserError: unknown or missing key, wrong type, value out of range; names the key.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict | ml_collections.ConfigDict):
        raise UserError(f"{path} is a section of keys, found {values!r}")
    values = dict(values.items())
    for name in values.keys() - fields.keys():
        raise UserError(_unknown_key(f"{path}.{name}"))
    for name in fields.keys() - values.keys():
        raise UserError(f"{path}.{name} is missing: start from cot_jax.config.default_config()")
    frozen = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            frozen[name] = freeze(value, hints[name], f"{path}.{name}")
        else:
            frozen[name] = _check(value, hints[name], fields[name].metadata, f"{path}.{name}")
    return cls(**frozen)


def with_defaults(
    values: dict[str, Any], cls: type = Config, path: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Completes a saved config's JSON, which may be older than some keys.

    Returns:
      The JSON with the defaults of missing keys and without retired ones; the names of the missing keys.

    Raises:
      UserError: something else stands in place of a section.
    """
    hints, added = typing.get_type_hints(cls), []
    complete = {name: value for name, value in values.items() if (f"{path}{name}", value) not in _RETIRED}
    for field in dataclasses.fields(cls):
        name = f"{path}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            section = values.get(field.name, {})
            if not isinstance(section, dict):
                raise UserError(f"config.{name} is a section of keys, found {section!r}: take another copy")
            complete[field.name], inside = with_defaults(section, hints[field.name], f"{name}.")
            added += inside
        elif field.name not in values:
            complete[field.name] = field.default
            added.append(name)
    return complete, added


def _check(value: Any, kind: type, limits: Any, path: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > sys.float_info.max:
            raise UserError(f"{path}: the integer is too large for a float")
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{path}={value!r}: expected {kind.__name__}, found {type(value).__name__}")
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"{path}={value!r}: remove the null character")
    if limits["choices"] and value not in limits["choices"]:
        raise UserError(f"{path}={value!r}: must be one of {', '.join(limits['choices'])}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}={value!r}: must be a finite number")
    if limits["low"] is not None and value < limits["low"]:
        raise UserError(f"{path}={value!r}: must be at least {limits['low']}")
    if limits["high"] is not None and value > limits["high"]:
        raise UserError(f"{path}={value!r}: must be at most {limits['high']}")
    return value


def _unknown_key(path: str) -> str:
    known = [name for name, _, _ in describe_keys()]
    close = difflib.get_close_matches(path, known, n=1)
    return f"{path}: no such key" + (f"; did you mean {close[0]}?" if close else "; --help lists all keys")


@dataclasses.dataclass(frozen=True)
class CommandLine:
    config: Config
    workdir: Path
    dry_run: bool
    profile_steps: int
    show: int
    processes: "Processes | None"


@dataclasses.dataclass(frozen=True)
class Processes:
    """How the processes of a run find each other; all None: as Slurm, Kubernetes or Cloud TPU defines."""

    coordinator: str | None
    count: int | None
    index: int | None


def parse_command_line(argv: Sequence[str], summary: str) -> CommandLine:
    """Reads `--config=NAME --config.x=y ...` and the other flags of `cot_jax.train`.

    Args:
      argv: the program's name, then its arguments.
      summary: the first lines of `--help`.

    Raises:
      UserError: a wrong flag, config file or value.
      SystemExit: after `--help`, with status 0.
    """
    program, *arguments = argv
    if any(re.fullmatch("--?h(elp(full)?)?", argument) for argument in arguments):
        print(_help(summary))
        raise SystemExit(0)
    files = [a.split("=", 1)[1] for a in arguments if re.match("--?config=", a)]
    if len(files) != 1:
        raise UserError("give one --config=NAME or --config=FILE, e.g. --config=demo_mi")
    arguments = [program, *(a for a in arguments if not re.match("--?config=", a))]
    known = {name for name, _, _ in describe_keys()}
    for argument in arguments:
        override = re.match(r"--?(?:no)?(config\.[^=]*)", argument)
        if override and override[1] not in known:
            raise UserError(_unknown_key(override[1]))
    file = find_config(files[0])
    values = flags.FlagValues()
    made = load_config_module(file, "get_config", ml_collections.ConfigDict)
    holder = config_flags.DEFINE_config_dict("config", made, flag_values=values, sys_argv=arguments)
    flags.DEFINE_string("workdir", str(Path("runs") / file.stem), "", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "", flag_values=values)
    flags.DEFINE_integer("profile_steps", 0, "", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("show", 3, "", lower_bound=0, upper_bound=100, flag_values=values)
    flags.DEFINE_bool("distributed", False, "", flag_values=values)
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    flags.DEFINE_integer("processes", None, "", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process", None, "", lower_bound=0, flag_values=values)
    try:
        rest = values(arguments)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(_in_plain_words(error)) from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: every flag begins with --")
    return CommandLine(
        freeze(holder.value),
        place(values.workdir),
        values.dry_run,
        values.profile_steps,
        values.show,
        _processes(values),
    )


def make(given: str, **overrides: Any) -> Config:
    """Returns a config with some keys changed, like `--config=GIVEN --config.KEY=VALUE` on a command line.

    Args:
      given: a name such as "svamp_mi", or a config file.
      overrides: by key, e.g. **{"data.root": "data", "train.steps": 200}.

    Raises:
      UserError: unknown config or key, or a value of the wrong type or out of range.
    """
    for key, value in overrides.items():
        if value is None:
            raise UserError(f"config.{key}=None: leave the key out for its default, or give ''")
    keys = [f"--config.{key}={value}" for key, value in overrides.items()]
    return parse_command_line(["config", f"--config={given}", *keys], "").config


def _processes(values: flags.FlagValues) -> Processes | None:
    explicit = (values.coordinator, values.processes, values.process)
    if explicit == (None, None, None):
        return Processes(None, None, None) if values.distributed else None
    if None in explicit:
        raise UserError("give --coordinator=HOST:PORT, --processes=N and --process=I together")
    if values.process >= values.processes:
        raise UserError(f"--process={values.process}: must be below --processes={values.processes}")
    return Processes(*explicit)


def find_config(given: str, folder: Path = SHIPPED) -> Path:
    """Returns the config file at the path `given`, or the shipped one of that name in `folder`.

    Raises:
      UserError: there is neither.
    """
    file = Path(given)
    if file.is_file():
        return file
    if (named := folder / f"{given}.py").is_file():
        return named
    if given == file.stem:
        known = {other.stem: other.stem for other in folder.glob("*.py")}
    else:
        known = {other.stem: str(other) for other in file.parent.glob("*.py")}
    close = difflib.get_close_matches(file.stem, known, 1)
    hint = f"did you mean {known[close[0]]}?" if close else f"the shipped ones are in {folder}"
    raise UserError(f"{given}: no such config file; {hint}")


def name_of(given: str) -> str:
    """Returns the name of a shipped config, given by path or name; `given` itself if it is another file."""
    file = Path(given).resolve()
    return file.stem if file.is_file() and file.parent == SHIPPED.resolve() else given


def load_config_module(file: Path, function: str, kind: type) -> Any:
    """Returns the result of a config file's `function`, e.g. "get_config".

    Raises:
      UserError: it fails, or does not return a `kind`.
    """
    spec = importlib.util.spec_from_file_location("config_file", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file}: a config file ends in .py and defines {function}()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(make := getattr(module, function, None)):
            raise UserError(f"{file}: no function {function}(), which every such file defines")
        found = make()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a config file is a program and can raise anything
        raise UserError(f"{file}: {type(error).__name__}: {_one_line(error)}") from None
    if not isinstance(found, kind):
        raise UserError(f"{file}: {function}() must return a {kind.__name__}, not {type(found).__name__}")
    return found


def refuse_other_config(workdir: Path, config: Config) -> bool:
    """Returns whether `workdir` already holds a run of `config`.

    The mesh may differ: a run may resume on more devices, or fewer. Keys that depend on the data are not
    compared.

    Raises:
      UserError: it holds a run of another config.
    """
    file = workdir / "config.json"
    if not file.exists():
        return False
    found, _ = with_defaults(read_json(file))
    for key, value, other in differences(json.loads(to_json(config)), found):
        if key.startswith("mesh.") or key in config.unscheduled:
            continue
        raise UserError(
            f"{workdir} holds a run with config.{key}={other!r}, not {value!r}: "
            "to resume it give its value; else choose another directory, or delete it"
        )
    return True


def differences(wanted: Any, found: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (key, value, value) where the JSON of two configs differs."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in {**wanted, **found}:
            yield from differences(wanted.get(key), found.get(key), f"{path}.{key}" if path else key)
    elif wanted != found:
        yield path, wanted, found


def _in_plain_words(error: BaseException) -> str:
    """Returns an error of absl in one line; Python's own words for a wrong number are replaced."""
    text = _one_line(error)
    for theirs, ours in _WRONG_VALUES.items():
        before, found, _ = text.partition(f": {theirs}")
        if found:
            return f"{before.removeprefix('flag ')}: expected {ours}"
    return text


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _help(summary: str) -> str:
    keys = "\n".join(f"  --{name}={default!r}\n      {doc}" for name, default, doc in describe_keys())
    return (
        f"{summary}\n\n"
        "  --config=NAME      experiment to run: a shipped one, e.g. demo_mi, or a file\n"
        "  --workdir=DIR      where to write and resume, also gs://BUCKET/DIR (default: runs/NAME)\n"
        "  --dry_run          print what would run, with one decoded example per view, and stop\n"
        "  --profile_steps=N  trace N steps, after ten others, to DIR/profile\n"
        "  --show=N           answer N test questions at the end and draw the learning curve (default: 3)\n"
        "  --distributed      join the other processes of this Slurm, Kubernetes or Cloud TPU job\n"
        "  --coordinator=HOST:PORT --processes=N --process=I\n"
        "                     join N processes as number I, on any other cluster\n\n"
        f"Keys (defaults of configs/common.py):\n{keys}"
    )


def reference() -> str:
    """Returns docs/config.md; `python -m cot_jax.config > docs/config.md` writes it."""
    rows = ((name, default, doc.replace(" | ", " or ")) for name, default, doc in describe_keys())
    table = "\n".join(f"| `{name}` | `{default!r}` | {doc} |" for name, default, doc in rows)
    head = "Set any key with `--config.KEY=VALUE`. This page is generated by `python -m cot_jax.config`."
    return f"# Config keys\n\n{head}\n\n| key | default | meaning |\n|---|---|---|\n{table}\n"


def to_json(config: Config) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


make_callable(__name__, make)

if __name__ == "__main__":
    print(reference(), end="")
