"""The parts of DynSDPB on CQA and SVAMP, T5-base: the ablation of Fu et al. 2024 on this project's tasks.

All rows see the examples equally often, so `fine-tuning` is the paper's double fine-tuning. The published
figures are of other tasks and models, so none is listed here.

python -m cot_jax.sweep --table=configs/tables/dynsdpb_ablation.py --seeds=0..3 --output=DIR \\
    --config.data.root=DATA
"""

from cot_jax.configs.tables.common import FU, TASKS, cell, table

_ROWS = {
    "fine-tuning": "standard",
    "dynamic fine-tuning": "standard+dynamic",
    "DLB": "standard+dlb",
    "DynSDPB": "standard+dynsdpb",
    "DSS": "dss",
    "DSS with DynSDPB": "dss+dynsdpb",
    "MI": "mi",
    "MI with DynSDPB": "mi+dynsdpb",
}


def get_table():
    cells = [
        cell(row, task, method) for row, method in _ROWS.items() for task in TASKS if task in ("cqa", "svamp")
    ]
    return table("DynSDPB, part by part, T5-base", FU, cells)
