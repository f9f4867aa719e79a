"""Answers that are chosen among labels, or come from a beam search."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from cot_jax.config import Config
from cot_jax.data import tokenizer as tokenizers
from cot_jax.data.batches import Ragged
from cot_jax.errors import UserError
from cot_jax.models.student import T5Student
from cot_jax.models.t5 import T5Config
from cot_jax.training import run
from cot_jax.training.evaluation import make_choose, make_generate
from cot_jax.training.experiment import encode_labels, prepare
from cot_jax.training.run import Run
from cot_jax.training.sharding import make_mesh

LABELS = ["maybe", "no", "yes, of course"]


@pytest.fixture
def own_data(tmp_path):
    """A classification task; the labels are not in the order of their names."""
    for split in ("train", "valid", "test"):
        rows = [
            {"id": f"{split}-{i}", "input": f"question {i}?", "label": LABELS[-i % 3], "rationale": "because"}
            for i in range(9)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def _config(root, tokenizer, *, method="dss", answers="score", beams=1, **data):
    config = Config()
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, root=str(root), **{"task": "jsonl"} | data),
        model=dataclasses.replace(config.model, preset="tiny", tokenizer=str(tokenizer)),
        objective=dataclasses.replace(config.objective, method=method),
        train=dataclasses.replace(config.train, batch_size=8, steps=1),
        evaluation=dataclasses.replace(
            config.evaluation, batch_size=8, max_new_tokens=4, answers=answers, beams=beams
        ),
    )


def test_labels_are_the_targets_of_training(own_data, tokenizers_root):
    experiment = prepare(_config(own_data, tokenizers_root / "t5"))
    labels, line = encode_labels(experiment)
    assert line.startswith("3 texts")
    ids_LT, length_L = labels.take(np.arange(3), 12, 0)
    targets = experiment.batches.views["predict"].targets
    trained_NT, trained_N = targets.take(np.arange(len(targets)), 12, 0)
    for example, ids_T, length in zip(experiment.train_examples, trained_NT, trained_N, strict=True):
        label = LABELS.index(example.label)
        np.testing.assert_array_equal(ids_T, ids_LT[label])
        assert length == length_L[label]
        assert ids_T[length - 1] == experiment.tokenizer.eos_id


def test_a_task_that_defines_its_labels_has_them_all(data_root, tokenizers_root):
    experiment = prepare(_config(data_root, tokenizers_root / "t5", task="anli1", max_train_examples=8))
    labels, _ = encode_labels(experiment)
    ids_LT, _ = labels.take(np.arange(3), 12, 0)
    decoded = [experiment.tokenizer.decode(row.tolist()) for row in ids_LT]
    assert decoded == ["entailment", "neutral", "contradiction"]


@pytest.mark.parametrize(
    ("method", "data", "why"),
    [
        ("single_task", {}, "method=single_task writes a rationale first"),
        ("dss", {"task": "svamp"}, "those of task=svamp are equations"),
        ("dss", {"task": "cqa"}, "is none of the training split's"),
    ],
)
def test_scores_need_a_closed_set_of_labels(own_data, tokenizers_root, data_root, method, data, why):
    root = data_root if data else own_data
    experiment = prepare(_config(root, tokenizers_root / "t5", method=method, max_train_examples=8, **data))
    with pytest.raises(UserError, match=f"^config.evaluation.answers=score .*{why}.*answers=generate$"):
        encode_labels(experiment)


@pytest.fixture(scope="module")
def student():
    """A tiny student with weights large enough for different answers to different questions."""
    config = T5Config(64, 16, 4, 16, num_layers=1, num_decoder_layers=1, num_heads=2, dropout_rate=0.0)
    student = T5Student(config, scan_unroll=1)
    return student, jax.tree.map(lambda x: 4 * x, jax.jit(student.init)(jax.random.key(0)))


def _questions(rng, B=8, S=7):
    return rng.integers(2, 64, (B, S)).astype(np.int32), rng.integers(1, S + 1, B).astype(np.int32)


def test_the_likeliest_label_is_chosen(student):
    student, params = student
    labels = Ragged([[5, 1], [9, 1], [7, 1], [8, 6, 1]])
    input_ids_BS, input_length_B = _questions(np.random.default_rng(0))
    tokens_BT = make_choose(student, make_mesh(8), labels, 0)(params, input_ids_BS, input_length_B)
    ids_LT, length_L = labels.take(np.arange(4), 3, 0)
    log_prob_BL = student.score(params, input_ids_BS, input_length_B, ids_LT, length_L)
    best_B = np.argmax(log_prob_BL, axis=1)
    assert len(set(best_B.tolist())) > 1
    np.testing.assert_array_equal(tokens_BT, ids_LT[best_B])


def test_several_beams_answer_with_the_best(student):
    student, params = student
    questions = _questions(np.random.default_rng(1))
    found = {
        beams: np.asarray(make_generate(student, make_mesh(8), 5, beams)(params, *questions))
        for beams in (1, 3)
    }
    np.testing.assert_array_equal(found[1], student.generate(params, *questions, 5))
    np.testing.assert_array_equal(found[3], student.beam_search(params, *questions, 5, beams=3)[0][:, 0])
    assert (found[1] != found[3]).any()


def test_a_run_answers_as_the_config_says(own_data, tmp_path, monkeypatch):
    texts = [f"predict: explain: because question {i}?" for i in range(9)]
    tokenizers.train([*texts, *LABELS], 96, tmp_path / "tokenizer")
    experiment = prepare(_config(own_data, tmp_path / "tokenizer"))
    assert experiment.student.vocab_size == 128
    scoring = Run(experiment)
    assert set(scoring.answer(scoring.initial_state().params, "test")) <= set(LABELS)
    seen = []
    monkeypatch.setattr(run, "make_generate", lambda student, mesh, *options: seen.append(options))
    searching = _config(own_data, tmp_path / "tokenizer", answers="generate", beams=3)
    Run(dataclasses.replace(experiment, config=searching))
    assert seen == [(4, 3)]
