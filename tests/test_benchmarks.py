"""The benchmarks count the right FLOPs, refuse sides that differ, and make their page."""

import dataclasses
import importlib
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import experiment, measure, report, startup, tpu_schedule, workload
from benchmarks.all import ROWS
from benchmarks.head import plain_vocabulary_pass
from cot_jax.errors import UserError
from cot_jax.models import student as students
from cot_jax.models.bert import BertConfig
from cot_jax.models.t5 import T5, T5Config
from cot_jax.models.weights import shapes
from cot_jax.text import tokenizer as tokenizers

TINY = T5Config(
    vocab_size=96,
    d_model=32,
    d_kv=8,
    d_ff=64,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=4,
    dropout_rate=0.1,
)


@pytest.mark.slow
@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_flops_are_those_of_the_compiler(feed_forward):
    config = dataclasses.replace(
        TINY,
        vocab_size=2048,
        d_model=256,
        d_kv=64,
        d_ff=512,
        feed_forward_proj=feed_forward,
        dropout_rate=0.0,
    )
    student = T5(config, unroll=True)
    views = workload.synthetic_views("cqa", "dss", config.vocab_size)
    # Of the padding in rectangles of attention the compiler counts the arithmetic as well.
    views = workload.even_views(views, np.arange(4), config.vocab_size)
    batch = workload.flat_batch(views, np.arange(4), "dss")

    def loss(params):
        # Not the streamed pass: of a loop the compiler counts one turn.
        hidden = student.hidden(params, batch, None)
        return sum(
            plain_vocabulary_pass(hidden[name], student.head(params), view.targets).nll_GY.sum()
            for name, view in batch.views.items()
        )

    params = shapes(student.weights)
    counted = jax.jit(jax.value_and_grad(loss)).lower(params).cost_analysis()["flops"]
    # What is left is element by element.
    assert workload.step_flops(config, batch) == pytest.approx(counted, rel=0.05)
    assert workload.step_flops(config, batch) < counted


def test_even_batches_have_nothing_to_pad():
    config = workload.model_config("base")
    views = workload.synthetic_views("cqa", "mi", config.vocab_size)
    rows = workload.typical_rows(views, 8, config)
    longest = workload.longest(views, rows)
    batch = workload.flat_batch(workload.even_views(views, rows, config.vocab_size), np.arange(8), "mi")
    widths = np.array([(view.inputs.width, view.targets.width) for view in batch.views.values()])
    assert ((longest <= widths) & (widths < longest + 8)).all()
    needed = workload.step_flops(config, batch)
    assert needed == workload.slot_flops(config, batch) == workload.rectangle_flops(config, 8, widths)
    # Of unlike lengths most are shorter than the longest.
    uneven = workload.step_flops(config, workload.flat_batch(views, rows, "dss"))
    assert 0 < uneven < 0.9 * workload.rectangle_flops(config, 8, longest)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dss", "mi"])
def test_both_sides_compute_the_same_or_it_is_said(method, tmp_path):
    pytest.importorskip("torch", reason="parity needs PyTorch")
    from benchmarks.published import TorchStep

    views, rows = workload.synthetic_views("cqa", method, TINY.vocab_size), np.arange(4)
    params, batch = workload.random_params(TINY), workload.flat_batch(views, rows, method)
    ours = workload.OurStep(TINY, params, method, jnp.float32, 4).loss_and_norm(batch)

    def theirs(params):
        students.save(tmp_path, T5(TINY), params)
        step = TorchStep(tmp_path, method, tuned=method == "mi")
        return step.loss_and_norm(step.tensors(batch))

    measure.agreement(ours, theirs(params), 1e-4)
    params["encoder"]["layers"]["mlp"]["wo"] *= 1.5
    with pytest.raises(ValueError, match="do not compute the same"):
        measure.agreement(ours, theirs(params), 1e-3)
    with pytest.raises(ValueError, match="nan"):
        measure.agreement((float("nan"), ours[1]), ours, 1e-3)


@pytest.mark.slow
def test_an_encoder_is_compared_with_transformers(monkeypatch, tmp_path):
    pytest.importorskip("torch", reason="the other side needs PyTorch")
    from benchmarks import encoders

    tiny = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    monkeypatch.setitem(students.PRESETS, "tiny-bert", BertConfig(**tiny, num_hidden_layers=2))
    monkeypatch.setitem(encoders._MADE_UP, "rte", (2, 12, 0.5, {"train": 64, "valid": 8, "test": 20}))
    out = tmp_path / "row.json"
    arguments = ["--preset=tiny-bert", "--tasks=rte", "--batch=8", "--repeats=2", f"--out={out}"]
    monkeypatch.setattr("sys.argv", ["encoders", *arguments])
    encoders.main()
    found = json.loads(out.read_text())
    assert len(found["samples_s"]) == 8
    assert {c["name"] for c in found["comparisons"]} == {
        "times as fast, prediction, rte",
        "times as fast, training step, rte",
        "step time of dynsdpb, rte",
    }
    assert sum("20 of 20 predictions equal" in note for note in found["notes"]) == 2
    with pytest.raises(ValueError, match="do not compute the same"):
        measure.agreement((0.7, 1.0), (0.7, 1.1), 1e-2)


def test_drawn_lengths_are_like_the_data():
    inputs, labels, rationales = workload.LENGTHS["svamp"].draw(20_000, np.random.default_rng(0))
    assert (inputs.min(), inputs.max()) == (19, 73)
    assert np.median(inputs) == 41
    assert labels.mean() == pytest.approx(11.3, abs=0.3)  # 11.33 in the data
    assert rationales.mean() == pytest.approx(39.0, abs=1.0)  # 39.01
    assert np.corrcoef(inputs, rationales)[0, 1] == pytest.approx(0.32, abs=0.05)


def test_words_are_as_many_tokens_as_the_lengths(tmp_path):
    experiment.write_data(tmp_path)
    tokenizer = tokenizers.load(tmp_path / "tokenizer")
    fields = {"input": "explain: ", "label": "", "rationale": ""}
    of_fields = workload.LENGTHS["svamp"].percentiles
    for split, count in experiment._SPLITS.items():
        rows = [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        assert len(rows) == count
        for (field, before), percentiles in zip(fields.items(), of_fields, strict=True):
            texts = [before + row[field] for row in rows]
            lengths = [len(ids) + 1 for ids in tokenizer.encode(texts)]  # and the end token
            # 80 examples have none of the longest half per cent.
            assert percentiles[0] <= min(lengths) <= percentiles[1]
            assert percentiles[-4] <= max(lengths) <= percentiles[-1]


def test_what_is_asked_of_the_cache_jax_knows():
    assert all(hasattr(jax.config, name.lower()) for name in startup.CACHE)


def test_a_start_is_timed_by_the_lines_of_the_run(monkeypatch, tmp_path):
    run = tmp_path / "run"
    run.write_text(
        '#!/bin/sh\necho "$@" > "$0.arguments"\necho task demo\nsleep 0.2\necho compiled 1 of 2\necho more\n'
        "echo step 1: loss 2\nsleep 60\n"
    )
    run.chmod(0o700)
    monkeypatch.setattr(startup.sys, "executable", str(run))
    data, compiled, step = startup._start(["--config.seed=1"], None)
    assert 0 < data < data + 0.2 <= compiled <= step < 30
    assert (tmp_path / "run.arguments").read_text().endswith("--config.seed=1\n")


def test_no_program_is_called_for_the_first_time_when_it_is_timed(monkeypatch):
    pytest.importorskip("torch", reason="the other side needs PyTorch")
    from benchmarks import step_throughput

    class Step(list):
        def compile(self, batches):
            pass

        def __call__(self, batch):
            self.append(workload.shape(batch))

    ours, timed = Step(), []
    monkeypatch.setattr(measure, "in_turn", lambda sides, *_: timed.append(list(ours)) or {})
    options = SimpleNamespace(batch=8, repeats=12, calls=1, method="dss")
    views = workload.synthetic_views("svamp", "dss", TINY.vocab_size)
    said = SimpleNamespace(note=lambda line: None)
    step_throughput._time_epoch(said, options, TINY, ours, {}, views)
    assert len(timed[0]) == len(set(timed[0])) > 1


def test_sides_take_turns():
    calls = []
    sides = {name: lambda i, name=name: calls.append((name, i)) for name in "ab"}
    seconds = measure.in_turn(sides, repeats=2, calls=2)
    # Each sample of two follows an untimed call.
    assert calls == [(side, i) for first in (0, 2) for side in "ab" for i in (first, first, first + 1)]
    assert len(seconds["a"].samples) == 2


@pytest.fixture
def measured(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmarks/step_throughput.py", "--batch=8"])
    result = measure.Report(measure.parser("").parse_args([f"--out={tmp_path / 'cpu-small-same.json'}"]))
    ours, theirs = measure.Seconds((1.0, 2.0, 3.0)), measure.Seconds((3.0, 4.0, 9.0))
    result.note("a note")
    result.row("cot_jax", ours, speed="4")
    result.ratio("times as fast as torch published", ours, theirs)
    result.close()
    return tmp_path / "cpu-small-same.json"


def test_the_page_says_what_was_measured(measured, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="the plot needs Matplotlib")
    monkeypatch.setattr("sys.argv", ["report", str(measured), f"--docs={tmp_path}"])
    page = tmp_path / "performance.md"
    page.write_text(f"# How to profile\n\n{report.BEGIN}\nold\n{report.END}\n\nThe end.\n")
    report.main()
    text, rows = page.read_text(), (tmp_path / "performance_rows.md").read_text()
    assert text.startswith("# How to profile\n")
    assert text.endswith("\nThe end.\n")
    assert "old" not in text
    assert "| cot_jax | 2 s [1, 1.5-2.5]" in rows
    assert "`python -m benchmarks.step_throughput --batch=8`" in rows
    assert json.loads(measured.read_text())["versions"]["jax"] in rows
    assert "times as fast as torch published: 2 (2.5-3)" in rows
    target, *others = [line for line in text.splitlines() if "(performance_rows.md#cpu-small-same)" in line]
    assert not others
    assert "| 2 (2.5-3) " in target
    assert "\n## cpu-small-same\n" in rows
    assert text.count("not measured") == len(report.TARGETS) - 1
    assert (tmp_path / "performance.png").stat().st_size > 1000


@pytest.mark.parametrize("row", [*ROWS["gpu"].values(), *ROWS["cpu"].values()])
def test_rows_are_commands(row, monkeypatch):
    pytest.importorskip("torch", reason="the other side needs PyTorch")
    name, *arguments = row.split()
    monkeypatch.setattr("sys.argv", [name, *arguments])
    importlib.import_module(f"benchmarks.{name}")._options()


def test_every_target_has_a_row_that_is_run():
    assert {target.row for target in report.TARGETS} <= ROWS["gpu"].keys() | ROWS["cpu"].keys()


def test_a_page_without_marks_is_left_alone():
    with pytest.raises(ValueError, match="once, in this order"):
        report.insert("# Performance\n", "measured")


_SCHEDULED = """
HloModule jit_step, is_scheduled=true

%sliced (p0: bf16[8,4,128], p1: s32[]) -> bf16[4,128] {
  %p0 = bf16[8,4,128]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %slice = bf16[1,4,128]{2,1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,4,128}
}

%updated (p0: f32[8,64], p1: s32[], p2: f32[1,64]) -> f32[8,64] {
  %p0 = f32[8,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[1,64]{1,0} parameter(2)
  ROOT %update = f32[8,64]{1,0} dynamic-update-slice(%p0, %p2, %p1)
}

%body (state: STATE) -> STATE {
  %state = STATE parameter(0)
  %n = s32[] get-tuple-element(%state), index=0
  %stack = bf16[8,4,128]{2,1,0} get-tuple-element(%state), index=1
  %kept = f32[8,64]{1,0} get-tuple-element(%state), index=2
  %row = f32[1,64]{1,0:T(8,128)S(1)} constant({...})
  %read = bf16[4,128]{0:S(1)} fusion(%stack, %n), calls=%sliced, NAME=jvp(encoder)/attention/mul;, CYCLES=100
  %write = f32[8,64]{1,0} fusion(%kept, %n, %row), kind=kLoop, calls=%updated, CYCLES=10
  ROOT %next = STATE tuple(%n, %stack, %write)
}

%condition (state: STATE) -> pred[] {
  %state = STATE parameter(0)
  %n = s32[] get-tuple-element(%state), index=0
  %end = s32[] constant(8)
  ROOT %less = pred[] compare(%n, %end), direction=LT
}

%until (state: STATE) -> pred[] {
  %state = STATE parameter(0)
  %n = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%n, %n), direction=LT
}

%chunk (state: STATE) -> STATE {
  %state = STATE parameter(0)
  ROOT %inner = STATE while(%state), condition=%until, body=%body, NAME=jvp(head)/while;
}

ENTRY %main (x: f32[16,128]) -> f32[16,128] {
  %x = f32[16,128]{1,0} parameter(0)
  %start = STATE constant({...})
  %loop = STATE while(%start), condition=%condition, body=%body, NAME=jvp(encoder)/while;
  %more = STATE while(%loop), condition=%until, body=%body, NAME=jvp(head)/while;
  %chunks = STATE while(%more), condition=%condition, body=%chunk, NAME=jvp(head)/scan;
  %nothing = f32[16,128]{1,0} copy(%x), backend_config={"flag_configs":[]}
  %kernel = f32[16,128]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", NAME=attention/pallas;
  ROOT %add.1 = f32[16,128]{1,0} add(%x, %x), NAME=optimizer/add;, CYCLES=7
}
"""


def test_a_schedule_is_read_with_the_turns_of_its_loops():
    hlo = _SCHEDULED.replace("STATE", "(s32[], bf16[8,4,128]{2,1,0}, f32[8,64]{1,0})")
    hlo = re.sub(r"NAME=([^;]*);", r'metadata={op_name="jit(step)/\1"}', hlo)
    hlo = re.sub(r"CYCLES=(\d+)", r'backend_config={"window_config":{"estimated_cycles":"\1"}}', hlo)
    found = tpu_schedule.operations(hlo, examples=3, kernels={"kernel": 200})
    assert found == [
        # name, part, does, cycles, bytes, turns: of the stacks one row, and none of the fast memory S(1)
        ("read", "attention", "mul", 800, 8 * (2 * 4 * 128 + 4), 8),
        ("write", "encoder", "while", 80, 8 * (4 + 4 * 64), 8),
        ("read", "attention", "mul", 300, 3 * (2 * 4 * 128 + 4), 3),
        ("write", "head", "while", 30, 3 * (4 + 4 * 64), 3),
        # Eight chunks have three examples: one turn for each, and one more for those that a chunk's end cuts.
        ("read", "attention", "mul", 1000, 10 * (2 * 4 * 128 + 4), 10),
        ("write", "head", "while", 100, 10 * (4 + 4 * 64), 10),
        ("kernel", "attention", "pallas", 200, 2 * 4 * 16 * 128, 1),
        ("add.1", "optimizer", "add", 7, 3 * 4 * 16 * 128, 1),
    ]
    lines = list(tpu_schedule.page(found, tpu_schedule.Chip("", 1e6, 2517e3), 500.0, "2 s to compile"))
    assert lines[:2] == [
        "1.0 ms a step, 50% of the peak, 2 s to compile.",
        "attention 91%, head 5%, encoder 3%, optimizer 0%",
    ]
    assert lines[5] == "| attention | mul | 10 | 0.40 | 39.7% | 0.00 |"


def test_a_kernels_bundles_are_counted_by_how_often_they_run():
    """A group's first program copies its keys, behind a branch; every program visits tiles in a loop."""
    begin = ["     0   :  { %1 = vsyncpa [#sem] }"]
    copy = ["  0x2   : > { %2 = vld %p }"] * 70
    bundles = [
        *begin,
        "   0x1 LB: > { %3 = sbr.rel (!%p0) target = $region7 }",
        *copy,
        "  0x50 PF: > { %4 = sbr.rel (!%p1) target = $region9 } /* Start/End empty region 7 :: */",
        "  0x51 LB: >> { %5 = vadd %a, %b } /* Start region 8 */",
        *["  0x52   : >> { %6 = vadd %a, %b }"] * 99,
        "  0xb5 PF: > { %7 = vst %c } /* Start/End empty region 9 */",
        "not a bundle",
    ]
    assert tpu_schedule._bundles("\n".join(bundles)) == (70, 4, 100)


def test_the_schedule_is_of_the_method_asked_for():
    def config(*flags):
        return tpu_schedule._config(tpu_schedule._options(["--root=data", "--tokenizer=dir", *flags]))

    def objective(*flags):
        return config(*flags).objective.method, config(*flags).objective.mi_variant

    assert objective() == objective("--method=mi") == ("mi", "reference")
    assert objective("--method=mi:normalized") == ("mi", "normalized")
    assert objective("--method=dss")[0] == "dss"
    with pytest.raises(UserError, match="--method=dss is for a seq2seq student, not bert-base"):
        config("--student=bert-base", "--method=dss")
    assert config("--student=bert-base").data.task == "rte"
