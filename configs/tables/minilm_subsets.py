"""As `minilm`, on SST-2 and BoolQ. Two CPU cores need subsets of them; docs/results.md says which.

python -m cot_jax.sweep --table=configs/tables/minilm_subsets.py --seeds=0..2 --output=DIR \\
    --config.model.pretrained=DIR_OF_MINILM --config.data.root=DATA
"""

from cot_jax.configs.tables.minilm import make_table


def get_table():
    return make_table("MiniLM-L6 on subsets of SST-2 and BoolQ", {"boolq": "BoolQ"}, {"sst2": "SST-2"})
