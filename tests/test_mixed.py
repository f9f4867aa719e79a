"""Mixed Distillation the whole way: trained, stopped and resumed, saved, exported, asked by every path."""

import dataclasses
import io
import json

import numpy as np
import pytest
from flat_batches import by_example

from cot_jax import evaluate, export, predict
from cot_jax.answers import programs, sandbox
from cot_jax.answers.programs import Result
from cot_jax.config import Config
from cot_jax.data.views import METHODS
from cot_jax.errors import UserError
from cot_jax.models import student as students
from cot_jax.models.t5 import T5Config
from cot_jax.text import codec
from cot_jax.text import tokenizer as tokenizers
from cot_jax.training import assessment, loop, saved
from cot_jax.training.experiment import prepare

pytestmark = pytest.mark.slow  # what all of it waits for is a training

SIZES = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
QUESTION = "Tom has {} pens and gets {} pens ."


def _program(a, b, name="ans"):
    return f"def solution():\n    pens = {a}\n    {name} = pens + {b}\n    return {name}"


def _row(split, n):
    a, b = n + 2, n + 3
    return {
        "id": f"{split}-{n}",
        "input": QUESTION.format(a, b),
        "label": f"( {a} + {b} )",
        "rationales": [f"Tom has {a} and {b} .", f"{a} and {b} more ."],
        "programs": [_program(a, b), _program(a, b, "sum"), _program(a, b + 1), f"ans = {a} +"],
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data of the user's own, and a tokenizer that has seen the codec's spelling."""
    root = tmp_path_factory.mktemp("data")
    texts = [view.prefix for view in METHODS["mixed"]] + ["So the answer is"]
    for split, count in (("train", 32), ("valid", 8), ("test", 4)):
        rows = [_row(split, n) for n in range(count)]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        texts += [codec.encode(text) for row in rows for text in (row["input"], row["label"])]
        texts += [codec.encode(text) for row in rows for text in (*row["rationales"], *row["programs"])]
    tokenizers.train(texts, 300, root / "tokenizer")
    return root


@pytest.fixture(scope="module")
def config(data):
    config = Config()
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, task="jsonl", root=str(data)),
        model=dataclasses.replace(config.model, preset="tiny", tokenizer=str(data / "tokenizer")),
        objective=dataclasses.replace(config.objective, method="mixed_mi", program_weight=0.25),
        self_distillation=dataclasses.replace(config.self_distillation, method="dynsdpb", views="program"),
        train=dataclasses.replace(config.train, steps=4, batch_size=16, eval_every=4, checkpoint_every=4),
        evaluation=dataclasses.replace(config.evaluation, batch_size=8, max_new_tokens=2),
    )


@pytest.fixture(scope="module")
def experiment(config):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(students.PRESETS, "tiny", T5Config(**SIZES))
        return prepare(config)


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "whole"
    loop.train(experiment, workdir)
    return workdir


def _steps(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "loss" in row]


def test_what_is_learned(experiment):
    assert experiment.format.spelled == ("program",)  # SentencePiece drops line breaks
    lines = "\n".join(experiment.report)
    assert "train: 64 of 128 programs give the label, 32 examples have one (left out: " in lines
    assert "view explain: targets 64 texts" in lines
    spelled = next(line for line in experiment.report if line.startswith("view program: targets"))
    assert spelled.endswith("0.000 % unknown tokens (spelled by the codec)")
    batches = experiment.batches(1)

    def shown_at(step, view):
        batch = batches(step)
        targets = batch.views[view.name].targets
        written = by_example(targets, targets.ids)
        return {
            int(n): experiment.format.decode(view.name, ids.tolist())
            for n, ids in zip(batch.example.ravel(), written, strict=True)
        }

    _, explain, program = experiment.views
    for view in (explain, program):
        for n, text in shown_at(0, view).items():
            example = experiment.train_examples[n]
            assert text in view.writes(example, example.label)
    # The second epoch shows the others.
    shown = [shown_at(0, program), shown_at(4, program)]
    common = shown[0].keys() & shown[1].keys()
    assert common
    assert all(shown[0][n] != shown[1][n] for n in common)


def test_the_loss_is_the_weighted_sum_of_its_terms(run):
    for row in _steps(run):
        total = 0.5 * row["loss/label"] + 0.5 * row["loss/rationale"] + 0.25 * row["loss/program"]
        total += 0.1 * row["loss/mi"] + row["loss/self_distillation"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
        assert (row["loss/self_distillation"] > 0) == (row["step"] > 1)


def test_programs_are_learned_alone(config, tmp_path, monkeypatch):
    monkeypatch.setitem(students.PRESETS, "tiny", T5Config(**SIZES))
    alone = dataclasses.replace(
        config,
        objective=dataclasses.replace(config.objective, method="program"),
        self_distillation=Config().self_distillation,
        train=dataclasses.replace(config.train, steps=2, eval_every=2, checkpoint_every=2),
    )
    experiment = prepare(alone)
    assert experiment.format.spelled == ("program",)
    assert all(example.programs for example in experiment.train_examples)
    loop.train(experiment, tmp_path)
    steps = _steps(tmp_path)
    assert len(steps) == 2
    # The weight that programs have beside other views is none of a view that is alone.
    assert all(row["loss"] == pytest.approx(row["loss/program"]) for row in steps)
    assert "test/accuracy" in json.loads((tmp_path / "result.json").read_text())


def test_a_resumed_run_sees_the_same_samples(experiment, run, tmp_path, monkeypatch):
    stops = iter([False, True])
    monkeypatch.setattr(loop._StopSignal, "reached", lambda self: next(stops, False))
    workdir = tmp_path / "stopped"
    with pytest.raises(loop.Preempted, match="stopped at step 2"):
        loop.train(experiment, workdir)
    loop.train(experiment, workdir)
    assert _steps(workdir) == _steps(run)


class Script:
    """A student that writes what is scripted for a question: texts of each view, one or several."""

    def __init__(self, student, written):
        self._student, self._written = student, written

    def _tokens(self, questions, samples, most):
        format, tokens, log_probs = self._student.format, [], []
        for ids in by_example(questions, questions.ids):
            prefix, _, question = format.tokenizer.decode(ids.tolist()).partition(": ")
            texts, log_prob = self._written(prefix, question) if len(ids) else ([""] * samples, 0.0)
            rows = format.targets(prefix, texts[:samples], most).ids  # a view's prefix is its name
            tokens.append([row + [0] * (most - len(row)) for row in rows])
            log_probs.append([log_prob] * samples)
        return np.array(tokens, np.int32), np.array(log_probs, np.float32)

    def make_generate(self, student, mesh, most, beams):
        def generate(params, questions):
            tokens, log_probs = self._tokens(questions, 1, most)
            return tokens[:, 0], log_probs[:, 0]

        return generate

    def make_sample(self, student, mesh, most, samples, sampling, seed):
        return lambda params, questions: self._tokens(questions, samples, most)


def _written(prefix, question):
    """Labels are wrong, one chain in two and two programs in three are right, one does not run."""
    a, b = (int(word) for word in question.split() if word.isdigit())
    chain = f"Tom has {a} and {b} . So the answer is ( {a} + {b} )"
    if prefix == "predict":
        return ["( 2 + 2 )"] * 3, -1.0
    if prefix == "explain":
        return [chain.replace(f"( {a} +", "( 3 +") if a != 3 else chain, chain, f"Tom has {a} ."], -3.0
    return [_program(a, b), _program(a, b + 1), f"ans = {a} +"], -2.0


@pytest.fixture
def scripted(run, monkeypatch):
    script = Script(saved.load(run), _written)
    for name in ("make_generate", "make_sample"):
        monkeypatch.setattr(saved, name, getattr(script, name))
    # Two tokens are too short for an answer.
    monkeypatch.setattr(saved.Saved, "most_tokens", lambda self, view: 64)
    return run


def test_every_path_is_evaluated_and_votes(scripted, tmp_path, capsys, monkeypatch):
    ran, interpret = [], programs._interpret
    monkeypatch.setattr(programs, "_interpret", lambda program: ran.append(program) or interpret(program))
    assert evaluate.main([str(scripted), f"--output={tmp_path}", "--samples=3"]) == 0
    out, err = capsys.readouterr()
    assert len(ran) == len({*ran}) == 3 * 4  # each program once, though it is drawn, then counted
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["accuracy"] == found["paths"]["label"]["accuracy"] == 0.0
    # Question 1 is 3 + 4, so that its first chain is right too.
    assert found["paths"]["cot"]["accuracy"] == 0.25
    assert found["paths"]["pot"] == {
        "accuracy": 1.0,
        "accuracy_interval_95": [1.0, 1.0],
        "answers_nothing": {},
    }
    votes = found["votes"]
    assert votes["answers_nothing"] == {"cot": {"NoAnswer": 4}, "pot": {"SyntaxError": 4}}
    # A tie goes to the sum of log-probabilities, then to the first; what answers nothing has no vote.
    assert votes["accuracy"]["cot"] == [0.25, 0.25, 0.25]
    assert votes["accuracy"]["pot"] == [1.0, 1.0, 1.0]
    # One vote each: the program is the likelier one. Two each: two of four agree, but for question 0, where
    # the wrong chain says 3 + 3 and the wrong program 2 + 4: a tie that the first one wins.
    assert votes["accuracy"]["cot+pot"] == [1.0, 0.75, 0.75]
    assert "path pot: accuracy 100.00 %" in out
    vote = "vote of cot, samples of each path: 25.00 % of 1, 25.00 % of 2, 25.00 % of 3; 4 without an answer"
    assert vote in out
    assert "program: 4 texts" in err
    assert "100.00 % of 3; 4 without an answer (SyntaxError 4)" in out
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert rows[0]["program"] == _program(2, 3)
    assert (rows[0]["pot"], rows[0]["cot"]) == ("5", "( 3 + 3 )")
    assert rows[0]["rationale"] == "Tom has 2 and 3 ."
    assert (tmp_path / "votes.png").stat().st_size > 5000


def test_the_longest_answer_asked_for_is_that_of_every_path(scripted, tmp_path):
    assert evaluate.main([str(scripted), f"--output={tmp_path}", "--max_new_tokens=3", "--samples=3"]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    # Three tokens are too few for any chain or program.
    assert [path["accuracy"] for path in found["paths"].values()] == [0.0] * 3
    assert found["votes"]["answers_nothing"] == {"cot": {"NoAnswer": 12}, "pot": {"SyntaxError": 12}}


def test_an_interrupted_vote_resumes(scripted, tmp_path, monkeypatch, capsys):
    make_sample, calls, most = saved.make_sample, [], [3]

    def make(*arguments):
        sample = make_sample(*arguments)

        def counted(params, questions):
            calls.append(arguments[3])
            if len(calls) > most[0]:
                raise KeyboardInterrupt
            return sample(params, questions)

        return counted

    monkeypatch.setattr(saved, "make_sample", make)
    monkeypatch.setattr(assessment, "_batch_size", lambda *_: 1)
    command = [str(scripted), f"--output={tmp_path}", "--samples=3"]
    assert evaluate.main(command) == 130
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["paths"]["pot"]["accuracy"] == 1.0
    assert "votes" not in found
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == found["examples"] == 4
    how, *rows = map(json.loads, (tmp_path / "samples_cot.jsonl").read_text().splitlines())
    assert (how["samples"], how["temperature"], how["max_new_tokens"], len(rows)) == (3, 1.0, 64, 3)
    assert [sample["text"] for sample in rows[0]["samples"]][2].startswith("Tom has")

    most[0] = 100
    assert evaluate.main(command) == 0
    assert len(calls) == 3 + 1 + 1 + 4  # the last question's chains, and all programs
    out, err = capsys.readouterr()
    assert "samples_cot.jsonl: 3 of 4 questions are drawn already" in err
    assert "predictions.jsonl, samples_cot.jsonl, samples_pot.jsonl" in out
    whole = tmp_path / "whole"
    assert evaluate.main([str(scripted), f"--output={whole}", "--samples=3"]) == 0
    for name in ("evaluation.json", "samples_cot.jsonl", "samples_pot.jsonl"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()

    calls.clear()
    assert evaluate.main([*command, "--seed=1"]) == 0  # other samples
    assert len(calls) == 8
    assert "samples_pot.jsonl: of another student, or drawn otherwise: replaced" in capsys.readouterr().err
    broken = (tmp_path / "samples_cot.jsonl").read_text().replace('"cut"', '"cu"')
    (tmp_path / "samples_cot.jsonl").write_text(broken)
    assert evaluate.main([*command, "--seed=1"]) == 2
    assert "samples_cot.jsonl:2: " in capsys.readouterr().err


def _predict(model, capsys, monkeypatch, *arguments):
    question = json.dumps({"id": "q", "input": QUESTION.format(2, 3)})
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(question.encode() + b"\n")))
    assert predict.main([str(model), "--batch_size=8", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_path_predicts(scripted, capsys, monkeypatch):
    assert _predict(scripted, capsys, monkeypatch)["label"] == "( 2 + 2 )"
    alone = _predict(scripted, capsys, monkeypatch, "--paths=pot")
    assert alone == {"id": "q", "input": QUESTION.format(2, 3), "label": "5", "program": _program(2, 3)}
    voted = _predict(scripted, capsys, monkeypatch, "--paths=cot,pot", "--explain")
    assert (voted["label"], voted["votes"]) == ("5", 0.5)
    assert [sample["path"] for sample in voted["samples"]] == ["cot", "pot"]
    assert voted["samples"][0]["label"] == "( 3 + 3 )"
    assert voted["rationale"] == "Tom has 2 and 3 ."
    drawn = _predict(scripted, capsys, monkeypatch, "--paths=cot,pot,label", "--samples=3")
    assert [len(drawn["samples"]), drawn["votes"]] == [9, pytest.approx(3 / 9)]
    assert drawn["label"] == "( 2 + 2 )"  # all three labels agree
    assert drawn["samples"][3] == {"path": "pot", "label": "5", "log_prob": -2.0, "text": _program(2, 3)}


def test_the_sandbox_is_for_what_the_interpreter_refuses(scripted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(programs, "_interpret", lambda program: Result(None, "Unsupported"))
    monkeypatch.setattr(
        sandbox, "Sandbox", lambda: lambda program: Result(5) if "ans = " in program else None
    )
    assert _predict(scripted, capsys, monkeypatch, "--paths=pot")["label"] == ""
    assert _predict(scripted, capsys, monkeypatch, "--paths=pot", "--sandbox")["label"] == "5"
    for more, right in (((), 0.0), (("--sandbox",), 0.25)):  # 2 + 3 is the first of four sums
        assert evaluate.main([str(scripted), f"--output={tmp_path}", *more]) == 0
        found = json.loads((tmp_path / "evaluation.json").read_text())
        assert found["paths"]["pot"]["accuracy"] == right
        assert found["sandbox"] is bool(more)


def test_an_export_knows_the_spelling(scripted, tmp_path, capsys, monkeypatch):
    directory = tmp_path / "student"
    assert export.main([str(scripted), f"--output={directory}"]) == 0
    capsys.readouterr()
    assert json.loads((directory / "format.json").read_text()) == {"kind": "seq2seq", "spelled": ["program"]}
    card = (directory / "README.md").read_text()
    assert "| a program that gives it, spelled by `cot_jax.text.codec` | `program: ` | 64 |" in card
    assert "| rationale, then answer | `explain: ` | 64 |" in card
    assert _predict(directory, capsys, monkeypatch, "--paths=pot")["program"] == _program(2, 3)


def test_without_the_codec_a_program_would_be_lost(scripted, capsys, monkeypatch):
    """What the records are for: a run that says nothing of the spelling is read as it is written."""
    student = saved.load(scripted)
    bare = dataclasses.replace(student, format=dataclasses.replace(student.format, spelled=()))
    monkeypatch.setattr(saved, "load", lambda path: bare)
    answer = _predict(scripted, capsys, monkeypatch, "--paths=pot")
    assert answer["label"] == ""
    assert answer["program"] == codec.encode(_program(2, 3))


def test_mistakes_are_named(config, scripted, capsys):
    assert predict.main([str(scripted), "--paths=pod"]) == 2
    assert "--paths=pod: a student of method=mixed_mi has label, cot, pot only" in capsys.readouterr().err
    assert evaluate.main([str(scripted), "--paths=pot"]) == 2
    assert "--paths and --temperature need --samples" in capsys.readouterr().err
    without = dataclasses.replace(config.data, task="word_problems")
    objective = dataclasses.replace(config.objective, method="mixed")
    problems = dataclasses.replace(without.word_problems, train=8, teacher_error_rate=1.0)
    data = dataclasses.replace(without, word_problems=problems)
    with pytest.raises(
        UserError, match="method=mixed learns from programs, but no training example has a correct one"
    ):
        prepare(dataclasses.replace(config, data=data, objective=objective))
