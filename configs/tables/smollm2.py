"""What two CPU cores can do: SmolLM2-135M-Instruct with LoRA on SVAMP, the same number of visits per method.

Each method visits 720 examples: 45 steps of 16. Self-distillation repeats half of each batch, so it sees half
of the examples, each twice. A run takes 4 to 20 minutes on one core.

python -m cot_jax.sweep --table=smollm2 --seeds=0..1 --output=DIR \\
    --config.model.pretrained=DIR_OF_SMOLLM2 --config.data.root=DATA
"""

from cot_jax.configs.tables.common import table
from cot_jax.experiments import Cell, overrides_of

_METHODS = (
    "standard",
    "single_task",
    "dss",
    "mi",
    "mi:masked",
    "mixed",
    "standard+dynsdpb",
    "single_task+dynsdpb",
)
_ONCE = {
    "train.steps": 45,
    "train.eval_every": 45,
    "train.checkpoint_every": 45,
    "optimizer.warmup_steps": 4,
    "optimizer.learning_rate": 2e-3,  # the best of 5e-4, 1e-3, 2e-3 for `standard` on validation, seed 0
}


def get_table():
    cells = []
    for method in _METHODS:
        # Only a chain is long; the other methods answer with the equation alone.
        brief = {} if method.startswith("single_task") else {"evaluation.max_new_tokens": 24}
        cells.append(Cell(method, "SVAMP", "smollm2_svamp", overrides_of(method) | _ONCE | brief))
    return table("SmolLM2-135M on SVAMP", "", cells)
