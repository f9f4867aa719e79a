"""The mutual-information term: worked examples, the published code's gradients, empty targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cot_jax.batch import Tokens, ViewArrays
from cot_jax.losses.choices import VARIANTS
from cot_jax.losses.mutual_information import map_length, mutual_information_loss

LABEL_LOGITS = jnp.array([[[2.0, 0, -1], [0, 1, 0]]])
RATIONALE_LOGITS = jnp.array([[[0.0, 0, 3], [1, 0, 0], [0, 2, 0]]])


def _loss(label_logits_BTV, rationale_logits_BTV, *, variant, reduction=jnp.max, detach="label"):
    p_1BV = reduction(jax.nn.softmax(label_logits_BTV), axis=1)[None]
    q_1BV = reduction(jax.nn.softmax(rationale_logits_BTV), axis=1)[None]
    counts_1B = jnp.ones(p_1BV.shape[:2], bool)
    return mutual_information_loss(p_1BV, q_1BV, counts_1B, variant=variant, detach=detach)


@pytest.mark.parametrize(
    ("variant", "reduction", "expected"),
    [
        ("reference", jnp.max, 1.911866),
        ("masked", jnp.max, 1.911866),  # no padding here
        ("normalized", jnp.max, 1.202939),
        ("kl", jnp.max, 0.229216),
        ("reference", jnp.mean, 1.134109),
        ("normalized", jnp.mean, 1.225259),
    ],
)
def test_worked_examples(variant, reduction, expected):
    value = _loss(LABEL_LOGITS, RATIONALE_LOGITS, variant=variant, reduction=reduction)
    assert value == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_torch(variant):
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    rng = np.random.default_rng(0)
    label = rng.normal(size=(3, 4, 11)).astype(np.float32)
    rationale = rng.normal(size=(3, 6, 11)).astype(np.float32)
    grad = jax.grad(lambda z: _loss(label, z, variant=variant))(jnp.array(rationale))

    z = torch.tensor(rationale, requires_grad=True)
    p = torch.tensor(label).softmax(-1).amax(-2)
    q = z.softmax(-1).max(-2)[0]
    if variant in ("reference", "masked"):
        loss = torch.nn.CrossEntropyLoss()(q, p)
    else:
        p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
        cross = -(p * q.log()).sum(-1).mean()
        loss = (
            cross
            if variant == "normalized"
            else torch.nn.functional.kl_div(q.log(), p, reduction="batchmean")
        )
    loss.backward()
    np.testing.assert_allclose(grad, z.grad, atol=1e-7)
    assert np.abs(grad).max() > 1e-3


@pytest.mark.parametrize(
    ("detach", "label_moves", "rationale_moves"),
    [("label", False, True), ("rationale", True, False), ("none", True, True)],
)
def test_detach_stops_one_side(detach, label_moves, rationale_moves):
    grads = jax.grad(lambda p, q: _loss(p, q, variant="normalized", detach=detach), argnums=(0, 1))(
        LABEL_LOGITS, RATIONALE_LOGITS
    )
    assert [bool(jnp.any(g != 0)) for g in grads] == [label_moves, rationale_moves]


@pytest.mark.parametrize("variant", VARIANTS)
def test_examples_without_a_target_do_not_count(variant):
    rng = np.random.default_rng(1)
    p_GEV, q_GEV = jnp.array(rng.uniform(size=(2, 2, 2, 7)), jnp.float32)
    p_GEV, q_GEV = p_GEV.at[0, 1].set(0), q_GEV.at[0, 1].set(0)  # an empty target has an empty map
    counts_GE = jnp.array([[True, False], [True, True]])

    def loss(p_GEV, q_GEV, counts_GE):
        return mutual_information_loss(p_GEV, q_GEV, counts_GE, variant=variant, detach="none")

    kept_1EV, its_q_1EV = (x[counts_GE][None] for x in (p_GEV, q_GEV))
    np.testing.assert_allclose(
        loss(p_GEV, q_GEV, counts_GE), loss(kept_1EV, its_q_1EV, jnp.ones((1, 3), bool)), rtol=1e-6
    )
    for grad in jax.grad(loss, argnums=(0, 1))(p_GEV, q_GEV, counts_GE):
        assert np.isfinite(grad).all()
        assert not np.any(grad[0, 1])
    assert loss(p_GEV, q_GEV, jnp.zeros((2, 2), bool)) == 0


def test_only_the_published_form_reads_padding():
    length_GE, learned_GE = np.full((1, 3), 5), np.array([[2, 0, 5]])
    targets = Tokens(np.zeros((1, 15), np.int32), length_GE, 5)
    view = ViewArrays(targets, targets, learned_GE)
    assert map_length("reference", view) is length_GE
    assert all(map_length(variant, view) is learned_GE for variant in ("masked", "normalized", "kl"))
