"""Accuracy against the size of the training set, SVAMP, T5-base: the curves of both papers on one task.

Both papers plot such curves without printing figures.

python -m cot_jax.sweep --table=configs/tables/data_size.py --seeds=0..3 --output=DIR --config.data.root=DATA
"""

from cot_jax.configs.tables.common import CHEN, HSIEH, cell, table

_METHODS = {"standard": "standard", "DSS": "dss", "MI": "mi"}
_FRACTIONS = (0.125, 0.25, 0.5, 1.0)


def get_table():
    cells = [
        cell(
            row, "svamp", method, column=f"{100 * fraction:g} % of train", **{"data.train_fraction": fraction}
        )
        for row, method in _METHODS.items()
        for fraction in _FRACTIONS
    ]
    return table("Training-set size, SVAMP, T5-base", f"{HSIEH}; {CHEN}", cells)
