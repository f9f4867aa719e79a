"""Chains of thought, programs of thought and both, on three tasks: Mixed Distillation (Li et al. 2024).

A run's own figure is what its first view answers: the chain of `CoT`, the program of `PoT`, the label alone
of `mixed`. The rest is asked of a finished run: every path alone, and votes of 8 draws of each and of all,

    python -m cot_jax.evaluate DIR/ROW/COLUMN/seed0
    python -m cot_jax.evaluate DIR/ROW/COLUMN/seed0 --samples=8

Published are votes of several paths, so none stands beside a run's own figure: Mistral-7B 87.5 on SVAMP, 74.0
on GSM8K, 77.1 on ASDiv; Llama-2-7B 84.5 and CodeLlama-7B 85.5 on SVAMP, where the teacher has 82.0. Their
recipe and their teacher's samples are not at hand: students are trained with LoRA as in `dynsdpb_nlg.py`, on
the rationales and programs that `configs/svamp_mixed.py`, `gsm8k_mixed.py` and `asdiv_mixed.py` name. A
teacher must be asked for GSM8K's programs first (`cot_jax.rationalize`).

python -m cot_jax.sweep --table=configs/tables/mixed_distillation.py --seeds=0 --output=DIR \\
    --config.data.root=DATA
"""

from cot_jax.configs.tables.common import LI, cell, reslora, table

_STUDENTS = {
    "Mistral-7B": "mistralai/Mistral-7B-v0.1",
    "Llama-2-7B": "meta-llama/Llama-2-7b-hf",
    "CodeLlama-7B": "codellama/CodeLlama-7b-hf",
}
_ROWS = {"CoT": "single_task", "PoT": "program", "mixed": "mixed"}
# Column, training rows without the tenth held out.
_TASKS = {"svamp": ("SVAMP", 720), "gsm8k": ("GSM8K", 6_725), "asdiv": ("ASDiv", 1_446)}


def get_table():
    cells = [
        cell(
            f"{student}, {row}",
            task,
            method,
            column=column,
            base="mixed",
            **reslora(rows),
            **{"model.pretrained": pretrained, "evaluation.max_new_tokens": 256},
        )
        for student, pretrained in _STUDENTS.items()
        for row, method in _ROWS.items()
        for task, (column, rows) in _TASKS.items()
    ]
    return table("Mixed Distillation, chains and programs of thought", LI, cells)
