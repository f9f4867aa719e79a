"""How much DynSDPB depends on its temperature tau and its weight alpha, RTE: 30 cells, drawn as a heat map.

Fu et al. 2024 draw such a surface (Fig. 3) and print no figures; of their values only the largest alpha, 2,
is known. The encoder is that of the command line.

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
            names = (f"tau={tau:g}", "rte", f"alpha={alpha:g}")
            cells.append(classified(*names, method="standard+dynsdpb", **_KEYS, **keys))
    return table("DynSDPB over tau and alpha, RTE", FU, cells)
