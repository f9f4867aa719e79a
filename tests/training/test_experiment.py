"""From a config to a run: what is counted, what is left out, what does not fit."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from transformers import AutoTokenizer

from cot_jax.config import Config, DataConfig, ObjectiveConfig, WordProblemsConfig
from cot_jax.data.batches import Ragged, TokenizedView
from cot_jax.data.views import METHODS
from cot_jax.errors import UserError
from cot_jax.models import student as students
from cot_jax.models.llama import Llama, LlamaConfig
from cot_jax.models.t5 import T5, T5Config
from cot_jax.models.weights import init
from cot_jax.text import formats
from cot_jax.training import loop
from cot_jax.training.data import load_splits
from cot_jax.training.encoding import encode_questions
from cot_jax.training.experiment import build_objective, prepare
from cot_jax.training.saved import EXAMPLES, STUDENT_FILE
from cot_jax.training.students import family


def _config(root, tokenizer, *, method="dss", **data):
    config = Config()
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, root=str(root), **data),
        model=dataclasses.replace(config.model, preset="tiny", tokenizer=str(tokenizer)),
        objective=dataclasses.replace(config.objective, method=method),
    )


@pytest.fixture
def own_data(tmp_path):
    rows = [
        {"id": "a", "input": "2 and 3 pens?", "label": "( 2 + 3 )", "rationale": "2 and 3 are 5."},
        {"id": "b", "input": "4 and 5 pens?", "label": "( 4 + 5 )"},
        {"id": "c", "input": "6 less 1 { pens?", "label": "( 6 - 1 )", "rationale": "6 less 1 is 5."},
    ]

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("train.jsonl", rows)
    for split in ("valid", "test"):
        write(f"{split}.jsonl", [{**row, "id": f"{split}-{row['id']}"} for row in rows])
    return tmp_path


def test_what_lacks_a_rationale_is_left_out_of_the_rationale_loss_only(own_data, tokenizers_root):
    experiment = prepare(_config(own_data, tokenizers_root / "t5", task="jsonl"))
    assert len(experiment.train_examples) == 3
    batches = experiment.batches(groups=1)
    batch = batches(0)
    has_rationale = {"a": True, "b": False, "c": True}
    assert (batch.views["predict"].learned > 0).all()
    named = [experiment.train_examples[row].id for row in batches.rows(0)]
    assert (batch.views["explain"].learned[0] > 0).tolist() == [has_rationale[name] for name in named]
    report = "\n".join(experiment.report)
    assert "view explain: targets 2 texts" in report
    assert "0 cut at 256" in report
    # The brace is none of T5's pieces.
    assert experiment.tokenized["predict"].inputs.lengths.sum() > 0
    unknown = next(line for line in experiment.report if line.startswith("view predict: inputs"))
    assert "0.000 % unknown" not in unknown


def test_single_task_leaves_out_and_counts_examples_without_a_rationale(own_data, tokenizers_root):
    experiment = prepare(_config(own_data, tokenizers_root / "t5", task="jsonl", method="single_task"))
    assert [example.id for example in experiment.train_examples] == ["a", "c"]
    assert "train: 1 examples have nothing to learn and are left out" in experiment.report


def test_every_question_is_asked_even_without_the_rationale_it_should_read(own_data, tokenizers_root):
    experiment = prepare(_config(own_data, tokenizers_root / "t5", task="jsonl", method="rationale_input"))
    questions, line = encode_questions(experiment.answer_view, experiment.splits.test, experiment.format, 64)
    assert len(questions) == 3
    assert questions.lengths.min() > 1
    assert line.endswith("1 without a rationale")


def test_no_teacher_labels_is_an_error_that_says_so(own_data, tokenizers_root):
    config = _config(
        own_data, tokenizers_root / "t5", task="jsonl", method="standard", label_source="teacher"
    )
    with pytest.raises(UserError, match="no training example has a teacher's label: add them with conf"):
        prepare(config)


@pytest.mark.parametrize("method", ["dss", "mi"])
def test_rationales_alone_are_refused(own_data, tokenizers_root, method):
    config = _config(own_data, tokenizers_root / "t5", task="jsonl", method=method, label_source="teacher")
    with pytest.raises(UserError, match="no training example has a teacher's label"):
        prepare(config)


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("method", sorted({*METHODS} - {"standard"}))
def test_a_method_needs_one_example_of_what_it_learns(own_data, tokenizers_root, method, teacher):
    """Rationales under another name, or none in the teacher's file."""
    rows = [json.loads(line) for line in (own_data / "train.jsonl").read_text().splitlines()]
    if not teacher:
        rows = [{"explanation": row.pop("rationale", "none"), **row} for row in rows]
    (own_data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (own_data / "said.jsonl").write_text('{"id": "a", "text": "2 and 3 are 5."}\n')
    data = {"task": "jsonl"} | ({"teacher": str(own_data / "said.jsonl")} if teacher else {})
    what = "program" if method == "program" else "rationale"
    with pytest.raises(UserError) as caught:
        prepare(_config(own_data, tokenizers_root / "t5", method=method, **data))
    said = str(caught.value)
    assert said.startswith(
        f"config.objective.method={method} learns from {what}s, but no training example has "
    )
    assert f"add the field '{what}', or a list '{what}s', to the data" in said


def test_what_a_method_lacks_is_named_exactly(own_data, tokenizers_root):
    def error(method, **data):
        with pytest.raises(UserError) as caught:
            prepare(_config(own_data, tokenizers_root / "t5", task="jsonl", method=method, **data))
        return str(caught.value)

    assert "learns from programs, but no training example has a correct one: add" in error("mixed")
    assert "has one with a correct teacher's label (config.data.rationales=right): add" in error(
        "dss", rationales="right"
    )
    (own_data / "train_teacher.jsonl").write_text(
        '{"id": "a"}\n{"id": "b", "label": "( 4 + 5 )"}\n{"id": "c"}\n'
    )
    assert "no training example with a teacher's label has one: add" in error(
        "single_task", label_source="teacher"
    )


def test_truncation_is_counted(own_data, tokenizers_root):
    config = _config(own_data, tokenizers_root / "t5", task="jsonl", max_input_tokens=6, max_target_tokens=5)
    report = prepare(config).report
    assert "6 at most, 3 cut at 6" in next(line for line in report if line.startswith("view predict: inputs"))
    assert "5 at most, 2 cut at 5" in next(
        line for line in report if line.startswith("view explain: targets")
    )


def test_a_run_resumes_only_with_its_own_examples(own_data, tokenizers_root, capsys):
    config = _config(own_data, tokenizers_root / "t5", task="jsonl")
    workdir, file = own_data / "run", own_data / "train.jsonl"
    began = file.read_text()
    for _ in range(2):
        loop._claim(workdir, prepare(config))
    lines = began.splitlines(keepends=True)
    for changed in (
        began.replace("4 and 5", "5 and 4"), began.replace("6 less 1 is 5", "6 less 1 is 4"),
        lines[1] + lines[0] + lines[2], "".join(lines[:2]),
    ):  # fmt: skip
        file.write_text(changed)
        with pytest.raises(UserError, match=r"student.json: the training data has changed since") as error:
            loop._claim(workdir, prepare(config))
        assert "\n" not in str(error.value)
    student = json.loads((workdir / STUDENT_FILE).read_text())
    assert capsys.readouterr().out == ""
    del student[EXAMPLES]
    (workdir / STUDENT_FILE).write_text(json.dumps(student))
    for said in (1, 0):  # from now on it is known
        loop._claim(workdir, prepare(config))
        assert capsys.readouterr().out.count("student.json is older than examples_crc32") == said


def test_a_smaller_share_is_part_of_a_larger_one(own_data, data_root, tokenizers_root):
    shares = {}
    for fraction in (0.25, 0.5, 1.0):
        config = _config(data_root, tokenizers_root / "t5", task="svamp", train_fraction=fraction)
        experiment = prepare(config)
        shares[fraction] = {example.id for example in experiment.train_examples}
        assert len(experiment.splits.valid) == 80
        assert len(experiment.splits.test) == 200
    assert [len(ids) for ids in shares.values()] == [180, 360, 720]
    assert shares[0.25] < shares[0.5] < shares[1.0]
    with pytest.raises(UserError, match=r"train_fraction=0.0001 keeps none of the 720 training examples"):
        prepare(_config(data_root, tokenizers_root / "t5", task="svamp", train_fraction=1e-4))
    capped = prepare(_config(data_root, tokenizers_root / "t5", task="svamp", max_train_examples=100))
    assert len(capped.train_examples) == 100


def test_svamp_as_published(data_root, tokenizers_root):
    experiment = prepare(_config(data_root, tokenizers_root / "t5", task="svamp", parser="reference"))
    # The released parser's blanks are trained on: an end token and nothing else.
    assert (experiment.tokenized["explain"].targets.lengths == 1).sum() > 0
    assert (experiment.tokenized["explain"].targets.lengths == 0).sum() == 0
    corrected = prepare(_config(data_root, tokenizers_root / "t5", task="svamp"))
    blanks = (experiment.tokenized["explain"].targets.lengths == 1).sum()
    assert (corrected.tokenized["explain"].targets.lengths == 0).sum() == blanks
    assert experiment.answer_view.name == "predict"


def test_tokenizer_must_fit_the_model(own_data, tokenizers_root, tmp_path):
    config = T5Config(
        vocab_size=64, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2
    )
    student, model = T5(config), tmp_path / "model"
    students.save(model, student, init(student.weights, jax.random.key(0)))
    run = _config(own_data, tokenizers_root / "t5", task="jsonl")
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, pretrained=str(model)))
    with pytest.raises(UserError, match="has 64 embedding rows but the tokenizer 32100 tokens"):
        prepare(run)


def test_a_teachers_file_replaces_the_datas_own_outputs(tmp_path):
    plain = DataConfig(task="word_problems", word_problems=WordProblemsConfig(train=4, valid=2, test=2))
    examples = load_splits(plain, 0).train
    rows = [
        {"id": examples[0].id, "label": "0", "rationale": "R."},
        {"id": examples[1].id, "label": examples[1].label, "rationale": "R."},
    ]
    (tmp_path / "teacher.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = dataclasses.replace(plain, teacher=str(tmp_path / "teacher.jsonl"))
    assert [e.rationale for e in load_splits(data, 0).train] == ["R.", "R.", None, None]
    data = dataclasses.replace(data, rationales="right")
    assert [e.rationale for e in load_splits(data, 0).train] == [None, "R.", None, None]
    with pytest.raises(UserError, match="the data has no example with the id 'word-problem-0-0'"):
        load_splits(data, 1)


def test_stored_log_probabilities_are_for_encoders_only(own_data, tokenizers_root):
    config = _config(own_data, tokenizers_root / "t5", task="jsonl")
    distillation = dataclasses.replace(config.distillation, teacher="said.jsonl")
    with pytest.raises(UserError, match=r"said\.jsonl has log-probabilities of classes: it teaches encoders"):
        prepare(dataclasses.replace(config, distillation=distillation))


def test_a_student_reads_the_format_of_its_family(tmp_path):
    config = Config().model
    assert family(config).format == "seq2seq"
    assert family(dataclasses.replace(config, preset="tiny-llama")).format == "causal"
    pretrained = dataclasses.replace(config, pretrained=str(tmp_path))
    for student, kind in ((T5(T5Config()), "seq2seq"), (Llama(LlamaConfig()), "causal")):
        (tmp_path / "config.json").write_text(json.dumps(student.architecture()))
        assert family(pretrained).format == kind
    (tmp_path / "config.json").write_text('{"model_type": "unknown"}')
    with pytest.raises(UserError, match=r"config\.json: model_type is 'unknown', known: t5, llama, "):
        family(pretrained)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        family(pretrained)


@pytest.mark.slow
def test_the_common_prefix_of_a_decoders_prompts_is_stored_once(
    own_data, tokenizers_root, tmp_path, monkeypatch
):
    monkeypatch.setattr(T5, "format", "causal")
    hf = AutoTokenizer.from_pretrained(tokenizers_root / "llama")
    hf.chat_template = (
        "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}{{ '<assistant>\n' }}"
    )
    hf.save_pretrained(tmp_path / "chat")
    for chat, head, tail in (("auto", "<user>", "<assistant>\n"), ("plain", "", "\nAnswer:")):
        experiment = prepare(
            _config(own_data, tmp_path / "chat", task="jsonl", chat=chat, max_input_tokens=30)
        )
        assert isinstance(experiment.format, formats.Causal)
        decode = experiment.format.tokenizer.decode
        batch = experiment.batches(groups=2)(0)
        for view in experiment.views:
            inputs, targets = experiment.tokenized[view.name].inputs, experiment.tokenized[view.name].targets
            # The space behind the name may belong to the question's first token.
            assert decode(inputs.prefix).startswith(head + view.name + ":")
            assert batch.views[view.name].inputs.prefix.tolist() == [inputs.prefix.tolist()] * 2
            assert batch.views[view.name].targets.prefix is None
            asked, _ = encode_questions(view, experiment.train_examples, experiment.format, 30)
            for n, example in enumerate(experiment.train_examples):
                learned = view.writes(example, example.label)
                assert len(targets[n]) > 0 if learned else len(targets[n]) == len(inputs[n]) == 0
                if not learned:
                    continue
                read = [*inputs.prefix, *inputs[n]]
                assert read == [*asked.prefix, *asked[n]]
                assert decode(read) == f"{head}{view.prefix}{example.text}{tail}"
                assert experiment.format.decode(view.name, targets[n].tolist()) == learned[0]


def test_a_chat_needs_a_template():
    config = _config("", "", chat="template")
    with pytest.raises(UserError, match=r"^config\.data\.chat=template: the tokenizer trained on word"):
        prepare(config)


@pytest.mark.parametrize(("method", "steps"), [("none", 8), ("dynamic", 8), ("dlb", 15)])
def test_an_epoch_of_overlapping_batches_has_twice_as_many_steps(method, steps):
    config = Config()
    config = dataclasses.replace(
        config,
        data=DataConfig(word_problems=WordProblemsConfig(train=20, valid=2, test=2)),
        model=dataclasses.replace(config.model, preset="tiny"),
        self_distillation=dataclasses.replace(config.self_distillation, method=method),
        train=dataclasses.replace(config.train, epochs=3.0, batch_size=8, eval_every=0),
    )
    experiment = prepare(config)
    assert (experiment.config.train.steps, experiment.config.train.eval_every) == (steps, -(-steps // 3))
    seen = np.concatenate([experiment.batches(1).rows(step) for step in range(steps)])
    least, most = np.unique(seen, return_counts=True)[1].min(), np.bincount(seen).max()
    assert (least, most) == ((5, 7) if method == "dlb" else (3, 4))


class _Classifier:
    """What class weights are computed from."""

    student = SimpleNamespace(format="classes", outputs=3, hidden=None)
    views = METHODS["standard"]
    self_distillation = teaching = None
    format = SimpleNamespace(decode=lambda view, ids: ("no", "yes", "maybe")[ids[0]])

    def __init__(self, targets, student=None):
        self.student = student or self.student
        objective = ObjectiveConfig(method="standard", class_weights="balanced")
        self.config = dataclasses.replace(Config(), objective=objective)
        self.tokenized = {self.views[0].name: TokenizedView(Ragged([[1]] * len(targets)), Ragged(targets))}


def test_balanced_class_weights_are_those_of_the_training_examples(monkeypatch):
    given = {}
    monkeypatch.setattr(
        "cot_jax.training.experiment.make_objective", lambda *arguments: given.update(weights=arguments[-1])
    )
    build_objective(_Classifier([[2], [0], [2], [], [1], [2], [2], [0]]))
    np.testing.assert_allclose(given["weights"], [7 / (3 * 2), 7 / (3 * 1), 7 / (3 * 4)])
    with pytest.raises(UserError, match=r"class_weights=balanced: class yes has no training example; "):
        build_objective(_Classifier([[2], [0]]))
    with pytest.raises(UserError, match=r"class_weights=balanced is for students that choose among classes"):
        build_objective(_Classifier([[2], [0]], T5(T5Config())))
