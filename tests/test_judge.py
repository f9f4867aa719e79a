"""The command: every measure is written, the judge is read strictly, case studies are readable."""

import http.server
import json
import re
import threading

import numpy as np
import pytest

from cot_jax import judge
from cot_jax.metrics import quality

TEACHER = "Ann has 3. Ann gets 4, so 3 + 4 = 7."
ROWS = [
    {"label": "( 3 + 4 )", "correct": True, "rationale": TEACHER},
    {"label": "( 3 + 5 )", "correct": False, "rationale": "Ann has 3. Ann gets 5, so 3 + 5 = 8."},
    {"label": "( 4 + 4 )", "correct": False, "rationale": "Bob has some."},
    {"label": "7", "correct": True, "rationale": "Ann has 3. Ann gets 4, so 3 + 4 = 8."},
    {"label": "( 3 + 4 )", "correct": True, "rationale": "Ann has 3 | *4*, so 7.\nYes."},
    {"label": "5", "correct": False, "rationale": ""},
]


def _evaluation(where, rows, by_value=True, labels=None):
    where.mkdir(parents=True)
    description = {"task": "t", "split": "test", "by_value": by_value, "labels": labels}
    (where / "evaluation.json").write_text(json.dumps(description))
    full = [
        {
            "id": f"e{n}",
            "input": f"Ann has 3, gets 4. ({n})",
            "gold": "( 3 + 4 )",
            "teacher_rationale": TEACHER,
        }
        | row
        for n, row in enumerate(rows)
    ]
    (where / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in full))
    return where


@pytest.fixture
def where(tmp_path):
    return _evaluation(tmp_path / "a" / "evaluation" / "t_test", ROWS)


def _main(capsys, *arguments):
    status = judge.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def _written(where):
    rows = [json.loads(line) for line in (where / "rationales.jsonl").read_text().splitlines()]
    return json.loads((where / "rationales.json").read_text()), rows


def test_measures_are_written_of_all_and_of_each(where, capsys):
    status, out, err = _main(capsys, where.parents[1])
    assert (status, err) == (0, "")
    measures, rows = _written(where)
    corpus, each = quality.likeness([row["rationale"] for row in ROWS], [TEACHER] * len(ROWS))
    assert measures["against_teacher"] == pytest.approx({"examples": 6} | corpus)
    assert [row["id"] for row in rows] == [f"e{n}" for n in range(6)]
    assert [row["chrf"] for row in rows] == pytest.approx(each["chrf"])
    assert [row["answer"] for row in rows] == ["7", "8", None, "8", "7", None]
    assert [row["agrees_with_prediction"] for row in rows] == [True, True, None, False, True, None]
    assert [row["agrees_with_gold"] for row in rows] == [True, False, None, False, True, None]
    counts = {"agrees_with_prediction": 3, "agrees_with_gold": 2, "no_readable_answer": 2}
    assert {name: found["count"] for name, found in measures["consistency"].items()} == counts
    assert measures["consistency"]["agrees_with_gold"]["share"] == pytest.approx(2 / 6)
    assert measures["judge"] is None
    found = measures["correlation_with_correctness"]
    r = np.corrcoef(each["rouge_l"], [row["correct"] for row in ROWS])[0, 1]
    assert found["rouge_l"]["pearson"]["r"] == pytest.approx(r)
    assert found["agrees_with_prediction"]["n"] == 4
    assert found.keys() == {"bleu", "chrf", "rouge_l", "agrees_with_prediction"}
    assert "6 rationales of 6 predictions" in out
    assert "agrees with gold: 2 (33.3 %)" in out
    assert f"written to {where}: rationales.json, rationales.jsonl\n" in out


def test_of_several_evaluations_one_is_chosen(where, capsys):
    run = where.parents[1]
    valid, other = (_evaluation(run / "evaluation" / name, ROWS[:2]) for name in ("t_valid", "u_test"))
    assert _main(capsys, run)[2] == f"error: {run} has evaluations of t, u: choose one with --task\n"
    for arguments, written in ((["--task=u"], other), (["--split=valid"], valid)):
        assert _main(capsys, run, *arguments)[0] == 0
        assert _written(written)[0]["predictions"] == 2
    assert not (where / "rationales.json").exists()
    status, _, err = _main(capsys, run, "--task=none")
    assert (status, err) == (
        2,
        f"error: {run}: no evaluation of none on test: first python -m cot_jax.evaluate {run} --task=none "
        "--root=DIR\n",
    )
    assert _main(capsys, run, "--task=word_problems", "--split=valid")[2].endswith(
        f"first python -m cot_jax.evaluate {run} --split=valid --task=word_problems\n"
    )


def test_rationales_without_a_teachers_and_answers_among_labels(tmp_path, capsys):
    question = "What?\nAnswer Choices:\n(a) bank\n(b) mall"
    rows = [
        {"gold": "bank", "label": "mall", "correct": False, "rationale": "Only a bank."},
        {"gold": "bank", "label": "bank", "correct": True, "rationale": "Yes, banks are."},
        {"gold": "bank", "label": "bank", "correct": True},
    ]
    rows = [row | {"input": question, "teacher_rationale": None} for row in rows]
    open_ended = _evaluation(tmp_path / "cqa/evaluation/cqa_test", rows, by_value=False)
    closed = _evaluation(
        tmp_path / "closed/evaluation/own_test",
        [row | {"input": ["x", "y"]} for row in rows],
        False,
        ["bank", "mall"],
    )
    for where in (open_ended, closed):
        status, out, _ = _main(capsys, where.parents[1])
        assert status == 0
        measures, found = _written(where)
        assert [row["answer"] for row in found] == ["bank", "bank"]
        assert measures["consistency"]["agrees_with_prediction"]["count"] == 1
        assert measures["consistency"]["agrees_with_gold"]["count"] == 2
        assert measures["against_teacher"] is None
        assert (measures["predictions"], measures["rationales"]) == (3, 2)
        assert measures["correlation_with_correctness"]["agrees_with_prediction"]["pearson"] is None
        assert "2 rationales of 3 predictions" in out


class Judge(http.server.BaseHTTPRequestHandler):
    """Finds the right label good, more so at odd seeds; says no grade at seeds 2 and 6."""

    seen: list[dict]

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        good = "Answer: ( 3 + 4 )\n" in body["messages"][0]["content"]
        grade = (4 if good else 1) + body["seed"] % 2
        text = {2: "Grade: 5", 6: "45"}.get(body["seed"], f" {grade}\n")
        answer = {
            "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 1},
        }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def grader(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    Judge.seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_judge_is_asked_k_times_an_example_and_read_strictly(where, grader, capsys):
    asked = [
        where.parents[1],
        f"--endpoint=http://127.0.0.1:{grader.server_port}/v1",
        "--model=m",
        "--examples=4",
    ]
    status, out, _ = _main(capsys, *asked, "--samples=4", "--seed=1")
    assert status == 0
    measures, rows = _written(where)
    drawn = [row for row in rows if "grades" in row]
    assert len(drawn) == 4
    for row in drawn:
        good = 4 if ROWS[int(row["id"][1:])]["label"] == "( 3 + 4 )" else 1
        assert row["grades"] == [good + 1, good + 1, good]  # seeds 1, 3, 4: at 2 it is no grade
        assert row["grade"] == pytest.approx(np.mean(row["grades"]))
        assert row["grade_std"] == pytest.approx(np.std(row["grades"], ddof=1))
    found = measures["judge"]
    assert (found["examples"], found["samples"], found["unparsable"], found["without_grade"]) == (4, 4, 4, 0)
    assert found["mean"] == pytest.approx(np.mean([row["grade"] for row in drawn]))
    assert found["std_over_examples"] == pytest.approx(np.std([row["grade"] for row in drawn], ddof=1))
    assert found["mean_std_over_samples"] == pytest.approx(1 / 3**0.5)
    assert (found["requests_sent"], found["prompt_tokens"], found["completion_tokens"]) == (16, 1600, 16)
    expected = quality.correlations([row["grade"] for row in drawn], [row["correct"] for row in drawn])
    assert measures["correlation_with_correctness"]["grade"] == expected
    assert "judge m: " in out
    bodies = list(Judge.seen)
    assert {body["seed"] for body in bodies} == {1, 2, 3, 4}
    assert {(body["temperature"], body["max_tokens"]) for body in bodies} == {(0.7, 16)}
    prompt = bodies[0]["messages"][0]["content"]
    row = next(row for n, row in enumerate(ROWS) if f"({n})" in prompt)
    assert f"Answer: {row['label']}\n\nReason: {row['rationale']}\n" in prompt
    # The same again asks nothing; the measures are the same, but for what was sent.
    Judge.seen.clear()
    assert _main(capsys, *asked, "--samples=4", "--seed=1")[0] == 0
    assert not Judge.seen
    assert _written(where)[0]["judge"] == found | {"requests_sent": 0}


def test_a_judge_that_gives_no_grade_at_all(where, grader, capsys):
    arguments = (
        where.parents[1],
        f"--endpoint=http://127.0.0.1:{grader.server_port}/v1",
        "--model=m",
        "--samples=1",
    )
    assert _main(capsys, *arguments, "--seed=6")[0] == 0
    measures, rows = _written(where)
    assert measures["judge"]["mean"] is None
    assert (measures["judge"]["unparsable"], measures["judge"]["without_grade"]) == (6, 6)
    assert rows[0]["grade"] is None
    assert "grade" not in measures["correlation_with_correctness"]


def test_case_studies_show_two_runs_side_by_side(where, tmp_path, capsys):
    others = [
        ROWS[0],
        {"label": "( 3 + 6 )", "correct": False, "rationale": "B one"},  # both wrong, differently
        ROWS[2],
        {"label": "( 4 + 3 )", "correct": True, "rationale": "B three"},  # the same value
        {"label": "8", "correct": False, "rationale": "B four"},  # only A right
        {"label": "7", "correct": True},  # only B right, and says nothing
    ]
    other = _evaluation(
        tmp_path / "b/evaluation/t_test", [row | {"rationale": row.get("rationale")} for row in others]
    )
    assert _main(capsys, where.parents[1], f"--against={other.parents[1]}", "--examples=4")[0] == 0
    text = (where / "case_studies.md").read_text()
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads == [
        "## 1. e4: only A right", "## 2. e5: only B right", "## 3. e1: both wrong", "## 4. e0: both right",
    ]  # fmt: skip
    assert "6 examples in common: both right 2, only A right 1, only B right 1, both wrong 2." in text
    assert "| label | ✓ ( 3 + 4 ) | ✗ 8 |\n" in text
    assert "| rationale | Ann has 3 \\| \\*4\\*, so 7.<br>Yes. | B four |\n" in text
    assert "> Ann has 3, gets 4. (4)\n\nGold: **( 3 + 4 )**\n" in text


def test_any_text_is_one_line_of_markdown():
    assert judge._escape("- 5 < 6\r\n2) *x*\n") == r"\- 5 \< 6<br>2) \*x\*"
    assert judge._escape("1. Tom has 3 | 4.") == r"1\. Tom has 3 \| 4."
    assert judge._escape("") == ""


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda w, b: (w / "evaluation.json").unlink(),
            r"evaluation\.json: no such file",
        ),
        (lambda w, b: (w / "evaluation.json").write_text("{}"), r"no 'by_value': evaluate again"),
        (lambda w, b: (w / "predictions.jsonl").unlink(), r"predictions\.jsonl: no such file"),
        (
            lambda w, b: (w / "predictions.jsonl").write_text('{"id": 1}'),
            r"predictions\.jsonl:1: 'correct' must",
        ),
        (lambda w, b: (w / "predictions.jsonl").write_text(""), r"wrote no rationale"),
        (lambda w, b: (b / "predictions.jsonl").write_text(""), r"have no example in common"),
        (
            lambda w, b: (b / "predictions.jsonl").write_text(
                json.dumps({"id": "e0", "input": "?", "gold": "1", "label": "1", "correct": True})
            ),
            r"example 'e0' of .* has another question or label in",
        ),
    ],
)
def test_mistakes_are_one_line_and_status_2(where, tmp_path, capsys, break_it, message):
    other = _evaluation(tmp_path / "b/evaluation/t_test", ROWS)
    break_it(where, other)
    status, out, err = _main(capsys, where.parents[1], f"--against={other.parents[1]}")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert re.search(f"^error: .*{message}", err)


@pytest.mark.parametrize("wrong", ["--samples=0", "--temperature=-1.0", "--seed=-1"])
def test_numbers_out_of_range_are_one_line(where, capsys, wrong):
    status, _, err = _main(capsys, where.parents[1], wrong)
    assert status == 2
    assert err.startswith(f"error: {wrong}: must be from ")


@pytest.mark.parametrize("wrong", ["--endpoint=http://h/v1", "--model=m"])
def test_wrong_flags_are_usage_errors(where, capsys, wrong):
    with pytest.raises(SystemExit) as stopped:
        judge.main([str(where.parents[1]), wrong])
    assert stopped.value.code == 2
