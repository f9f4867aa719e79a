"""From questions and an endpoint to a teacher's file: nothing lost, nothing asked twice, all counted."""

import collections
import contextlib
import dataclasses
import json
import re
import signal
import socket
import subprocess
import sys
import time
from unittest.mock import ANY

import pytest
import scripted_teacher
from scripted_teacher import Server, WordProblems, cut, refuses, stalls, torn

from cot_jax import rationalize
from cot_jax.answers import programs
from cot_jax.answers.arithmetic import same_value
from cot_jax.config import DataConfig, WordProblemsConfig
from cot_jax.data.word_problems import generate
from cot_jax.errors import UserError
from cot_jax.files import locked
from cot_jax.training.data import load_splits


def write_problems(root, train, test=2):
    examples = generate(train + test, seed=0)
    for split, part in (("train", examples[:train]), ("valid", examples[-1:]), ("test", examples[train:-1])):
        rows = [{"id": e.id, "input": e.text, "label": e.label} for e in part]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return examples[:train]


@pytest.fixture
def problems(tmp_path):
    return write_problems(tmp_path, 24)


@pytest.fixture
def server(monkeypatch, problems):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Server(WordProblems(24, error_rate=0.4, silence_rate=0.1)) as server:
        yield server


def flags(root, *more, output="out"):
    given = ["--task=jsonl", f"--root={root}", "--model=scripted", f"--output={root / output}"]
    return [*given, *more]


def run(root, *more, output="out", status=0):
    assert rationalize.main(flags(root, *more, output=output)) == status


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


BOTH = ("--kind=both", "--samples=3", "--hint")


def test_endpoint_to_teacher_file(server, problems, tmp_path, capsys):
    run(tmp_path, f"--endpoint={server.url}", *BOTH, "--price", "2", "10")
    said = capsys.readouterr().out
    by_id = {example.id: example for example in problems}
    taught, samples = rows(tmp_path / "out/teacher.jsonl"), rows(tmp_path / "out/samples.jsonl")
    assert [row["id"] for row in taught] == list(by_id)  # one a question, in their order
    drawn = [one for one in samples if not one["hinted"]]
    assert collections.Counter((one["id"], one["kind"]) for one in drawn) == dict.fromkeys(
        ((key, kind) for key in by_id for kind in ("cot", "pot")), 3
    )
    for row in taught:
        these = [one for one in samples if one["id"] == row["id"]]
        gold = by_id[row["id"]]
        values = [one["label"] for one in these if one["label"] and not one["hinted"]]
        votes = [sum(same_value(value, other) for other in values) for value in values]
        assert votes[values.index(row["label"])] == max(votes)
        for kind, field, own in (
            ("cot", "rationales", gold.rationale),
            ("pot", "programs", gold.programs[0]),
        ):
            assert row[field] == [own]  # the right one, once, drawn or hinted
            right = [one for one in these if one["kind"] == kind and one["right"] and not one["hinted"]]
            assert (field in row.get("hinted", [])) == (not right)
            assert sum(one["kind"] == kind and one["hinted"] for one in these) == (not right)
    assert any("hinted" in row for row in taught)

    report = json.loads((tmp_path / "out/report.json").read_text())
    for name, kind, hinted in (
        ("rationales", "cot", False), ("rationales, hinted", "cot", True),
        ("programs", "pot", False), ("programs, hinted", "pot", True),
    ):  # fmt: skip
        these = [one for one in samples if (one["kind"], one["hinted"]) == (kind, hinted)]
        found = report["kinds"][name]
        assert found["samples"] == len(these)
        assert found["right"] == sum(one["right"] for one in these)
        assert found["kept"] == sum(one["left_out"] is None for one in these)
        counts = {reason: of["count"] for reason, of in found["left_out"].items()}
        assert counts == collections.Counter(one["left_out"] for one in these if one["left_out"])
        assert found["kept"] + sum(counts.values()) == len(these)
        for reason, of in found["left_out"].items():
            assert 0 < len(of["examples"]) <= 3
            assert len({example["output"] for example in of["examples"]}) == len(of["examples"])
            assert all(example["gold"] == by_id[example["id"]].label for example in of["examples"])
            assert f"{reason} {of['count']:,}" in said
            assert f"## {name}: {reason} ({of['count']:,})" in (tmp_path / "out/report.md").read_text()
    assert {"wrong", "no answer", "duplicate"} <= report["kinds"]["rationales"]["left_out"].keys()
    assert report["kinds"]["programs"]["left_out"].keys() >= {"wrong", "program: SyntaxError"}
    assert report["labels_right"] == sum(same_value(row["label"], by_id[row["id"]].label) for row in taught)
    assert report["requests_sent"] == report["answers"] == len(samples) == server.seen.total()
    assert report["cost"] == pytest.approx(len(samples) * (3 * 2 + 2 * 10) / 1e6)
    assert f"--config.data.teacher={tmp_path / 'out/teacher.jsonl'}" in said

    before = (tmp_path / "out/teacher.jsonl").read_bytes()
    run(tmp_path, f"--endpoint={server.url}", *BOTH)  # again: nothing is asked, the same is written
    assert server.seen.total() == len(samples)
    assert (tmp_path / "out/teacher.jsonl").read_bytes() == before
    run(tmp_path, f"--endpoint={server.url}", "--kind=both", "--samples=3", "--filters=", "--max_words=20")
    assert server.seen.total() == len(samples)  # other filters cost nothing
    report = json.loads((tmp_path / "out/report.json").read_text())
    left_out = report["kinds"]["rationales"]["left_out"]
    assert left_out.keys() == {"no answer", "too long"}
    kept = [text for row in rows(tmp_path / "out/teacher.jsonl") for text in row.get("rationales", [])]
    assert len(kept) == report["kinds"]["rationales"]["kept"] > 24
    assert max(len(text.split()) for text in kept) <= 20


@pytest.mark.slow
def test_faults_and_kill_9_lose_and_repeat_nothing(server, problems, tmp_path):
    """The command that is killed and started again writes what an undisturbed one writes."""
    run(tmp_path, f"--endpoint={server.url}", *BOTH, output="undisturbed")
    requests = set(server.seen)
    server.seen.clear()
    faults = [refuses(429), torn, refuses(503), None, cut, stalls, refuses(500, b"<html>")]
    server.faults, server.delay = [*faults, *faults], 0.05
    more = (f"--endpoint={server.url}", *BOTH, "--timeout=1", "--concurrency=3")
    command = [sys.executable, "-m", "cot_jax.rationalize", *flags(tmp_path, *more)]
    with subprocess.Popen(command) as process:
        while server.seen.total() < 60:
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    kept = len((tmp_path / "out/cache.jsonl").read_bytes().splitlines())
    assert 0 < kept < len(requests)
    while server.busy:
        time.sleep(0.01)
    broken = 12 - sum(fault is not None for fault in server.faults)
    under_way = server.seen.total() - broken - kept
    assert under_way <= 3
    server.faults, server.delay = [torn, refuses(429), None, stalls], 0.0
    run(tmp_path, *more)
    assert set(server.seen) == requests  # every one, and no other
    assert server.seen.total() == len(requests) + broken + under_way + 3
    for name in ("teacher.jsonl", "samples.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_batches_give_what_the_endpoint_gives(server, problems, tmp_path, capsys):
    run(tmp_path, f"--endpoint={server.url}", *BOTH, output="endpoint")
    file, answers = tmp_path / "batch.jsonl", tmp_path / "results.jsonl"
    counts = []
    for _ in range(2):  # the second one asks again with a hint
        run(tmp_path, f"--write_batch={file}", *BOTH)
        counts.append(len(file.read_text().splitlines()))
        assert f"{counts[-1]:,} of " in capsys.readouterr().out
        results = []
        for row in rows(file):
            body = scripted_teacher.completion(server.answer, row["body"])
            results.append({"custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}})
        answers.write_text("".join(json.dumps(row) + "\n" for row in results))
        run(tmp_path, f"--read_batch={answers}", *BOTH)
    assert counts[0] == 24 * 6
    assert 0 < counts[1] == server.seen.total() - counts[0]
    assert (tmp_path / "out/teacher.jsonl").read_bytes() == (tmp_path / "endpoint/teacher.jsonl").read_bytes()
    answers.write_text("")
    run(tmp_path, f"--read_batch={answers}", "--samples=4", "--limit=3")
    left_out = json.loads((tmp_path / "out/report.json").read_text())["kinds"]["rationales"]["left_out"]
    assert left_out["not answered"]["count"] == 3


@pytest.mark.parametrize("prompt", ["few_shot", "zero_shot"])
def test_models_without_chat_are_asked_too(server, problems, tmp_path, prompt):
    more = (f"--endpoint={server.url}", "--api=completions", f"--prompt={prompt}", "--kind=both")
    server.answer = WordProblems(24)
    run(tmp_path, *more)
    taught = rows(tmp_path / "out/teacher.jsonl")
    assert [row["rationales"] for row in taught] == [[e.rationale] for e in problems]
    assert [programs.run(row["programs"][0]).failure for row in taught] == [None] * 24
    assert {path for path, _ in server.heads} == {"/v1/completions"}
    assert all(json.loads(body)["stop"] == ["\nQ:"] for body in server.seen)


def test_generated_problems_are_those_that_training_reads(server, tmp_path, capsys):
    command = ["--task=word_problems", "--limit=5", "--model=m", f"--output={tmp_path / 'out'}"]
    assert rationalize.main([*command, f"--endpoint={server.url}", "--filters="]) == 0
    assert capsys.readouterr().out.endswith(
        "out/teacher.jsonl --config.seed=0 --config.data.word_problems.max_steps=2 "
        "--config.data.word_problems.distractors=1 --config.data.word_problems.max_number=20\n"
    )
    said = {row["id"]: tuple(row.get("rationales", ())) for row in rows(tmp_path / "out/teacher.jsonl")}
    data = DataConfig(
        task="word_problems",
        word_problems=WordProblemsConfig(train=9, valid=2, test=2),
        teacher=str(tmp_path / "out/teacher.jsonl"),
    )
    taught = load_splits(data, seed=0).train
    assert {example.id: example.rationales for example in taught[:5]} == said
    assert any(said.values())
    assert all(example.rationales == () for example in taught[5:])
    harder = dataclasses.replace(
        data, word_problems=WordProblemsConfig(train=9, valid=2, test=2, max_steps=3)
    )
    with pytest.raises(UserError, match=r"teacher\.jsonl:1: the data has no example with the id 'word-prob"):
        load_splits(harder, seed=0)


def test_own_demonstrations_for_own_questions(server, tmp_path, capsys):
    questions = [{"id": n, "input": f"Which is number {n}?", "label": f"item {n}"} for n in range(12)]
    for split in ("train", "valid", "test"):
        given = [row | {"id": f"{split} {row['id']}"} for row in questions]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    server.answer = lambda request: "The list says so. So the answer is item 3.\n\nQ: And"
    run(tmp_path, f"--endpoint={server.url}", status=2)
    assert "there are no demonstrations for task=jsonl" in capsys.readouterr().err
    run(tmp_path, f"--endpoint={server.url}", "--kind=pot", status=2)
    assert "--kind=pot: the labels of jsonl are not numbers" in capsys.readouterr().err
    shown = {"input": "Which is first?", "rationale": "It leads.", "label": "item 1"}
    (tmp_path / "shown.jsonl").write_text(json.dumps(shown))
    run(tmp_path, f"--endpoint={server.url}", f"--demonstrations={tmp_path / 'shown.jsonl'}", "--filters=")
    messages = json.loads(next(iter(server.seen)))["messages"]
    assert [message["content"] for message in messages[1:3]] == [
        "Which is first?", "It leads. So the answer is item 1.",
    ]  # fmt: skip
    assert rows(tmp_path / "out/teacher.jsonl")[3] == {
        "id": "train 3", "label": "item 3", "rationales": ["The list says so."],
    }  # fmt: skip
    run(tmp_path, f"--endpoint={server.url}", "--prompt=zero_shot")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["labels"], report["labels_right"], report["questions_with_nothing"]) == (12, 1, 11)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--demonstrations=none.jsonl",), "none.jsonl: no such file"),
        (("--endpoint=localhost",), "is not a URL"),
        (("--output=/dev/null/x",), "/dev/null/x cannot be written"),
        (("--root=none", "--endpoint=http://127.0.0.1:1/v1"), "none/train.jsonl: no such file"),
        (("--split=valid", "--endpoint=http://127.0.0.1:1/v1"), "no server there"),
    ],
)
def test_mistakes_are_one_line(problems, tmp_path, capsys, more, message):
    run(tmp_path, "--endpoint=http://127.0.0.1:1/v1", *more, status=2)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_one_process_a_folder(server, problems, tmp_path, capsys):
    with locked(tmp_path / "out"):
        run(tmp_path, f"--endpoint={server.url}", status=2)
    assert re.fullmatch(r"error: .*/out is in use by another process: .*\n", capsys.readouterr().err)
    assert not server.seen


def test_without_a_sandbox_none_is_promised(problems, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    run(tmp_path, "--endpoint=http://127.0.0.1:1/v1", "--sandbox", status=2)
    assert "error: no sandbox for programs that the interpreter refuses: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--endpoint=http://x/v1", "--write_batch=y"),
        ("--endpoint=http://x/v1", "--filters=right,nice"),
        ("--endpoint=http://x/v1", "--hint", "--filters=leaks"),
        ("--endpoint=http://x/v1", "--task=word_problems"),
        ("--endpoint=http://x/v1", "--task=word_problems", "--limit=3", "--split=test"),
    ],
)
def test_flags_that_do_not_fit(tmp_path, more):
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, *more)


@pytest.mark.parametrize(
    "flag",
    [
        "--timeout=inf", "--timeout=nan", "--timeout=0.0", "--samples=1000000000", "--samples=0",
        "--max_words=-1",
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_one_line(tmp_path, capsys, flag):
    run(tmp_path, "--endpoint=http://x/v1", flag, status=2)
    assert capsys.readouterr().err.startswith(f"error: {flag}: must be from ")


def test_files_need_a_folder(capsys):
    with pytest.raises(SystemExit, match="2"):
        rationalize.main(["--task=svamp", "--model=m", "--output=out", "--endpoint=http://x/v1"])
    assert "--task=svamp reads files: give their folder with --root=DIR" in capsys.readouterr().err


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A tiny random Llama behind `transformers serve`: a server that nobody here wrote."""
    torch = pytest.importorskip("torch", reason="transformers serve needs PyTorch")
    pytest.importorskip("fastapi", reason="transformers serve needs transformers[serving]")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    vocabulary = {piece: n for n, piece in enumerate(["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    pieces = Tokenizer(models.BPE(vocabulary, []))
    pieces.pre_tokenizer, pieces.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), eos_token_id=0, pad_token_id=0, **sizes))
    model.generation_config.do_sample = True  # a request cannot ask for it
    model.generation_config.suppress_tokens = [0]  # no answer ends before its six tokens
    folder = tmp_path / "llama"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", serve, "serve", str(folder), "--host=127.0.0.1", f"--port={port}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        yield folder, f"http://127.0.0.1:{port}/v1"
        process.kill()


@pytest.mark.slow
def test_a_server_that_nobody_here_wrote(served, tmp_path):
    write_problems(tmp_path, 3)
    model, url = served
    for api in ("chat", "completions"):
        asked = (f"--endpoint={url}", f"--model={model}", f"--api={api}", *BOTH[:2])
        for sent in (18, 0):
            run(tmp_path, *asked, "--max_tokens=6", "--prompt=zero_shot", output=api)
            report = json.loads((tmp_path / api / "report.json").read_text())
            assert (report["requests_sent"], report["answers"]) == (sent, 18)
        assert report["completion_tokens"] == 18 * 6
        assert report["prompt_tokens"] > 18 * 100
        assert report["kinds"]["rationales"]["left_out"] == {"cut off": {"count": 9, "examples": ANY}}
        outputs = [row["output"] for row in rows(tmp_path / api / "samples.jsonl")]
        assert len(set(outputs)) >= 3  # seeds matter; to so small a model, questions hardly do
