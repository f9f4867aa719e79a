"""All of PaLM's rationales against those with a correct answer, on SVAMP and CQA, T5-base: DSS and MI.

The published students also learn from wrong rationales: for a quarter of the training questions PaLM's answer
is wrong or unreadable. The comparison is ours: no published figures.

python -m cot_jax.sweep --table=configs/tables/right_rationales.py --seeds=0..3 --output=DIR \\
    --config.data.root=DATA
"""

from cot_jax.configs.tables.common import TASKS, cell, table

_METHODS = {"DSS": "dss", "MI": "mi"}


def get_table():
    cells = [
        cell(f"{row}, {rationales}", task, method, **{"data.rationales": rationales})
        for row, method in _METHODS.items()
        for rationales in ("all", "right")
        for task in TASKS
        if task in ("cqa", "svamp")
    ]
    return table("All rationales or right ones only, T5-base", "", cells)
