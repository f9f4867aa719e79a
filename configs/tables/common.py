"""What the published tables share: sources, tasks, recipes, rows of cells."""

from cot_jax.experiments import Cell, Table, overrides_of

CHEN = "Chen et al., Findings of ACL 2024"
HSIEH = "Hsieh et al., Findings of ACL 2023"
FU = "Fu et al. 2024"
LI = "Li et al., Findings of EMNLP 2024"

KD = {"distillation.weight": 0.5, "distillation.temperature": 10.0}
PKD = KD | {"distillation.layers": "skip", "distillation.layer_weight": 100.0}
GKD = PKD | {"distillation.gradient_weight": 1.0, "model.dropout_rate": 0.0}
TASKS = {"esnli": "e-SNLI", "anli1": "ANLI-R1", "cqa": "CQA", "svamp": "SVAMP"}

# LoRA on a decoder: script and code of ResLoRA (Shi et al. 2024), which Fu et al. follow without publishing
# their rank, alpha and grids. A batch is 2 examples x 8 accumulated x 8 GPUs. ResLoRA's dropout of 0.1 is on
# LoRA's inputs; ours is `model.dropout_rate` of the config.
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


def cell(row, task, method, published=None, column=None, base="standard", **keys):
    """A cell of the published recipe on `task`.

    Args:
      method: as in `cot_jax.experiments.overrides_of`.
      base: the method whose config the run starts from.
      keys: further config keys, as **{"data.train_fraction": 0.5}.
    """
    return Cell(row, column or TASKS[task], f"{task}_{base}", overrides_of(method) | keys, published)


def compared(title, rows, **keys):
    """A table of Chen et al. 2024: (row, method) -> published accuracy by task."""
    cells = [
        cell(row, task, method, figure, **keys)
        for (row, method), figures in rows.items()
        for task, figure in figures.items()
    ]
    return table(title, CHEN, cells)


def reslora(rows, *, visits=1):
    """ResLoRA's recipe for `rows` training examples, each seen `visits` times per epoch.

    At most 40,000 rows; 40 epochs up to 2,000 rows, 20 up to 10,000, else 8; warm-up over 6 % of the steps;
    one evaluation per epoch.
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


def classified(row, tasks, method, figures=None, file="glue", **keys):
    """The cells of an encoder's row, one per task -> column of GLUE or SuperGLUE.

    Args:
      figures: published, one per task.
      file: the config.
      keys: further config keys; `{column}` in the teacher's path stands for the column.
    """
    cells = []
    for (task, column), figure in zip(tasks.items(), figures or [None] * len(tasks), strict=True):
        own = {"data.task": task, "evaluation.reference_protocol": True, **keys}
        if teacher := keys.get("distillation.teacher"):
            own["distillation.teacher"] = teacher.replace("{column}", column)
        cells.append(Cell(row, column, file, overrides_of(method) | own, figure))
    return cells


def against_self_distillation(student, tasks, figures, file="glue", **keys):
    """The cells of a student's rows of `self_distilled`; `figures` are published, row by row."""
    rows = zip(self_distilled(3.0).items(), figures, strict=True)
    return [
        one
        for (row, (method, epochs)), of_row in rows
        for one in classified(f"{student}, {row}", tasks, method, of_row, file, **keys, **epochs)
    ]


def self_distilled(epochs):
    """Rows of Fu et al. 2024 for encoders -> method and config keys.

    Self-distillation sees an example twice per epoch: it costs as much as double fine-tuning.
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
