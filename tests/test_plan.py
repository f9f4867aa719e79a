"""The plan of a run's memory: what it counts is what a run holds, and what it advises."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from cot_jax.config import Config, freeze, load_config_module
from cot_jax.plan import main
from cot_jax.training import planning
from cot_jax.training.experiment import prepare
from cot_jax.training.planning import Need, measure, remedy
from cot_jax.training.run import Run
from cot_jax.training.students import check_lora

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "configs" / "demo_dynsdpb.py"
GIB = 2**30


@pytest.fixture(scope="module")
def experiment():
    config: Config = freeze(load_config_module(DEMO, "get_config", ConfigDict))
    data = dataclasses.replace(
        config.data,
        word_problems=dataclasses.replace(config.data.word_problems, train=48, valid=8, test=8),
    )
    optimizer = dataclasses.replace(config.optimizer, name="adamw")
    return prepare(dataclasses.replace(config, data=data, optimizer=optimizer), weights=False)


def _held(tree):
    """Bytes that arrays take of the first device."""
    here = jax.devices()[0]
    shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == here]
    return sum(shard.data.nbytes for shard in shards)


@pytest.mark.parametrize(
    "change", [{}, {"mesh.fsdp": 8, "optimizer.moment_dtype": "bfloat16"}, {"optimizer.name": "adafactor"}]
)
def test_the_plan_counts_what_a_run_holds(experiment, change):
    experiment = planning.changed(experiment, change, jax.devices())
    need = measure(experiment, jax.devices(), memory=1)
    state = Run(experiment).initial_state()
    assert need.parameters == _held(state.params)
    assert need.optimizer == _held(state.opt_state)
    assert need.last_batch == _held(state.last_batch)
    assert need.rest is None  # what stays is more than a byte: nothing was compiled


def test_frozen_weights_have_no_moments(experiment):
    devices = jax.devices()
    whole = measure(experiment, devices, memory=1)
    lora = measure(planning.changed(experiment, {"model.lora_rank": 2}, devices), devices, memory=1)
    assert lora.parameters > whole.parameters  # the frozen ones, and the adapter
    assert lora.optimizer < 0.1 * whole.optimizer


@pytest.mark.slow
def test_activations_are_what_the_compiler_says(experiment):
    need = measure(experiment, jax.devices(), memory=GIB)
    assert need.rest is not None
    assert need.rest > need.parameters  # the gradients are among them
    assert need.total == need.resident + need.rest
    assert need.fits(need.total)
    assert not need.fits(need.total - 1)


@pytest.mark.parametrize(
    ("message", "held"),
    [
        ("Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm. Exceeded by 2.75G.", 0),
        ("the total memory required for HLO temporaries (18.50G) exceeds available HBM (15.75G).", 1),
    ],
)
def test_a_program_that_the_compiler_rejects_does_not_fit(experiment, monkeypatch, message, held):
    def compile(self):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")

    monkeypatch.setattr(Run, "compile", compile)
    need = measure(experiment, jax.devices(), memory=16 * GIB)
    assert need.total == int(18.5 * GIB) + held * need.resident
    assert need.compiler in message
    assert not need.fits(32 * GIB)
    message = "INTERNAL: a bug"
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        measure(experiment, jax.devices(), memory=16 * GIB)


def test_the_cheapest_change_is_found(experiment, monkeypatch):
    """With a compiler that is known: so much for a layer's activations, divided by the parts."""
    tried = []

    def needs(experiment, devices, memory):
        c = experiment.config
        tried.append(c)
        moments = 4 if c.optimizer.moment_dtype == "bfloat16" else 8
        rest = 64 / c.train.micro_batches * {"auto": 1, "layers": 1 / 8}[c.model.remat]
        parts = 8 if c.mesh.fsdp == -1 else c.mesh.fsdp  # fsdp x model
        need = Need(8 // parts, moments // parts, 0, 0, 0, int(rest))
        return need if need.resident < memory else dataclasses.replace(need, rest=None)

    monkeypatch.setattr(planning, "measure", needs)
    devices = jax.devices()
    roomy = dataclasses.replace(experiment, config=experiment.config.changed({"train.batch_size": 256}))

    def flags(memory):
        found = remedy(roomy, devices, memory)
        return found and found.replace("fits with ", "").partition(":")[0].split()

    assert flags(48) == ["--config.train.micro_batches=2"]
    assert flags(32) == ["--config.train.micro_batches=4"]
    assert flags(25) == ["--config.model.remat=layers"]
    assert flags(16)[0] == "--config.optimizer.moment_dtype=bfloat16"
    assert flags(10)[:2] == ["--config.mesh.data=-1", "--config.mesh.fsdp=2"]
    assert len(flags(10)) > 2
    assert flags(1) is None
    assert {c.optimizer.name for c in tried} == {"adamw", "adafactor"}
    assert {c.model.lora_rank for c in tried} == {0, 16}


@pytest.mark.parametrize(
    ("batch_size", "gradient_weight", "advised"),
    [(64, 0.0, "train.micro_batches=4"), (16, 0.0, "model.remat=layers"), (64, 1.0, "model.remat=layers")],
)
def test_only_micro_batches_that_a_run_accepts_are_advised(
    experiment, monkeypatch, batch_size, gradient_weight, advised
):
    """Eight devices and overlapping batches: a micro-batch has at least 16 examples."""

    def needs(experiment, devices, memory):
        Run(experiment, devices)
        c = experiment.config
        return Need(1, 1, 0, 0, 0, 64 // c.train.micro_batches // {"auto": 1, "layers": 8}[c.model.remat])

    monkeypatch.setattr(planning, "measure", needs)
    changes = {"train.batch_size": batch_size, "distillation.gradient_weight": gradient_weight}
    experiment = dataclasses.replace(experiment, config=experiment.config.changed(changes))
    assert remedy(experiment, jax.devices(), 20).startswith(f"fits with --config.{advised}: ")


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_advised_changes_can_be_trained(experiment, monkeypatch, optimizer):
    """Adafactor trains no adapter; of an adapter's run it is the frozen weights that can be narrower."""
    tried = []

    def needs(experiment, devices, memory):
        tried.append(experiment.config)
        return Need(9, 0, 0, 0, 0, None)

    monkeypatch.setattr(planning, "measure", needs)
    for change in ({"optimizer.name": optimizer}, {"model.lora_rank": 4}):
        given = planning.changed(experiment, change, jax.devices())
        assert remedy(given, jax.devices(), 1) is None
        assert all(check_lora(config, weights=False) == [] for config in tried if config.model.has_lora)
        assert any(c.model.has_lora and c.model.frozen_dtype == "bfloat16" for c in tried)
        assert ("adafactor" in {c.optimizer.name for c in tried}) == ("model.lora_rank" not in change)
        tried.clear()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give the devices to plan for"),
        (["--devices=8"], "give the devices to plan for"),
        (["--devices=0", "--memory=80GiB"], "--devices=0: at least 1"),
        (["--devices=8", "--memory=80"], "a number and GiB or GB"),
        (["--devices=8", "--memory=1.2.3GiB"], "a number and GiB or GB"),
        (["--devices=8", "--memory=0GiB"], "a number and GiB or GB above 0"),
        (["--topology=v5e:4x4", "--devices=8"], "not allowed with"),
        (["--topology=v9:4x4"], "'v9' is not one of v4, v5e, v5p, v6e"),
    ],
)
def test_missing_or_wrong_devices_are_named(flags, message, capsys):
    assert main(["plan", f"--config={DEMO}", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "chips"), [("v5e:1x1", 1), ("v5p:1x1x1", 1), ("v5e:2x2", 4), ("v5p:2x2x2", 8)]
)
def test_the_chips_of_a_slice(name, chips):
    pytest.importorskip("libtpu", reason="the TPU's compiler knows the slices")
    devices, memory = planning.topology(name)
    assert len(devices) == chips
    assert memory == (95 if "v5p" in name else 16) * GIB


@pytest.mark.slow
@pytest.mark.parametrize(
    "target", ["--devices=2 --memory=0.0002GiB", "--devices=2 --memory=4GiB", "--topology=v5e:2x2"]
)
def test_the_command(target):
    if "topology" in target:
        pytest.importorskip("libtpu", reason="compiling for a TPU needs its compiler")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-m", "cot_jax.plan", f"--config={DEMO}", *target.split()]
    command += ["--config.data.word_problems.train=48", "--config.evaluation.mutual_information=True"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "mutual information" not in process.stdout
    if "0.0002" not in target:
        assert process.returncode == 0, process.stderr
        assert process.stdout.endswith("fits\n")
    else:
        assert process.returncode == 1, process.stderr
        assert "does not fit: state and gradients alone need" in process.stdout
        assert process.stdout.endswith("no memory setting makes it fit: use more devices\n")
