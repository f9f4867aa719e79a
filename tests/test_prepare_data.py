"""Fetching published data, from a server on this machine: the real files, and every way to go wrong."""

import hashlib
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
import zipfile

import pytest

from cot_jax import prepare_data
from cot_jax.data import tasks
from cot_jax.data.teacher import outputs


class _Server(http.server.ThreadingHTTPServer):
    """Serves `files`: path -> bytes, or (bytes, the length it claims to have)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        server: "_Server"

        def do_GET(self):
            self.server.requests.append(self.path)
            content = self.server.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            body, length = content if isinstance(content, tuple) else (content, len(content))
            self.send_response(200)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    def __init__(self):
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.files: dict = {}
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _zip(entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def entries(data_root):
    """What the authors' archive has of SVAMP and CQA, and things that are not to be unpacked."""
    found = {}
    for name in ("svamp", "cqa"):
        for path in sorted((data_root / name).rglob("*.json")):
            relative = path.relative_to(data_root)
            found[f"datasets/{relative}"] = path.read_bytes()
            found[f"__MACOSX/datasets/{relative.parent}/._{path.name}"] = b"\x00\x05"
    found["datasets/gpt-neox/svamp/train.json"] = b"[]"
    found["datasets/svamp/setup.py"] = b"print('boo')"
    return found


@pytest.fixture(scope="module")
def archive(entries):
    return _zip(entries.items())


def _run(*arguments):
    return prepare_data.main([str(argument) for argument in arguments])


def _same_tree(a, b):
    files = sorted(path.relative_to(a) for path in a.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(b) for path in b.rglob("*") if path.is_file())
    for file in files:
        assert (a / file).read_bytes() == (b / file).read_bytes(), file


def test_fetches_checks_and_is_done_once(server, archive, data_root, tmp_path, capsys):
    server.files["/datasets.zip"] = archive
    root = tmp_path / "new" / "root"
    assert _run("svamp", "cqa", "svamp", "--root", root, "--url", f"{server.url}/datasets.zip") == 0
    for name in ("svamp", "cqa"):
        _same_tree(data_root / name, root / name)
    assert sorted(path.name for path in root.iterdir()) == ["cqa", "svamp"]
    out, err = capsys.readouterr()
    assert out == f"{root}/svamp: train 800, test 200\n{root}/cqa: train 9,741, test 1,221\n"
    assert err.count("\n") == 10, "one line per tenth"
    assert err.splitlines()[-1].endswith(f"of {len(archive) / 1e6:.1f} MB")
    assert len(tasks.load("svamp", root).train) == 720

    assert _run("cqa", "svamp", "--root", root, "--url", f"{server.url}/datasets.zip") == 0
    assert server.requests == ["/datasets.zip"], "what is there must not be fetched again"
    assert "svamp exists already: train 800, test 200" in capsys.readouterr().out


def test_fetches_only_what_is_asked_and_missing(server, archive, data_root, tmp_path):
    server.files["/a"] = (archive, None)  # a server that does not say how long the file is
    shutil.copytree(data_root / "svamp", tmp_path / "svamp")
    assert _run("svamp", "cqa", "--root", tmp_path, "--url", f"{server.url}/a") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cqa", "svamp"]


def test_an_archive_at_hand(archive, data_root, tmp_path):
    (tmp_path / "at hand.zip").write_bytes(archive)
    url = (tmp_path / "at hand.zip").as_uri()
    assert _run("svamp", "--root", tmp_path / "root", "--url", url) == 0
    _same_tree(data_root / "svamp", tmp_path / "root/svamp")


def test_a_bar_on_a_terminal(server, archive, tmp_path, capsys, monkeypatch):
    server.files["/a"] = archive
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert _run("svamp", "--root", tmp_path, "--url", f"{server.url}/a") == 0
    err = capsys.readouterr().err
    assert "100%" in err
    assert "\r" in err


def _without_last_row(content):
    return content[: content.rstrip(b"\n").rindex(b"\n") + 1]


FAULTS = {
    "not there": (lambda e, z: None, "cannot fetch http://.*404.*pass --url file:///PATH"),
    "cut off": (lambda e, z: (z[:-1000], len(z)), "the connection ended after .* bytes: try again"),
    "nothing": (lambda e, z: b"", "not a valid zip archive"),
    "a web page": (lambda e, z: b"<html>Sign in</html>" * 99, "not a valid zip archive"),
    "a damaged file": (lambda e, z: z[:3000] + bytes(500) + z[3500:], "not a valid zip archive"),
    "half a zip": (lambda e, z: z[: len(z) // 2], "not a valid zip archive"),
    "upwards": (lambda e, z: _zip([*e.items(), ("../evil.json", b"[]")]), r"an entry '\.\./evil\.json'"),
    "far upwards": (
        lambda e, z: _zip([*e.items(), ("a/../../svamp/x", b"")]),
        r"an entry 'a/\.\./\.\./svamp",
    ),
    "from the root": (
        lambda e, z: _zip([*e.items(), ("/tmp/evil.json", b"[]")]),
        "an entry '/tmp/evil.json'",
    ),
    "twice": (
        lambda e, z: _zip([*e.items(), ("old/svamp/svamp_test.json", b"[]")]),
        "it has svamp/svamp_test.json twice",
    ),
    "no such data": (
        lambda e, z: _zip([(k, v) for k, v in e.items() if "/svamp/" not in k]),
        "it has no svamp/svamp_train.json",
    ),
    "a row too few": (
        lambda e, z: _zip(
            [(k, _without_last_row(v) if k == "datasets/svamp/svamp_test.json" else v) for k, v in e.items()]
        ),
        r"published data \(svamp/llm/test_CoT_\*\.json: 200 teacher outputs for the 199 rows of svamp/",
    ),
    "other rationales": (
        lambda e, z: _zip([(k, v.replace(b"answer is", b"result is")) for k, v in e.items()]),
        "svamp train has 0 rationales, not 789",
    ),
    "a word of a rationale": (
        lambda e, z: _zip(
            [
                (k, v.replace(b"Each", b"each", 1) if k.endswith("train_CoT_1.json") else v)
                for k, v in e.items()
            ]
        ),
        r"published data \(svamp/llm/train_CoT_\*\.json are unknown outputs: sha256 is not \w{64}\)",
    ),
    "no rationales": (
        lambda e, z: _zip([(k, v) for k, v in e.items() if "/llm/" not in k]),
        "svamp train has 0 rationales, not 789",
    ),
    "other gold labels": (
        lambda e, z: _zip([(k, v.replace(b"84.0", b"85.0")) for k, v in e.items()]),
        r"svamp train has 58\d right, not 588",
    ),
    "a broken row": (
        lambda e, z: _zip([(k, v.replace(b'"}', b'"', 1)) for k, v in e.items()]),
        r"\(svamp/svamp_train\.json:1: not valid JSON .*\): nothing was kept",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_and_leaves_nothing(server, entries, archive, tmp_path, capsys, fault):
    make, message = FAULTS[fault]
    if (content := make(entries, archive)) is not None:
        server.files["/a"] = content
    root = tmp_path / "root"
    assert _run("svamp", "--root", root, "--url", f"{server.url}/a") == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.endswith(" MB")]
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert list(root.iterdir()) == []
    assert not (tmp_path / "evil.json").exists()


def test_an_archive_that_is_or_unpacks_to_too_much(server, archive, tmp_path, capsys, monkeypatch):
    server.files["/a"] = (archive, None)
    monkeypatch.setattr(prepare_data, "MAX_BYTES", len(archive))
    assert _run("svamp", "cqa", "--root", tmp_path, "--url", f"{server.url}/a") == 2
    assert re.search(r"authors' archive: over [\d,]+ bytes unpacked", capsys.readouterr().err)
    monkeypatch.setattr(prepare_data, "MAX_BYTES", 500_000)
    url = server.url.replace("://", "://me:pass@")
    monkeypatch.setattr(urllib.request, "urlopen", _without_name(urllib.request.urlopen))
    assert _run("svamp", "--root", tmp_path, "--url", f"{url}/a") == 2
    expected = f"error: {server.url}/a is not the published file: over 500,000 bytes\n"
    assert capsys.readouterr().err == expected
    assert list(tmp_path.iterdir()) == []


def _without_name(urlopen):
    return lambda url, **options: urlopen(url.replace("me:pass@", ""), **options)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/datasets.zip", "file:///nowhere.zip", "nonsense"])
def test_no_network(tmp_path, capsys, url, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert _run("svamp", "--root", tmp_path, "--url", url) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: cannot fetch {url} (")
    assert err.endswith("without a network, copy the file and pass --url file:///PATH\n")
    assert err.count("\n") == 1


def test_what_is_there_and_different_is_left_alone(server, archive, data_root, tmp_path, capsys):
    server.files["/a"] = archive
    shutil.copytree(data_root / "anli1", tmp_path / "anli1")
    assert _run("svamp", "anli1", "--root", tmp_path, "--url", f"{server.url}/a") == 2
    assert "anli1 exists, but not as published (anli1 train has 9,877 examples, not 16,946): move it" in (
        capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["anli1"]
    assert server.requests == []


def test_asdiv_comes_from_its_authors(server, data_root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare_data, "ASDIV_URL", server.url)
    server.files["/ASDiv.xml"] = (data_root / "asdiv/ASDiv.xml").read_bytes()
    server.files["/nfolds/asdiv-w/fold4.txt"] = (data_root / "asdiv/nfolds/asdiv-w/fold4.txt").read_bytes()
    assert _run("asdiv", "--root", tmp_path) == 0
    for split in ("train", "test"):
        rows, published = (
            [json.loads(line) for line in (root / f"asdiv/asdiv_{split}.json").read_text().splitlines()]
            for root in (tmp_path, data_root)
        )
        assert rows == published
    assert [path.name for path in tmp_path.iterdir()] == ["asdiv"]

    shutil.rmtree(tmp_path / "asdiv")
    server.files["/ASDiv.xml"] += b"\n"
    assert _run("asdiv", "--root", tmp_path) == 2
    assert "ASDiv.xml is not the published file: its sha256 is not ef89" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_published_checksums(data_root):
    for name, digest in prepare_data.ASDIV_SHA256.items():
        assert hashlib.sha256((data_root / "asdiv" / name).read_bytes()).hexdigest() == digest


def test_every_published_data_set_is_known():
    assert prepare_data.KNOWN.keys() == {name for name, data in tasks.DATA_SETS.items() if not data.source}
    for name, splits in prepare_data.KNOWN.items():
        assert tuple(splits) == tasks.DATA_SETS[name].splits
        assert all(len(known) == len(tasks.Counts._fields) for known in splits.values())


def test_what_is_known_of_the_complete_anli_and_esnli(data_root):
    texts = outputs.read_outputs(data_root / "anli1/llm_full", "train")
    assert texts is not None
    said = [outputs.parse("anli1", text, "reference") for text in texts]
    found = len(said), sum(bool(s.rationale) for s in said), sum(bool(s.label) for s in said)
    assert found == prepare_data.KNOWN["anli1"]["train"][:3]
    for name in ("anli1", "esnli"):
        data = tasks.DATA_SETS[name]
        for split in ("valid", "test"):
            examples = data.read(split, data_root, "reference")
            assert tasks.count(examples, data.by_value) == prepare_data.KNOWN[name][split]
            digest = prepare_data.outputs_sha256(data_root / name / "llm", split)
            assert digest == prepare_data.OUTPUTS_SHA256[name][split]
    digest = prepare_data.outputs_sha256(data_root / "anli1/llm_full", "train")
    assert digest == prepare_data.OUTPUTS_SHA256["anli1"]["train"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["svmap", "--root", "."], 2, "invalid choice: 'svmap'"),
        (
            ["svamp", "rte", "--root", "."],
            2,
            "rte is not fetched here: get it from https://gluebenchmark.com/",
        ),
        (
            ["wic", "--root", "."],
            2,
            "wic is not fetched here: get it from https://super.gluebenchmark.com/ta",
        ),
        (["gsm8k", "--root", "."], 2, "gsm8k is not fetched here: get it from openai/grade-school-math"),
        (["svamp"], 2, "--root"),
        (["--root", "."], 2, "NAME"),
        (["--help"], 0, "svamp, cqa, anli1, esnli, asdiv"),
        (["svamp", "--root", "/dev/null"], 2, "error: /dev/null cannot be written: File exists; fix"),
        (["svamp", "--root", "new", "--url", "file:///nowhere.zip"], 2, "cannot fetch file:///nowhere.zip"),
    ],
)
def test_command_line(tmp_path, arguments, status, message):
    command = [sys.executable, "-W", "error", "-m", "cot_jax.prepare_data", *arguments]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == status
    assert message in (done.stdout if status == 0 else done.stderr)
    assert "Traceback" not in done.stderr
