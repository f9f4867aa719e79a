"""Decoders the whole way: every method trains, on any mesh, as PyTorch; what is exported answers alike."""

import functools
import io
import json
import math
import re
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from flat_batches import batch, by_example, rectangle, sequences
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cot_jax import export, predict
from cot_jax.config import DataConfig, WordProblemsConfig, parse_command_line
from cot_jax.data import batches
from cot_jax.data.lengths import describe
from cot_jax.data.views import METHODS, WITH_MUTUAL_INFORMATION
from cot_jax.losses.choices import OUTPUTS
from cot_jax.models import student as students
from cot_jax.models.llama import Llama, LlamaConfig
from cot_jax.models.lora import merged
from cot_jax.models.weights import shapes
from cot_jax.train import main
from cot_jax.training.data import load_splits
from cot_jax.training.experiment import prepare
from cot_jax.training.run import Run
from cot_jax.training.saved import load

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
ROWS = 512  # of the embedding, more than there are tokens
PROBLEMS = {"train": 48, "valid": 8, "test": 8}
FLAGS = (
    "train",
    f"--config={Path(__file__).parents[2] / 'configs' / 'demo_dss.py'}",
    *(f"--config.data.word_problems.{split}={count}" for split, count in PROBLEMS.items()),
    "--config.model.preset=tiny-llama",
    "--config.optimizer.warmup_steps=0",
    "--config.train.batch_size=16",
    "--config.train.steps=3",
    "--config.train.eval_every=3",
    "--config.train.checkpoint_every=2",
    "--config.evaluation.batch_size=8",
    "--config.evaluation.max_new_tokens=6",
    "--show=0",
    "--config.optimizer.name=adamw",
    "--config.optimizer.learning_rate=4e-3",
)
CHAT = (
    "{% for turn in messages %}<|{{ turn.role }}|>\n{{ turn.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(autouse=True, scope="module")
def tiny():
    """The preset `tiny-llama`, tinier."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(students.PRESETS, "tiny-llama", LlamaConfig(**SIZES))
        yield


def _tokenizer(kind):
    """A byte-level tokenizer of word problems: of a chat, of plain prompts, or with a start token before."""
    sizes = WordProblemsConfig(**PROBLEMS)
    problems = load_splits(DataConfig(word_problems=sizes), 0).train
    special = ["<|end|>", "<|start|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    texts = [text for example in problems for text in (example.text, example.label)]
    tokenizer.train_from_iterator(texts, trainer)
    if kind == "started":
        tokenizer.post_processor = processors.TemplateProcessing("<|start|> $A", "$A $B", [("<|start|>", 1)])
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|start|>")
    hf.chat_template = CHAT if kind == "chat" else None
    return hf


def _write(directory, seed=0, **sizes):
    """Writes a pretrained decoder with random weights."""
    student = Llama(LlamaConfig(**SIZES | sizes, vocab_size=ROWS, eos_token_ids=(0,), pad_token_id=0))
    rng = np.random.default_rng(seed)
    like = shapes(student.weights)
    students.save(
        directory, student, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), like)
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The kind of a tokenizer -> the directory of a pretrained decoder."""

    @functools.cache
    def make(kind):
        directory = tmp_path_factory.mktemp(kind)
        _tokenizer(kind).save_pretrained(directory)
        _write(directory)
        return directory

    return make


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    """The flags of a run that trains an adapter of a chat model, and its directory."""
    workdir = tmp_path_factory.mktemp("adapted") / "run"
    flags = [*FLAGS, f"--config.model.pretrained={base('chat')}", "--config.model.lora_rank=2"]
    assert main([*flags, f"--workdir={workdir}"]) == 0
    return flags, workdir


def _rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _config(*flags):
    return parse_command_line([*FLAGS, *flags], "").config


# --- What is learned ---

LEARNED = {
    f"{method}, {variant}, {reduction}": [
        f"--config.objective.method={method}",
        f"--config.objective.mi_variant={variant}",
        f"--config.objective.mi_reduction={reduction}",
    ]
    for method, variant, reduction in (
        ("mi", "kl", "max"),
        ("mi", "normalized", "mean"),
        ("mixed_mi", "masked", "max"),
    )
}
LEARNED |= {
    f"{method}, {distillation}, {output}": [
        f"--config.objective.method={method}",
        f"--config.self_distillation.method={distillation}",
        f"--config.self_distillation.output={output}",
    ]
    for distillation, methods in (
        ("dlb", ("dss", "standard", "mixed")),
        ("dynsdpb", ("single_task", "mi", "program")),
    )
    for method, output in zip(methods, OUTPUTS, strict=True)
}
# Alone what was not part of those.
LEARNED |= {
    method: [f"--config.objective.method={method}"]
    for method in METHODS
    if not any(case.split(",")[0] == method for case in LEARNED)
}


@pytest.mark.parametrize("case", LEARNED)
@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_every_method_trains_and_is_evaluated(case, tmp_path):
    assert main([*FLAGS, *LEARNED[case], f"--workdir={tmp_path / 'run'}"]) == 0
    rows = _rows(tmp_path / "run")
    assert all(math.isfinite(value) for row in rows for value in row.values())
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == 3
    assert steps[-1]["loss"] != steps[0]["loss"]
    for row in steps:
        assert "loss/self_distillation" not in row or (row["loss/self_distillation"] > 0) == (row["step"] > 1)
    assert ("loss/mi" in steps[0]) == (case.split(",")[0] in WITH_MUTUAL_INFORMATION)
    assert ("loss/self_distillation" in steps[0]) == ("dlb" in case or "dynsdpb" in case)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 <= result["valid/accuracy"] <= 1
    assert 0 <= result["test/accuracy"] <= 1


# --- Where it is learned ---

COUPLED = (  # Everything that couples examples or passes, and dropout.
    "--config.objective.method=mi",
    "--config.self_distillation.method=dynsdpb",
    "--config.model.dropout_rate=0.1",
    "--config.model.lora_rank=0",
)
LORA = ("--config.model.lora_rank=2",)
MESHES = {
    "one device": (1, 1, 1),
    "data": (8, 1, 1),
    "all axes": (2, 2, 2),
}
PLACES = [
    *(("coupled", mesh, parts) for mesh, parts in (("all axes", 1), ("data", 2), ("one device", 4))),
    *(("lora", mesh, parts) for mesh, parts in (("all axes", 1), ("all axes", 2))),
]


@pytest.fixture(scope="module")
def losses(base):
    """(name of a method, name of a mesh, parts of a batch) -> the metrics of some steps."""

    @functools.cache
    def run(method, mesh, parts):
        flags = COUPLED if method == "coupled" else LORA
        sizes = dict(zip(("data", "fsdp", "model"), MESHES[mesh], strict=True))
        config = _config(
            *flags,
            f"--config.model.pretrained={base('chat')}",
            *(f"--config.mesh.{axis}={size}" for axis, size in sizes.items()),
            f"--config.train.micro_batches={parts}",
            "--config.train.batch_size=32",
            "--config.train.steps=4",
        )
        return _steps(Run(prepare(config), jax.devices()[: math.prod(sizes.values())]))

    return run


def _steps(run):
    """The metrics of every step."""
    rows = []
    with jax.set_mesh(run.mesh):
        state = run.initial_state()
        for step in range(run.experiment.config.train.steps):
            state, metrics = run._step(state, run.batch(step), run._frozen)
            rows.append(jax.device_get(metrics))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize(("method", "mesh", "parts"), PLACES)
@pytest.mark.slow
def test_losses_are_those_of_one_device_and_of_a_whole_batch(losses, method, mesh, parts):
    expected, found = losses(method, "one device", 1), losses(method, mesh, parts)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        # As in test_mesh.
        np.testing.assert_allclose(values[0], expected[name][0], rtol=3e-6, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_prompts_of_a_chat_begin_alike(base):
    """What the test above divides among devices and micro-batches."""
    experiment = prepare(_config(f"--config.model.pretrained={base('chat')}"))
    for view in experiment.views:
        prefix = experiment.tokenized[view.name].inputs.prefix.tolist()
        text = experiment.format.tokenizer.hf.decode(prefix)
        assert text == f"<|user|>\n{view.prefix.rstrip()}"


@pytest.mark.slow
def test_a_stopped_run_resumes(tmp_path, monkeypatch, capsys):
    flags = [*FLAGS, *COUPLED, "--config.train.steps=4", "--config.train.eval_every=4"]
    assert main([*flags, f"--workdir={tmp_path / 'whole'}"]) == 0
    take, stops = Run.batch, iter([True])

    def stopping(run, step):
        if step == 1 and next(stops, False):
            signal.raise_signal(signal.SIGTERM)
        return take(run, step)

    monkeypatch.setattr(Run, "batch", stopping)
    assert main([*flags, f"--workdir={tmp_path / 'stopped'}"]) == 75
    assert main([*flags, f"--workdir={tmp_path / 'stopped'}"]) == 0
    assert "resuming from step 2" in capsys.readouterr().out
    assert _rows(tmp_path / "stopped") == _rows(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_program_is_compiled_once(base, monkeypatch):
    monkeypatch.setattr(batches, "_COMPILE_STEPS", 1e-3)
    run = Run(prepare(_config(f"--config.model.pretrained={base('chat')}", "--config.train.steps=8", *LORA)))
    compiles = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiles.append(event) if event.endswith("backend_compile_duration") else None
    )
    try:
        with jax.set_mesh(run.mesh):
            state, frozen = run.initial_state(), run._frozen
            steps = [run.batch(n) for n in range(8)]
            programs = {describe(run.batches.shape(n)) for n in range(8)}
            assert len(programs) > 1
            before = len(compiles)
            for taken in steps:
                state, _ = run._step(state, taken, frozen)
            assert len(compiles) - before == len(programs)
            run.evaluate(state.params, "valid")
            before = len(compiles)
            run.evaluate(state.params, "valid")
            assert len(compiles) == before
    finally:
        jax.monitoring.clear_event_listeners()


# --- PyTorch ---

RATE = 3e-3


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    torch.set_num_threads(1)
    return torch


def _torch_losses(torch, run, directory):
    """Fine-tuning as Transformers does it: the loss of completions, means over a batch's tokens."""
    from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

    model = AutoModelForCausalLM.from_pretrained(directory).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    steps = run.experiment.config.train.steps
    schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
    view, losses = run.experiment.tokenized[run.experiment.answer_view.name], []
    assert view.first is None
    for step in range(steps):
        rows = run.batches.rows(step)
        prompts = [np.concatenate([view.inputs.prefix, view.inputs[row]]) for row in rows]
        targets = [view.targets[row] for row in rows]
        ids, mask = rectangle([np.concatenate(pair) for pair in zip(prompts, targets, strict=True)])
        pairs = zip(prompts, targets, strict=True)
        labels, _ = rectangle([np.concatenate([np.full(len(a), -100), b]) for a, b in pairs], -100)
        tensors = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        loss = model(**{name: torch.from_numpy(x.astype(np.int64)) for name, x in tensors.items()}).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return np.array(losses)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["standard", "single_task"])
def test_ten_steps_equal_pytorch(torch, base, method):
    config = _config(
        f"--config.model.pretrained={base('started')}",
        f"--config.objective.method={method}",
        "--config.model.lora_rank=0",
        f"--config.optimizer.learning_rate={RATE}",
        "--config.train.steps=10",
    )
    run = Run(prepare(config))
    ours, theirs = _steps(run)["loss"], _torch_losses(torch, run, base("started"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert theirs[-1] < 0.95 * theirs[0]
    print(f"largest relative difference of a step's loss: {np.abs(ours / theirs - 1).max():.1e}")


def _logits(student, params, inputs, targets):
    """Ours, of each example those that predict its target."""
    examples = batch({"view": (inputs, targets)})
    states = jax.jit(student.hidden)(params, examples, None)["view"]
    return by_example(examples.views["view"].targets, states @ student.head(params))


def _assert_logits(torch, theirs, student, params):
    inputs, targets = sequences(0, [5, 9], 300), sequences(1, [7, 4], 300)
    for before, after, mine in zip(inputs, targets, _logits(student, params, inputs, targets), strict=True):
        ids = torch.from_numpy(np.concatenate([before, after]).astype(np.int64))[None]
        with torch.no_grad():
            want = theirs(ids).logits[0, len(before) - 1 : -1].numpy()
        np.testing.assert_allclose(mine, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.slow
# PEFT asks Transformers by a name that is going out.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_goes_to_peft(torch, base, adapted, tmp_path):
    peft = pytest.importorskip("peft", reason="parity needs PEFT")
    assert export.main([str(adapted[1]), f"--output={tmp_path}", "--adapter"]) == 0
    # Which finds the base by itself.
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path).eval()
    saved = load(adapted[1])
    assert saved.adapter
    assert np.abs(merged(saved.params)["layers"]["mlp"]["up"] - _read(base("chat"))).max() > 0
    _assert_logits(torch, theirs, saved.student, saved.params)


def _read(directory):
    """A weight of a pretrained decoder."""
    return students.from_pretrained(str(directory), students.Options())[1]["layers"]["mlp"]["up"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_comes_from_peft(torch, base, tmp_path):
    peft = pytest.importorskip("peft", reason="parity needs PEFT")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(base("chat"))
    config = peft.LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["q_proj", "v_proj", "down_proj"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(plain, config).eval()
    theirs.save_pretrained(tmp_path)
    flags = [f"--config.model.pretrained={base('chat')}", f"--config.model.lora_adapter={tmp_path}"]
    experiment = prepare(_config(*flags))
    assert experiment.lora.rank == 3
    params = jax.device_get(Run(experiment).initial_state().params)
    _assert_logits(torch, theirs, experiment.student, experiment.lora.attach(experiment.pretrained, params))


# --- What is exported ---


def _samples(directory, capsys, monkeypatch, questions):
    """What the program of the model card prints of each question."""
    card = (directory / "README.md").read_text()
    (program,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(directory)
    printed = []
    for question in questions:
        capsys.readouterr()
        exec(compile(program, "README.md", "exec"), {"question": question})
        printed.append(capsys.readouterr().out.removesuffix("\n"))
    return printed


def _predicted(student, capsys, monkeypatch, questions):
    rows = [json.dumps({"input": question}) for question in questions]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(rows).encode())))
    capsys.readouterr()
    assert predict.main([str(student), "--batch_size=8"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [row.get("program", row["label"]) for row in rows]


@pytest.fixture(scope="module")
def runs(base, adapted, tmp_path_factory):
    """The kind of a student -> the directory of a run."""

    @functools.cache
    def make(kind):
        if kind == "adapted":
            return adapted[1]
        workdir = tmp_path_factory.mktemp(kind) / "run"
        sources = {
            "chat": [f"--config.model.pretrained={base('chat')}", "--config.model.lora_rank=0"],
            "started": [
                f"--config.model.pretrained={base('started')}",
                "--config.model.lora_rank=0",
                "--config.objective.method=standard",
            ],
            "from scratch": ["--config.objective.method=program"],
        }
        assert main([*FLAGS, *sources[kind], f"--workdir={workdir}"]) == 0
        if kind == "from scratch":  # as if its tokenizer lost something of the programs
            file = workdir / "tokenizer" / "format.json"
            values = json.loads(file.read_text())
            assert values["spelled"] == []
            file.write_text(json.dumps(values | {"spelled": ["program"]}))
        return workdir

    return make


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapted", "chat", "started", "from scratch"])
def test_an_exported_decoder_says_the_same_in_transformers(torch, runs, kind, tmp_path, capsys, monkeypatch):
    run, directory = runs(kind), tmp_path / "student"
    assert export.main([str(run), f"--output={directory}"]) == 0
    assert "AutoModelForCausalLM and AutoTokenizer read it" in capsys.readouterr().out
    questions = [example.text for example in prepare(load(run).config).splits.test]
    said = _predicted(run, capsys, monkeypatch, questions)
    assert _predicted(directory, capsys, monkeypatch, questions) == said
    assert _samples(directory, capsys, monkeypatch, questions) == said
    assert any(said)
    assert ("codec.decode(" in (directory / "README.md").read_text()) == (kind == "from scratch")


@pytest.mark.slow
def test_the_model_card_of_a_decoder(runs, base, tmp_path):
    directory = tmp_path / "student"
    assert export.main([str(runs("adapted")), f"--output={directory}"]) == 0
    card = (directory / "README.md").read_text()
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["base_model"] == str(base("chat"))
    assert yaml.safe_load(front)["datasets"] == ["word_problems"]
    assert (
        f"`{base('chat')}` with a LoRA adapter merged into its weights (rank 2, alpha 32, 14 matrices), "
        "trained on word_problems with `dss`" in body
    )
    result = json.loads((runs("adapted") / "result.json").read_text())
    assert f"| test | {100 * result['test/accuracy']:.2f} % | evaluated once |" in body
    assert "| the answer | `predict: ` | 6 |" in body
    assert "tokenizer.apply_chat_template(" in body
    assert "AutoModelForCausalLM" in body
    assert export.main([str(runs("started")), f"--output={tmp_path / 'plain'}"]) == 0
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "LoRA" not in card
    assert "prompt = question + '\\nAnswer:'\n" in card
    assert "| the answer | nothing | 6 |" in card


# --- Bad input ---


def _json(**changes):
    """Changes values of config.json."""

    def change(directory):
        file = directory / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _tensors(change):
    """Changes the tensors."""

    def of(directory):
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")

    return of


UP = "model.layers.1.mlp.up_proj.weight"
KNOWN = "t5, llama, mistral, qwen2, qwen3"
BAD = {
    "quantized": (
        _json(quantization_config={"quant_method": "bitsandbytes"}),
        r"config\.json: the weights are quantized \(bitsandbytes\); take the unquantized model",
    ),
    "integers": (
        _tensors(lambda tensors: tensors.update({UP: tensors[UP].astype(np.int8)})),
        rf"tensor {UP} is int8; quantized weights cannot be read: take the unquantized model",
    ),
    "packed integers": (
        _tensors(lambda tensors: tensors.update({UP.replace("weight", "qweight"): np.ones(3, np.int32)})),
        r"tensor .*up_proj\.qweight is int32; quantized weights cannot be read: take the unquantized model",
    ),
    "rope": (
        _json(rope_parameters={"rope_type": "longrope"}),
        r'config\.json: rope_type is "longrope", known: default, linear, dynamic, llama3, yarn',
    ),
    "model type": (
        _json(model_type="gpt_neox"),
        rf"config\.json: model_type is 'gpt_neox', known: {KNOWN}",
    ),
    "another vocabulary": (
        lambda directory: _add_tokens(directory),
        r"has 512 embedding rows but the tokenizer \d+ tokens: use the model's own tokenizer "
        r"\(--config\.model\.tokenizer=\)",
    ),
    "no template": (
        lambda directory: ["--config.data.chat=template"],
        r"no chat template; put its chat_template\.jinja there, or use plain prompts with "
        r"--config\.data\.chat=plain",
    ),
    "an adapter of another size": (
        lambda directory: _adapter(directory, "q_proj", 64),
        r"self_attn\.q_proj\.lora_A\.weight is \(2, 64\), expected \(2, 32\)",
    ),
    "an adapter of another architecture": (
        lambda directory: _adapter(directory, "query_key_value", 32),
        r"self_attn\.query_key_value\.lora_A\.weight adapts no layer's matrix of the student",
    ),
}


def _add_tokens(directory):
    hf = _tokenizer("started")
    hf.add_tokens([f"<{n}>" for n in range(200)])
    hf.save_pretrained(directory)


def _adapter(directory, module, size):
    """Writes an adapter as PEFT does."""
    tensors = {}
    for layer in range(SIZES["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
        tensors[f"{name}.lora_A.weight"] = np.zeros((2, size), np.float32)
        tensors[f"{name}.lora_B.weight"] = np.zeros((size, 2), np.float32)
    (directory / "adapter").mkdir()
    save_file(tensors, directory / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [module]}
    (directory / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return [f"--config.model.lora_adapter={directory / 'adapter'}"]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(base, tmp_path, capsys, case):
    change, message = BAD[case]
    directory = shutil.copytree(base("started"), tmp_path / "base")
    flags = change(directory) or []
    status = main([*FLAGS, f"--config.model.pretrained={directory}", *flags, f"--workdir={tmp_path / 'run'}"])
    _assert_refused(status, message, capsys)
    assert not (tmp_path / "run").exists()


def test_a_run_of_other_weights_is_refused(base, adapted, capsys):
    flags, workdir = adapted
    _write(base("chat"), seed=1)
    try:
        status = main([*flags, f"--workdir={workdir}"])
    finally:
        _write(base("chat"))
    _assert_refused(status, r"not the weights that .*run adapts; restore them", capsys)


def _assert_refused(status, message, capsys):
    err = capsys.readouterr().err
    assert status == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert re.search(message, err)
