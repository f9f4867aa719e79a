"""What the rest of the package sees of a model: views in one pass, and where students come from."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flat_batches import batch, by_example, sequences

from cot_jax.batch import Texts
from cot_jax.errors import UserError
from cot_jax.models import choices
from cot_jax.models import student as students
from cot_jax.models.student import Options, from_pretrained, from_scratch, without_weights
from cot_jax.models.weights import shapes

TINY: dict = {"texts": Texts(300, pad_id=0, end_id=1), "options": Options()}


def test_views_side_by_side_are_separate_passes(untied, hidden):
    student, params = untied
    views = {
        "predict": (sequences(1, [12, 5, 9]), sequences(2, [3, 1, 2])),
        "explain": (sequences(3, [14, 6, 1]), sequences(4, [8, 0, 5])),
    }
    examples = batch(views)
    together = hidden(student, params, examples)
    assert {view: h.shape for view, h in together.items()} == {"predict": (1, 6, 32), "explain": (1, 13, 32)}
    for view, sides in views.items():
        alone = hidden(student, params, batch({view: sides}))[view]
        np.testing.assert_allclose(together[view], alone, atol=2e-6 * np.abs(alone).max())


def test_slots_of_nobody_are_never_read(untied, pair, hidden):
    student, params = untied
    a, b = (batch({"view": pair}, extra=3, filler=filler) for filler in (0, 7))
    a, b = (by_example(e.views["view"].targets, hidden(student, params, e)["view"]) for e in (a, b))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_learned_changes_no_state(untied, pair, hidden):
    student, params = untied
    a, b = (batch({"view": pair}, learned=learned) for learned in (None, [5, 0, 1, 2]))
    jax.tree.map(np.testing.assert_array_equal, *(hidden(student, params, e) for e in (a, b)))


@pytest.mark.parametrize(("ids", "rows"), [(32_100, 32_128), (300, 384), (384, 384)])
def test_from_scratch_has_a_row_for_every_id(ids, rows):
    student = from_scratch("tiny", **(TINY | {"texts": Texts(ids, pad_id=3, end_id=2)}))
    assert (student.outputs, student.pad_id, student.ends) == (rows, 3, (2,))
    assert student.config.decoder_start_token_id == 3
    params = shapes(student.weights)
    assert params["embedding"].shape == (rows, student.config.d_model)
    assert jax.eval_shape(student.head, params).shape == (student.config.d_model, rows)


def test_unknown_preset():
    with pytest.raises(UserError, match=r'config.model.preset: no "huge"; choose one of tiny, small, base'):
        from_scratch("huge", **TINY)


def test_options_are_the_callers_wherever_a_student_comes_from(tmp_path):
    options = Options(dropout_rate=0.25, dtype=jnp.bfloat16, platform="cpu", remat="layers")
    student = from_scratch("tiny", **(TINY | {"options": options}))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes(student.weights))
    students.save(tmp_path, student, params)
    config = json.loads((tmp_path / "config.json").read_text()) | {"dropout_rate": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    again, loaded, report = from_pretrained(str(tmp_path), options)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert report == []
    (tmp_path / "model.safetensors").unlink()
    assert student == again == without_weights(str(tmp_path), options)
    taken = student.config.dropout_rate, student.dtype, student.unroll, student.remat
    assert taken == (0.25, jnp.bfloat16, True, "layers")


def test_layers_are_unrolled_where_the_family_gains_from_it_and_loops_keep_less():
    found = {}
    for platform in ("cpu", "gpu", "tpu"):
        options = Options(platform=platform, remat="auto")
        for preset in ("tiny", "small", "tiny-llama"):
            student = from_scratch(preset, **(TINY | {"options": options}))
            found[platform, preset] = student.unroll, student.remat
    unrolled, looped = (True, "none"), (False, "elementwise")
    gains = [("cpu", "tiny"), ("gpu", "tiny"), ("gpu", "small")]
    assert [found.pop(one) for one in gains] == 3 * [unrolled]
    assert [*found.values()] == 6 * [looped]


def test_every_preset_is_a_choice():
    assert sorted(choices.PRESETS) == sorted(students.PRESETS)
