"""Broken inputs for every command: python -m tests.attack --cases=500 [--seed=0] [--only=predict] [--keep]

Draws what a user could feed a command by accident, one case after another: a command, one of the files that
it reads, and what is wrong with it. A case fails if it ends in a traceback or in more than one line of error,
takes too long or too much memory, or if the command takes for sound what is known to be damaged, or for
damaged what is sound. Case n of a seed is the same whatever the others are: `--first=n --cases=1 --keep`
repeats it.
"""

import argparse
import collections
import contextlib
import dataclasses
import importlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

SECONDS, MEBIBYTES = 60, 2048

# What is wrong with a file.  `refused`: True if no command may take it, False if all must, None if either is
# right.
Damage = tuple[Callable[[random.Random, bytes], bytes], bool | None]

_ODD = [None, True, -1, 0, 1, 10**9, 10**25, 1.5, float("nan"), 1e300, "", "x", "\0", "y" * 300, [], {}]
_ODD += [[[]], {"a": 1}, [None], ["x", 1]]
_DEEP = b"[" * 100_000 + b"]" * 100_000


def _paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _paths(value[key], (*path, key))


def _other_values(rng: random.Random, content: bytes) -> bytes:
    """JSON with one to three values of other types or sizes, or none."""
    value = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        paths = list(_paths(value))
        if not paths:
            break
        short = [path for path in paths if len(path) <= rng.choice([1, 2, 3, 9])]
        *way, last = rng.choice(short or paths)
        place = value
        for key in way:
            place = place[key]
        if isinstance(place, dict) and rng.random() < 0.2:
            del place[last]
        else:
            place[last] = rng.choice(_ODD)
    return json.dumps(value).encode()


def _with(member: bytes) -> Callable[[random.Random, bytes], bytes]:
    def damage(rng: random.Random, content: bytes) -> bytes:
        return content.rstrip()[:-1].rstrip() + b', "added": ' + member + b"}"

    return damage


def _torn(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(1, len(content.rstrip()) - 1)]


def _flipped(rng: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 10, 1000])):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return bytes(damaged)


def _not_utf8(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content.rstrip()))
    return content[:at] + b"\xff" + content[at:]


_JSON: dict[str, Damage] = {
    "other values": (_other_values, None),
    "torn": (_torn, True),
    "not UTF-8": (_not_utf8, True),
    "UTF-16": (lambda rng, content: content.decode().encode("utf-16"), True),
    "a mark of order": (lambda rng, content: b"\xef\xbb\xbf" + content, False),
    "too deep": (_with(_DEEP), True),
    "an integer too long": (_with(b"9" * 5000), True),
    "half a character": (_with(b'"\\ud800x"'), True),
    "another value": (lambda rng, content: rng.choice([b"[]", b"3", b"null", b'"x"', b"[{}]", b"NaN"]), True),
    "nothing in it": (lambda rng, content: b"", True),
}


def _in_a_line(damage: Callable[[random.Random, bytes], bytes]) -> Callable[[random.Random, bytes], bytes]:
    def in_a_line(rng: random.Random, content: bytes) -> bytes:
        lines = content.splitlines()
        n = rng.randrange(len(lines))
        lines[n] = damage(rng, lines[n])
        return b"\n".join(lines) + b"\n"

    return in_a_line


_LINES: dict[str, Damage] = {
    name: (_in_a_line(damage) if name != "UTF-16" else damage, refused)
    for name, (damage, refused) in _JSON.items()
    if name != "nothing in it"
} | {
    "nothing in it": (lambda rng, content: b"", None),
    "a row twice": (lambda rng, content: content + content.splitlines()[0] + b"\n", None),
}
_BYTES: dict[str, Damage] = {
    "torn": (_torn, None),
    "nothing in it": (lambda rng, content: b"", None),
    "other bytes": (lambda rng, content: rng.randbytes(rng.choice([1, 100, 5000])), None),
    "some other bytes": (_flipped, None),
}
# Of Transformers' files: what does not concern it, it need not find.
_THEIRS: dict[str, Damage] = {name: (damage, None) for name, (damage, _) in _JSON.items()} | _BYTES

_PYTHON: dict[str, Damage] = {
    what: ((lambda rng, content, source=source: source), True)
    for what, source in {
        "returns nothing": b"def get_config(): pass\nget_table = get_config\n",
        "returns a number": b"def get_config(): return 3\nget_table = get_config\n",
        "returns a dict": b"def get_config(): return {}\nget_table = get_config\n",
        "returns its module": b"import sys\ndef get_config(): return sys\nget_table = get_config\n",
        "ends the program": b"raise SystemExit\n",
        "never ends": b"def get_config(): return get_config()\nget_table = get_config\n",
        "has no end": b"def get_config(:\n",
        "not UTF-8": b"# \xff\n",
        "null bytes": b"\0\0",
        "nothing in it": b"",
        "needs a module": b"import nothing_of_that_name\n",
        "many lines of error": b"raise ValueError('a\\nb\\n\\nc')\n",
    }.items()
}


_KEYS = (
    *(
        "data",
        "data.task",
        "data.root",
        "data.teacher",
        "model",
        "model.pretrained",
        "model.tokenizer",
        "seed",
    ),
    *("model.preset", "train.steps", "train.batch_size", "optimizer.learning_rate", "objective.method"),
    *("evaluation", "evaluation.beams", "nothing"),
)


def _other_keys(rng: random.Random, content: bytes) -> bytes:
    value = repr(rng.choice(_ODD)).replace("nan", "1e999")
    return content.replace(
        b"return config", f"config.{rng.choice(_KEYS)} = {value}\n    return config".encode()
    )


_CONFIG = _PYTHON | {"other keys": (_other_keys, None)}


def _of_families(rng: random.Random, content: bytes) -> bytes:
    """The config.json of some other family, with other values."""
    from cot_jax.models import student

    preset = rng.choice(sorted(student.PRESETS))
    texts = importlib.import_module("cot_jax.batch").Texts(64, 0, 1)
    config = student.from_scratch(preset, texts=texts, options=student.Options()).architecture()
    sizes = [name for name, value in config.items() if type(value) is int]
    for name in rng.sample(sizes, rng.choice([0, 1, 2])):
        config[name] = rng.choice([0, -1, 1, 3, 2**31, 10**12, 10**25, 2.5, None, "8"])
    content = json.dumps(config).encode()
    return _other_values(rng, content) if rng.random() < 0.5 else content


# Transformers, which reads it for the tokenizer, knows no mark of the order of bytes.
_MODEL = _JSON | {name: (_JSON[name][0], None) for name in ("a mark of order",)}
_MODEL |= {"of another family": (_of_families, None)}


@dataclasses.dataclass(frozen=True)
class Target:
    """A command, its arguments, and the files it reads: by name, what can be wrong with each."""

    command: str
    arguments: tuple[str, ...]
    files: dict[str, dict[str, Damage]]
    writes: str = ""  # what it makes
    program: bool = False  # whether its argv begins with the program
    status: tuple[int, ...] = (0,)  # where nothing is wrong


_DATA = {f"data/{split}.jsonl": _LINES for split in ("train", "valid", "test")}
_TEACHER = {"teacher.jsonl": _LINES}
_RUN = {
    "run/config.json": _JSON,
    "run/student.json": _MODEL,
    "run/answers.json": _JSON,
    "run/tokenizer/format.json": _JSON,
    "run/tokenizer/tokenizer.json": _THEIRS,
    "run/tokenizer/tokenizer_config.json": _THEIRS,
    "run/checkpoints": _BYTES,
}
_STUDENT = {
    "student/cot_jax.json": _JSON,
    "student/config.json": _MODEL,
    "student/answers.json": _JSON,
    "student/format.json": _JSON,
    "student/tokenizer.json": _THEIRS,
    "student/model.safetensors": _BYTES,
}
_SWEEP = {
    "sweep/table.json": _JSON,
    "sweep/dss/all/seed0/result.json": _JSON,
    "sweep/dss/all/seed1/metrics.jsonl": _LINES,
}
_EVALUATION = "run/evaluation/jsonl_test"
_EVALUATED = {f"{_EVALUATION}/evaluation.json": _JSON, f"{_EVALUATION}/predictions.jsonl": _LINES}
_PAGED = {
    "run/config.json": _JSON,
    "run/result.json": _JSON,
    "run/metrics.jsonl": _LINES,
    **_EVALUATED,
}
_ADAPTED = {
    "model/config.json": _MODEL,
    "model/model.safetensors": _BYTES,
    "model/tokenizer_config.json": _THEIRS,
    "adapter/adapter_config.json": _JSON,
    "adapter/adapter_model.safetensors": _BYTES,
}


def _train(*arguments: str) -> tuple[str, ...]:
    small = ("train.batch_size=8", "evaluation.batch_size=8", "model.preset=tiny")
    return ("--config=config.py", *(f"--config.{key}" for key in small), *arguments)


def _untrained(directory: str, weights: str, damages: dict[str, Damage], status: int = 0) -> Target:
    files = {f"{directory}/config.json": _MODEL, f"{directory}/{weights}": damages, **_DATA}
    return Target("evaluate", (directory, "--task=jsonl", "--root=data"), files, status=(status,))


def _rationalize(*arguments: str) -> tuple[str, ...]:
    return ("--task=jsonl", "--root=data", "--model=m", "--output=asked", "--prompt=zero_shot", *arguments)


_PREDICTED = ("run", "--input=questions.jsonl", "--output=said.jsonl")
_SWEPT = ("--table=table.py", "--seeds=0", "--output=sweep", "--dry_run")
_GRADED = ("run", "--endpoint=URL", "--model=m", "--examples=2", "--samples=1")
_PLANNED = _train("--devices=8", "--memory=0.001GiB")
_WITH_LORA = ("--dry_run", "--config.model.pretrained=model", "--config.model.lora_adapter=adapter")
TARGETS = [
    Target("predict", _PREDICTED, {"questions.jsonl": _LINES, **_RUN}, "said.jsonl"),
    Target("predict", ("student", "--explain"), {"stdin": _LINES, **_STUDENT}),
    Target("evaluate", ("run", "--no-rationales"), {**_DATA, **_RUN}, _EVALUATION),
    _untrained("model", "model.safetensors", _BYTES),
    _untrained("shards", "model.safetensors.index.json", _JSON),
    _untrained("binary", "pytorch_model.bin", _BYTES, status=2),
    _untrained("messages", "flax_model.msgpack", _BYTES, status=2),
    Target("export", ("run", "--output=exported"), {"run/result.json": _JSON, **_RUN}, "exported"),
    Target("compare", ("sweep",), _SWEEP, "sweep/report.csv"),
    Target("compare", ("run", "run", "--html=page.html"), _PAGED, "page.html"),
    Target("sweep", _SWEPT, {"table.py": _PYTHON, "sweep/table.json": _JSON}),
    Target("judge", ("run", "--against=other"), _EVALUATED, f"{_EVALUATION}/rationales.json"),
    Target("judge", _GRADED, {"reply": _JSON, f"{_EVALUATION}/judge_cache.jsonl": _LINES}),
    Target(
        "rationalize",
        _rationalize("--endpoint=URL", "--demonstrations=shown.jsonl"),
        {"reply": _JSON, "shown.jsonl": _LINES, **_DATA},
        "asked/teacher.jsonl",
    ),
    Target(
        "rationalize",
        _rationalize("--read_batch=answered.jsonl"),
        {"answered.jsonl": _LINES, "asked/cache.jsonl": _LINES, "data/train.jsonl": _LINES},
    ),
    Target("plan", _PLANNED, {"config.py": _CONFIG, **_DATA, **_TEACHER}, program=True, status=(1,)),
    Target("train", _train("--dry_run"), {"config.py": _CONFIG, **_DATA, **_TEACHER}, program=True),
    Target(
        "train",
        _train("--workdir=whole"),
        {"whole/config.json": _JSON, "whole/result.json": _JSON},
        program=True,
    ),
    Target("train", _train(*_WITH_LORA), _ADAPTED, program=True),
    Target(
        "prepare_data",
        ("svamp", "--root=fetched", "--url=ARCHIVE"),
        {"archive.zip": _BYTES},
        "fetched",
        status=(2,),
    ),
]

# What is wrong with a place, and not with what is in it.
_PLACES: dict[str, bool | None] = {"a folder": None, "gone": None, "a link to itself": None}
_OUTPUTS: dict[str, bool | None] = {"no room": True, "something in the way": True, "a name too long": True}

_LATER = [
    "",
    "0",
    "-1",
    "²",
    "9" * 400,
    "never",
    "Fri, 31 Dec 9999 23:59:59 -2359",
    "Mon, 01 Jan 0001 00:00:00",
]


class Hang(BaseException):
    """A case took too long; no command catches it."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One file of one command, and what is wrong with it; `refused` as of a `Damage`."""

    target: Target
    file: str
    what: str
    refused: bool | None

    def __str__(self) -> str:
        return f"{self.target.command} {' '.join(self.target.arguments)}: {self.file}: {self.what}"


def drawn(rng: random.Random, only: str = "") -> Case:
    target = rng.choice([target for target in TARGETS if only in ("", target.command)])
    file = rng.choice([*target.files, *filter(None, [target.writes])])
    if file not in target.files:
        what = rng.choice(sorted(_OUTPUTS))
        return Case(target, file, what, _OUTPUTS[what])
    places = {} if file in ("stdin", "reply", "whole/result.json") else _PLACES  # without, a run trains again
    damages = target.files[file]
    what = rng.choice([*damages, *places])
    return Case(target, file, what, damages[what][1] if what in damages else places[what])


class World:
    """Sound inputs of every command, in a directory; a case damages a copy of it."""

    def __init__(self, directory: Path, save_random_run: Callable):
        self.directory = directory
        from flax.serialization import msgpack_serialize

        from cot_jax.config import Config, parse_command_line, to_json
        from cot_jax.data.teacher.endpoint import _key_and_body
        from cot_jax.models.lora import Lora, write_adapter
        from cot_jax.models.weights import init
        from cot_jax.training.experiment import prepare
        from cot_jax.training.saved import load

        names = ["Tom", "Ann", "Zoe", "Ben"]
        rows = [
            {
                "id": f"q{n}",
                "input": f"{names[n % 4]} has {n} pens .",
                "label": str(n),
                "rationale": f"He has {n} .",
            }
            for n in range(14)
        ]
        self._lines("data/train.jsonl", rows[:10])
        self._lines("data/valid.jsonl", rows[10:12])
        self._lines("data/test.jsonl", rows[12:])
        self._lines("teacher.jsonl", [{"id": "q0", "label": "0", "rationale": "He has 0 ."}])
        self._lines("questions.jsonl", [{"id": 1, "input": "Tom has 3 pens ."}])
        self._lines("shown.jsonl", [{"input": "Tom has 3 .", "rationale": "He has 3 .", "label": "3"}])
        config = Config()
        parts = {
            "data": {"task": "jsonl", "root": "data", "max_input_tokens": 32, "max_target_tokens": 4},
            "evaluation": {"max_new_tokens": 2, "batch_size": 8},
            "objective": {"method": "dss"},
        }
        config = dataclasses.replace(
            config,
            **{name: dataclasses.replace(getattr(config, name), **part) for name, part in parts.items()},
        )
        texts = [f"{row['input']} {row['rationale']}" for row in rows] + ["predict: explain:"]
        (directory / "run").mkdir()
        run = save_random_run(directory / "run", config, texts, 64)
        shutil.rmtree(run / "scratch", ignore_errors=True)
        result = {
            "metric": "accuracy", "valid/accuracy": 0.5, "test/accuracy": 0.5, "best_step": 1, "steps": 1,
            "examples": 10, "example_visits": 8, "train_seconds": 1.5,
            "hardware": {"devices": 1, "device_kind": "cpu"}, "versions": {"jax": "0.10.2"},
        }  # fmt: skip
        self._json("run/result.json", result)
        self._lines("run/metrics.jsonl", [{"step": 1, "loss": 2.0}, {"step": 1, "valid/accuracy": 0.5}])
        said = [
            {"id": row["id"], "input": row["input"], "gold": row["label"], "label": "1", "correct": False}
            | {"rationale": "He has 1 . The answer is 1 .", "teacher_rationale": row["rationale"]}
            for row in rows[12:]
        ]
        self._json("run/evaluation/jsonl_test/evaluation.json", {"by_value": True, "labels": None})
        self._lines("run/evaluation/jsonl_test/predictions.jsonl", said)
        shutil.copytree(run / "evaluation", directory / "other" / "evaluation")
        reply = {"text": "1", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}
        kept = {"key": "k", "request": {"model": "m"}, "reply": reply}
        self._lines("run/evaluation/jsonl_test/judge_cache.jsonl", [kept])
        self._lines("asked/cache.jsonl", [kept])
        message = {"role": "assistant", "content": "He has 1 . The answer is 1 ."}
        self.reply = {
            "choices": [{"message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2},
        }
        answered = {
            "custom_id": _key_and_body({"model": "m"})[0],
            "response": {"status_code": 200, "body": self.reply},
        }
        self._lines("answered.jsonl", [answered])

        student = load(run)
        student.export(directory / "student")
        for place, weights in (
            ("model", "model.safetensors"),
            ("shards", "s.safetensors"),
            ("binary", ""),
            ("messages", ""),
        ):
            kept_out = shutil.ignore_patterns("cot_jax.json", "answers.json", "*.safetensors")
            shutil.copytree(directory / "student", directory / place, ignore=kept_out)
            if weights:
                shutil.copy(directory / "student" / "model.safetensors", directory / place / weights)
        self._json("shards/model.safetensors.index.json", {"weight_map": {"shared.weight": "s.safetensors"}})
        (directory / "binary" / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + bytes(40))
        (directory / "messages" / "flax_model.msgpack").write_bytes(
            msgpack_serialize({"shared": {"embedding": 1}})
        )
        lora = Lora(student.student.weights, rank=2, alpha=4.0, targets="/q$")
        write_adapter(directory / "adapter", lora, init(lora.weights, jax.random.key(0)), "model")

        cell = {
            "row": "dss",
            "column": "all",
            "config": "config.py",
            "overrides": {"data.train_fraction": 1.0},
        }
        self._json("sweep/table.json", {"title": "t", "source": "", "cells": [cell]})
        for seed in range(2):
            self._json(f"sweep/dss/all/seed{seed}/result.json", result)
            measured = [{"step": step, "loss": 1 / step} for step in range(1, 4)] + [
                {"step": 3, "valid/accuracy": 0.5}
            ]
            self._lines(f"sweep/dss/all/seed{seed}/metrics.jsonl", measured)
        (directory / "config.py").write_text(_CONFIG_FILE)
        (directory / "table.py").write_text(_TABLE_FILE)
        with zipfile.ZipFile(directory / "archive.zip", "w") as archive:
            for split in ("train", "test"):
                archive.writestr(f"datasets/svamp/svamp_{split}.json", json.dumps(rows[0]) + "\n")
        with contextlib.chdir(directory):
            given = parse_command_line(["train", *_train()], "").config
            (directory / "whole").mkdir()
            (directory / "whole/config.json").write_text(to_json(prepare(given).config))
        self._json("whole/result.json", result)

    def _json(self, name: str, value: Any) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))

    def _lines(self, name: str, rows: Sequence[dict]) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def attack(self, case: Case, rng: random.Random, place: Path) -> str:
        """Returns why a case failed, empty if it did not; what it read and wrote is in `place`."""
        shutil.copytree(self.directory, place, symlinks=True)
        arguments = [str(argument) for argument in case.target.arguments]
        stdin, says, most = b"", (200, json.dumps(self.reply).encode(), ""), None
        sound = {"stdin": (place / "questions.jsonl").read_bytes(), "reply": says[1]}
        if "stdin" in case.target.files:
            stdin = sound["stdin"]
        damages = case.target.files.get(case.file, {})
        path = place / case.file
        if case.what in damages:
            if path.is_dir():  # one of the files in it
                path = rng.choice(
                    sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size > 2)
                )
            content = damages[case.what][0](rng, sound.get(case.file) or path.read_bytes())
            if case.file == "stdin":
                stdin = content
            elif case.file == "reply":
                says = (200, content, "")
                if rng.random() < 0.3:
                    says = (rng.choice([400, 401, 404, 429, 500, 503]), content, rng.choice(_LATER))
                    case = dataclasses.replace(case, refused=None)
            else:
                path.write_bytes(content)
        elif case.what == "no room":
            most = rng.choice([0, 1, 20])
        elif case.what == "a name too long":
            paths = [
                n
                for n, a in enumerate(arguments)
                if (place / a.rpartition("=")[2]).exists() or re.match("--(output|root)", a)
            ]
            n = rng.choice(paths)
            option, equals, _ = arguments[n].rpartition("=")
            arguments[n] = option + equals + "n" * 300
        else:
            if case.what == "something in the way" and path.suffix:
                case = dataclasses.replace(case, what="a folder")
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            if case.what == "a folder":
                path.mkdir()
                (path / "x").touch()
            elif case.what == "a link to itself":
                path.symlink_to(path)
            elif case.what == "something in the way":
                path.touch()
        if (place / "exported").is_dir():
            shutil.rmtree(place / "exported")
        with contextlib.chdir(place), _server(*says) as url:
            arguments = [a.replace("URL", url) if "endpoint" in a else a for a in arguments]
            arguments = [a.replace("ARCHIVE", (place / "archive.zip").as_uri()) for a in arguments]
            wrong, said = _outcome(case, arguments, stdin, most)
        if (
            not wrong
            and case.what == "no room"
            and case.file == "exported"
            and any((place / "exported").glob("*"))
        ):
            wrong = f"the export is there in part: {sorted(p.name for p in (place / 'exported').iterdir())}"
        return f"{wrong}\n{said}" if wrong else ""


def _outcome(case: Case, arguments: list[str], stdin: bytes, most: int | None) -> tuple[str, str]:
    """What is wrong with how a command ended, and what it said."""
    target = case.target
    main = importlib.import_module(f"cot_jax.{target.command}").main
    out, err = io.StringIO(), io.StringIO()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def hang(*_):
        raise Hang

    previous, stdin_before = signal.signal(signal.SIGALRM, hang), sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
    signal.alarm(SECONDS)
    status: Any = None
    wrong = ""
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if most is not None:
                jax.config.update("jax_enable_compilation_cache", False)  # what is torn there stays
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
            status = main(["main", *arguments] if target.program else arguments)
    except SystemExit as end:
        status = end.code
    except Hang:
        wrong = f"no end after {SECONDS} s"
    except BaseException:
        wrong = f"a traceback\n{traceback.format_exc()}"
    finally:
        signal.alarm(0)
        jax.config.update("jax_enable_compilation_cache", True)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGALRM, previous)
        sys.stdin = stdin_before
    said = err.getvalue()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    errors = re.findall(r"^(?:python -m [\w.]+: )?error: .*", said, re.MULTILINE)
    if wrong:
        pass
    elif grown > MEBIBYTES or "MemoryError" in said:
        wrong = f"it took {grown:,.0f} MiB"
    elif "Traceback" in said:
        wrong = "a traceback among what it says"
    elif status not in (0, 1, 2) or len(errors) > 1 or (errors and not said.rstrip("\n").endswith(errors[0])):
        wrong = f"status {status}, {len(errors)} errors"
    elif bool(errors) == (status in target.status) and target.status != (2,):
        wrong = f"status {status} with {errors or 'no error'}" if target.status != (1,) else ""
    elif case.refused is not None and target.status != (2,) and case.refused != bool(errors):
        wrong = f"{'sound but refused' if errors else 'damaged but taken'}, status {status}"
    return wrong, f"{said[-2000:]}\n{time.monotonic() - began:.1f} s"


@contextlib.contextmanager
def _server(status: int, reply: bytes, later: str) -> Iterator[str]:
    """A server that says the same to whatever it is asked; its clients try again once, and at once."""
    headers = [("Retry-After", later)] if later else []
    import scripted_teacher

    from cot_jax import judge, rationalize
    from cot_jax.data.teacher.endpoint import Endpoint

    class Quick(Endpoint):
        def __init__(self, *given, **options):
            super().__init__(*given, **options, attempts=2, pause=0.0)

    before = {module: module.Endpoint for module in (judge, rationalize)}
    os.environ["NO_PROXY"] = "127.0.0.1"
    with scripted_teacher.Server(None) as server:
        server.faults = [lambda handler: handler.say(status, reply, headers)] * 1000
        for module in before:
            module.Endpoint = Quick
        try:
            yield server.url
        finally:
            for module, endpoint in before.items():
                module.Endpoint = endpoint


_CONFIG_FILE = """
from cot_jax.config import default_config

def get_config():
    config = default_config()
    config.data.task = "jsonl"
    config.data.root = "data"
    config.data.teacher = "teacher.jsonl"
    config.objective.method = "dss"
    config.model.tokenizer = "model"
    config.train.steps = 4
    return config
"""
_TABLE_FILE = """
from cot_jax.experiments import Cell, Table

def get_table():
    return Table("t", (Cell("dss", "all", "config.py", {"data.train_fraction": 1.0}),))
"""


def run(world: World, seed: int, first: int, cases: int, only: str, work: Path, keep: bool) -> list[str]:
    """Attacks, prints what was tried and failed, and returns the failures."""
    tried: collections.Counter[tuple[str, str]] = collections.Counter()
    failed: collections.Counter[tuple[str, str]] = collections.Counter()
    failures, slow = [], []
    for n in range(first, first + cases):
        rng = random.Random(f"{seed} {n}")
        case = drawn(rng, only)
        place, began = work / f"case{n}", time.monotonic()
        wrong = world.attack(case, rng, place)
        slow.append((time.monotonic() - began, n, str(case)))
        key = case.target.command, case.what
        tried[key] += 1
        if wrong:
            failed[key] += 1
            failures.append(f"case {n} of seed {seed}: {case}\n{wrong}")
            print(failures[-1], flush=True)
        if not keep:
            shutil.rmtree(place)
    for (command, what), count in sorted(tried.items()):
        print(f"{command:13} {what:24} {count:4} tried {failed[command, what]:4} failed")
    print(
        f"{cases} tried, {len(failures)} failed in {sum(second for second, *_ in slow):.0f} s; the slowest:"
    )
    for seconds, n, said in sorted(slow, reverse=True)[:5]:
        print(f"  {seconds:.1f} s, case {n}: {said}")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.attack", description=__doc__, allow_abbrev=False)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a command")
    parser.add_argument("--keep", action="store_true", help="keep the directories of the cases")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import save_random_run

    work = Path(tempfile.mkdtemp(prefix="attack-"))
    (work / "world").mkdir()
    try:
        world = World(work / "world", save_random_run)
        failures = run(world, options.seed, options.first, options.cases, options.only, work, options.keep)
    finally:
        if options.keep:
            print(f"kept in {work}")
        else:
            shutil.rmtree(work)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
