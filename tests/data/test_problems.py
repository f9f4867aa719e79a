"""GSM8K, ASDiv, AQuA, MathQA and StrategyQA: what their rows ask, and what their teachers answer."""

import functools
import json

import pytest

from cot_jax.answers import programs
from cot_jax.answers.arithmetic import evaluate
from cot_jax.answers.equality import is_correct
from cot_jax.answers.reading import final_answer
from cot_jax.data import problems, tasks
from cot_jax.data.examples import Example
from cot_jax.data.teacher import outputs
from cot_jax.errors import UserError
from cot_jax.files import Row


@pytest.fixture(scope="module")
def load(data_root):
    """The splits of a task, read once."""
    return functools.cache(lambda task: tasks.load(task, data_root))


def _lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize(
    ("task", "sizes", "label_set"),
    [
        ("gsm8k", (6725, 748, 1319), None),
        ("asdiv", (1446, 161, 486), None),
        ("aqua", (4830, 537, 254), ("A", "B", "C", "D", "E")),
        ("mathqa", (0, 0, 2985), ("A", "B", "C", "D", "E")),
    ],
)
def test_splits(load, task, sizes, label_set):
    splits = load(task)
    everything = (*splits.train, *splits.valid, *splits.test)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == sizes
    assert (splits.label_set, splits.by_value) == (label_set, label_set is None)
    assert len({e.id for e in everything}) == sum(sizes)
    assert all(evaluate(e.label) is not None for e in everything) or label_set
    assert splits.report[-1].startswith(f"test: {sizes[2]:,} examples, ")


def test_gsm8k_teaches_human_solutions_without_calculator_notes(load):
    examples = [example for split in (load("gsm8k").train, load("gsm8k").valid) for example in split]
    first = {e.id: e for e in examples}["gsm8k-train-0000"]
    assert (first.label, first.rationale) == (
        "72",
        "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May.",
    )
    assert not any("<<" in e.rationale or "####" in e.rationale for e in examples)
    assert {"1080", "109200000"} <= {e.label for e in examples}
    # A solution ends with its answer.
    arrive = sum(is_correct(final_answer(e.rationale, True) or "", e.label, True) for e in examples)
    assert arrive / len(examples) > 0.98
    # Nor do all notes end with the answer: "25 cents" is computed as 0.25.
    answers = [(str(programs.run(e.programs[0]).answer), e.label) for e in examples if e.programs]
    assert (len(answers), sum(is_correct(answer, label, True) for answer, label in answers)) == (7378, 7001)


@pytest.mark.parametrize(
    ("notes", "program"),
    [
        (("48/2=24", "48+24=72"), "n1 = 48/2\nn2 = 48+n1\nans = n2"),
        (
            ("2*5=10", "3*5=15", "10*15=150", "150/10=15"),
            "n1 = 2*5\nn2 = 3*5\nn3 = n1*n2\nn4 = n3/n1\nans = n4",
        ),
        (("2+3=5", "1+4=5", "5*2=10"), "n1 = 2+3\nn2 = 1+4\nn3 = n2*2\nans = n3"),
        (("1*.5=0.5", "10-0.5=9.5", ".5+1=1.5"), "n1 = 1*.5\nn2 = 10-n1\nn3 = .5+1\nans = n3"),
        ((), None),
    ],
)
def test_gsm8ks_calculator_notes_are_a_program(notes, program):
    worked = " ".join(f"<<{note}>>" for note in notes)
    row = Row("t", {"question": "?", "answer": f"{worked} so\n#### 72"})
    assert problems.gsm8k(row).programs == (() if program is None else (program,))


@pytest.mark.parametrize(
    "model", ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"]
)
def test_gsm8k_answers_are_read_as_its_authors_read_them(load, data_root, model):
    golds = {e.text: e.label for e in load("gsm8k").test}
    for row in _lines(data_root / "gsm8k/example_model_solutions.jsonl"):
        said = outputs.parse("gsm8k", row[model]["solution"], "corrected").label or ""
        assert is_correct(said, golds[row["question"]], by_value=True) is row[model]["is_correct"]


@pytest.mark.parametrize(
    ("task", "file", "known", "right"),
    [
        # The data's own description has 7,372 of 7,442 and 7,063 of 7,433, all questions counted.
        ("gsm8k", "gsm8k/llama_level1", 7419, 7385),
        ("gsm8k", "gsm8k/gemini_level2", 7410, 7050),
        ("aqua", "aqua/llama_level1", 5406, 5322),
    ],
)
def test_other_teachers(load, data_root, task, file, known, right):
    def ask(text):
        return text.partition("Answer Choices:")[0].strip()

    golds = {ask(e.text): e.label for e in (*load(task).train, *load(task).valid)}
    rows = [row for row in _lines(data_root / f"cot/{file}.jsonl") if ask(row["instruction"]) in golds]
    said = [outputs.parse(task, row["output"], "corrected").label or "" for row in rows]
    pairs = zip(said, (golds[ask(row["instruction"])] for row in rows), strict=True)
    assert (len(rows), sum(is_correct(a, b, task == "gsm8k") for a, b in pairs)) == (known, right)


def test_programs_are_joined_to_their_questions(load):
    svamp, gsm8k, asdiv = load("svamp"), load("gsm8k"), load("asdiv")
    assert [sum(bool(e.programs) for e in split) for split in (svamp.train, svamp.valid, svamp.test)] == [
        719,
        80,
        200,
    ]
    assert sum(bool(e.programs) for e in gsm8k.test) == 1318
    assert [sum(bool(e.programs) for e in split) for split in (asdiv.train, asdiv.valid, asdiv.test)] == [
        609,
        65,
        170,
    ]
    # Joined to a wrong row, few would be right. Only the first program: it is the published one.
    for split, right in ((svamp.test, 168), (asdiv.test, 169)):
        answers = [(str(programs.run(e.programs[0]).answer), e.label) for e in split if e.programs]
        assert sum(is_correct(answer, label, True) for answer, label in answers) == right
    assert all(len(set(e.programs)) == len(e.programs) for e in (*svamp.train, *gsm8k.test))


def test_asdiv_has_the_reasons_of_the_programs_teacher(load):
    asdiv = {e.id: e for e in (*load("asdiv").train, *load("asdiv").valid)}
    with_reasons = [e for e in asdiv.values() if e.rationale]
    assert (len(with_reasons), sum(is_correct(e.teacher_label, e.label, True) for e in with_reasons)) == (
        677,
        672,
    )
    assert not any("answer is <" in e.rationale or e.rationale.endswith("Therefore") for e in with_reasons)


def test_aqua_and_mathqa_ask_alike(load):
    aqua = {e.id: e for e in load("aqua").test}["aqua-test-0000"]
    assert aqua.text.endswith(
        "reach the base of the tower?\nAnswer Choices:\n(A) 5(√3 + 1)\n(B) 6(√3 + √2)\n(C) 7(√3 \u2013 1)\n"
        "(D) 8(√3 \u2013 2)\n(E) None of these"
    )
    assert aqua.label == "A"
    assert aqua.rationale.endswith("So, it takes 5(1 + √3) minutes to reach the base of the tower.")
    mathqa = {e.id: e for e in load("mathqa").test}
    assert mathqa["mathqa-test-0000"] == Example(
        "mathqa-test-0000",
        (
            "a shopkeeper sold an article offering a discount of 5 % and earned a profit of 31.1 % . what "
            "would have been the percentage of profit earned if no discount had been offered ?\n"
            "Answer Choices:\n(A) 38\n(B) 27.675\n(C) 30\n(D) data inadequate\n(E) none of these",
        ),
        "A",
    )
    # One of the rows whose options are a Python list.
    assert mathqa["mathqa-test-0082"].text.endswith(
        "\n(A) 2 : 3\n(B) 4 : 5\n(C) 16 : 9\n(D) 7 : 9\n(E) 8 : 5"
    )
    assert mathqa["mathqa-test-0628"].text.endswith("(D) 8 inches\n(E) 10 inches")


STRATEGYQA = {
    "qid": "q1",
    "question": "Could a heron stand in a bath tub?",
    "answer": True,
    "facts": ["Herons are about a metre tall.", " A bath tub is longer than that. "],
    "decomposition": ["How tall is a heron?", "Is a bath tub longer than #1?"],
}


HELLASWAG = {
    "ind": 4,
    "activity_label": "Removing ice from car",
    "ctx_a": "Then, the man writes over the snow covering the window of a car.",
    "ctx_b": "then",
    "ctx": "Then, the man writes over the snow covering the window of a car. then",
    "endings": [", the man adds wax.", ", a person boards a ski lift.", ", he shovels.", ", he goes on."],
    "split": "train",
    "label": "3",
}


def _write_hellaswag(root, **files):
    (root / "hellaswag").mkdir(exist_ok=True)
    for split, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"hellaswag/hellaswag_{split}.jsonl").write_text(text)


def test_hellaswag_numbers_its_endings_and_tests_on_the_validation_file(tmp_path):
    rows = [HELLASWAG | {"label": str(n % 4), "ctx": f"Scene {n}. then"} for n in range(20)]
    _write_hellaswag(tmp_path, train=rows, val=[HELLASWAG | {"label": 1}, *rows[:3]], test=[{"label": ""}])
    splits = tasks.load("hellaswag", tmp_path)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (18, 2, 4)
    assert (splits.label_set, splits.by_value) == (("0", "1", "2", "3"), False)
    assert splits.report[0] == (
        "hellaswag: test is the published validation set; the published test set has no labels"
    )
    by_id = {e.id: e for e in (*splits.train, *splits.valid)}
    assert [by_id[f"hellaswag-train-{n:04d}"].label for n in range(20)] == [str(n % 4) for n in range(20)]
    assert splits.test[0] == Example(
        "hellaswag-test-0000",
        (
            'Here is a sentence to be continued: "Then, the man writes over the snow covering the window of '
            'a car. then"\nThere are 4 options as an ending:\n0: , the man adds wax.\n1: , a person boards a '
            "ski lift.\n2: , he shovels.\n3: , he goes on.\nPlease select the correct option and answer with "
            "a number between 0 and 3.",
        ),
        "1",
    )


def test_hellaswag_without_its_training_file_is_a_test_set(tmp_path):
    _write_hellaswag(tmp_path, val=[HELLASWAG])
    splits = tasks.load("hellaswag", tmp_path)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (0, 0, 1)
    missing = tmp_path / "hellaswag/hellaswag_train.jsonl"
    assert splits.report[0] == f"hellaswag: no train problems, since there is no {missing}"
    _write_hellaswag(tmp_path, val=[HELLASWAG, HELLASWAG | {"label": ""}])
    with pytest.raises(UserError, match=r"hellaswag_val\.jsonl:2: the label '' is not one of") as error:
        tasks.load("hellaswag", tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "hellaswag/hellaswag_val.jsonl").unlink()
    with pytest.raises(UserError, match=r"hellaswag_val\.jsonl: no such file; it is from rowanz/hellaswag"):
        tasks.load("hellaswag", tmp_path)


def test_hellaswags_validation_file(load):
    splits = load("hellaswag")
    assert (len(splits.train), len(splits.test)) == (0, 10_042)
    assert 0.24 < sum(e.label == "0" for e in splits.test) / 10_042 < 0.26


MATHQA = {
    "Problem": "a multiple choice test consists of 4 questions . in how many ways can it be completed ?",
    "Rationale": '"5 choices for each of the 4 questions , thus 5 ^ 4 = 625 ways . answer : c ."',
    "options": "a ) 24 , b ) 120 , c ) 625 , d ) 1 , 024 , e ) none of these",
    "correct": "c",
    "annotated_formula": "power(5, 4)",
    "linear_formula": "power(n1,n0)|",
    "category": "general",
}


def test_mathqas_own_files(tmp_path, data_root):
    (tmp_path / "mathqa").mkdir()
    as_list = MATHQA | {"options": "['a ) 24', 'b ) 120', 'c ) 625', 'd ) 1024', 'e ) 5']", "correct": "e"}
    unreadable = MATHQA | {"options": "a ) 24 , b ) 120"}
    for split, rows in {"train": [MATHQA, as_list, unreadable], "dev": [MATHQA], "test": [MATHQA]}.items():
        (tmp_path / f"mathqa/{split}.json").write_text(json.dumps(rows))
    splits = tasks.load("mathqa", tmp_path)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (2, 1, 1)
    assert splits.report[0] == "mathqa: 2 of 3 train problems, those with five readable options"
    first, second = splits.train
    assert first == Example(
        "mathqa-train-0000",
        (f"{MATHQA['Problem']}\nAnswer Choices:\n(A) 24\n(B) 120\n(C) 625\n(D) 1 , 024\n(E) none of these",),
        "C",
        rationales=("5 choices for each of the 4 questions , thus 5 ^ 4 = 625 ways .",),
    )
    assert (second.label, second.text.splitlines()[-2:]) == ("E", ["(D) 1024", "(E) 5"])
    # Without train.json the test set is LLM-Adapters' copy.
    (tmp_path / "mathqa/train.json").unlink()
    with pytest.raises(UserError, match=r"mathqa_test_instruct\.json: no such file; .*LLM-Adapters"):
        tasks.load("mathqa", tmp_path)


@pytest.mark.parametrize("form", ["list", "lines"])
def test_strategyqa(tmp_path, form):
    rows = [STRATEGYQA | {"qid": f"q{n}", "answer": n % 2 == 0} for n in range(20)]
    rows[0] = {key: rows[0][key] for key in ("qid", "question", "answer")}
    (tmp_path / "strategyqa/llm").mkdir(parents=True)
    for split in ("train", "test"):
        text = json.dumps(rows) if form == "list" else "\n".join(map(json.dumps, rows))
        (tmp_path / f"strategyqa/strategyqa_{split}.json").write_text(text)
        rows = [row | {"qid": f"t{row['qid']}"} for row in rows]
    splits = tasks.load("strategyqa", tmp_path)
    assert (len(splits.train), len(splits.valid), splits.label_set) == (18, 2, ("yes", "no"))
    examples = {e.id: e for e in (*splits.train, *splits.valid)}
    assert (examples["q0"].label, examples["q0"].rationale, examples["q1"].label) == ("yes", None, "no")
    assert examples["q1"].rationale == "Herons are about a metre tall. A bath tub is longer than that."
    # A teacher's outputs take the place of the facts.
    said = [f"Reason {n}. So the answer is {'yes' if n % 2 else 'no'}.\n\nQ: And" for n in range(20)]
    (tmp_path / "strategyqa/llm/train_CoT_0.json").write_text(json.dumps(said))
    examples = {e.id: e for e in tasks.load("strategyqa", tmp_path).train}
    assert (examples["q7"].rationale, examples["q7"].teacher_label) == ("Reason 7.", "yes")


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (
            problems.strategyqa,
            STRATEGYQA | {"answer": "yes"},
            r"t: 'answer' must be true or false; found 'yes'",
        ),
        (problems.strategyqa, STRATEGYQA | {"facts": "one"}, r"t: 'facts' must be a list of texts"),
        (problems.gsm8k, {"question": "?", "answer": "It is 4."}, r"t: the answer has no '####'"),
        (
            problems.aqua,
            {"question": "?", "options": ["A)1"], "correct": "A"},
            r"t: 'options' must be a list of five",
        ),
        (
            problems.aqua,
            {"question": "?", "options": ["1"] * 5, "correct": "A"},
            r"t: 'options' must begin with A\)",
        ),
        (
            problems.mathqa_instruct,
            {"instruction": "x The options: A ) 1", "answer": "A"},
            r"t: the instruction does not end",
        ),
        (problems.mathqa, {"options": 5}, r"t: 'options' must be a text in quotes; found 5"),
        (
            problems.hellaswag,
            HELLASWAG | {"endings": ["a", "b", "c"]},
            r"t: 'endings' must be a list of four",
        ),
        (problems.hellaswag, HELLASWAG | {"endings": "abcd"}, r"t: 'endings' must be a list of four texts"),
        (problems.hellaswag, HELLASWAG | {"ctx": None}, r"t: 'ctx' must be a text in quotes; found None"),
        *(
            (
                problems.hellaswag,
                HELLASWAG | {"label": label},
                rf"t: the label {label!r} is not one of 0, 1, 2, 3",
            )
            for label in ("", "4", 4, -1, True, None, 1.0, "1.0")
        ),
    ],
)
def test_bad_rows_are_named(read, row, message):
    with pytest.raises(UserError, match=message) as error:
        read(Row("t", row))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"qid": 1}, 2]', r"json: row 2: expected a JSON object"),
        ("[{]", r"strategyqa_train\.json: not valid JSON"),
    ],
)
def test_a_torn_list_is_named(tmp_path, content, message):
    (tmp_path / "strategyqa").mkdir()
    (tmp_path / "strategyqa/strategyqa_train.json").write_text(content)
    with pytest.raises(UserError, match=message):
        tasks.load("strategyqa", tmp_path)
    with pytest.raises(
        UserError, match=r"gsm8k/train\.jsonl: no such file; it is from openai/grade-school-math"
    ):
        tasks.load("gsm8k", tmp_path)


def test_programs_that_do_not_fit_their_rows_are_refused(tmp_path):
    for folder in ("svamp", "pot/svamp"):
        (tmp_path / folder).mkdir(parents=True)
    for split in ("train", "test"):
        (tmp_path / f"svamp/svamp_{split}.json").write_text('{"input": "q", "label": "( 1.0 + 2.0 )"}\n' * 3)
    (tmp_path / "pot/svamp/train_PoT_0.json").write_text('["ans = 3", "", "ans = 4"]')
    samples = tmp_path / "pot/svamp/train_PoT_samples.json"
    samples.write_text('[["ans = 3", "ans = 1 + 2"], [], [" "]]')
    programs_of = [e.programs for e in tasks.DATA_SETS["svamp"].read("train", tmp_path, "corrected")]
    assert programs_of == [("ans = 3", "ans = 1 + 2"), (), ("ans = 4",)]
    for content, message in (
        *(
            (text, "expected a JSON list .* 3 rows")
            for text in ('[["ans = 3"]]', "[[1], [], []]", "[1, 2, 3]")
        ),
        ("{", "not valid JSON"),
        (None, "no such file"),
    ):
        samples.unlink() if content is None else samples.write_text(content)
        with pytest.raises(UserError, match=rf"train_PoT_samples\.json: {message}"):
            tasks.load("svamp", tmp_path)


@pytest.mark.parametrize(
    ("task", "text", "rationale", "label"),
    [
        ("gsm8k", "6 * 3 = 18.\n#### 18", "6 * 3 = 18.", "18"),
        ("gsm8k", "He saves. The answer is $1,080.50 a year.", "He saves.", "1080.50"),
        ("gsm8k", "So. The answer is 25% of them", "So.", "25"),
        ("gsm8k", "So. The answer is 60 + 18 = 78", "So.", "78"),
        ("gsm8k", "So. The answer is -3 degrees.", "So.", "-3"),
        ("gsm8k", "17? The answer is 17. No: the answer is 12.", "17? The answer is 17. No:", "12"),
        ("gsm8k", "Hard. The answer is unknown.", "Hard.", None),
        ("gsm8k", "He has 3. He has 3. He", None, None),
        ("asdiv", "21 - 17 = 4\n\nTherefore, the answer is <4>.", "21 - 17 = 4", "4"),
        ("asdiv", "A. The answer is (7 + 2).\n\nQ: x", "A.", "(7 + 2)"),
        ("aqua", "x = 2. So the answer is (B).", "x = 2.", "B"),
        ("aqua", "x = 2. The answer is B) 7", "x = 2.", "B"),
        ("aqua", "x = 2. The answer is A or B", "x = 2.", None),
        ("mathqa", "x = 2.\nAnswer: option D", "x = 2.", "D"),
        ("strategyqa", "It is long. So the answer is yes.\n\nQ: And", "It is long.", "yes"),
        ("strategyqa", "It is not. Thus, the answer is: **No**", "It is not.", "no"),
        ("strategyqa", "It is. The answer is false", "It is.", "no"),
        ("strategyqa", "It is. The answer is nobody", "It is.", None),
        ("hellaswag", "He is cold. The answer is 2.", "He is cold.", "2"),
        ("hellaswag", "He is cold. The answer is 2 or 3.", "He is cold.", None),
        ("hellaswag", "He is cold. The answer is 12.", "He is cold.", None),
    ],
)
def test_what_a_teacher_says(task, text, rationale, label):
    for form in ("corrected", "reference") if task != "asdiv" else ("corrected",):
        assert outputs.parse(task, text, form) == (rationale, label)
