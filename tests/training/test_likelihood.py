"""Likelihoods of continuations: those of PyTorch Transformers, and HellaSwag's two accuracies by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from cot_jax import evaluate
from cot_jax.config import Config
from cot_jax.data import continuations
from cot_jax.text import formats
from cot_jax.training.likelihood import likelihoods
from cot_jax.training.saved import read_pretrained

torch = pytest.importorskip("torch", reason="parity needs PyTorch")

ACTIONS = ("walks to the car", "sits", "is at home and reads a book of many pages", "eats two red apples")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """HellaSwag's published validation file, of eleven rows."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (root / "hellaswag").mkdir()
    rows = []
    for n in range(11):
        first, *endings = (f"{ACTIONS[k]}." for k in rng.integers(4, size=5))
        contexts = {"ctx_a": f"A man {first}" + n * " He sits.", "ctx_b": "the man" * (n % 2)}
        rows.append({"activity_label": "Home", "endings": endings, "label": int(rng.integers(4))} | contexts)
    (root / "hellaswag/hellaswag_val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A random decoder as Transformers saves it, with a tokenizer: the model and its directory."""
    import transformers

    transformers.logging.set_verbosity_error()
    directory = tmp_path_factory.mktemp("model")
    texts = [f"Home: A man {action}. He sits. The man {action}." for action in ACTIONS]
    size = formats.train(texts, 64, directory, "causal").tokenizer.size
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(directory)
    return model, transformers.AutoTokenizer.from_pretrained(directory), directory


def _log_prob(model, tokenizer, context: str, continuation: str) -> float:
    """As lm-evaluation-harness has it."""
    before, whole = tokenizer([context, context + continuation], add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        log_p = torch.log_softmax(model(torch.tensor([whole])).logits[0], dim=-1)
    return sum(log_p[n - 1, whole[n]].item() for n in range(len(before), len(whole)))


def _command(directory: Path, root: Path, *more: str) -> list[str]:
    return [str(directory), "--task=hellaswag_likelihood", f"--root={root}", *more]


def _read(directory: Path):
    rows = (directory / "predictions.jsonl").read_text().splitlines()
    return json.loads((directory / "evaluation.json").read_text()), [json.loads(row) for row in rows]


def test_log_probabilities_are_those_of_transformers(theirs, root, tmp_path, capsys):
    model, tokenizer, directory = theirs
    assert evaluate.main(_command(directory, root, f"--output={tmp_path}")) == 0
    evaluation, rows = _read(tmp_path)
    questions, _ = continuations.hellaswag(root)
    assert [row["id"] for row in rows] == [question.id for question in questions]
    right, right_norm = [], []
    for question, row in zip(questions, rows, strict=True):
        assert (row["context"], row["endings"]) == (question.context, [*question.endings])
        want = [_log_prob(model, tokenizer, question.context, f" {e}") for e in question.endings]
        np.testing.assert_allclose(row["log_probs"], want, atol=1e-4)
        by_character = [p / len(ending) for p, ending in zip(want, question.endings, strict=True)]
        assert row["chosen_by_acc"] == want.index(max(want))
        assert row["chosen_by_acc_norm"] == by_character.index(max(by_character))
        right.append(row["chosen_by_acc"] == question.gold)
        right_norm.append(row["chosen_by_acc_norm"] == question.gold)
    assert (evaluation["acc"], evaluation["acc_norm"]) == (np.mean(right), np.mean(right_norm))
    assert evaluation["acc"] != evaluation["acc_norm"]
    assert "accuracy" not in evaluation
    low, high = evaluation["acc_norm_interval_95"]
    assert low < evaluation["acc_norm"] < high
    said = capsys.readouterr().out
    assert said.startswith("hellaswag_likelihood test, 11 questions")
    assert f"  acc_norm {100 * np.mean(right_norm):.2f} % ({100 * low:.2f} to {100 * high:.2f})" in said


def test_an_export_has_the_same_likelihoods(theirs, root, tmp_path):
    _, _, directory = theirs
    saved = read_pretrained(directory, Config())
    saved.export(tmp_path / "export")
    assert evaluate.main(_command(tmp_path / "export", root, "--limit=3")) == 0
    _, rows = _read(tmp_path / "export/evaluation/hellaswag_likelihood_test")
    questions = continuations.hellaswag(root)[0][:3]
    for question, row in zip(questions, rows, strict=True):
        # Alone and among others, in whatever order.
        texts = [f" {ending}" for ending in question.endings[::-1]]
        log_probs, _ = likelihoods(saved, [question.context] * 4, texts)
        np.testing.assert_allclose(log_probs[::-1], row["log_probs"], rtol=1e-5)


def test_mistakes_are_named(theirs, root, tmp_path, capsys):
    _, _, directory = theirs
    for more, message in [
        (("--shots=2",), "--shots does not apply to --task=hellaswag_likelihood: leave it out"),
        (("--chat=plain",), "--chat does not apply"),
        (("--split=valid",), "hellaswag_train.jsonl: no such file"),
    ]:
        assert evaluate.main(_command(directory, root, *more)) == 2
        assert message in capsys.readouterr().err
    assert evaluate.main([str(directory), "--task=hellaswag_likelihood"]) == 2
    assert "reads files: give their folder with --root=DIR" in capsys.readouterr().err
