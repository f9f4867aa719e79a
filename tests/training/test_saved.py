"""A saved student lies on the devices at hand as it did in its training."""

import dataclasses
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cot_jax.config import Config, MeshConfig, parse_command_line
from cot_jax.data.examples import Example
from cot_jax.errors import UserError
from cot_jax.models.weights import Weight
from cot_jax.training.exporting import _flags
from cot_jax.training.mesh import arrangement
from cot_jax.training.saved import Answerer, Saved, load

QUESTIONS = [Example(str(n), (f"Tom has {n} pens and {n} hats ?",), "") for n in range(5)]


@pytest.mark.parametrize(
    ("trained", "here"),
    [
        (MeshConfig(2, 2, 2), (2, 2, 2)),
        (MeshConfig(-1, 4, 1), (2, 4, 1)),
        (MeshConfig(16, 1, 1), (8, 1, 1)),
        (MeshConfig(1, 16, 1), (1, 8, 1)),
        (MeshConfig(1, 1, 16), (1, 8, 1)),
        (MeshConfig(-1, 3, 1), (1, 8, 1)),
    ],
)
def test_a_sharded_student_is_sharded_over_other_devices(trained, here):
    shapes = {"w": jax.ShapeDtypeStruct((16, 24), jnp.float32)}
    mesh, shardings = arrangement(trained, shapes, {"w": Weight("DV", (16, 24), 1, 1.0, "w")})
    assert tuple(mesh.shape.values()) == here
    assert shardings["w"].spec == P("fsdp", "model")


def test_a_student_that_the_devices_do_not_divide_is_replicated():
    shapes = {"w": jax.ShapeDtypeStruct((15, 2), jnp.float32)}
    mesh, _ = arrangement(MeshConfig(1, 3, 1), shapes, {"w": Weight("DK", (15, 2), 1, 1.0, "w")})
    assert tuple(mesh.shape.values()) == (8, 1, 1)


def test_a_sharded_student_is_read_sharded_and_answers_alike(random_run, tmp_path):
    config = Config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, max_input_tokens=32))
    answers = {}
    for mesh in (MeshConfig(), MeshConfig(2, 2, 2)):
        workdir = tmp_path / f"run{mesh.data}"
        workdir.mkdir()
        random_run(
            workdir,
            dataclasses.replace(config, mesh=mesh),
            [e.text for e in QUESTIONS] + ["predict: explain:"],
            64,
        )
        saved = load(workdir)
        saved.export(workdir / "export")
        for student in (saved, load(workdir / "export")):
            parts = mesh.fsdp * mesh.model
            for leaf in jax.tree.leaves(student.params):
                if leaf.ndim > 2 or leaf.shape[0] == student.student.outputs:
                    assert leaf.addressable_shards[0].data.size * parts == leaf.size
            ask = Answerer(student, student.views[0], batch_size=8, max_new_tokens=5)
            answers.setdefault(mesh, []).append(ask(QUESTIONS)[0])
    whole, *others = [one for both in answers.values() for one in both]
    for one in others:
        assert one.texts == whole.texts
        np.testing.assert_allclose(one.log_probs, whole.log_probs, rtol=1e-4)


def test_paths_are_a_list_or_a_text_with_commas():
    config = Config().changed({"objective.method": "mixed"})
    saved = Saved(config, None, None, None, None, True, None)
    for paths in ("pot,cot", ["pot", "cot", "pot"]):
        assert [view.path for view in saved.choose(paths)] == ["pot", "cot"]
    with pytest.raises(UserError, match=r"^--paths=cots: a student of method=mixed has label, cot, pot only"):
        saved.choose("cots")


def test_the_flags_of_a_model_card_give_its_config_in_a_shell():
    changes = {"model.lora_targets": "attention/[qv]$|mlp/wi", "data.root": "own data", "train.epochs": 2.5}
    config = Config().changed(changes)
    assert parse_command_line(["train", *shlex.split("\n".join(_flags(config)))], "").config == config
