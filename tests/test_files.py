"""Files are written whole or not at all, and what is wrong in one is named with its place."""

import errno
import json
import subprocess
import sys

import pytest

from cot_jax.errors import UserError, first_line, writing
from cot_jax.files import (
    Row,
    locked,
    read_json,
    read_json_lines,
    read_rows,
    write_json,
    write_json_lines,
    write_text,
)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "a.json"
    write_text(file, "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "half of it \ud800")
    assert file.read_text() == "before"
    with (
        pytest.raises(UserError, match=r"none/a cannot be written: No such file or directory; fix that"),
        writing(tmp_path / "none/a"),
    ):
        write_text(tmp_path / "none/a", "")


def test_a_directory_is_one_process_s_until_it_ends(tmp_path, capsys, monkeypatch):
    hold = "import sys; from pathlib import Path; from cot_jax.files import locked\n"
    hold += "with locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    workdir = tmp_path / "a" / "run"
    command = [sys.executable, "-c", hold, str(workdir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with (
            pytest.raises(UserError, match=r"a/run is in use by another process: wait for"),
            locked(workdir),
        ):
            pass
        other.kill()
    with locked(workdir), locked(tmp_path):
        assert capsys.readouterr().err == ""

    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with locked(workdir):
        assert "run cannot be locked (No locks available): start no second" in capsys.readouterr().err


def test_what_is_written_is_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"a": "½"})
    assert "½" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": "½"}
    rows = [{"id": 1}, {"id": "two"}]
    write_json_lines(tmp_path / "a.jsonl", rows)
    assert [row.values for row in read_json_lines(tmp_path / "a.jsonl")] == rows
    write_json(tmp_path / "list.json", rows)
    assert [row.values for row in read_rows(tmp_path / "list.json")] == rows


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_json, None, r"f: no such file$"),
        (read_json, b"{", r"f: not valid JSON"),
        (read_json, b"\xe9", r"f: not UTF-8 \(unexpected end of data at byte 0\)$"),
        (read_json, b"[]", r"f: expected a JSON object, found list$"),
        (lambda path: read_json(path, list), b"{}", r"f: expected a JSON list, found dict$"),
        (read_json_lines, None, r"f: no such file$"),
        (lambda path: list(read_json_lines(path)), b"\nx\n", r"f:2: not valid JSON .* at column 1"),
        (
            lambda path: list(read_json_lines(path)),
            b'{"a": 1\n',
            r"f:1: not valid JSON \([^()]* at column 8\)$",
        ),
        (lambda path: list(read_json_lines(path)), b'{"a": "\xe9"}', r"f:1: not UTF-8"),
        (
            lambda path: list(read_json_lines(path)),
            b'\xef\xbb\xbf[\n{"a": 1}\n]',
            r"f:1: expected one whole JSON object a line, found a list$",
        ),
        (
            lambda path: list(read_json_lines(path)),
            b'{\n"a": 1\n}',
            r"f:1: expected one whole JSON object a line, found only '{'$",
        ),
        (lambda path: list(read_rows(path)), b"[{}, 1]", r"f: row 2: expected a JSON object, found int$"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, read, content, message):
    if content is not None:
        (tmp_path / "f").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "f")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id": 1, "question": "?", "label": "1"}, "no field 'input'; the row has id, question, label"),
        ({}, "no field 'input'; the row has none"),
        ({"x" * 300: 1}, f"no field 'input'; the row has {'x' * 200}..."),
        ({"input": None}, "'input' must be a text in quotes or a list of texts; found None"),
    ],
)
def test_a_missing_field_is_named_with_what_there_is(values, message):
    with pytest.raises(UserError) as caught:
        Row("f:1", values).parts("input")
    assert str(caught.value) == f"f:1: {message}"
    with pytest.raises(UserError) as caught:
        Row("f:1", values).text("input")
    assert str(caught.value) == f"f:1: {message.replace(' or a list of texts', '')}"


def test_a_text_that_no_tokenizer_should_see_is_refused(tmp_path):
    (tmp_path / "f").write_text(json.dumps({"a": 1_000_001 * "x", "b": ["y", 1_000_001 * "x"]}))
    (row,) = read_json_lines(tmp_path / "f")
    for read in (lambda: row.text("a"), lambda: row.parts("b"), lambda: row.texts("a")):
        with pytest.raises(
            UserError, match=r"f:1: '[ab]' has 1,000,001 characters, more than 1,000,000: sho"
        ):
            read()


def test_an_error_is_one_line_that_shows_no_password_and_does_nothing_to_a_terminal():
    said = str(UserError("http://me:p@ss@host/v1 and https://a.b/c@d:\x1b[31m\r\nno\x9b\u202e"))
    assert said == "http://host/v1 and https://a.b/c@d: [31m  no  "
    assert first_line(ValueError("\x1b]0;x\x07")) == "ValueError:  ]0;x "


def test_first_line():
    assert first_line(ValueError("one\ntwo")) == "ValueError: one"
    assert first_line(ValueError()) == "ValueError"
