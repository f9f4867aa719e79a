"""A server that refuses, stalls and tears: no request is lost, none that was answered is sent again."""

import collections
import contextlib
import email.utils
import gzip
import json
import subprocess
import sys
import time

import pytest
import scripted_teacher
from scripted_teacher import Server, cut, refuses, stalls, torn

from cot_jax.data.teacher import endpoint
from cot_jax.data.teacher.endpoint import Batch, Endpoint, chat, completion
from cot_jax.errors import UserError


def echo(request):
    asked = request["messages"][-1]["content"] if "messages" in request else request["prompt"]
    return f"{asked} by {request['seed']}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Server(echo) as server:
        yield server


def asks(count):
    return [chat("m", [{"role": "user", "content": f"q{n}"}], temperature=0.7, seed=n) for n in range(count)]


def ask(server, cache, requests, **options):
    with Endpoint(server.url, cache, **{"timeout": 20.0, "pause": 0.02} | options) as endpoint:
        return list(endpoint.ask(requests)), endpoint.sent


def test_every_fault_is_survived_and_every_request_answered_once_and_in_order(server, tmp_path):
    server.faults = [
        refuses(429), torn, refuses(503), None, cut, stalls, refuses(500, b"<html>"), refuses(529),
        lambda handler: handler.say(200, {"error": {"message": "overloaded"}}), torn, None, refuses(408),
    ]  # fmt: skip
    # Only the stalled request may time out, however busy the machine is.
    replies, sent = ask(server, tmp_path / "cache.jsonl", asks(40), timeout=3.0)
    assert [reply.text for reply in replies] == [f"q{n} by {n}" for n in range(40)]
    assert {(r.finish_reason, r.prompt_tokens, r.completion_tokens) for r in replies} == {("stop", 3, 2)}
    assert len(server.seen) == 40
    assert sent == server.seen.total() == 50  # ten faults


def test_requests_are_under_way_together_but_no_more_than_asked_for(server, tmp_path):
    server.delay = 0.05
    ask(server, tmp_path / "cache.jsonl", asks(12), concurrency=3)
    assert server.busiest == 3


def test_retry_after_is_waited_for(server, tmp_path):
    server.faults = [refuses(429, Retry_After="1")]
    began = time.monotonic()
    ask(server, tmp_path / "a.jsonl", asks(1))
    assert time.monotonic() - began >= 1
    date = email.utils.formatdate(time.time() + 2.5, usegmt=True)  # whole seconds: 1.5 to 2.5 away
    server.faults = [refuses(503, Retry_After=date)]
    began = time.monotonic()
    ask(server, tmp_path / "b.jsonl", asks(1))
    assert time.monotonic() - began >= 1.2


def test_a_pause_beyond_reason_is_an_error(server, tmp_path):
    server.faults = [refuses(429, Retry_After="86400")]
    with pytest.raises(UserError, match=r"429: not now; the server asks for 86,400 s; run again later"):
        ask(server, tmp_path / "cache.jsonl", asks(1))


def test_a_run_that_was_killed_repeats_nothing(server, tmp_path):
    cache = tmp_path / "cache.jsonl"
    first, _ = ask(server, cache, asks(10))
    content = cache.read_bytes()
    cache.write_bytes(content[:-20])  # killed while it wrote the tenth line
    lost = json.loads(content.splitlines()[-1])["request"]
    server.seen.clear()
    again, sent = ask(server, cache, asks(12))
    assert again[:10] == first
    assert sent == 3
    assert [json.loads(body) for body in server.seen].count(lost) == 1
    server.seen.clear()
    assert ask(server, cache, asks(12)) == (again, 0)
    assert not server.seen
    assert len(cache.read_bytes().splitlines()) == 12


def test_a_run_killed_for_good_sends_only_what_was_not_kept(server, tmp_path):
    server.delay = 0.05
    cache, requests = tmp_path / "cache.jsonl", asks(40)
    program = f"""
import json, pathlib, sys
from cot_jax.data.teacher.endpoint import Endpoint
with Endpoint({server.url!r}, pathlib.Path({str(cache)!r}), concurrency=3) as endpoint:
    list(endpoint.ask(json.load(sys.stdin)))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, text=True) as run:
        print(json.dumps(requests), file=run.stdin, flush=True)
        run.stdin.close()
        while server.seen.total() < 12:
            time.sleep(0.01)
            assert run.poll() is None
        run.kill()
    kept = cache.read_bytes().count(b"\n")
    replies, sent = ask(server, cache, requests)
    assert [reply.text for reply in replies] == [f"q{n} by {n}" for n in range(40)]
    assert 0 < kept < 40
    assert sent == 40 - kept
    assert sum(count - 1 for count in server.seen.values()) <= 3  # those under way when it was killed


def test_an_interrupted_run_keeps_what_it_has_been_answered(server, tmp_path):
    server.delay = 0.01
    with Endpoint(server.url, tmp_path / "cache.jsonl", concurrency=2) as endpoint:
        replies = endpoint.ask(asks(100))
        assert next(replies).text == "q0 by 0"
        replies.close()  # as an exception in the loop around it does
    answered = server.seen.total()
    assert answered < 100
    _, sent = ask(server, tmp_path / "cache.jsonl", asks(100))
    assert sent == 100 - answered


def test_whatever_differs_is_asked_anew_and_the_same_is_asked_once(server, tmp_path):
    message = [{"role": "user", "content": "q"}]
    one = chat("m", message, temperature=0.7, seed=0)
    others = [
        chat("m2", message, temperature=0.7, seed=0),
        chat("m", message, temperature=0.8, seed=0),
        chat("m", message, temperature=0.7, seed=1),
        chat("m", message, temperature=0.7, seed=0, stop=["\n\n"]),
        chat("m", message, temperature=0.7, seed=0, max_tokens=5),
        chat("m", [{"role": "system", "content": "s"}, *message], temperature=0.7, seed=0),
    ]
    replies, sent = ask(server, tmp_path / "cache.jsonl", [one, one, *others, one])
    assert sent == 7
    assert replies[0] == replies[1] == replies[-1]
    # Whichever of them arrives first: what is not set is not sent.
    sets = collections.Counter(frozenset(json.loads(body)) for body in server.seen)
    always = frozenset({"model", "messages", "temperature", "seed"})
    assert sets == {always: 5, always | {"stop"}: 1, always | {"max_tokens"}: 1}


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(server, tmp_path, monkeypatch):
    ask(server, tmp_path / "a.jsonl", asks(1))
    monkeypatch.setenv("OPENAI_API_KEY", " secret-key\n")
    ask(server, tmp_path / "b.jsonl", asks(1))
    (path, without), (_, with_key) = server.heads
    assert path == "/v1/chat/completions"
    assert "Authorization" not in without
    assert with_key["Authorization"] == "Bearer secret-key"
    assert "secret" not in (tmp_path / "b.jsonl").read_text()
    monkeypatch.setenv("OPENAI_API_KEY", "“secret”")
    with pytest.raises(UserError, match="OPENAI_API_KEY contains invalid characters") as raised:
        Endpoint(server.url, tmp_path / "c.jsonl")
    assert "secret" not in str(raised.value)


def test_a_refusal_of_the_model_is_an_empty_text(server, tmp_path):
    server.faults = [lambda handler: handler.say(200, {"choices": [{"message": {"content": None}}]})]
    replies, sent = ask(server, tmp_path / "cache.jsonl", asks(1))
    assert (replies, sent) == ([("", None, 0, 0)], 1)


def test_a_key_that_the_server_repeats_is_written_nowhere(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    server.answer = lambda request: "Bearer secret-key it is"
    server.faults = [refuses(500, {"error": {"message": 280 * "." + "secret-key"}})]
    ((reply,), _) = ask(server, tmp_path / "cache.jsonl", asks(1))
    assert reply.text == "Bearer [OPENAI_API_KEY] it is"
    assert "secret" not in (tmp_path / "cache.jsonl").read_text()
    server.faults = [refuses(403, {"error": {"message": 280 * "." + "secret-key"}})]
    with pytest.raises(UserError, match=r"\.\[OPENAI_API_KEY\]$") as raised:
        ask(server, tmp_path / "other.jsonl", asks(1))
    assert "secret" not in str(raised.value)


def test_what_a_server_says_does_nothing_to_a_terminal(server, tmp_path):
    server.faults = [refuses(403, {"error": {"message": "\x1b]0;pwned\x07\x9b31mno\r\u202eon"}})]
    url = server.url.replace("://", "://me:pass@")
    with pytest.raises(UserError) as raised, Endpoint(url, tmp_path / "cache.jsonl") as asked:
        list(asked.ask(asks(1)))
    assert str(raised.value) == f"{server.url}: 403: ]0;pwned 31mno on"


def _sends(*heads, of=b"x", pause=0.0, count=10**9):
    """Says the lines of a head, and then the same bytes again and again until nobody listens."""

    def fault(handler):
        with contextlib.suppress(OSError):
            handler.wfile.write("\r\n".join(("HTTP/1.1 200 OK", *heads, "")).encode())
            for _ in range(count):
                handler.wfile.write(of)
                time.sleep(pause)
        handler.close_connection = True

    return fault


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_sends("Content-Length: 999", "", pause=0.05), "ReadTimeout: no whole answer after 0.4 s"),
        (_sends(of=b"X", pause=0.05), "ReadTimeout: no whole answer after 0.4 s"),
        (_sends("", of=bytes(2**16)), "ReadError: the answer has more than 1,048,576 bytes"),
        (
            _sends("Content-Encoding: gzip", "", of=gzip.compress(bytes(2**20)), count=1),
            "DecodingError: the answer is compressed, which was not asked for",
        ),
        (
            _sends("", of=b"[" * 10**5, count=1),
            r"no completion \(not valid JSON \(nested too deeply\)\), 200: \[{300}",
        ),
    ],
)
def test_an_answer_without_end_is_ended(server, tmp_path, monkeypatch, fault, message):
    monkeypatch.setattr(endpoint, "_MOST_BYTES", 2**20)
    server.faults = [fault]
    began = time.monotonic()
    with pytest.raises(UserError, match=f"no answer after 1 attempts, the last: {message}; run again later"):
        ask(server, tmp_path / "cache.jsonl", asks(1), attempts=1, timeout=0.4)
    assert time.monotonic() - began < 5
    replies, _ = ask(server, tmp_path / "cache.jsonl", asks(1))
    assert replies[0].text == "q0 by 0"


@pytest.mark.parametrize(
    ("status", "values", "message"),
    [
        (400, {"error": {"message": "temperature\nis too high"}}, r"400: temperature is too high$"),
        (401, {"error": {"message": "no"}}, r"401: no; is OPENAI_API_KEY right\?"),
        (404, {"detail": "Not Found"}, r'404: {"detail": "Not Found"}; the URL ends as in http'),
        (422, {"error": "no such model"}, r"422: no such model"),
        (403, b"<html>\nnot here", r"403: <html> not here"),
    ],
)
def test_what_the_server_will_never_answer_is_one_line(server, tmp_path, status, values, message):
    server.faults = [refuses(status, values)]
    with pytest.raises(UserError, match=message) as raised:
        ask(server, tmp_path / "cache.jsonl", asks(1))
    assert "\n" not in str(raised.value)
    assert server.seen.total() == 1


def test_a_server_that_never_answers_is_given_up_and_the_rest_is_kept(server, tmp_path):
    server.faults = [None, *[refuses(500)] * 3]
    with pytest.raises(UserError, match=r"no answer after 3 attempts, the last: 500: not now; run again"):
        ask(server, tmp_path / "cache.jsonl", asks(2), attempts=3, concurrency=1)
    assert len((tmp_path / "cache.jsonl").read_bytes().splitlines()) == 1


def test_no_server_no_url_no_cache(server, tmp_path):
    cache = tmp_path / "cache.jsonl"
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1/v1: no server there"), \
            Endpoint("http://127.0.0.1:1/v1", cache) as endpoint:  # fmt: skip
        list(endpoint.ask(asks(2)))
    with pytest.raises(UserError, match="'localhost:8000/v1' is not a URL"):
        Endpoint("localhost:8000/v1", cache)
    with pytest.raises(UserError, match="http://:x"), Endpoint("http://:x", cache) as endpoint:
        list(endpoint.ask(asks(1)))
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        Endpoint(server.url, tmp_path / "none" / "cache.jsonl")
    cache.write_text('{"key": 1}\nnot JSON\n')
    with pytest.raises(UserError, match=r"cache\.jsonl:1: not a cached answer"):
        Endpoint(server.url, cache)


def test_completions_have_their_own_address(server, tmp_path):
    one = completion("m", "Once upon", temperature=0.7, seed=3, max_tokens=5, stop=["."])
    assert one == {
        "model": "m", "prompt": "Once upon", "temperature": 0.7, "seed": 3, "max_tokens": 5, "stop": ["."],
    }  # fmt: skip
    replies, _ = ask(server, tmp_path / "cache.jsonl", [one, *asks(1)])
    assert [reply.text for reply in replies] == ["Once upon by 3", "q0 by 0"]
    assert {path for path, _ in server.heads} == {"/v1/completions", "/v1/chat/completions"}


def test_requests_of_a_minute_are_spread_over_it(server, tmp_path):
    began = time.monotonic()
    server.faults = [refuses(503)]
    ask(server, tmp_path / "cache.jsonl", asks(5), per_minute=600)  # the one tried again is the sixth
    assert time.monotonic() - began >= 0.5
    with Endpoint(server.url, tmp_path / "cache.jsonl", per_minute=6) as endpoint:
        waits = [endpoint._turn() for _ in range(5)]
    assert waits == pytest.approx([0, 10, 20, 30, 40], abs=5)
    with Endpoint(server.url, tmp_path / "cache.jsonl") as endpoint:
        assert max(endpoint._turn() for _ in range(5)) <= 0


def test_a_request_refused_among_others_is_settled_and_its_reason_kept(server, tmp_path):
    server.faults = [None, refuses(400, {"error": {"message": "too\nlong"}})]
    replies, sent = ask(server, tmp_path / "cache.jsonl", asks(3), concurrency=1)
    assert [reply.text for reply in replies] == ["q0 by 0", "", "q2 by 2"]
    assert replies[1].finish_reason == "refused: 400: too long"
    assert sent == 3
    assert ask(server, tmp_path / "cache.jsonl", asks(3)) == (replies, 0)


def test_requests_refused_with_new_settings_are_an_error_and_not_kept(server, tmp_path):
    cache = tmp_path / "cache.jsonl"
    ask(server, cache, asks(2))
    content = cache.read_bytes()
    others = [request | {"max_tokens": 5} for request in asks(3)]
    server.faults = 3 * [refuses(400, {"error": {"message": "no max_tokens"}})]
    with pytest.raises(UserError, match=r"400: no max_tokens$"):
        ask(server, cache, others)
    assert cache.read_bytes() == content
    server.faults = []  # the first error may cancel the other requests
    ask(server, cache, others[:1])
    for count in (2, 3):  # later runs know that the server has answered others
        server.faults = [refuses(400)]
        replies, _ = ask(server, cache, others[:count])
        assert replies[-1].finish_reason == "refused: 400: not now"


def test_half_a_character_becomes_a_replacement_character(server, tmp_path):
    said = "a \U0001f600 \\ud83d \ud83d"  # JSON escapes all but "a "
    server.answer = lambda request: said
    replies, sent = ask(server, tmp_path / "cache.jsonl", asks(1))
    assert (replies[0].text, sent) == ("a \U0001f600 \\ud83d \ufffd", 1)
    row = {"custom_id": "k", "response": {"status_code": 200, "body": answer(asks(1)[0])}}
    row["response"]["body"]["choices"][0]["message"]["content"] = said
    (tmp_path / "results.jsonl").write_text(json.dumps(row))
    with Batch(tmp_path / "batch.jsonl") as batch:
        batch.read(tmp_path / "results.jsonl")
    kept = json.loads((tmp_path / "batch.jsonl").read_text())
    assert kept["reply"]["text"] == replies[0].text


def test_a_server_that_comes_back_elsewhere_repeats_nothing(server, tmp_path):
    first, _ = ask(server, tmp_path / "cache.jsonl", asks(3))
    with Server(echo) as elsewhere:
        assert ask(elsewhere, tmp_path / "cache.jsonl", asks(3)) == (first, 0)


def results(file, failing=()):
    """What a batch service makes of a file of requests, in an order of its own."""
    for number, line in reversed(list(enumerate(file.read_text().splitlines()))):
        row = json.loads(line)
        assert row.keys() == {"custom_id", "method", "url", "body"}
        assert row["method"] == "POST"
        assert row["url"] == f"/v1/{'chat/' if 'messages' in row['body'] else ''}completions"
        status, body = (
            (400, {"error": {"message": "no"}}) if number in failing else (200, answer(row["body"]))
        )
        response = {"status_code": status, "request_id": "r", "body": body}
        yield {"id": f"b{number}", "custom_id": row["custom_id"], "response": response, "error": None}


def answer(body):
    return scripted_teacher.completion(echo, body)


def test_a_batch_is_written_and_read_and_what_failed_is_written_again(server, tmp_path):
    cache, file, answered = (tmp_path / name for name in ("cache.jsonl", "batch.jsonl", "results.jsonl"))
    requests = [*asks(3), *asks(2), completion("m", "Once", temperature=0.0, seed=9)]
    with Batch(cache) as batch:
        assert list(batch.ask(requests)) == [None] * 6
        batch.write(file)
    assert len(file.read_text().splitlines()) == 4
    expired = {"id": "b9", "custom_id": "other", "response": None, "error": {"code": "batch_expired"}}
    answered.write_text("".join(json.dumps(row) + "\n" for row in [*results(file, failing=[1]), expired]))
    with Batch(cache) as batch:
        batch.read(answered)
        batch.read(answered)
        replies = list(batch.ask(requests))
        batch.write(file)
    assert [reply and reply.text for reply in replies] == [
        "q0 by 0", None, "q2 by 2", "q0 by 0", None, "Once by 9",
    ]  # fmt: skip
    (left,) = file.read_text().splitlines()
    assert json.loads(left)["body"] == requests[1]
    assert len(cache.read_bytes().splitlines()) == 3
    assert ask(server, cache, requests)[1] == 1  # an endpoint continues where a batch ended


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"custom_id": 3}', "results.jsonl:1: not a batch result"),
        ('{"custom_id": "a", "response": "b"}', "results.jsonl:1: not a batch result"),
        (
            '{"custom_id": "a", "response": {"status_code": 200, "body": {}}}',
            "1: its response is not a completion",
        ),
    ],
)
def test_other_files_are_no_results(tmp_path, row, message):
    (tmp_path / "results.jsonl").write_text(row)
    with Batch(tmp_path / "cache.jsonl") as batch, pytest.raises(UserError, match=message):
        batch.read(tmp_path / "results.jsonl")
    with Batch(tmp_path / "cache.jsonl") as batch, pytest.raises(UserError, match="cannot be written"):
        batch.write(tmp_path / "none" / "batch.jsonl")
