"""Rows and columns that the published tables share."""

from cot_jax.experiments import Cell, Table, overrides_of

CHEN = "Chen et al., Findings of ACL 2024"
HSIEH = "Hsieh et al., Findings of ACL 2023"
FU = "Fu et al. 2024"
LI = "Li et al., Findings of EMNLP 2024"

TASKS = {"esnli": "e-SNLI", "anli1": "ANLI-R1", "cqa": "CQA", "svamp": "SVAMP"}
SMALL = {"model.pretrained": "google/t5-v1_1-small"}

# LoRA on a decoder: the script and the code of ResLoRA (Shi et al. 2024), which Fu et al. follow; their own
# rank, alpha and grids are lost. A batch is 2 examples x 8 accumulated x 8 GPUs. Its dropout of 0.1 is on the
# inputs of LoRA; ours is `model.dropout_rate`, as it stands in the config file.
_RESLORA_BATCH = 128
_RESLORA = {
    "model.lora_rank": 4,
    "model.lora_alpha": 8.0,
    "model.frozen_dtype": "bfloat16",
    "optimizer.learning_rate": 1e-4,
    "optimizer.weight_decay": 0.1,
    "train.batch_size": _RESLORA_BATCH,
    "data.max_train_examples": 40_000,
    "data.max_input_tokens": 500,
}


def cell(row, task, method, published=None, column=None, base="standard", **overrides):
    """A cell of the published recipe on `task`; `method` as in `cot_jax.experiments.overrides_of`.

    Keys of `overrides` have `__` for the dot: `data__train_fraction=0.5`. `base` is the method whose config
    the run starts from.
    """
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    return Cell(
        row, column or TASKS[task], f"{task}_{base}", {**overrides_of(method), **overrides}, published
    )


def reslora(rows, *, visits=1):
    """ResLoRA's recipe for `rows` training examples, each seen `visits` times an epoch.

    40 epochs of up to 2,000 rows, 20 of up to 10,000, 8 of more, of 40,000 at most; warm-up over 6 % of the
    steps; an evaluation an epoch.
    """
    rows = min(rows, _RESLORA["data.max_train_examples"])
    epochs = 40 if rows <= 2_000 else 20 if rows <= 10_000 else 8
    steps = round(visits * epochs * rows / _RESLORA_BATCH)
    return {
        **_RESLORA,
        "train.steps": steps,
        "train.eval_every": round(steps / epochs),
        "train.checkpoint_every": round(steps / epochs),
        "optimizer.warmup_steps": round(0.06 * steps),
    }


def classified(row, task, column, *, file="glue", method="standard", published=None, **overrides):
    """A cell of an encoder on a task of GLUE or SuperGLUE; `overrides` as in `cell`."""
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    keys = {**overrides_of(method), "data.task": task, "evaluation.reference_protocol": True, **overrides}
    return Cell(row, column, file, keys, published)


def self_distilled(epochs):
    """Rows of Fu et al. 2024 for encoders -> method and overrides.

    Self-distillation sees an example twice an epoch: it costs what double fine-tuning does.
    """
    return {
        "fine-tuning": ("standard", {"train.epochs": epochs}),
        "double fine-tuning": ("standard", {"train.epochs": 2 * epochs}),
        "sequential DLB": ("standard+dlb", {"train.epochs": epochs, "data.order": "sequential"}),
        "random DLB": ("standard+dlb", {"train.epochs": epochs}),
        "DynSDPB": ("standard+dynsdpb", {"train.epochs": epochs}),
    }


def table(title, source, cells):
    return Table(title, tuple(cells), source)
