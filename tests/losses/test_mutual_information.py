"""The mutual-information term: worked examples, the published code's gradients, empty targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cot_jax.losses.mutual_information import VARIANTS, map_mask, mutual_information_loss

LABEL_LOGITS = jnp.array([[[2.0, 0, -1], [0, 1, 0]]])
RATIONALE_LOGITS = jnp.array([[[0.0, 0, 3], [1, 0, 0], [0, 2, 0]]])


def _loss(label_logits_BTV, rationale_logits_BTV, *, variant, reduction=jnp.max, detach="label"):
    p_BV = reduction(jax.nn.softmax(label_logits_BTV), axis=1)
    q_BV = reduction(jax.nn.softmax(rationale_logits_BTV), axis=1)
    counts_B = jnp.ones(len(p_BV), bool)
    return mutual_information_loss(p_BV, q_BV, counts_B, variant=variant, detach=detach)


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
    p_BV, q_BV = jnp.array(rng.uniform(size=(2, 3, 7)), jnp.float32)
    p_BV, q_BV = p_BV.at[1].set(0), q_BV.at[1].set(0)  # an empty target has an empty map
    counts_B = jnp.array([True, False, True])

    def loss(p_BV, q_BV, counts_B):
        return mutual_information_loss(p_BV, q_BV, counts_B, variant=variant, detach="none")

    kept = jnp.array([0, 2])
    np.testing.assert_allclose(
        loss(p_BV, q_BV, counts_B), loss(p_BV[kept], q_BV[kept], counts_B[kept]), rtol=1e-6
    )
    for grad in jax.grad(loss, argnums=(0, 1))(p_BV, q_BV, counts_B):
        assert np.isfinite(grad).all()
        assert not np.any(grad[1])
    assert loss(p_BV, q_BV, jnp.zeros(3, bool)) == 0


def test_map_mask():
    length_B = jnp.array([2, 0, 3])
    np.testing.assert_array_equal(
        map_mask("reference", length_B, 5), np.tile([True, True, True, False, False], (3, 1))
    )
    np.testing.assert_array_equal(
        map_mask("masked", length_B, 4),
        [[True, True, False, False], [False] * 4, [True, True, True, False]],
    )
