"""evaluate: its figures are those of the student and the data, written a second time."""

import dataclasses
import json
import re
import shutil
from collections import Counter

import jax
import numpy as np
import pytest

from cot_jax import evaluate
from cot_jax.config import Config
from cot_jax.data.examples import Example
from cot_jax.data.views import METHODS
from cot_jax.errors import UserError
from cot_jax.metrics import calibration
from cot_jax.models import student as students
from cot_jax.models.llama import Llama, LlamaConfig
from cot_jax.models.t5 import T5, T5Config
from cot_jax.models.weights import shapes
from cot_jax.text import formats
from cot_jax.training import assessment, saved
from cot_jax.training.data import load_splits
from cot_jax.training.evaluation import Answers
from cot_jax.training.experiment import prepare
from cot_jax.training.saved import LabelScorer

LABELS = ["no", "perhaps not", "yes"]


@pytest.fixture(scope="module")
def run(random_run, tmp_path_factory):
    config = Config()
    data = dataclasses.replace(
        config.data,
        word_problems=dataclasses.replace(config.data.word_problems, train=8, valid=8, test=16),
        max_target_tokens=6,
        max_input_tokens=64,
    )
    evaluation = dataclasses.replace(config.evaluation, max_new_tokens=6, batch_size=8)
    config = dataclasses.replace(config, data=data, evaluation=evaluation)
    texts = [text for e in load_splits(config.data, 0).train for text in (e.text, e.label, e.rationale)]
    directory = tmp_path_factory.mktemp("run")
    return random_run(directory, config, [*texts, *LABELS, "predict: explain:"], 128)


@pytest.fixture(scope="module")
def classification(tmp_path_factory):
    """A data set of three labels."""
    root = tmp_path_factory.mktemp("jsonl")
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("valid", 8), ("test", 16)):
        rows = [
            {"id": f"{split}{n}", "input": f"How many pens has {name} ?", "label": str(rng.choice(LABELS))}
            for n, name in enumerate(rng.choice(["Tom", "Ann", "Zoe"], size=count))
        ]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def _read(directory):
    evaluation = json.loads((directory / "evaluation.json").read_text())
    return evaluation, [
        json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()
    ]


def test_open_answers(run, capsys):
    assert evaluate.main([str(run)]) == 0
    said, counted = capsys.readouterr()
    assert re.search(r"^predict: 16 texts, .*; \d+ of 16 answers cut at 6 tokens$", counted, re.MULTILINE)
    directory = run / "evaluation" / "word_problems_test"
    evaluation, rows = _read(directory)
    assert said.startswith("word_problems test, 16 questions: accuracy ")
    assert [row["gold"] for row in rows] == [
        e.label for e in load_splits(saved.load(run).config.data, 0).test
    ]
    assert evaluation["accuracy"] == np.mean([row["correct"] for row in rows])
    assert evaluation["labels"] is None
    assert "per_class" not in evaluation
    assert evaluation["metrics"] == {"accuracy": evaluation["accuracy"]}
    assert set(evaluation["calibration"]) == {"sequence", "per_token"}
    assert all(isinstance(row["rationale"], str) and row["teacher_rationale"] for row in rows)
    # p ** (1 / length) of a probability: at least it, and both are the student's own.
    for row in rows:
        assert 0 < row["confidence"] <= row["confidence_per_token"] <= 1
    for name in evaluation["calibration"]:
        assert (directory / f"reliability_{name}.png").stat().st_size > 5000


@pytest.mark.slow
def test_closed_labels_on_another_data_set(run, classification, tmp_path, capsys):
    output = tmp_path / "out"
    command = [str(run), "--task=jsonl", f"--root={classification}", f"--output={output}"]
    assert evaluate.main([*command, "--no-rationales"]) == 0
    said = capsys.readouterr().out
    evaluation, rows = _read(output)
    assert (evaluation["task"], evaluation["trained_on"]) == ("jsonl", "word_problems")
    assert evaluation["labels"] == LABELS
    assert "rationale" not in rows[0]
    counts = np.array(evaluation["confusion"]["counts"])
    assert counts.shape == (3, 4)
    assert counts.sum() == 16
    for label, row in zip(LABELS, evaluation["per_class"], strict=True):
        assert row["questions"] == sum(r["gold"] == label for r in rows)
        assert f"  {label}: precision " in said
    assert (output / "confusion.png").stat().st_size > 5000
    assert {"temperature", "scaled", "as_trained", "accuracy"} == set(evaluation["calibration"]["label_set"])
    # The accuracy of the likeliest labels, of scores that are those of the labels one by one.
    student = saved.load(run)
    examples = load_splits(
        dataclasses.replace(student.config.data, task="jsonl", root=str(classification)), 0
    ).test
    scorer = LabelScorer(student, student.views[0], LABELS, batch_size=8)
    log_prob_NL = scorer(examples)
    chosen = np.array(LABELS)[log_prob_NL.argmax(axis=1)]
    found = evaluation["calibration"]["label_set"]["accuracy"]
    assert found == np.mean(chosen == [e.label for e in examples])
    # Fitted on validation, not on what is judged.
    valid = load_splits(
        dataclasses.replace(student.config.data, task="jsonl", root=str(classification)), 0
    ).valid
    gold = [LABELS.index(example.label) for example in valid]
    fitted = calibration.fit_temperature(scorer(valid), gold)
    assert evaluation["calibration"]["label_set"]["temperature"] == pytest.approx(fitted, rel=1e-4)
    on_test = calibration.fit_temperature(log_prob_NL, [LABELS.index(example.label) for example in examples])
    assert fitted != pytest.approx(on_test, rel=1e-2)
    # In the order of the questions, whatever else is asked: nine do not fill two batches.
    questions = [Example(str(n), (f"{'Tom has ' * n} 3 pens ?",), "") for n in range(1, 10)]
    np.testing.assert_allclose(scorer(questions)[::-1], scorer(questions[::-1]), rtol=1e-5)
    assert len({tuple(row) for row in log_prob_NL.round(3)}) == 3


@pytest.mark.slow
def test_a_student_that_chose_among_labels_still_does(run, classification, tmp_path):
    """As config.evaluation.answers=score leaves it: it says nothing but labels, whatever it would write."""
    scored = tmp_path / "run"
    shutil.copytree(run, scored)
    (scored / saved.ANSWERS_FILE).write_text(json.dumps({"by_value": False, "labels": LABELS}))
    evaluation = {}
    for workdir in (run, scored):
        command = [str(workdir), "--task=jsonl", f"--root={classification}", f"--output={tmp_path}"]
        assert evaluate.main([*command, "--no-rationales"]) == 0
        evaluation[workdir], rows = _read(tmp_path)
        assert (workdir == scored) == ({row["label"] for row in rows} <= set(LABELS))
    found = evaluation[scored]
    assert found["accuracy"] == found["calibration"]["label_set"]["accuracy"]
    assert sum(row[-1] for row in found["confusion"]["counts"]) == 0


@pytest.fixture
def cola(tmp_path):
    (tmp_path / "CoLA").mkdir()
    for split, count in (("train", 20), ("dev", 16)):
        lines = (f"gj04\t{n % 3 % 2}\t\tTom has {n} pens ?\n" for n in range(count))
        (tmp_path / f"CoLA/{split}.tsv").write_text("".join(lines))
    return tmp_path


def test_every_metric_of_the_task(run, cola, tmp_path, monkeypatch, capsys):
    """Of answers some of which are right, some wrong and one no label."""
    golds = [["unacceptable", "acceptable"][n % 3 % 2] for n in range(16)]
    said = [*golds[:9], "pens", *(["acceptable"] * 6)]
    real, asked = assessment._answer, []

    def answer(saved, view, examples, most, **draws):
        asked.append(examples)
        return dataclasses.replace(real(saved, view, examples, most, **draws), answers=said[: len(examples)])

    monkeypatch.setattr(assessment, "_answer", answer)
    output = tmp_path / "out"
    command = [str(run), "--task=cola", f"--root={cola}", f"--output={output}", "--no-rationales"]
    assert evaluate.main(command) == 0
    assert asked[0][0].parts == ("cola sentence: Tom has 0 pens ?",)
    evaluation, rows = _read(output)
    assert [row["gold"] for row in rows] == golds
    sklearn = pytest.importorskip("sklearn.metrics", reason="compares with scikit-learn")
    assert list(evaluation["metrics"]) == ["matthews", "accuracy"]
    matthews = sklearn.matthews_corrcoef(golds, said)
    assert evaluation["metrics"]["matthews"] == pytest.approx(matthews, rel=1e-12)
    assert evaluation["metrics"]["accuracy"] == evaluation["accuracy"] == np.mean(np.equal(golds, said))
    low, high = evaluation["matthews_interval_95"]
    assert -1 <= low < matthews < high <= 1
    line = f"  matthews {matthews:.3f} (95 % bootstrap interval {low:.3f} to {high:.3f})"
    assert line in capsys.readouterr().out.splitlines()
    assert [sum(row) for row in evaluation["confusion"]["counts"]] == [11, 5]


def test_a_student_that_answers_nothing_on_validation_is_evaluated(run, tmp_path, monkeypatch):
    """Its answers there are an end token each."""
    real = assessment._answer

    def answer(saved, view, examples, most, **draws):
        answers = real(saved, view, examples, most, **draws)
        ended = len(examples) == 8
        return dataclasses.replace(answers, lengths=np.ones(8, int)) if ended else answers

    monkeypatch.setattr(assessment, "_answer", answer)
    assert evaluate.main([str(run), f"--output={tmp_path}", "--no-rationales"]) == 0
    evaluation, _ = _read(tmp_path)
    assert "scaled" in evaluation["calibration"]["per_token"]


def test_validation_is_evaluated_without_a_temperature(run, tmp_path):
    assert evaluate.main([str(run), "--split=valid", f"--output={tmp_path}", "--no-rationales"]) == 0
    evaluation, rows = _read(tmp_path)
    assert len(rows) == 8
    assert set(evaluation["calibration"]["sequence"]) == {"accuracy", "as_trained"}


def test_a_data_set_with_a_test_set_only(run, tmp_path, capsys):
    row = {"instruction": "Two pens ? The options: A ) 1 , B ) 2 , C ) 3 , D ) 4 , E ) 5", "answer": "B"}
    (tmp_path / "mathqa").mkdir()
    (tmp_path / "mathqa/mathqa_test_instruct.json").write_text(json.dumps([row] * 8))
    command = [str(run), "--task=mathqa", f"--root={tmp_path}", f"--output={tmp_path}"]
    assert evaluate.main([*command, "--no-rationales"]) == 0
    evaluation, rows = _read(tmp_path)
    assert (evaluation["labels"], len(rows)) == (list("ABCDE"), 8)
    # Nothing to fit a temperature on.
    assert set(evaluation["calibration"]["label_set"]) == {"accuracy", "as_trained"}
    for more, message in [
        ("--split=valid", "task=mathqa has no valid set: use --split=test"),
        ("--mutual_information", "needs a training set; task=mathqa has none"),
    ]:
        capsys.readouterr()
        assert evaluate.main([*command, more]) == 2
        error = capsys.readouterr().err
        assert (message in error, error.count("\n")) == (True, 1)  # nothing was asked before
    config = saved.load(run).config
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, task="mathqa", root=str(tmp_path)),
        model=dataclasses.replace(config.model, tokenizer=str(run / "tokenizer")),
    )
    with pytest.raises(UserError, match=r"task=mathqa has a test set only: .*evaluate RUN --task=m"):
        prepare(config)


@pytest.mark.parametrize(
    ("text", "rationale", "label"),
    [
        ("2 and 3 are 5. So the answer is ( 2 + 3 )", "2 and 3 are 5.", "( 2 + 3 )"),
        ("2 and 3 are", "2 and 3 are", ""),
    ],
)
def test_the_text_before_an_answer_is_its_rationale(text, rationale, label):
    (view,) = METHODS["single_task"]
    answers = Answers([text], [label], Counter(), np.zeros(1), np.ones(1), 0)
    sure = assessment._Confidence(np.ones(1), np.ones(1))
    example = Example("1", ("2 and 3?",), "( 2 + 3 )", rationales=("the teacher's",))
    asked = assessment._Answered([example], answers, np.ones(1), {"sequence": sure, "per_token": sure})
    (row,) = assessment._predictions(asked, view, {})
    assert (row["rationale"], row["label"], row["teacher_rationale"]) == (rationale, label, "the teacher's")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--task=svamp"],
            "task=svamp reads files: give their folder with --config.data.root=DIR (evaluate: --root=DIR)",
        ),
        (["--task=svanp"], "--task=svanp: must be one of anli1, "),
        (["--chat=html"], "--chat=html: must be auto, plain or template"),
        (["--split=train"], "--split=train: must be valid or test"),
        (["--samples=2", "--paths=label,cot"], "--paths=cot: a student of method=dss has label only"),
    ],
)
def test_mistakes_are_named(run, arguments, message, capsys):
    assert evaluate.main([str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert (message in error, error.count("\n")) == (True, 1)  # nothing was asked before
    assert evaluate.main(["nonesuch"]) == 2
    assert "nonesuch is neither a run" in capsys.readouterr().err


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A model of Hugging Face that was not trained here, and a data set of its questions."""
    root = tmp_path_factory.mktemp("data")
    rows = [
        {"id": f"{n}", "input": f"Tom has {n} pens ?", "label": f"{n}", "rationale": f"He has {n} ."}
        for n in range(24)
    ]
    del rows[0]["rationale"]
    for split, part in (("train", rows[:8]), ("valid", rows[8:16]), ("test", rows[16:])):
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    directory = tmp_path_factory.mktemp("model")
    texts = [f"{row['input']} He has {row['label']} . So the answer is" for row in rows]
    tokenizer = formats.train(texts, 96, directory, "seq2seq").tokenizer
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    student = T5(T5Config(vocab_size=tokenizer.size, pad_token_id=tokenizer.hf.pad_token_id, **sizes))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes(student.weights))
    students.save(directory, student, params)
    return directory, root


def test_a_pretrained_model_answers_without_training(pretrained, tmp_path, capsys):
    directory, root = pretrained
    command = [str(directory), "--task=jsonl", f"--root={root}", "--limit=4"]
    assert evaluate.main([*command, f"--output={tmp_path}"]) == 0
    said, counted = capsys.readouterr()
    evaluation, rows = _read(tmp_path)
    assert (evaluation["trained_on"], evaluation["method"], evaluation["shots"]) == (None, "single_task", 0)
    assert [row["id"] for row in rows] == ["16", "17", "18", "19"]
    # A random student does not write the mark: its last number is the answer.
    numbers = [re.findall(r"\d+", row["rationale"]) for row in rows]
    assert [row["label"] for row in rows] == [found[-1] if found else "" for found in numbers]
    unmarked = sum(map(bool, numbers))
    assert unmarked
    assert evaluation["unmarked_answers"] == unmarked / 4
    assert f"  {100 * unmarked / 4:.2f} % of the answers are unmarked: the last number was taken" in said
    assert f"{unmarked} answers not marked, the last number taken" in counted


@pytest.fixture(scope="module")
def decoder(pretrained, tmp_path_factory):
    """A random decoder that was not trained here."""
    directory, rows = tmp_path_factory.mktemp("decoder"), (pretrained[1] / "test.jsonl").read_text()
    tokenizer = formats.train([rows, "So the answer is"], 96, directory, "causal").tokenizer
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    ids = {"vocab_size": tokenizer.size, "eos_token_ids": (tokenizer.eos_id,)}
    student = Llama(LlamaConfig(**sizes, **heads, **ids))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes(student.weights))
    students.save(directory, student, params)
    return directory


def test_a_pretrained_model_is_shown_examples(decoder, pretrained):
    _, root = pretrained
    config = Config()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, task="jsonl", root=str(root), max_input_tokens=30),
        evaluation=dataclasses.replace(config.evaluation, batch_size=8),
    )
    splits = load_splits(config.data, 0)
    shown = [saved.load_pretrained(decoder, config, splits, shots) for shots in (0, 2)]
    assert shown[0].format.shots == ()
    assert shown[1].format.shots == (
        (("Tom has 1 pens ?",), "He has 1 . So the answer is 1"),
        (("Tom has 2 pens ?",), "He has 2 . So the answer is 2"),
    )
    lengths = []
    for student in shown:
        assert student.most_tokens(student.views[0]) == config.data.max_target_tokens
        assert (student.labels, student.by_value, len(student.views)) == (None, True, 1)
        prompts = student.format.inputs("", [student.views[0].reads(splits.test[0])], 999)
        lengths.append(len(prompts.prefix))
        assert student.config.data.max_input_tokens == 30 + lengths[-1]
    assert lengths[1] > lengths[0] + 20


def test_a_pretrained_model_also_stops_at_the_tokenizers_end(decoder, tmp_path):
    shutil.copytree(decoder, tmp_path / "other")
    file = tmp_path / "other" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [5, 7]}))
    end = saved.read_pretrained(decoder, Config()).format.tokenizer.eos_id
    assert saved.read_pretrained(decoder, Config()).student.ends == (end,)
    assert saved.read_pretrained(tmp_path / "other", Config()).student.ends == (end, 5, 7)


def test_few_shots_of_a_decoder(decoder, pretrained, capsys):
    _, root = pretrained
    command = [str(decoder), "--task=jsonl", f"--root={root}", "--limit=3", "--max_new_tokens=12"]
    found = {}
    for shots in (0, 2):
        assert evaluate.main([*command, f"--shots={shots}"]) == 0
        said, counted = capsys.readouterr()
        assert said.startswith("jsonl test, 3 questions: accuracy ")
        assert counted.count(" of 3 answers cut at 12 tokens") == 1
        # Nobody was chosen on validation, so no temperature is fitted there.
        assert "temperature" not in said
        evaluation, rows = _read(decoder / "evaluation" / f"jsonl_test_{shots}_shots")
        assert (evaluation["trained_on"], evaluation["shots"]) == (None, shots)
        assert [row["id"] for row in rows] == ["16", "17", "18"]
        found[shots] = rows, int(re.search(r"3 texts, .*, (\d+) at most", counted)[1])
    assert [row["rationale"] for row in found[0][0]] != [row["rationale"] for row in found[2][0]]
    assert found[0][1] != found[2][1]


def test_flags_that_do_not_suit_the_model(pretrained, run, capsys):
    directory, root = pretrained
    for command, message in [
        ([directory], "was not trained here: give its data set with --task=T --root=DIR"),
        (
            [directory, "--task=jsonl", f"--root={root}", "--shots=9"],
            "--shots=9: task=jsonl has 7 training ex",
        ),
        (
            [directory, "--task=jsonl", f"--root={root}", "--shots=2"],
            "2 shots: an encoder-decoder reads the question only",
        ),
        ([run, "--shots=2"], "--shots and --chat are for pretrained models;"),
        ([run, "--chat=plain"], "--shots and --chat are for pretrained models;"),
    ]:
        assert evaluate.main([str(word) for word in command]) == 2
        said, error = capsys.readouterr()
        assert (said, error.count("\n")) == ("", 1)
        assert message in error
    assert evaluate.main([str(directory), "--limit=-1"]) == 2


def test_an_encoder_decoder_has_no_likelihood_of_a_continuation(run, pretrained, tmp_path, capsys):
    row = {"activity_label": "A", "ctx_a": "Tom has", "ctx_b": "", "endings": list("abcd"), "label": 0}
    (tmp_path / "hellaswag").mkdir()
    (tmp_path / "hellaswag/hellaswag_val.jsonl").write_text(json.dumps(row))
    for student in (run, pretrained[0]):
        assert evaluate.main([str(student), "--task=hellaswag_likelihood", f"--root={tmp_path}"]) == 2
        said, error = capsys.readouterr()
        assert (said, error.count("\n")) == ("", 1)
        assert "the student is an encoder-decoder: it has no likelihood of what" in error


def test_a_limit_asks_the_first_questions(run, tmp_path):
    assert evaluate.main([str(run), "--limit=3", f"--output={tmp_path}", "--no-rationales"]) == 0
    _, rows = _read(tmp_path)
    assert [row["id"] for row in rows] == [e.id for e in load_splits(saved.load(run).config.data, 0).test[:3]]
