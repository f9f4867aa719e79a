"""The interface that the rest of the house sees."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flat_batches import batch, flat, sequences
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cot_jax.errors import UserError
from cot_jax.models import decoding
from cot_jax.models.student import Options, build, from_pretrained, from_scratch, save
from cot_jax.models.weights import shapes


def tiny(vocab_size=300, pad_id=0, eos_id=1, options=None):
    return from_scratch(
        "tiny", vocab_size=vocab_size, pad_id=pad_id, eos_id=eos_id, options=options or Options()
    )


def test_a_batch_divided_over_its_groups_stays_where_it_is():
    student = tiny()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    groups, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    views = {
        "predict": (sequences(1, [9] * 16), sequences(2, [3] * 16)),
        "explain": (sequences(3, [9] * 16), sequences(4, [7] * 16)),
    }
    flat_batch = batch(views, groups=8)
    compiled = jax.jit(
        lambda params, batch: student.hidden(params, batch, None),
        in_shardings=(everywhere, groups),
        out_shardings=groups,
    )
    text = compiled.lower(shapes(student.weights), flat_batch).compile().as_text()
    assert not re.findall(r"all-gather|all-to-all|all-reduce|collective-permute", text)


def test_bfloat16_is_for_arithmetic_only(untied, pair):
    exact, params = untied
    student = dataclasses.replace(exact, dtype=jnp.bfloat16)
    hidden = jax.eval_shape(lambda: student.hidden(params, batch({"v": pair}), None))
    assert hidden["v"].dtype == jnp.bfloat16
    assert student.head(params).dtype == np.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(student.weights))} == {np.dtype(np.float32)}
    tokens_BT, log_prob_B = jax.eval_shape(
        lambda: decoding.greedy(student.prompt(params, flat(pair[0]), 5), 5)
    )
    assert (tokens_BT.shape, tokens_BT.dtype) == ((4, 5), jnp.int32)
    assert (log_prob_B.shape, log_prob_B.dtype) == ((4,), jnp.float32)


@pytest.mark.parametrize(("ids", "rows"), [(32_100, 32_128), (300, 384), (384, 384)])
def test_from_scratch_has_a_row_for_every_id(ids, rows):
    student = tiny(ids, pad_id=3, eos_id=2)
    assert (student.outputs, student.pad_id, student.eos_id) == (rows, 3, 2)
    assert student.config.decoder_start_token_id == 3
    params = shapes(student.weights)
    assert params["embedding"].shape == (rows, student.config.d_model)
    assert jax.eval_shape(student.head, params).shape == (student.config.d_model, rows)


def test_unknown_preset():
    with pytest.raises(UserError, match=r'config.model.preset: no "huge"; choose one of tiny, small, base'):
        from_scratch("huge", vocab_size=10, pad_id=0, eos_id=1, options=Options())


@pytest.mark.parametrize("json", [{"model_type": "mamba"}, {}])
def test_an_unknown_model_type_lists_the_known(json):
    kind = json.get("model_type")
    with pytest.raises(UserError, match=f"^config.json: model_type is {kind!r}, known: t5"):
        build(json, Options())


def test_options_come_from_the_caller(tmp_path):
    student = tiny()
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes(student.weights))
    save(tmp_path, student, params)
    again, loaded, report = from_pretrained(str(tmp_path), Options(dropout_rate=0.25, dtype=jnp.bfloat16))
    assert (again.config.dropout_rate, again.dtype, again.outputs, report) == (0.25, jnp.bfloat16, 384, [])
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
