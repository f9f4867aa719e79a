"""The estimate of mutual information: which examples it needs."""

import jax
import pytest

from cot_jax.config import MeshConfig
from cot_jax.data.batches import Ragged, TokenizedView
from cot_jax.errors import UserError
from cot_jax.models.t5 import T5, T5Config
from cot_jax.training.information import InformationEstimate
from cot_jax.training.mesh import make_mesh

SIZES = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}


def _views(rationales):
    """Views of as many examples as there are rationales."""
    inputs = Ragged([[3, 4, 1]] * len(rationales))
    return {
        "predict": TokenizedView(inputs, Ragged([[5, 1]] * len(rationales))),
        "explain": TokenizedView(inputs, Ragged(rationales)),
    }


@pytest.mark.parametrize("rationales", [[[], []], [[6, 1], []]])
def test_too_few_examples_with_both_targets_are_one_line(rationales):
    student, mesh = T5(T5Config(vocab_size=16, **SIZES)), make_mesh(MeshConfig(), jax.devices()[:1])
    whole, few = _views([[6, 7, 1]] * 4), _views(rationales)
    have_both = sum(map(bool, rationales))
    for train, held_out, counts in ((whole, few, (4, have_both)), (few, whole, (have_both, 4))):
        message = f"{counts[0]} training and {counts[1]} held-out examples have both"
        with pytest.raises(UserError, match=message):
            InformationEstimate(student, mesh, train, held_out, batch_size=8)
    assert InformationEstimate(student, mesh, whole, whole, batch_size=8).counts == (4, 4)
