"""Fine-tuning and distillation against DSS: gold and teacher's labels on four tasks, T5-base.

The comparison of Hsieh et al. 2023, who plot the results without printing figures.

python -m cot_jax.sweep --table=configs/tables/dss_label_sources.py --seeds=0..3 --output=DIR \\
    --config.data.root=DATA
"""

from cot_jax.configs.tables.common import HSIEH, TASKS, cell, table

_ROWS = {
    "standard, gold labels": ("standard", "gold"),
    "DSS, gold labels": ("dss", "gold"),
    "standard, teacher's labels": ("standard", "teacher"),
    "DSS, teacher's labels": ("dss", "teacher"),
}


def get_table():
    cells = [
        cell(row, task, method, **{"data.label_source": source})
        for row, (method, source) in _ROWS.items()
        for task in TASKS
    ]
    return table("Distilling Step-by-Step, T5-base", HSIEH, cells)
