"""Thirty AdamW steps equal the published PyTorch recipe: same weights, same batches, no dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cot_jax.config import OptimizerConfig
from cot_jax.data.batches import Ragged, TokenizedView, make_batch, view_lengths
from cot_jax.data.lengths import as_shape, needed
from cot_jax.losses.objective import MutualInformation, make_objective
from cot_jax.models import student as students
from cot_jax.training.optimizer import make_optimizer
from cot_jax.training.step import init_state, make_train_step

torch = pytest.importorskip("torch", reason="parity needs PyTorch")

STEPS, BATCH, EXAMPLES, VOCABULARY = 30, 8, 40, 96
ALPHA, BETA = 0.5, 0.1


@pytest.fixture(scope="module")
def torch_model(tmp_path_factory):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    # The random initialisation of transformers drives float32 into denormals, which are slow.
    torch.set_flush_denormal(True)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    directory = tmp_path_factory.mktemp("t5")
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def views():
    """Random examples whose targets are functions of their inputs, so that there is something to learn."""
    rng = np.random.default_rng(0)
    inputs = [[*rng.integers(3, VOCABULARY, size=rng.integers(4, 20)).tolist(), 1] for _ in range(EXAMPLES)]
    predict = TokenizedView(Ragged([[3, *i] for i in inputs]), Ragged([[*i[:3], 1] for i in inputs]))
    explain = TokenizedView(Ragged([[4, *i] for i in inputs]), Ragged([[*i[-2::-1], 1] for i in inputs]))
    return {"predict": predict, "explain": explain}


def _rows(step):
    return np.arange(step * BATCH, (step + 1) * BATCH) % EXAMPLES


def _torch_losses(directory, views, beta):
    """The released training step: two forwards, HF's cross-entropies, the MI term as published."""
    from transformers import T5ForConditionalGeneration, get_linear_schedule_with_warmup

    model = T5ForConditionalGeneration.from_pretrained(directory).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, STEPS)

    def forward(view, rows):
        def longest(sequences):
            width = int(sequences.lengths[rows].max())
            tokens = sequences.tokens(rows, (width, width), 0, groups=len(rows))
            return tokens.ids, tokens.length[:, 0]

        ids, lengths = longest(view.inputs)
        labels, label_lengths = longest(view.targets)
        labels = np.where(np.arange(labels.shape[1]) < label_lengths[:, None], labels, -100)
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        return model(
            input_ids=torch.tensor(ids, dtype=torch.long),
            attention_mask=torch.tensor(mask, dtype=torch.long),
            labels=torch.tensor(labels, dtype=torch.long),
        )

    losses = []
    for step in range(STEPS):
        rows = _rows(step)
        predict, explain = forward(views["predict"], rows), forward(views["explain"], rows)
        loss = ALPHA * predict.loss + (1 - ALPHA) * explain.loss
        if beta:
            p = predict.logits.detach().softmax(-1).max(-2)[0]
            q = explain.logits.softmax(-1).max(-2)[0]
            loss = loss + beta * torch.nn.CrossEntropyLoss()(q, p)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return np.array(losses)


def _our_losses(directory, views, beta):
    student, params, _ = students.from_pretrained(str(directory), students.Options())
    mi = MutualInformation("predict", "explain", beta, "reference", "max", "label") if beta else None
    objective = make_objective(
        student, {"predict": "label", "explain": "rationale"}, {"label": ALPHA, "rationale": 1 - ALPHA}, mi
    )
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), STEPS, student.weights)
    step_fn = jax.jit(make_train_step(objective, optimizer), donate_argnums=0)
    state = init_state(jax.tree.map(jnp.asarray, params), optimizer, jax.random.key(0))
    # One shape for all, with more slots and wider than any batch needs.
    every = np.stack([_rows(step) for step in range(EXAMPLES // BATCH)])
    shape = as_shape(needed(view_lengths(views, every, padded=views), 1).max(axis=2) + np.array([7, 3]))
    losses = []
    for step in range(STEPS):
        rows = _rows(step)
        state, metrics = step_fn(state, make_batch(views, rows, shape, 0, padded=views))
        losses.append(float(metrics["loss"]))
    return np.array(losses)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, BETA, 5.0], ids=["dss", "mi", "mi-strong"])
def test_thirty_steps_equal_pytorch(torch_model, views, beta):
    ours, theirs = _our_losses(torch_model, views, beta), _torch_losses(torch_model, views, beta)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert theirs[-1] < 0.9 * theirs[0] or beta == 5.0
    print(f"largest relative difference of a step's loss: {np.abs(ours / theirs - 1).max():.1e}")
