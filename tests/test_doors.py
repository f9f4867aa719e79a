"""Nothing that a user can feed a command ends in a traceback."""

import contextlib
import errno
import gc
import io
import json
import os
import random
import subprocess
import sys

import attack
import numpy as np
import pytest
import safetensors
from flax.serialization import msgpack_serialize

from cot_jax.config import load_config_module
from cot_jax.errors import UserError, command
from cot_jax.files import misfit, read_json, read_json_lines, read_rows, whole_directory
from cot_jax.models import pretrained
from cot_jax.models import student as students
from cot_jax.models.student import Options
from cot_jax.models.weights import Weight


@pytest.fixture(scope="module")
def world(random_run, tmp_path_factory):
    return attack.World(tmp_path_factory.mktemp("world"), random_run)


@pytest.mark.slow
def test_a_sample_of_broken_inputs(world, tmp_path, capsys, recwarn):
    """`python -m tests.attack` draws more of them."""
    assert attack.run(world, seed=6, first=0, cases=25, only="", work=tmp_path, keep=False) == []
    assert "25 tried, 0 failed" in capsys.readouterr().out


def test_the_attack_sees_what_is_taken_or_refused_wrongly(world, tmp_path, monkeypatch):
    target = next(target for target in attack.TARGETS if target.command == "compare")
    case = attack.Case(target, "sweep/table.json", "too deep", True)

    def found(main):
        monkeypatch.setattr("cot_jax.compare.main", main)
        place = tmp_path / str(random.random())
        return world.attack(case, random.Random(0), place).partition("\n")[0]

    def fails(argv):
        raise KeyError(argv)

    def says(text, status):
        return lambda argv: print(text, file=sys.stderr) or status

    assert found(fails) == "a traceback"
    assert found(says("Traceback (most recent call last)", 1)) == "a traceback among what it says"
    assert found(says("error: a\nerror: b", 2)) == "status 2, 2 errors"
    assert found(says("error: a\nb", 2)) == "status 2, 1 errors"
    assert found(says("error: MemoryError", 1)).startswith("it took")
    assert found(says("", 0)) == "damaged but taken, status 0"
    assert found(says("error: a", 2)) == ""
    monkeypatch.setattr(attack, "SECONDS", 1)
    assert found(lambda argv: [None for _ in iter(int, 1)]) == "no end after 1 s"


DAMAGED = [
    pytest.param(content, message, id=message[:16])
    for content, message in [
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "an integer of 5,000 digits"),
        ('{"a": "x\\ud800"}', "half of a character"),
        ('{"\\uDFFF": 1}', "half of a character"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ('{"a": "½"}'.encode("utf-16"), "not UTF-8"),
        ('{"a": 1', "not valid JSON"),
        ("3", "expected a JSON object, found int"),
    ]
]


@pytest.mark.parametrize(("content", "message"), DAMAGED)
def test_json_is_refused_at_the_door(tmp_path, content, message):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(UserError, match=rf"/f: .*{message}"):
        read_json(tmp_path / "f")
    (tmp_path / "f").write_bytes(b'{"a": 1}\n' + content + b"\n")
    for read in (read_json_lines, read_rows):
        with pytest.raises(UserError, match=rf"/f:2: .*{message}"):
            list(read(tmp_path / "f"))


@pytest.mark.parametrize("read", [read_json, lambda path: next(read_json_lines(path)).values])
def test_marks_of_order_pairs_of_surrogates_and_long_integers_are_read(tmp_path, read):
    value = {"a": "\U0001f600 ½ \\ud800", "b": 10**299}
    (tmp_path / "f").write_bytes(b"\xef\xbb\xbf" + json.dumps(value).encode())
    assert read(tmp_path / "f") == value
    (tmp_path / "rows").write_bytes(b'\xef\xbb\xbf [{"a": 1}]')
    assert [row.values for row in read_rows(tmp_path / "rows")] == [{"a": 1}]


@pytest.mark.parametrize("read", [read_json, read_json_lines, lambda path: list(read_rows(path))])
def test_a_folder_and_a_circle_are_no_files(tmp_path, read):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name, why in ((".", "Is a directory"), ("circle", "Too many levels"), ("n" * 300, "name too long")):
        with pytest.raises(UserError, match=rf"cannot be read \(.*{why}"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("value", "shape", "wrong"),
    [
        ({"a": 1, "more": []}, {"a": int}, ""),
        ({"a": True}, {"a": int}, "a is True, expected an integer"),
        ({"a": 1}, {"a": bool}, "a is 1, expected true or false"),
        ({"a": 1}, {"a": float}, ""),
        ({"a": 1.0}, {"a": int}, "a is 1.0, expected an integer"),
        ({}, {"a": int}, "no 'a'"),
        ({"a": None}, {"a?": int}, ""),
        ({"a": "1"}, {"a?": int}, "a is '1', expected an integer or null"),
        ({"a": {}}, {"a": {"b": int}}, "a has no 'b'"),
        ({"a": [{"b": 0}, {"b": "x"}]}, {"a": [{"b": int}]}, "a[1].b is 'x', expected an integer"),
        ({"a": [1, None]}, {"a": ([int], None)}, "a[1] is None, expected an integer"),
        ({"x": 1, "y": "z"}, {str: int}, "y is 'z', expected an integer"),
        ({"n": 9}, {"n": range(1, 9)}, "n is 9, expected an integer from 1 to 8"),
        ({"n": True}, {"n": range(1, 9)}, "n is True, expected an integer from 1 to 8"),
        ([], dict, "expected a JSON object, found list"),
        ({"a": "y" * 100}, {"a": int}, f"a is '{'y' * 79}..., expected an integer"),
    ],
)
def test_what_has_another_shape_is_named_with_its_place(value, shape, wrong):
    assert misfit(value, shape) == wrong


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("one\ntwo"), 2, "error: one two\n"),
        (OSError(errno.ENOSPC, "No space", "a/b"), 1, "error: a/b: No space; --debug shows where\n"),
        (MemoryError(), 1, "error: MemoryError; --debug shows where\n"),
        (RecursionError("deep"), 1, "error: RecursionError: deep; --debug shows where\n"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), 1, "error: UnicodeEncodeError: "),
        (RuntimeError("RESOURCE_EXHAUSTED: 9\n"), 1, "error: RuntimeError: RESOURCE_EXHAUSTED: 9; --debug"),
    ],
)  # fmt: skip
def test_the_frame_says_one_line_and_debug_where(capsys, error, status, said):
    @command
    def main(argv):
        assert argv == ["a"]
        raise error

    assert main(["a"]) == status
    assert capsys.readouterr().err.startswith(said)
    assert main(["--debug", "a"]) == status
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.splitlines()[-1].startswith(said.strip()[:20])


def test_ctrl_c_is_no_traceback(capsys):
    @command
    def main(argv):
        raise KeyboardInterrupt

    assert main([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_frame_keeps_the_traceback_of_our_mistakes():
    @command
    def main(argv):
        return argv["x"]

    with pytest.raises(TypeError):
        main([])


def test_a_directory_is_written_whole_or_not_at_all(tmp_path):
    def write(*names, full=False):
        with whole_directory(tmp_path / "new"):
            for name in names:
                (tmp_path / "new" / name).touch()
            if full:
                (tmp_path / "new" / "more").mkdir()
                raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"new cannot be written: No space left"):
        write("a", "b", full=True)
    assert list((tmp_path / "new").iterdir()) == []
    write("a")
    with pytest.raises(UserError, match="is not empty"):
        write("b")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]


def test_weights_on_a_full_disk_are_an_error_of_the_file_system(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise safetensors.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(pretrained, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        pretrained.write_tensors(tmp_path / "w.safetensors", {"w": np.zeros((3, 3), np.float32)})


@pytest.mark.parametrize("preset", sorted(students.PRESETS))
def test_sizes_that_no_model_has_are_refused_before_it_is_made(preset):
    """Of every family; a size that is given otherwise may make a model, or a line."""
    sound = students.from_scratch(preset, texts=students.Texts(64, 0, 1), options=Options()).architecture()
    sound = json.loads(json.dumps(sound))
    assert json.loads(json.dumps(students.build(sound, Options()).architecture())) == sound
    for name in (name for name, value in sound.items() if type(value) is int and not name.endswith("_id")):
        for value in (-2, 10**9, 10**30, 2.5, "8", True, [8]):
            with pytest.raises(UserError, match=rf"config\.json: {name} is "):
                students.build(sound | {name: value}, Options())
    rng = random.Random(0)
    for _ in range(60):
        with contextlib.suppress(UserError):
            students.build(json.loads(attack._other_values(rng, json.dumps(sound).encode())), Options())


def test_nothing_of_a_size_is_made_before_a_tensor_has_it(tmp_path):
    pretrained.write_tensors(tmp_path / "model.safetensors", {"w": np.zeros((3, 2), np.float32)})
    weights = {"w": Weight("DV", (2**40, 2**20), 1, 1.0, "w")}
    with pytest.raises(UserError, match=r"tensor w is \(3, 2\), config\.json asks for"):
        pretrained.read(tmp_path, weights, {}, ())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"", "SafetensorError"),
        ("flax_model.msgpack", b"", "cannot be read"),
        ("flax_model.msgpack", msgpack_serialize([1, 2]), "cannot be read"),
        ("flax_model.msgpack", msgpack_serialize({"w": {"kernel": 1}}), "w.weight is not a tensor but int"),
        ("pytorch_model.bin", b"", "cannot be read|needs PyTorch"),
        ("model.safetensors.index.json", b'{"weight_map": {"w', "index.json: not valid JSON"),
        ("model.safetensors.index.json", b'{"weight_map": ["w"]}', "weight_map is .*, expected an object"),
        ("model.safetensors.index.json", b'{"weight_map": {"w": 3}}', "weight_map.w is 3, expected a text"),
        ("model.safetensors.index.json", b'{"weight_map": {"w": "../f"}}', "'../f' is not a file beside it"),
    ],
)
def test_weights_that_are_none_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        pretrained.read(tmp_path, {"w": Weight("DV", (2, 3), 1, 1.0, "w")}, {}, ())


@pytest.mark.parametrize("what", attack._PYTHON)
def test_config_files_that_give_no_config_are_one_line(tmp_path, what):
    damage, _ = attack._PYTHON[what]
    (tmp_path / "c.py").write_bytes(damage(random.Random(0), b""))
    with pytest.raises(UserError, match=r"c\.py: [^\n]*\Z"):
        load_config_module(tmp_path / "c.py", "get_config", list)


def test_text_on_standard_input_need_not_be_text(monkeypatch, capsys, tmp_path):
    from cot_jax import predict

    monkeypatch.setattr("cot_jax.training.saved.load", lambda run: None)
    monkeypatch.setattr("cot_jax.training.answering.predict", lambda saved, rows, options: list(rows))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"input": "a"}\n\xff\n')))
    assert predict.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: standard input:2: not UTF-8 (invalid start byte at byte 0)\n"


def test_a_command_looks_for_garbage_rarely():
    before = gc.get_threshold()
    try:
        gc.set_threshold(700)
        assert command(lambda argv: gc.get_threshold()[0])([]) > 10_000
    finally:
        gc.set_threshold(*before)


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("train", "--helpfull")])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_stops_is_no_traceback(arguments, unbuffered):
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-m", "cot_jax", *arguments],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=100,
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")
