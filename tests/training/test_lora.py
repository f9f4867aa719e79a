"""A run with LoRA: only the adapter is learned, kept and saved; what is written is the merged student."""

import json
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from equations import equations

from cot_jax import export
from cot_jax.batch import Batch, Tokens, ViewArrays
from cot_jax.config import parse_command_line
from cot_jax.data import word_problems
from cot_jax.errors import UserError
from cot_jax.models import decoding
from cot_jax.models import student as students
from cot_jax.models.t5 import T5, T5Config
from cot_jax.models.weights import shapes
from cot_jax.text import tokenizer as tokenizers
from cot_jax.train import main
from cot_jax.training.experiment import prepare
from cot_jax.training.run import Run
from cot_jax.training.saved import load

SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 44, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4}
# Everything that couples examples or passes, on eight devices.
FLAGS = (
    f"--config={Path(__file__).parents[2] / 'configs' / 'demo_mi.py'}",
    "--config.data.word_problems.train=48",
    "--config.data.word_problems.valid=8",
    "--config.data.word_problems.test=8",
    "--config.self_distillation.method=dynsdpb",
    "--config.model.lora_rank=2",
    "--config.model.dropout_rate=0.1",
    "--config.train.batch_size=32",
    "--config.train.micro_batches=2",
    "--config.train.steps=4",
    "--config.train.eval_every=4",
    "--config.train.checkpoint_every=2",
    "--config.evaluation.batch_size=8",
    "--config.evaluation.max_new_tokens=4",
    "--show=0",
    "--config.optimizer.name=adamw",
    "--config.optimizer.learning_rate=4e-3",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A directory with a pretrained student."""
    directory = tmp_path_factory.mktemp("base")
    problems = word_problems.splits(
        seed=0, train=48, valid=1, test=1, max_steps=2, distractors=1, max_number=20, teacher_error_rate=0.0
    )
    texts = [text for example in problems["train"] for text in (example.text, example.label)]
    tokenizer = tokenizers.train(texts, 200, str(directory / "scratch"))
    tokenizer.save(directory)
    write(directory, tokenizer, seed=0)
    return directory, tokenizer


def write(directory, tokenizer, seed):
    student = T5(T5Config(vocab_size=256, pad_token_id=tokenizer.hf.pad_token_id, **SIZES))
    rng = np.random.default_rng(seed)
    like = shapes(student.weights)
    students.save(
        directory, student, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), like)
    )


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    flags = ["train", *FLAGS, f"--config.model.pretrained={base[0]}"]
    assert main([*flags, f"--workdir={workdir}"]) == 0
    return flags, workdir


def _rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_only_the_adapter_is_learned_and_a_stopped_run_goes_on(trained, tmp_path, monkeypatch, capsys):
    flags, workdir = trained
    batch, seen = Run.batch, []

    def stopping(run, step):
        if step == 2 and not seen:
            state = jax.eval_shape(run.initial_state)
            seen.append((run, jax.device_get(run._frozen)))
            assert sum(x.size for x in jax.tree.leaves(state)) < 0.4 * run.parameters
            signal.raise_signal(signal.SIGTERM)
        return batch(run, step)

    monkeypatch.setattr(Run, "batch", stopping)
    stopped = tmp_path / "stopped"
    assert main([*flags, f"--workdir={stopped}"]) == 75
    (run, before), *_ = seen
    assert main([*flags, f"--workdir={stopped}"]) == 0
    assert _rows(stopped) == _rows(workdir)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run._frozen), before)
    assert "resuming from step 3" in capsys.readouterr().out
    result = json.loads((workdir / "result.json").read_text())
    # q and v of three attentions, each (32 + 32) x 2.
    assert result["trained_parameters"] == 3 * 2 * 64 * 2 < 0.05 * result["parameters"]
    config = json.loads((workdir / "config.json").read_text())
    assert config["optimizer"]["learning_rate"] == 4e-3  # the demo's own


@pytest.mark.slow
def test_no_step_computes_a_gradient_of_what_is_frozen(trained):
    """Of all matrix products of a whole step, those of the vocabulary pass among them."""
    flags, _ = trained
    experiment = prepare(parse_command_line(flags, "").config)
    run = Run(experiment)
    with jax.set_mesh(run.mesh):
        step = run._step.trace(*run.abstract_arguments())
    found = {
        equation.outvars[0].aval.shape
        for equation, _ in equations(step.jaxpr.jaxpr)
        if equation.primitive.name == "dot_general"
    }
    weights = experiment.student.weights
    assert not found & {weight.shape[weight.is_stacked :] for weight in weights.values() if weight.inputs}
    assert not found & {weights["embedding"].shape, weights["embedding"].shape[::-1]}
    # The adapters' own gradients are there.
    assert found & {weight.shape[1:] for weight in experiment.lora.weights.values()}


@pytest.mark.slow
def test_what_is_exported_is_the_merged_student(base, trained, tmp_path):
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    from transformers import T5ForConditionalGeneration

    saved = load(trained[1])
    saved.export(tmp_path)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    pretrained = T5ForConditionalGeneration.from_pretrained(base[0])
    moved = theirs.encoder.block[0].layer[0].SelfAttention.q.weight
    assert not torch.equal(moved, pretrained.encoder.block[0].layer[0].SelfAttention.q.weight)
    assert torch.equal(theirs.shared.weight, pretrained.shared.weight)
    ids = np.random.default_rng(0).integers(3, 100, size=(2, 7)).astype(np.int32)
    logits = theirs(input_ids=torch.tensor(ids).long(), labels=torch.tensor(ids).long()).logits
    questions = Tokens(ids, np.full((2, 1), 7, np.int32), 7)
    ours = decoding.score(saved.student.prompt(saved.params, questions, 7), ids, np.full(2, 7, np.int32))
    log_prob = logits.log_softmax(-1)[:, None].expand(2, 2, 7, -1)
    # Teacher forced with its own labels: the diagonal.
    index = torch.tensor(ids).long()[:, None, :, None].expand(2, 2, 7, 1)
    expected = log_prob.gather(-1, index)[..., 0].sum(-1).detach().numpy()
    np.testing.assert_allclose(np.diag(ours), np.diag(expected), rtol=1e-5)


def test_an_adapter_is_refused_on_other_weights(base, trained, capsys):
    (directory, tokenizer), (flags, workdir) = base, trained
    write(directory, tokenizer, seed=1)
    try:
        assert main([*flags, f"--workdir={workdir}"]) == 2
        assert "not the weights that" in capsys.readouterr().err
        with pytest.raises(UserError, match="restore them"):
            load(workdir)
    finally:
        write(directory, tokenizer, seed=0)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.model.pretrained=", "adapts pretrained weights"),
        ("--config.optimizer.name=adafactor", "relative to the parameters"),
        ("--config.optimizer.learning_rate=5e-5", "warning: .* learns little at learning rate 5e-05"),
    ],
)
def test_what_would_not_learn_is_said(trained, flag, message, capsys, tmp_path):
    status = main([*trained[0], flag, f"--workdir={tmp_path}", "--dry_run"])
    out, err = capsys.readouterr()
    assert status == (0 if "warning" in message else 2)
    assert re.search(message, out + err)


# PEFT asks Transformers by a name that is going out.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_goes_to_peft_and_comes_back(base, trained, tmp_path, capsys):
    """What `export --adapter` writes is read by PEFT, and starts another run where the first one ended."""
    peft = pytest.importorskip("peft", reason="parity needs PEFT")
    import torch
    from transformers import T5ForConditionalGeneration

    adapter = tmp_path / "adapter"
    assert export.main([str(trained[1]), f"--output={adapter}", "--adapter"]) == 0
    saved = load(trained[1])
    plain = T5ForConditionalGeneration.from_pretrained(base[0])
    theirs = peft.PeftModel.from_pretrained(plain, adapter).eval()
    ids = np.random.default_rng(0).integers(3, 100, size=(1, 7)).astype(np.int32)
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(ids).long(), labels=torch.tensor(ids).long()).logits.numpy()
    tokens = Tokens(ids, np.full((1, 1), 7, np.int32), 7)
    batch = Batch({"view": ViewArrays(tokens, tokens, tokens.length)}, np.zeros((1, 1), np.int32))
    found = saved.student.hidden(saved.params, batch, None)["view"] @ saved.student.head(saved.params)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())

    flags = [flag for flag in trained[0] if "lora_rank" not in flag]
    command = parse_command_line([*flags, f"--config.model.lora_adapter={adapter}"], "")
    state = Run(prepare(command.config)).initial_state()
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(state.params), jax.device_get(saved.adapter[1])
    )

    (adapter / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": true}'
    )
    assert main([*flags, f"--config.model.lora_adapter={adapter}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "use_dora is True; only False can be read" in capsys.readouterr().err
