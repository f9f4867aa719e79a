"""Answers that are chosen among labels, or come from a beam search."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from cot_jax.config import Config
from cot_jax.data.batches import Ragged
from cot_jax.errors import UserError
from cot_jax.models import decoding
from cot_jax.models.decoding import Sampling, written_length
from cot_jax.models.t5 import T5, T5Config
from cot_jax.models.weights import init
from cot_jax.text import tokenizer as tokenizers
from cot_jax.training import evaluation, run
from cot_jax.training.evaluation import make_choose, make_generate, make_sample, make_score
from cot_jax.training.experiment import prepare
from cot_jax.training.mesh import data_parallel
from cot_jax.training.run import Run
from cot_jax.training.saved import Answerer, Saved

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
    assert experiment.answer_labels() == tuple(LABELS)
    labels, line, _ = experiment.format.targets("predict", experiment.answer_labels(), 256)
    assert line.startswith("3 texts")
    targets = experiment.tokenized["predict"].targets
    for n, example in enumerate(experiment.train_examples):
        np.testing.assert_array_equal(targets[n], labels[LABELS.index(example.label)])
        assert targets[n][-1] == experiment.format.tokenizer.eos_id


def test_a_task_that_defines_its_labels_has_them_all(data_root, tokenizers_root):
    experiment = prepare(_config(data_root, tokenizers_root / "t5", task="anli1", max_train_examples=8))
    assert experiment.answer_labels() == ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize(
    ("method", "data", "why"),
    [
        ("single_task", {}, "method=single_task writes a rationale first"),
        ("dss", {"task": "svamp"}, "those of task=svamp are equations"),
        ("dss", {"task": "cqa"}, "is not one of the 4,647 of the training split"),
    ],
)
def test_scores_need_a_closed_set_of_labels(own_data, tokenizers_root, data_root, method, data, why):
    root = data_root if data else own_data
    experiment = prepare(_config(root, tokenizers_root / "t5", method=method, max_train_examples=8, **data))
    with pytest.raises(UserError, match=f"^config.evaluation.answers=score, unlike generate, .*{why}"):
        experiment.answer_labels()


@pytest.fixture(scope="module")
def student():
    """A tiny student with weights large enough for different answers to different questions."""
    config = T5Config(64, 16, 4, 16, num_layers=1, num_decoder_layers=1, num_heads=2, dropout_rate=0.0)
    student = T5(config)
    return student, jax.tree.map(lambda x: 3 * x, init(student.weights, jax.random.key(0)))


def _questions(rng, B=8, S=7):
    """Questions of up to S tokens, one in a group: so many devices there are."""
    return Ragged([rng.integers(2, 64, size=rng.integers(1, S + 1)).tolist() for _ in range(B)])


def _tokens(questions, rows=None, width=7):
    rows = np.arange(len(questions)) if rows is None else rows
    return questions.tokens(rows, (width, width), 0, groups=len(rows))


@pytest.mark.slow
def test_the_likeliest_label_is_chosen(student):
    student, params = student
    labels = Ragged([[5, 1], [9, 1], [7, 1], [8, 6, 1], [6, 1], [4, 4, 4, 4, 1], [2, 1], [3, 1]])
    questions = _tokens(_questions(np.random.default_rng(0)))
    choose, score = (make(student, data_parallel(), labels) for make in (make_choose, make_score))
    tokens_BT, log_prob_B = choose(params, questions)
    log_prob_BL = score(params, questions)
    tokens = _tokens(labels, width=5)
    ids_LT, length_L = tokens.ids, tokens.length[:, 0]
    want_BL = jax.jit(lambda p: decoding.score(student.prompt(p, questions, 5), ids_LT, length_L))(params)
    np.testing.assert_allclose(log_prob_BL, want_BL, rtol=1e-5)
    best_B = np.argmax(log_prob_BL, axis=1)
    assert len(set(best_B.tolist())) > 1
    np.testing.assert_array_equal(tokens_BT, ids_LT[best_B])
    np.testing.assert_allclose(log_prob_B, log_prob_BL[np.arange(8), best_B], rtol=1e-5)


@pytest.mark.slow
def test_several_beams_give_the_best_answer(student):
    student, params = student
    questions = _tokens(_questions(np.random.default_rng(1)))
    found = {
        beams: [np.asarray(x) for x in make_generate(student, data_parallel(), 5, beams)(params, questions)]
        for beams in (1, 3)
    }
    greedy = jax.jit(lambda p: decoding.greedy(student.prompt(p, questions, 5), 5))
    search = jax.jit(lambda p: decoding.beam_search(student.prompt(p, questions, 5, 3), 5, 3))
    np.testing.assert_array_equal(found[1][0], greedy(params)[0])
    np.testing.assert_array_equal(found[3][0], search(params)[0][:, 0])
    assert (found[1][0] != found[3][0]).any()
    for tokens_BT, log_prob_B in found.values():
        length_B = written_length(tokens_BT, (1,)).astype(np.int32)
        scored_BL = jax.jit(
            lambda p, ids, length: decoding.score(student.prompt(p, questions, 5), ids, length)
        )(params, tokens_BT, length_B)
        np.testing.assert_allclose(log_prob_B, np.diagonal(scored_BL), rtol=1e-5, atol=2e-6)


def test_samples_are_a_function_of_question_and_seed(student):
    student, params = student
    questions = _questions(np.random.default_rng(2))
    sample = make_sample(student, data_parallel(), 5, 3, Sampling(temperature=4.0), 0)
    tokens_BKT, log_prob_BK = sample(params, _tokens(questions))
    assert (tokens_BKT.shape, log_prob_BK.shape) == ((8, 3, 5), (8, 3))
    assert len({tuple(row) for row in np.asarray(tokens_BKT).reshape(24, 5).tolist()}) > 12
    order = np.array([5, 5, 1, 0, 7, 6, 2, 3])
    again_BKT, _ = sample(params, _tokens(questions, order))
    np.testing.assert_array_equal(again_BKT, tokens_BKT[order])
    sample = make_sample(student, data_parallel(), 5, 3, Sampling(temperature=4.0), 1)
    assert (sample(params, _tokens(questions))[0] != tokens_BKT).mean() > 0.5


@pytest.mark.slow
def test_different_questions_have_different_hashes():
    questions = _questions(np.random.default_rng(3), B=4096)
    hash_B = evaluation._hash(_tokens(questions))
    np.testing.assert_array_equal(evaluation._hash(_tokens(questions, width=12)), hash_B)
    one_group = questions.tokens(np.arange(4096), (questions.lengths.sum(), 7), 0)
    np.testing.assert_array_equal(evaluation._hash(one_group), hash_B)
    different = {tuple(questions[n].tolist()) for n in range(4096)}
    assert len(set(hash_B.tolist())) == len(different)


@pytest.mark.slow
def test_a_common_prefix_is_part_of_the_hash():
    questions = _questions(np.random.default_rng(4), B=64)
    rows = [questions[n].tolist() for n in range(64)]
    whole = Ragged([[9, 8, 7, *ids] for ids in rows])
    hash_B = evaluation._hash(_tokens(whole, width=10))
    for shared in (1, 3):
        head, tail = [9, 8, 7][:shared], [9, 8, 7][shared:]
        divided = Ragged([[*tail, *ids] for ids in rows], head)
        np.testing.assert_array_equal(evaluation._hash(_tokens(divided, width=9)), hash_B)
        one_group = divided.tokens(np.arange(64), (divided.lengths.sum(), 9), 0)
        np.testing.assert_array_equal(evaluation._hash(one_group), hash_B)
    other = evaluation._hash(_tokens(Ragged(rows, [8, 9, 7])))
    assert not np.any(np.asarray(other) == hash_B)


@pytest.mark.slow
def test_a_run_answers_as_the_config_says_and_so_does_what_it_saved(own_data, tmp_path, monkeypatch):
    texts = [f"predict: explain: because question {i}?" for i in range(9)]
    tokenizers.train([*texts, *LABELS], 96, tmp_path / "tokenizer")
    experiment = prepare(_config(own_data, tmp_path / "tokenizer"))
    assert experiment.student.outputs == 128
    scoring = Run(experiment)
    params = scoring.initial_state().params
    answers = scoring.answer(params, "test")
    assert set(answers.texts) <= set(LABELS)
    tokenized = experiment.format.targets("predict", answers.texts, 99).ids
    assert answers.lengths.tolist() == [len(ids) for ids in tokenized]
    assert answers.log_probs.shape == (9,)
    assert (answers.log_probs < 0).all()
    student = (experiment.student, params, scoring.mesh)
    saved = Saved(experiment.config, *student, experiment.format, False, tuple(LABELS))
    answerer = Answerer(saved, saved.views[0], batch_size=8, max_new_tokens=4)
    again, _ = answerer(experiment.splits.test)
    assert again.texts == answers.texts
    np.testing.assert_allclose(again.log_probs, answers.log_probs, rtol=1e-5)
    np.testing.assert_array_equal(again.lengths, answers.lengths)
    seen = []
    monkeypatch.setattr(run, "make_generate", lambda student, mesh, *options: seen.append(options))
    searching = _config(own_data, tmp_path / "tokenizer", answers="generate", beams=3)
    Run(dataclasses.replace(experiment, config=searching))
    assert seen == [(4, 3)]


def test_a_long_evaluation_prints_its_progress(monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "_TELL_SECONDS", -1.0)

    def ask(count):
        shape = {"batch_size": 8, "shapes": np.array([(8, 8)]), "pad_id": 0}
        found = evaluation.ask_all(
            lambda _, tokens: tokens.length.reshape(-1),
            {},
            Ragged([[1]] * count),
            mesh=data_parallel(),
            **shape,
        )
        np.testing.assert_array_equal(found, np.ones(count))
        return capsys.readouterr().err

    assert ask(5) == ""
    assert ask(20) == "answered 8 of 20 questions\nanswered 16 of 20 questions\n"
