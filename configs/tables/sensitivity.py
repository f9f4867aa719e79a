"""Sensitivity of DynSDPB to temperature tau and weight alpha on RTE: 30 cells, plotted as a heat map.

Fu et al. 2024 plot such a surface (Fig. 3) without printing figures; of their grid only the largest alpha, 2,
is known. The encoder is given on the command line.

python -m cot_jax.sweep --table=configs/tables/sensitivity.py --seeds=0 --output=DIR \\
    --config.model.pretrained=DIR_OF_MINILM --config.data.root=nyu-mll/glue
"""

from cot_jax.configs.tables.common import FU, classified, table

_TAUS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
_ALPHAS = (0.25, 0.5, 1.0, 1.5, 2.0)
_KEYS = {"evaluation.reference_protocol": False, "optimizer.learning_rate": 1e-4, "train.epochs": 3.0}


def get_table():
    cells = []
    for tau in _TAUS:
        for alpha in _ALPHAS:
            keys = {"self_distillation.temperature": tau, "self_distillation.weight": alpha}
            tasks = {"rte": f"alpha={alpha:g}"}
            cells += classified(f"tau={tau:g}", tasks, "standard+dynsdpb", **_KEYS, **keys)
    return table("DynSDPB over tau and alpha, RTE", FU, cells)
