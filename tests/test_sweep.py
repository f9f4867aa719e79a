"""sweep and report: what runs, what is skipped, what is refused, and what the table says."""

import csv
import json
import re
import shlex
import signal
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cot_jax import compare, sweep
from cot_jax.config import parse_command_line
from cot_jax.experiments import Cell, Table, from_directory, from_file, grid, merged, overrides_of
from cot_jax.files import locked
from cot_jax.metrics.classification import METRICS, confusion_matrix
from cot_jax.metrics.significance import bootstrap_interval, bootstrap_interval_of, paired_p_value

TINY = [
    "--config=configs/demo_mi.py",
    "--config.data.word_problems.train=16",
    "--config.data.word_problems.valid=4",
    "--config.data.word_problems.test=4",
    "--config.train.steps=2",
    "--config.train.batch_size=8",
    "--config.evaluation.batch_size=8",
    "--config.evaluation.max_new_tokens=3",
]


def _config(method):
    flags = [f"--config.{key}={value}" for key, value in overrides_of(method).items()]
    return parse_command_line(["train", "--config=configs/demo_mi.py", *flags], "").config


def test_methods_are_written_as_parts():
    config = _config("mi:normalized+dynsdpb")
    assert (config.objective.method, config.objective.mi_variant) == ("mi", "normalized")
    assert config.self_distillation.method == "dynsdpb"
    assert _config("standard").self_distillation.method == "none"
    config = _config("mixed_mi:masked+dlb")
    assert (config.objective.method, config.objective.mi_variant) == ("mixed_mi", "masked")
    assert _config("mixed").objective.method == "mixed"


@pytest.mark.parametrize(
    "method", ["", "nonesuch", "dss:masked", "mixed:masked", "mi:nonesuch", "dss+none", "dss+"]
)
def test_a_method_that_is_none_is_refused(method, capsys, tmp_path):
    status = sweep.main([*TINY, f"--methods={method or ','}", "--seeds=0", f"--output={tmp_path}"])
    assert status == 2
    assert capsys.readouterr().err.startswith("error: --methods: no ")


def test_every_published_table_is_of_valid_configs(request, tmp_path, capsys):
    files = sorted((request.config.rootpath / "configs" / "tables").glob("*.py"))
    files = [file for file in files if file.name != "common.py"]
    assert len(files) == 18
    for file in files:
        table = from_file(str(file))
        assert len({(cell.row, cell.column) for cell in table.cells}) == len(table.cells)
        assert len({cell.path for cell in table.cells}) == len(table.cells)
        status = sweep.main([f"--table={file}", "--seeds=3", f"--output={tmp_path}", "--dry_run"])
        assert status == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"{len(table.cells)} runs, 0 of them done"
        assert len(lines) == 1 + len(table.cells)
    assert not list(tmp_path.iterdir())


def test_another_clone_resumes_a_sweep(request, tmp_path):
    """A shipped config is recorded by its name, whichever way it was given."""
    by_file, by_name = (
        grid(config, ["dss"], [1.0])
        for config in (str(request.config.rootpath / "configs" / "demo_mi.py"), "demo_mi")
    )
    by_file.save(tmp_path)
    assert '"config": "demo_mi"' in (tmp_path / "table.json").read_text()
    assert merged(by_name, tmp_path) == by_name == by_file
    for name in ("mi_base", "minilm"):
        assert not [cell for cell in from_file(name).cells if "/" in cell.config]


def test_the_rows_of_the_generation_table_cost_what_they_say(request):
    table = from_file("dynsdpb_nlg")
    assert (len(table.rows), table.columns) == (16, ["GSM8K", "SVAMP", "HellaSwag", "AQuA", "MathQA"])
    cells = {(cell.row, cell.column): cell for cell in table.cells}
    # The corners of Table 4.
    assert [cells[f"Llama-1-7B, {row}", "GSM8K"].published for row in ("fine-tuning", "DynSDPB")] == [
        23.5,
        27.1,
    ]
    assert [cells[f"Llama-3-8B, {row}", "MathQA"].published for row in ("fine-tuning", "DynSDPB")] == [
        52.1,
        54.2,
    ]
    for (row, column), cell in cells.items():
        student, row = row.split(", ")
        once = cells[f"{student}, fine-tuning", column].overrides["train.steps"]
        flags = cell.flags(0, Path("runs"))
        config = parse_command_line(["train", *flags], "").config.resolved({})
        assert config.train.steps == pytest.approx(once * (1 if row == "fine-tuning" else 2), abs=1)
        assert (config.model.lora_rank, config.model.lora_alpha) == (4, 8)
        assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-4, 0.1)
        assert config.optimizer.warmup_steps == pytest.approx(0.06 * config.train.steps, abs=1)
        assert config.self_distillation.method == {"random DLB": "dlb", "DynSDPB": "dynsdpb"}.get(row, "none")
        assert config.data.order == "random"
        assert config.objective.method == ("standard" if column in ("SVAMP", "HellaSwag") else "single_task")
    # 40 epochs of 720 examples, 128 a step.
    assert cells["Llama-2-7B, fine-tuning", "SVAMP"].overrides["train.steps"] == 225


@pytest.mark.parametrize(
    ("file", "corners"),
    [
        (
            "dynsdpb_glue",
            {
                ("RoBERTa-6, fine-tuning", "RTE"): 60.6,
                ("RoBERTa-12, DynSDPB", "MRPC"): 91.5,
                ("BERT-12, sequential DLB", "CoLA"): 56.3,
                ("ALBERT-12, DynSDPB", "MRPC"): 90.9,
            },
        ),
        (
            "dynsdpb_superglue",
            {("DeBERTa-large, fine-tuning", "BoolQ"): 63.6, ("DeBERTa-v3-large, DynSDPB", "WiC"): 76.7},
        ),
        ("kd_bert6", {("teacher", "RTE"): 69.3, ("PKD", "QQP"): 88.9, ("GKD-CLS", "MNLI-m"): 82.6}),
        ("dynsdpb_encoder_ablation", {("BERT-6, dynamic fine-tuning", "CoLA"): 39.5}),
    ],
)
def test_the_tables_of_encoders(request, file, corners):
    table = from_file(file)
    cells = {(cell.row, cell.column): cell for cell in table.cells}
    for place, published in corners.items():
        assert cells[place].published == published
    for (row, column), cell in cells.items():
        config = parse_command_line(["train", *cell.flags(0, Path("runs"))], "").config
        assert config.train.steps == 0
        doubled = (
            config.train.epochs == 2 * cells[row.replace("double ", ""), column].overrides["train.epochs"]
        )
        assert doubled == ("double" in row)
        assert bool(config.distillation.teacher) == (row in ("KD", "PKD", "GKD-CLS"))
        if config.distillation.teacher:
            assert config.distillation.teacher == f"runs/teacher/{column}/seed0"
            assert cells["teacher", column].path == Path("teacher", column)


@pytest.mark.slow
def test_a_sweep_runs_skips_what_is_done_and_reports(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    command = [*TINY, "--methods=standard", "--seeds=3", f"--output={tmp_path}"]
    assert sweep.main(command) == 0
    said = capsys.readouterr().out
    assert said.startswith("1 runs, 0 of them done\n")
    assert re.search(r"\[1/1\] standard, 100 % of train, seed 3: test accuracy \d+\.00 %, \d+ s", said)
    result = tmp_path / "standard" / "100_of_train" / "seed3" / "result.json"
    written = result.stat().st_mtime_ns

    assert sweep.main(command) == 0
    assert capsys.readouterr().out.startswith("1 runs, 1 of them done\n")
    assert result.stat().st_mtime_ns == written

    assert sweep.main([*command, "--config.train.steps=3"]) == 2
    assert "holds another experiment as standard" in capsys.readouterr().err

    assert compare.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    accuracy = 100 * json.loads(result.read_text())["test/accuracy"]
    assert f"| standard | {accuracy:.2f} (1) |" in said
    for picture in ("learning_curves.png", "losses.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_a_failed_run_is_named_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    ran = []

    def popen(command, **options):
        workdir = command[-1].removeprefix("--workdir=")
        ran.append(workdir)
        if "standard" in workdir:
            code = "import sys; print('error: the reason'); sys.exit(2)"
        else:
            code = f"open({workdir + '/result.json'!r}, 'w').write('{{\"test/accuracy\": 0.5}}')"
        return real([command[0], "-c", code], **options)

    real = sweep.subprocess.Popen
    monkeypatch.setattr(sweep.subprocess, "Popen", popen)
    command = [*TINY, "--seeds=0", f"--output={tmp_path}"]
    assert sweep.main([*command, "--methods=standard,dss", "--jobs=2"]) == 1
    said = capsys.readouterr().out
    assert len(ran) == 2
    assert "standard, 100 % of train, seed 0: failed with status 2: error: the reason" in said
    assert "dss, 100 % of train, seed 0: test accuracy 50.00 %" in said
    # What is not asked for the second time stays in the table and is not run.
    assert sweep.main([*command, "--methods=mi"]) == 0
    assert len(ran) == 3
    assert from_directory(tmp_path).rows == ["standard", "dss", "mi"]


@pytest.fixture
def stub(monkeypatch):
    """Training that ends at once; a run's validation and test scores are set by the flags of its command."""
    ran = []

    def popen(command, **options):
        workdir = command[-1].removeprefix("--workdir=")
        rate = next(
            flag.split("=")[1] for flag in command if flag.startswith("--config.optimizer.learning_rate")
        )
        beta = next(
            (flag.split("=")[1] for flag in command if flag.startswith("--config.objective.beta")), "0.1"
        )
        valid = {"1e-4": 0.25, "3e-4": 0.75, "1e-3": 0.5}.get(rate, 0.0) * (1 if beta == "0.1" else 0.5)
        result = json.dumps({"metric": "f1", "valid/f1": valid, "test/f1": 1 - valid, "test/accuracy": 0.125})
        ran.append(workdir)
        code = (
            f"open({workdir + '/result.json'!r}, 'w').write({result!r})"
            if rate != "9"
            else "raise SystemExit(1)"
        )
        return real([command[0], "-c", code], **options)

    real = sweep.subprocess.Popen
    monkeypatch.setattr(sweep.subprocess, "Popen", popen)
    return ran


def test_a_grid_chooses_on_validation_with_the_first_seed(tmp_path, capsys, stub):
    grid = ["--grid=optimizer.learning_rate=1e-4,3e-4,1e-3", "--grid=objective.beta=0.5,0.1"]
    command = [*TINY, "--methods=mi", "--seeds=3..5", f"--output={tmp_path}"]
    # On test, which is never asked, 1e-4 with 0.5 would be best.
    assert sweep.main([*command, *grid, "--jobs=2"]) == 0
    said = capsys.readouterr().out
    values = "optimizer.learning_rate=3e-4, objective.beta=0.1"
    cell = tmp_path / "mi" / "100_of_train"
    chosen = cell / "optimizer.learning_rate=3e-4_objective.beta=0.1"
    assert "6 runs, 0 of them done\n" in said
    assert f"mi, 100 % of train, {values}, seed 3: valid f1 75.00 %, " in said
    assert f"mi, 100 % of train: chosen {values}, valid f1 75.00 %\n" in said
    assert "3 runs, 1 of them done\n" in said
    assert f"mi, 100 % of train, {values}, seed 5: test f1 25.00 %, " in said
    assert len(stub) == len(set(stub)) == 6 + 2
    assert {path.name for path in cell.iterdir()} >= {chosen.name}
    assert sorted(path.name for path in chosen.iterdir()) == ["seed3", "seed4", "seed5"]
    assert [sum(1 for _ in other.iterdir()) for other in cell.iterdir() if other != chosen] == [1] * 5
    (found,) = from_directory(tmp_path).cells
    assert found.chosen == {"optimizer.learning_rate": "3e-4", "objective.beta": "0.1"}
    assert "--config.optimizer.learning_rate=3e-4" in found.flags(0, Path("runs"))

    # The same command runs nothing, one without a grid is another experiment, a longer grid runs the rest.
    assert sweep.main([*command, *grid]) == 0
    assert len(stub) == 8
    assert sweep.main(command) == 2
    assert "holds another experiment as mi" in capsys.readouterr().err
    longer = [grid[0] + ",2e-3", grid[1]]
    assert sweep.main([*command, *longer, "--dry_run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "8 runs, 6 of them done"
    assert all("learning_rate=2e-3" in line for line in printed[1:])
    assert len(printed) == 3
    assert sweep.main([*command, *longer]) == 0
    assert len(stub) == 10


def test_a_grid_with_a_run_that_failed_chooses_nothing(tmp_path, capsys, stub):
    command = [*TINY, "--methods=dss", "--seeds=0,1", f"--output={tmp_path}"]
    assert sweep.main([*command, "--grid=optimizer.learning_rate=1e-4,9"]) == 1
    assert "dss, 100 % of train, optimizer.learning_rate=9, seed 0" in capsys.readouterr().out
    assert not (tmp_path / "table.json").exists()
    assert sweep.main([*command, "--grid=optimizer.learning_rate=1e-4"]) == 0
    assert len(stub) == 3


def test_a_signal_stops_a_run_that_is_just_being_started(tmp_path, capsys, monkeypatch):
    def popen(command, **options):
        time.sleep(0.1)  # the main thread waits for the run
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # which does not wake it
        return real([command[0], "-c", "import time; time.sleep(30)"], **options)

    real = sweep.subprocess.Popen
    monkeypatch.setattr(sweep.subprocess, "Popen", popen)
    began = time.monotonic()
    assert sweep.main([*TINY, "--methods=mi,dss", "--seeds=0", f"--output={tmp_path}"]) == sweep.STOPPED
    assert time.monotonic() - began < 20
    assert "stopped; 2 runs are left; the same command resumes" in capsys.readouterr().out


def test_one_process_a_directory(tmp_path, capsys, stub):
    with locked(tmp_path):
        assert sweep.main([*TINY, "--methods=mi", "--seeds=0", f"--output={tmp_path}"]) == 2
    assert re.fullmatch(r"error: .* is in use by another process: .*\n", capsys.readouterr().err)
    assert not stub


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grid=seed=1,2"], "--grid: give each key once, and not the seed"),
        (["--grid=train.steps=1", "--grid=train.steps=2"], "--grid: give each key once"),
        (["--grid=train.steps"], "'train.steps': write KEY=VALUE,VALUE"),
        (["--seeds=0..99999999999"], "'0..99999999999': give 1 to 10,000 seeds"),
        (["--seeds=3..0"], "'3..0': give 1 to 10,000 seeds"),
        (["--config.seed=5"], "--config.seed: --seeds sets this key"),
        (["--config.data.train_fraction=0.5"], "--config.data.train_fraction: --fractions sets this key"),
        (["--config.objective.method=mi"], "--config.objective.method: --methods sets this key"),
    ],
)
def test_flags_that_contradict_or_are_none_are_refused(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as caught:
        sweep.main([*TINY, "--methods=dss", "--seeds=0", f"--output={tmp_path}", *flags])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_grid_does_not_move_the_teachers_of_a_table(tmp_path, capsys):
    command = ["--table=kd_bert6", "--seeds=0", f"--output={tmp_path}", "--dry_run"]
    with pytest.raises(SystemExit, match="2"):
        sweep.main([*command, "--grid=optimizer.learning_rate=2e-5,5e-5"])
    assert "--grid: this table's students read its teachers' runs" in capsys.readouterr().err


def test_a_run_is_planned_once_however_often_it_is_named(tmp_path, capsys):
    output = tmp_path / "with a space"
    command = [*TINY, "--methods=dss", f"--output={output}", "--dry_run"]
    assert sweep.main([*command, "--seeds=1,0,1", "--grid=train.steps=2,2"]) == 0
    said, line = capsys.readouterr().out.splitlines()
    assert said == "1 runs, 0 of them done"
    workdir = output / "dss" / "100_of_train" / "train.steps=2" / "seed1"
    assert shlex.split(line)[-1] == f"--workdir={workdir}"
    assert sweep.main([*command, "--seeds=1,0,1"]) == 0
    assert capsys.readouterr().out.startswith("2 runs, 0 of them done\n")
    for flag in ("--methods=dss,mi,dss", "--fractions=0.1234567,0.1234568"):
        assert sweep.main([*command, "--seeds=0", flag]) == 2
        assert re.match("error: demo_mi: 2 experiments would write to dss/1", capsys.readouterr().err)


def test_every_combination_of_a_grid_is_checked_before_the_first_run(tmp_path, capsys, stub):
    command = [*TINY, "--methods=dss", "--seeds=0", f"--output={tmp_path}", "--grid=objective.alpha=0.5,2"]
    assert sweep.main(command) == 2
    assert capsys.readouterr().err == "error: config.objective.alpha=2.0: must be at most 1.0\n"
    assert sweep.main([*command[:-1], "--grid=objective.alfa=1"]) == 2
    assert (
        "config.objective.alfa: no such key; did you mean config.objective.alpha" in capsys.readouterr().err
    )
    assert not stub


def _read_csv(file):
    with file.open() as rows:
        return list(csv.DictReader(rows))


def _finished(directory, cell, seed, accuracy, **more):
    workdir = directory / cell.path / f"seed{seed}"
    workdir.mkdir(parents=True)
    result = {
        "test/accuracy": accuracy,
        "valid/accuracy": 0.5,
        "best_step": 2,
        "examples": round(100 * cell.overrides["data.train_fraction"]),
        "example_visits": 64,
        "train_seconds": 1.5,
        "hardware": {"devices": 1, "device_kind": "cpu"},
        "versions": {"jax": "0.10.2"},
        **more,
    }
    (workdir / "result.json").write_text(json.dumps(result))
    rows = [{"step": step, "loss": 1 / step + seed} for step in range(1, 51)]
    rows.append({"step": 50, "valid/accuracy": 0.5})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_report_says_mean_deviation_and_significance(tmp_path, capsys):
    cells = [
        Cell(row, f"{fraction}", "c.py", {"data.train_fraction": fraction}, published)
        for row, published in (("standard", 41.25), ("dss", None))
        for fraction in (0.5, 1.0)
    ]
    Table("A title", tuple(cells), "A paper").save(tmp_path)
    accuracies = {"standard": [0.25, 0.5, 0.25], "dss": [0.5, 0.625, 0.75]}
    for cell in cells[1:]:
        for seed, accuracy in enumerate(accuracies[cell.row]):
            _finished(tmp_path, cell, seed, accuracy)
    assert compare.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert (
        said == (tmp_path / "report.md").read_text().partition("\n![]")[0] + said[said.index("written to") :]
    )
    assert "| standard | not run | *41.25* | 33.33 ± 14.43 (3) | *41.25* |" in said
    assert "| dss | 62.50 ± 12.50 (3) |  | 62.50 ± 12.50 (3) |  |" in said
    assert "*Published* figures are the authors' and were not reproduced here: A paper." in said
    # Differences 25, 12.5 and 50: t = 29.1667 / (19.0940 / sqrt 3) = 2.6458 with 2 degrees of freedom.
    assert "| dss | +29.17 | 0.118 | 3 |" in said
    rows = _read_csv(tmp_path / "differences.csv")
    assert [(row["column"], row["seeds"]) for row in rows] == [("1.0", "3")]
    assert len(_read_csv(tmp_path / "report.csv")) == 9
    for picture in ("data_size.png", "learning_curves_1.0.png", "losses_0.5.png"):
        assert f"![]({picture})" in (tmp_path / "report.md").read_text()
        assert (tmp_path / picture).stat().st_size > 5000


def test_the_report_is_of_the_metric_that_selects_and_names_what_was_chosen(tmp_path, capsys):
    values = {"data.train_fraction": 1.0}
    cells = [
        Cell(row, column, "c.py", values, chosen={"optimizer.learning_rate": rate})
        for row, rate in (("standard", "1e-4"), ("dss", "3e-4"))
        for column in ("CoLA", "SST-2")
    ]
    Table("A title", tuple(cells)).save(tmp_path)
    for cell in cells:
        for seed in (0, 1):
            mcc = 0.25 if cell.row == "standard" else 0.5 + seed / 4
            of_cola = {"metric": "mcc", "test/mcc": mcc, "valid/mcc": 0.75} if cell.column == "CoLA" else {}
            _finished(tmp_path, cell, seed, 0.5, **of_cola)
    assert compare.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "Test mcc or accuracy in %, mean" in said
    assert "| method | CoLA (mcc) | SST-2 (accuracy) |" in said
    assert "| dss | 62.50 ± 17.68 (2) | 50.00 ± 0.00 (2) |" in said
    assert "| dss | +37.50 | " in said
    assert (
        "Chosen on validation, by the first seed:\n\n| method | column | values |\n| --- | --- | --- |\n"
        in said
    )
    assert "| dss | SST-2 | optimizer.learning_rate=3e-4 |" in said
    row = _read_csv(tmp_path / "report.csv")[0]
    assert (row["metric"], row["test"], row["valid"]) == ("mcc", "0.25", "0.75")
    assert row["chosen"] == "optimizer.learning_rate=1e-4"


def _surface(directory, rows, columns):
    """Writes a finished run of each cell, of which the scores grow to the right and downwards."""
    cells = [Cell(row, column, "c.py", {"data.train_fraction": 1.0}) for row in rows for column in columns]
    Table("A title", tuple(cells)).save(directory)
    for n, cell in enumerate(cells[1:], start=1):
        _finished(directory, cell, 0, 0.5 + n / 100)


def test_settings_of_two_keys_are_drawn_as_a_heat_map(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(compare, "draw_heat_map", lambda *given: drawn.append(given))
    _surface(tmp_path / "both", ("tau=10", "tau=2.5"), ("alpha=0.5", "alpha=2"))
    assert compare.main([str(tmp_path / "both")]) == 0
    ((scores, rows, columns, metric, picture),) = drawn
    # In the order of the numbers; the first cell has no run.
    np.testing.assert_allclose(scores, [[52, 53], [np.nan, 51]])
    assert (rows[0], list(rows[1].values()), columns[0], list(columns[1].values())) == (
        ("tau", [2.5, 10], "alpha", [0.5, 2])
    )
    assert (metric, picture) == ("accuracy", tmp_path / "both" / "heat_map.png")
    assert "![](heat_map.png)" in (tmp_path / "both" / "report.md").read_text()
    for n, rows in enumerate([("tau=1", "beta=2"), ("tau=1", "tau=x"), ("tau=1", "dss")]):
        _surface(tmp_path / str(n), rows, ("alpha=1", "alpha=2"))
        assert compare.main([str(tmp_path / str(n))]) == 0
    assert len(drawn) == 1


def test_the_table_of_sensitivity_crosses_two_keys(request):
    table = from_file("sensitivity")
    assert (len(table.rows), len(table.columns), len(table.cells)) == (6, 5, 30)
    for cell in table.cells:
        distillation = parse_command_line(
            ["train", *cell.flags(0, Path("runs"))], ""
        ).config.self_distillation
        assert (
            distillation.method,
            f"tau={distillation.temperature:g}",
            f"alpha={distillation.weight:g}",
        ) == (("dynsdpb", cell.row, cell.column))


def test_a_directory_without_runs_has_no_report(tmp_path, capsys):
    assert compare.main([str(tmp_path)]) == 2
    assert "no such file; python -m cot_jax.sweep writes it" in capsys.readouterr().err
    Table("A title", ()).save(tmp_path)
    assert compare.main([str(tmp_path)]) == 2
    assert "no run is finished yet" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"title": ', '{"title": "A"}', "[]"])
def test_a_torn_table_is_named(tmp_path, capsys, text):
    (tmp_path / "table.json").write_text(text)
    assert compare.main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'table.json'}: ")
    assert said.count("\n") == 1


def test_a_torn_result_and_a_torn_config_are_named(tmp_path, capsys):
    command = [*TINY, "--methods=dss", "--seeds=0", f"--output={tmp_path}"]
    cell = Cell("dss", "100 % of train", "c.py", {"data.train_fraction": 1.0})
    Table("A title", (cell,)).save(tmp_path)
    _finished(tmp_path, cell, 0, 0.5)
    workdir = tmp_path / cell.path / "seed0"
    (workdir / "result.json").write_text('{"test')
    assert compare.main([str(tmp_path)]) == 2
    assert f"error: {workdir / 'result.json'}: not valid JSON" in capsys.readouterr().err
    (tmp_path / "table.json").unlink()
    for text, message in (
        ('{"seed', "not valid JSON"),
        ('{"data": 3}', "config.data is a section of keys, found 3"),
    ):
        (workdir / "config.json").write_text(text)
        assert sweep.main(command) == 2
        assert message in capsys.readouterr().err


def test_the_bootstrap_interval_is_that_of_resampled_answers():
    correct = np.repeat([1, 0], [30, 70])
    rng = np.random.default_rng(1)
    means = correct[rng.integers(100, size=(20_000, 100))].mean(axis=1)
    np.testing.assert_allclose(bootstrap_interval(correct), np.quantile(means, [0.025, 0.975]), atol=0.011)
    assert bootstrap_interval([1, 1]) == (1.0, 1.0)


def test_the_bootstrap_interval_of_a_score_is_that_of_resampled_questions():
    rng = np.random.default_rng(1)
    labels = np.array(["no", "yes"])
    golds = rng.integers(2, size=100)
    answers = np.where(rng.random(100) < 0.7, golds, 1 - golds)
    counts = confusion_matrix(labels[golds].tolist(), labels[answers].tolist(), labels.tolist())
    found = bootstrap_interval_of(METRICS["matthews"], counts)
    # Phi of two columns of 0 and 1 is Matthews' coefficient.
    drawn = rng.integers(100, size=(20_000, 100))
    resampled = [np.corrcoef(golds[n], answers[n])[0, 1] for n in drawn]
    np.testing.assert_allclose(found, np.quantile(resampled, [0.025, 0.975]), atol=0.02)
    accuracy = bootstrap_interval_of(METRICS["accuracy"], counts)
    np.testing.assert_allclose(accuracy, bootstrap_interval(golds == answers), atol=0.011)
    assert bootstrap_interval_of(METRICS["accuracy"], np.diag([3, 4])) == (1.0, 1.0)


def test_the_paired_p_value_needs_pairs_that_differ():
    assert paired_p_value([1.0], [2.0]) is None
    assert paired_p_value([1.0, 2.0], [2.0, 3.0]) is None
    # t = 2 with 3 degrees of freedom.
    assert paired_p_value([1.0, 2.0, 3.0, 2.0], [0.0] * 4) == pytest.approx(0.0163, abs=2e-4)
