"""Encoders the whole way: classes, choices, every soft target, teachers, on any mesh; what is exported."""

import functools
import io
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from flat_batches import rectangle
from safetensors.numpy import load_file
from transformers import BertTokenizerFast

from cot_jax import evaluate, export, predict
from cot_jax.config import parse_command_line
from cot_jax.losses.choices import OUTPUTS
from cot_jax.losses.soft_targets import gradient_loss, patience_loss, teacher_loss
from cot_jax.models import student as students
from cot_jax.models.bert import Bert, BertConfig
from cot_jax.models.weights import init
from cot_jax.train import main
from cot_jax.training import assessment
from cot_jax.training.experiment import build_objective, prepare
from cot_jax.training.run import Run

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
NAMES, PLACES = ("ann", "bob", "cleo", "dan"), ("home", "work", "school")
WORDS = (
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[UNK]",
    "[MASK]",
    "cause",
    "effect",
    "what",
    *NAMES,
    *PLACES,
    "is",
    "at",
    "not",
    ".",
    "because",
    "who",
    "?",
)
CONFIG = Path(__file__).parents[2] / "configs" / "cqa_standard.py"

# But for what module fixtures train, and tests that name their devices.
pytestmark = pytest.mark.usefixtures("one_device")


def _pair(rng):
    """Two sentences of which the second may follow from the first; the label says whether."""
    (name, other), (place, elsewhere) = rng.permutation(NAMES)[:2], rng.permutation(PLACES)[:2]
    second, label = [
        (f"{name} is at {place}", "yes"),
        (f"{name} is not at {place}", "no"),
        (f"{other} is at {elsewhere} .", "open"),
    ][rng.integers(3)]
    return [f"{name} is at {place} .", second], label


def _copa(folder):
    """Writes SuperGLUE's COPA: which of two effects has the same person."""
    rng = np.random.default_rng(1)
    (folder / "copa").mkdir(parents=True)
    for split, count in (("train", 300), ("val", 60)):
        rows = []
        for _ in range(count):
            name, other = rng.permutation(NAMES)[:2].tolist()
            place, elsewhere = rng.permutation(PLACES)[:2].tolist()
            right = int(rng.integers(2))
            texts = [f"{name} is at {place} .", f"{other} is at {elsewhere} . because"]
            one, two = texts[::-1] if right else texts
            row = {"premise": f"{name} is at {place}", "question": "effect", "label": right}
            rows.append(json.dumps(row | {"choice1": one, "choice2": two}) + "\n")
        (folder / "copa" / f"{split}.jsonl").write_text("".join(rows))
    return folder


def _write(folder, make, counts=None, **more):
    """Writes a data set of task=jsonl."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (counts or {"train": 64, "valid": 12, "test": 12}).items():
        rows = []
        for n in range(count):
            parts, label = make(rng)
            rows.append({"id": f"{split}{n}", "input": parts, "label": label} | more)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _pretrained(folder, seed=0, scale=1.0, **sizes):
    """Writes a bare BERT with random weights, and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(**SIZES | sizes, vocab_size=len(WORDS), cls_token_id=1, sep_token_id=2)
    student = Bert(config)
    params = jax.tree.map(lambda x: scale * x, init(student.weights, jax.random.key(seed)))
    students.save(folder, student, params)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"architectures": ["BertModel"], "id2label": {}}))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    _pretrained(folder / "bert")
    _write(folder / "pairs", _pair)
    return folder


def _flags(world, data="pairs", **keys):
    keys = {
        "data.task": "jsonl",
        "data.root": world / data,
        "model.pretrained": world / "bert",
        "optimizer.learning_rate": 3e-3,
        "train.steps": 4,
        "train.batch_size": 16,
        "train.eval_every": 4,
        "train.checkpoint_every": 2,
        "evaluation.batch_size": 8,
    } | keys
    flags = (f"--config.{key}={value}" for key, value in keys.items())
    return ["train", f"--config={CONFIG}", "--show=0", *flags]


def _rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _losses(run):
    rows = []
    with jax.set_mesh(run.mesh):
        state = run.initial_state()
        for step in range(run.experiment.config.train.steps):
            state, metrics = run._step(state, run.batch(step), run._frozen)
            rows.append(jax.device_get(metrics))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _run(world, devices=1, **keys):
    config = parse_command_line(_flags(world, **keys), "").config
    return Run(prepare(config), jax.devices()[:devices])


# --- What is learned ---


@pytest.mark.slow
def test_a_student_learns_classes(world, tmp_path, capsys):
    _write(tmp_path / "data", _pair, {"train": 400, "valid": 40, "test": 60})
    keys = {
        "data.root": tmp_path / "data",
        "model.layers": 2,
        "train.steps": 120,
        "train.eval_every": 60,
        "train.checkpoint_every": 60,
    }
    assert main([*_flags(world, **keys), f"--workdir={tmp_path / 'run'}"]) == 0
    assert "fresh weights for classifier/w, classifier/bias" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test/accuracy"] > 0.9
    assert evaluate.main([str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "evaluation" / "jsonl_test" / "evaluation.json").read_text())
    assert found["accuracy"] == pytest.approx(result["test/accuracy"])
    assert found["calibration"]["label_set"]["accuracy"] == pytest.approx(found["accuracy"])
    assert [row["label"] for row in found["per_class"]] == ["no", "open", "yes"]


@pytest.fixture(scope="module")
def chooser(world, tmp_path_factory):
    """A run on COPA."""
    folder = tmp_path_factory.mktemp("copa")
    once = {"train.steps": 60, "train.eval_every": 60, "train.checkpoint_every": 60}
    keys = {"data.task": "copa", "data.root": _copa(folder / "data")} | once
    assert main([*_flags(world, **keys), f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.mark.slow
def test_a_student_learns_to_choose(chooser):
    assert json.loads((chooser / "result.json").read_text())["test/accuracy"] > 0.9


SOFT = {
    "dlb": {"self_distillation.method": "dlb"},
    "dynamic": {"self_distillation.method": "dynamic"},
    **{
        f"dynsdpb {output}": {"self_distillation.method": "dynsdpb", "self_distillation.output": output}
        for output in OUTPUTS
    },
}


@pytest.fixture(scope="module")
def soft(world):
    """The losses of a method of self-distillation, without dropout."""
    keys = {"model.layers": 1, "model.dropout_rate": 0.0, "self_distillation.top_k": 3}
    return lambda name: _losses(_run(world, **SOFT[name], **keys))


@pytest.mark.slow
def test_of_one_token_every_stored_output_is_the_same(soft):
    """A vocabulary map of one token is its distribution; all of three classes are the top three."""
    expected = soft("dynsdpb full")
    assert np.all(expected["self_distillation/stored"][1:] == 1)
    assert expected["loss/self_distillation"][-1] > 0
    for output in {*OUTPUTS} - {"full"}:
        found = soft(f"dynsdpb {output}")
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dlb", "dynamic"])
def test_self_distillation_of_classes_trains(soft, name):
    found = soft(name)
    assert np.isfinite(found["loss"]).all()
    if name == "dlb":
        assert found["loss"][-1] > found["loss/label"][-1]


PLACES_OF_WORK = [
    (0.0, {"mesh.data": 2}, 2, 1),
    (1.0, {"mesh.data": 1, "mesh.fsdp": 2, "mesh.model": 2}, 4, 1),
    (0.0, {}, 1, 2),
]


@pytest.fixture(scope="module")
def losses(world, taught):
    """(gradient weight, devices, other keys) -> the losses of DynSDPB with a teacher."""
    keys = {
        "self_distillation.method": "dynsdpb",
        "distillation.teacher": taught,
        "distillation.layers": "skip",
        "model.layers": 2,
        "train.steps": 3,
    }

    def run(gradient_weight, devices, **more):
        more["distillation.gradient_weight"] = gradient_weight
        return _losses(_run(world, devices, **keys, **more))

    return run


@pytest.fixture(scope="module")
def undivided(losses):
    return functools.cache(lambda gradient_weight: losses(gradient_weight, 1))


@pytest.mark.parametrize(
    ("gradient_weight", "mesh", "devices", "parts"), PLACES_OF_WORK, ids=["data", "fsdp and model", "parts"]
)
@pytest.mark.slow
def test_losses_are_those_of_one_device_and_of_a_whole_batch(
    losses, undivided, gradient_weight, mesh, devices, parts
):
    found = losses(gradient_weight, devices, **mesh, **{"train.micro_batches": parts})
    for name, values in undivided(gradient_weight).items():
        np.testing.assert_allclose(found[name][0], values[0], rtol=3e-6, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_stopped_run_resumes(world, tmp_path, monkeypatch, capsys):
    flags = _flags(world, **SOFT["dynsdpb vmm"], **{"model.layers": 1})
    assert main([*flags, f"--workdir={tmp_path / 'whole'}"]) == 0
    take, stops = Run.batch, iter([True])

    def stopping(run, step):
        if step == 1 and next(stops, False):
            signal.raise_signal(signal.SIGTERM)
        return take(run, step)

    monkeypatch.setattr(Run, "batch", stopping)
    assert main([*flags, f"--workdir={tmp_path / 'stopped'}"]) == 75
    assert main([*flags, f"--workdir={tmp_path / 'stopped'}"]) == 0
    assert _rows(tmp_path / "stopped") == _rows(tmp_path / "whole")


@pytest.mark.slow
def test_every_layer_has_a_gradient_norm_in_the_rows_asked_for(world, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need Matplotlib")
    keys = SOFT["dynsdpb vmm"] | {
        "model.layers": 2,
        "train.layer_norms_every": 2,
        "model.dropout_rate": 0.0,
    }
    assert main([*_flags(world, **keys), f"--workdir={tmp_path}"]) == 0
    norms = [
        {
            name.removeprefix("grad_norm/"): value
            for name, value in row.items()
            if name.startswith("grad_norm/")
        }
        for row in _rows(tmp_path)
        if "loss" in row
    ]
    assert [sorted(row) for row in norms] == 2 * [[], [f"layers/{n}" for n in range(2)]]
    for row, full in zip(norms[1::2], [row for row in _rows(tmp_path) if "loss" in row][1::2], strict=True):
        # What is left is that of the embeddings and the head.
        assert min(row.values()) > 0
        assert np.linalg.norm(list(row.values())) < full["grad_norm"]
    assert (tmp_path / "layer_norms.png").read_bytes().startswith(b"\x89PNG")


# --- PyTorch ---


def _padded(torch, run, step):
    """A batch as Transformers' models take it."""
    (view,), rows = run.experiment.tokenized.values(), run.batches.rows(step)
    ids, mask = rectangle([view.inputs[row] for row in rows])
    ends = ids == run.experiment.student.config.sep_token_id
    second = (np.cumsum(ends, axis=1) - ends > 0) & (mask == 1)
    labels = np.concatenate([view.targets[row] for row in rows])
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": second, "labels": labels}
    return {name: torch.from_numpy(x.astype(np.int64)) for name, x in arrays.items()}


def _torch_losses(torch, run, directory):
    """Fine-tuning as Transformers does it: padded batches, no decay of norms and biases."""
    from transformers import BertForSequenceClassification, get_linear_schedule_with_warmup

    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    model = BertForSequenceClassification.from_pretrained(directory, **none).train()
    config = run.experiment.config
    decayed, kept = ([p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.optimizer.weight_decay}, {"params": kept}],
        lr=config.optimizer.learning_rate,
        weight_decay=0.0,
    )
    schedule = get_linear_schedule_with_warmup(optimizer, config.optimizer.warmup_steps, config.train.steps)
    losses = []
    for step in range(config.train.steps):
        loss = model(**_padded(torch, run, step)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return np.array(losses)


def _assert_steps_equal_pytorch(config, tmp_path):
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    run = Run(prepare(config), jax.devices()[:1])
    students.save(tmp_path, run.experiment.student, jax.device_get(run.initial_state().params))
    found, theirs = _losses(run), _torch_losses(torch, run, tmp_path)
    np.testing.assert_allclose(found["loss"], theirs, rtol=1e-3)
    # Clipping and warm-up had a part in it.
    assert found["grad_norm"].max() > config.optimizer.clip_norm
    assert 0 < run.experiment.config.optimizer.warmup_steps < len(theirs)
    print(f"largest relative difference of a step's loss: {np.abs(found['loss'] / theirs - 1).max():.1e}")
    return theirs


RECIPE = {
    "model.dropout_rate": 0.0,
    "optimizer.weight_decay": 0.01,
    "optimizer.warmup_ratio": 0.1,
    "train.batch_size": 16,
}


@pytest.mark.slow
def test_ten_steps_equal_pytorch(world, tmp_path):
    # Usual fresh weights are so small that ten steps change next to nothing.
    base = _pretrained(tmp_path / "bert", scale=3.0, num_hidden_layers=2)
    keys = RECIPE | {"model.pretrained": base, "optimizer.learning_rate": 1e-2, "train.steps": 10}
    losses = _assert_steps_equal_pytorch(parse_command_line(_flags(world, **keys), "").config, tmp_path)
    assert losses[-2:].max() < 0.95 * losses[:2].min()


@pytest.fixture
def optimized():
    """The compiler's optimizations, which tests do without: AdamW on a real vocabulary takes seconds else."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_thirty_steps_of_minilm_on_rte_equal_pytorch(world, data_root, tmp_path):
    if not (models := os.environ.get("COT_JAX_MODELS")):
        pytest.skip("COT_JAX_MODELS is not set: no pretrained weights are at hand")
    keys = RECIPE | {
        "data.task": "rte",
        "data.root": data_root,
        "data.max_input_tokens": 64,
        "model.pretrained": Path(models) / "minilm-l6",
        "optimizer.learning_rate": 5e-5,
        "train.batch_size": 8,
        "train.steps": 40,
    }
    _assert_steps_equal_pytorch(parse_command_line(_flags(world, **keys), "").config, tmp_path)


# --- A teacher in the step ---


@pytest.fixture(scope="module")
def taught(world, tmp_path_factory):
    """A run, to be a teacher."""
    workdir = tmp_path_factory.mktemp("taught") / "run"
    assert main([*_flags(world), f"--workdir={workdir}"]) == 0
    return workdir


def test_the_terms_are_those_of_pytorch():
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    rng = np.random.default_rng(0)
    B, K, T = 6, 3, 4.0
    student, teacher = rng.normal(size=(2, B, K)).astype(np.float32) * 3
    eye = np.eye(K, dtype=np.float32)
    weight = np.full((1, B), 1 / B, np.float32)
    found = teacher_loss(student[None], eye, teacher[None], eye, weight, T)
    kl = torch.nn.functional.kl_div(
        torch.log_softmax(torch.tensor(student) / T, 1),
        torch.softmax(torch.tensor(teacher) / T, 1),
        reduction="batchmean",
    )
    np.testing.assert_allclose(found, T**2 * kl.item(), rtol=1e-5)
    a, b = rng.normal(size=(2, 1, 3, B, 8)).astype(np.float32)
    pairs = ((0, 0), (1, 2))
    mse = torch.nn.functional.mse_loss(
        *(
            torch.nn.functional.normalize(torch.tensor(x[0][list(which)]).swapaxes(0, 1), dim=2)
            for x, which in zip((a, b), zip(*pairs, strict=True), strict=True)
        )
    )
    np.testing.assert_allclose(patience_loss(a, b, np.ones((1, B), bool), pairs), mse.item(), rtol=1e-5)
    # An example without a target, whatever its states, counts in no mean.
    more = [np.concatenate([x, rng.normal(size=(1, 3, 1, 8)).astype(np.float32)], axis=2) for x in (a, b)]
    counts = np.arange(B + 1)[None] < B
    np.testing.assert_allclose(patience_loss(*more, counts, pairs), mse.item(), rtol=1e-5)


def test_the_gradients_term_is_that_of_pytorch():
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    rng = np.random.default_rng(0)
    X, B = 7, 3
    # By student and teacher: of tokens (G, X, D), and of first tokens after three layers (N, G, C, D). The
    # last of each is of no example.
    tokens = rng.normal(size=(2, 1, X + 1, 8)).astype(np.float32)
    firsts = rng.normal(size=(2, 3, 1, B + 1, 8)).astype(np.float32)
    pairs = ((0, 1), (1, 2))

    def distance(x):
        student, teacher = torch.nn.functional.normalize(torch.tensor(x), dim=-1)
        return ((student - teacher) ** 2).sum(-1).mean().item()

    expected = distance(tokens[:, 0, :X])
    for own, other in pairs:
        expected += distance(np.stack([firsts[0, own, 0, :B], firsts[1, other, 0, :B]]))
    counts = [np.arange(n + 1)[None] < n for n in (X, B)]
    found = gradient_loss(*zip(tokens, firsts, strict=True), *counts, pairs)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_slots_of_a_long_text_are_taken_in_turn(monkeypatch):
    rng = np.random.default_rng(0)
    hidden, head, taught, theirs = (
        rng.normal(size=shape).astype(np.float32) for shape in ((2, 9, 4), (4, 7), (2, 9, 5), (5, 7))
    )
    weight = rng.random((2, 9)).astype(np.float32)

    def value_and_gradient():
        return jax.value_and_grad(lambda h: teacher_loss(h, head, taught, theirs, weight, 2.0))(hidden)

    whole = value_and_gradient()
    monkeypatch.setattr("cot_jax.losses.soft_targets._SLOTS", 4)
    for a, b in zip(whole, value_and_gradient(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_teacher_teaches_and_is_not_taught(world, taught):
    keys = {"distillation.teacher": taught, "distillation.layers": "last", "model.layers": 2}
    run = _run(world, **keys, **{"model.dropout_rate": 0.0})
    before = jax.device_get(run._frozen)
    found = _losses(run)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(run._frozen))
    terms = 0.5 * found["loss/label"] + 0.5 * found["loss/distillation"] + 100 * found["loss/patience"]
    np.testing.assert_allclose(found["loss"], terms, rtol=1e-5)
    assert found["loss/distillation"][-1] < found["loss/distillation"][0]


@pytest.mark.slow
def test_matched_gradients_are_those_of_pytorch(world, taught, tmp_path):
    """GKD-CLS differentiates twice: the term, and the gradient of every parameter."""
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    from transformers import BertForSequenceClassification

    weight = 0.7
    keys = {
        "teacher": taught,
        "layers": "skip",
        "weight": 0.0,
        "layer_weight": 0.0,
        "gradient_weight": weight,
    }
    keys = {f"distillation.{key}": value for key, value in keys.items()}
    run = _run(world, **keys, **{"model.layers": 2, "model.dropout_rate": 0.0})
    experiment = run.experiment
    params, teaching = run.initial_state().params, experiment.teaching
    objective = jax.jit(jax.value_and_grad(build_objective(experiment), has_aux=True))
    with jax.set_mesh(run.mesh):
        (total, found), grads = objective(params, run.batch(0), None, None, teaching.params)

    def model(name, student, params):
        students.save(tmp_path / name, student, params)
        # PyTorch's fused attention cannot be differentiated twice.
        kind = BertForSequenceClassification
        return kind.from_pretrained(tmp_path / name, attn_implementation="eager").eval()

    student = model("student", experiment.student, params)
    teacher = model("teacher", teaching.student, teaching.params)
    batch = _padded(torch, run, 0)

    def sensitivity(model, **how):
        out = model(**batch, output_hidden_states=True)
        confidence = out.logits.softmax(-1).amax(-1).sum()
        return out.loss, torch.autograd.grad(confidence, out.hidden_states[:-1], **how)

    loss, own = sensitivity(student, create_graph=True)
    _, others = sensitivity(teacher)
    unit = lambda x: torch.nn.functional.normalize(x, dim=-1)  # noqa: E731
    term = ((unit(own[0]) - unit(others[0])) ** 2).sum() / batch["attention_mask"].sum()
    # The first of two student layers learns from the second of four.
    term += ((unit(own[1][:, 0]) - unit(others[2][:, 0])) ** 2).sum() / len(batch["labels"])
    np.testing.assert_allclose(found.terms["gradient"], term.item(), rtol=1e-5)
    np.testing.assert_allclose(total, (loss + weight * term).item(), rtol=1e-5)
    (loss + weight * term).backward()
    students.save(tmp_path / "gradients", experiment.student, jax.device_get(grads))
    saved = load_file(tmp_path / "gradients" / "model.safetensors")
    named = {name: p.grad.numpy() for name, p in student.named_parameters()}
    assert saved.keys() == named.keys()
    largest = max(np.abs(grad).max() for grad in named.values())
    for name, grad in named.items():
        np.testing.assert_allclose(saved[name], grad, rtol=1e-4, atol=1e-5 * largest, err_msg=name)


@pytest.mark.slow
def test_a_teacher_of_choices(world, chooser):
    keys = {
        "distillation.teacher": chooser,
        "distillation.layers": "skip",
        "distillation.gradient_weight": 1.0,
        "model.layers": 2,
        "model.dropout_rate": 0.0,
        "train.steps": 40,
    }
    data = json.loads((chooser / "config.json").read_text())["data"]["root"]
    found = _losses(_run(world, **keys, **{"data.task": "copa", "data.root": data}))
    for term in ("distillation", "patience", "gradient"):
        assert found[f"loss/{term}"][-1] < found[f"loss/{term}"][0]


@pytest.mark.slow
def test_its_own_teacher_asks_for_nothing(world, taught, tmp_path):
    """Student and teacher are equal, their labels in another order."""
    exported = tmp_path / "exported"
    assert export.main([str(taught), f"--output={exported}"]) == 0
    config = json.loads((exported / "config.json").read_text())
    assert sorted(config["label2id"]) == ["no", "open", "yes"]
    (exported / "cot_jax.json").unlink()  # as any fine-tuned model
    order = [2, 0, 1]
    labels = [config["id2label"][str(n)] for n in order]
    student, params, _ = students.from_pretrained(str(exported), students.Options())
    permuted = jax.tree.map(lambda leaf: leaf[..., order], params["classifier"])
    config |= {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
    other = tmp_path / "other"
    students.save(other, student, params | {"classifier": permuted})
    (other / "config.json").write_text(json.dumps(config))
    keys = {"model.pretrained": exported, "distillation.teacher": other, "model.dropout_rate": 0.0}
    keys |= {"distillation.layers": "last", "distillation.gradient_weight": 1.0}
    found = _losses(_run(world, **keys, **{"model.tokenizer": world / "bert", "train.steps": 1}))
    for term in ("distillation", "patience", "gradient"):
        assert abs(found[f"loss/{term}"][0]) < 1e-5


@pytest.fixture(scope="module")
def said(taught):
    """What the teacher says of its training examples."""
    file = taught.parent / "said.jsonl"
    assert predict.main([str(taught), "--log_probs", "--split=train", f"--output={file}"]) == 0
    return file


def test_log_probs_are_those_of_every_label(world, said):
    rows = [json.loads(line) for line in said.read_text().splitlines()]
    data = [json.loads(line) for line in (world / "pairs" / "train.jsonl").read_text().splitlines()]
    assert [(row["id"], row["input"]) for row in rows] == [(row["id"], row["input"]) for row in data]
    for row in rows:
        assert list(row["log_probs"]) == ["no", "open", "yes"]
        np.testing.assert_allclose(np.exp(list(row["log_probs"].values())).sum(), 1, rtol=1e-5)
        assert row["log_probs"][row["label"]] == max(row["log_probs"].values())
    assert len({tuple(row["log_probs"].values()) for row in rows}) > 30


@pytest.mark.slow
def test_what_a_teacher_said_teaches_as_it_does_itself(world, taught, said, tmp_path):
    rows = [json.loads(line) for line in said.read_text().splitlines()]
    assert len(rows) == 64
    # In another order, with labels in another one, and a row that nobody asks for.
    rows = [
        {"id": row["id"], "log_probs": dict(reversed(row["log_probs"].items()))} for row in reversed(rows)
    ]
    rows.append(rows[0] | {"id": "other"})
    stored = tmp_path / "stored.jsonl"
    stored.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {
        "model.dropout_rate": 0.0,
        "model.layers": 2,
        "data.train_fraction": 0.75,
        "distillation.weight": 0.7,
        "distillation.temperature": 2.0,
    }
    expected = _losses(_run(world, **keys, **{"distillation.teacher": taught}))
    assert expected["loss/distillation"].min() > 1e-3
    for devices, parts in ((1, 1), (2, 2)):
        places = {"mesh.data": devices, "train.micro_batches": parts}
        found = _losses(_run(world, devices, **keys, **places, **{"distillation.teacher": stored}))
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


BAD_STORED = {
    "a missing id": ([{}], "63 training examples have no row, train1 first: write all with `python -m cot"),
    "an unknown label": (
        [{"log_probs": {"no": -1, "open": -1, "maybe": -1}}],
        "'log_probs' must map each of no, open, yes to a number; found 'no', 'open', 'maybe'",
    ),
    "a missing label": ([{"log_probs": {"no": -1, "open": -1}}], "to a number; found 'no', 'open'"),
    "no labels": ([{"log_probs": None}], "to a number; found None"),
    "a NaN": (
        [{"log_probs": {"no": float("nan"), "open": -1, "yes": -1}}],
        "the log-probability of 'no' must be a finite number; found nan",
    ),
    "an infinity": (
        [{"log_probs": {"no": float("-inf"), "open": -1, "yes": -1}}],
        "finite number; found -inf",
    ),
    "a text": ([{"log_probs": {"no": -1, "open": "-1", "yes": -1}}], "of 'open' must be a finite number"),
    "no id": ([{"id": None}], "every row needs an 'id'"),
    "an id twice": ([{}, {}], "a second row with the id 'train0'"),
}


@pytest.mark.parametrize("case", BAD_STORED)
def test_bad_rows_of_a_teacher_are_one_line(world, tmp_path, capsys, case):
    changes, message = BAD_STORED[case]
    file = tmp_path / "stored.jsonl"
    row = {"id": "train0", "log_probs": {"no": -1.0, "open": -1.0, "yes": -1.0}}
    file.write_text("".join(json.dumps(row | change) + "\n" for change in changes))
    workdir = tmp_path / "run"
    assert main([*_flags(world, **{"distillation.teacher": file}), f"--workdir={workdir}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    where = str(file) if case == "a missing id" else f"{file}:{len(changes)}"
    assert line.startswith(f"error: {where}: ")
    assert message in line
    assert not workdir.exists()


# --- In and out ---


@pytest.mark.parametrize("kind", ["classes", "choices"])
def test_an_export_answers_alike_in_transformers(world, taught, chooser, kind, tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch", reason="the card's program needs PyTorch")
    run = taught if kind == "classes" else chooser
    exported = tmp_path / "exported"
    assert export.main([str(run), f"--output={exported}"]) == 0
    capsys.readouterr()
    question = ["bob is at work .", "bob is at home"]
    if kind == "choices":
        question = ["ann is at work what", "ann is at work .", "bob is at home . because"]
    row = json.dumps({"input": question}).encode()
    answers = []
    for student in (run, exported):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(row)))
        assert predict.main([str(student)]) == 0
        answers.append(json.loads(capsys.readouterr().out)["label"])
    program = (exported / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(exported)
    exec(program, {"question": question})
    answers.append(capsys.readouterr().out.strip())
    assert len(set(answers)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--log_probs"]], ids=str)
def test_a_choice_has_at_most_as_many_tokens_as_there_are_positions(chooser, capsys, monkeypatch, flags):
    for words in (60, 61):  # after [CLS] ann [SEP], and before [SEP]
        row = json.dumps({"input": ["ann", "bob " * words, "bob " * 60]}).encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(row)))
        status, said = predict.main([str(chooser), *flags]), capsys.readouterr()
        if words == 60:
            assert status == 0, said.err
        else:
            assert (status, said.out) == (2, "")
            expected = "error: texts have up to 65 tokens, the student has 64 positions: cut them with"
            assert expected in said.err


BAD = {
    "a method that writes": (
        {"objective.method": "mi"},
        "the student is an encoder: it chooses a label and writes no rationale or program; use "
        "--config.objective.method=standard or rationale_input",
    ),
    "lora": ({"model.lora_rank": 4}, "config.model.lora_rank=4: encoders train all weights"),
    "an adapter": ({"model.lora_adapter": "adapter"}, "lora_adapter=adapter: encoders train all weights"),
    "a teacher of other labels": ({"distillation.teacher": "chooser"}, "use a teacher with the same labels"),
    "a bare encoder as teacher": (
        {"distillation.teacher": "bert"},
        "has no named classes: fine-tune it first",
    ),
    "layers without a teacher": (
        {"distillation.layers": "skip"},
        "name one with --config.distillation.teacher",
    ),
    "layers of stored answers": (
        {"distillation.teacher": "stored.jsonl", "distillation.layers": "skip"},
        "config.distillation.teacher=stored.jsonl has log-probabilities of classes: it teaches encoders, ",
    ),
    "gradients without layers": (
        {"distillation.teacher": "chooser", "distillation.gradient_weight": 1.0},
        "matches a teacher's gradients: use --config.distillation.layers=skip or last",
    ),
    "stored answers that are not there": (
        {"distillation.teacher": "nowhere.jsonl"},
        "nowhere.jsonl: no such file",
    ),
    "more layers than there are": ({"model.layers": 9}, "config.model.layers=9: the model has 4"),
    "an open set of labels": ({"data.task": "svamp"}, "are equations, an open set"),
    "no room": ({"data.max_input_tokens": 3}, "config.data.max_input_tokens=3 has no room for a question"),
    "too long": ({"data.root": "long"}, "the student has 64 positions: cut them with"),
    "a choice too long": (
        {"data.task": "copa"},
        "texts have up to 65 tokens, the student has 64 positions: cut them with",
    ),
    "a label only in test": (
        {"data.root": "label"},
        "but the label of test0, 'never', is not one of no, open, yes",
    ),
    "another number of texts": (
        {"data.root": "parts"},
        "the input of test0 has 1 text, that of train0 has 2",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(world, taught, chooser, tmp_path, capsys, case):
    keys, message = BAD[case]
    keys = dict(keys)
    if keys.get("data.task") == "svamp":
        row = {"input": "1 + 1", "label": "( 1.0 + 1.0 )"}
        (tmp_path / "svamp").mkdir()
        for split in ("train", "test"):
            (tmp_path / "svamp" / f"svamp_{split}.json").write_text(20 * (json.dumps(row) + "\n"))
        keys["data.root"] = tmp_path
    if keys.get("data.task") == "copa":
        keys["data.root"] = _copa(tmp_path)
        row = {"premise": "ann", "question": "effect", "label": 0, "choice1": "bob", "choice2": "bob " * 55}
        (tmp_path / "copa" / "train.jsonl").write_text(20 * (json.dumps(row) + "\n"))
    if teacher := keys.get("distillation.teacher"):
        keys["distillation.teacher"] = {"chooser": chooser, "bert": world / "bert"}.get(teacher, teacher)
    kind = keys.get("data.root")
    if kind in ("long", "label", "parts"):
        keys["data.root"] = _write(tmp_path / "data", _pair)
        other = {
            "long": {"input": ["ann " * 70, "bob"], "label": "no"},
            "label": {"input": ["ann", "bob"], "label": "never"},
            "parts": {"input": "ann", "label": "no"},
        }[kind]
        split = "train" if kind == "long" else "test"
        (tmp_path / "data" / f"{split}.jsonl").write_text(
            "".join(
                json.dumps(
                    {"id": f"{split}{n}"} | other | ({"label": ("yes", "open")[n % 2]} if n > 9 else {})
                )
                + "\n"
                for n in range(20)
            )
        )
    workdir = tmp_path / "run"
    assert main([*_flags(world, **keys), f"--workdir={workdir}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not workdir.exists()


@pytest.mark.parametrize(("task", "label"), [("anli1", "contradiction"), ("svamp", "( 1.0 + 1.0 )")])
def test_labels_that_are_no_classes_are_refused_before_a_question_is_asked(
    taught, tmp_path, capsys, monkeypatch, task, label
):
    rows = {
        "anli1": {"premise": "ann is at home .", "hypothesis": "bob is at work .", "label": 0},
        "svamp": {"input": "1 + 1", "label": "( 1.0 + 1.0 )"},
    }
    (tmp_path / task).mkdir()
    for split in ("train", "valid", "test"):
        lines = (json.dumps({"uid": f"{split}{n}"} | rows[task]) + "\n" for n in range(20))
        (tmp_path / task / f"{task}_{split}.json").write_text("".join(lines))
    monkeypatch.setattr(assessment, "_ask", None)
    assert evaluate.main([str(taught), f"--task={task}", f"--root={tmp_path}"]) == 2
    assert capsys.readouterr().err == (
        f"error: task={task} has the label {label!r}, but the student chooses among no, open, yes only: "
        "choose a task with these labels\n"
    )


def test_a_question_of_other_parts_is_one_line(taught, capsys, monkeypatch):
    row = json.dumps({"input": "bob is at work ."}).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(row)))
    assert predict.main([str(taught)]) == 2
    assert (
        "a question has 1 text (the first is 'bob is at work .'), the student reads 2"
        in capsys.readouterr().err
    )
