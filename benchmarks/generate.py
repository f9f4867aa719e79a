"""Greedy generation, ours against `generate` of transformers: float32, same weights, outputs checked equal.

python -m benchmarks.generate --model=small --batches 1 8 --tokens=32
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch

from benchmarks import measure
from benchmarks.published import device, load_model, rectangle
from benchmarks.workload import LENGTHS, flat_batch, model_config, random_params, synthetic_views
from cot_jax.models import student as students
from cot_jax.models.decoding import greedy
from cot_jax.models.t5 import PRESETS, T5
from cot_jax.training.compiled import compiler_options


def main() -> None:
    options = _options()
    report = measure.Report(options)
    torch.set_flush_denormal(True)
    # TF32 products would turn near ties; PyTorch's default is float32 as well.
    jax.config.update("jax_default_matmul_precision", "highest")
    config = model_config(options.model)
    student, params = T5(config), random_params(config)
    with tempfile.TemporaryDirectory() as directory:
        students.save(Path(directory), student, params)
        model = load_model(Path(directory), "sdpa").eval()
    params = jax.device_put(params)
    most = options.tokens
    ours = jax.jit(
        lambda params, inputs: greedy(student.prompt(params, inputs, most), most)[0],
        compiler_options={} if measure.on_cpu() else compiler_options(jax.default_backend()),
    )
    views = synthetic_views(options.lengths, "standard", config.vocab_size)
    rng = np.random.default_rng(0)
    report.note(
        f"{options.model}, {options.lengths} lengths (drawn), float32, {most} tokens at most; "
        "outputs are equal; random weights seldom end early"
    )
    for batch_size in options.batches:
        rows = rng.choice(len(views["label"].inputs), batch_size)
        inputs = flat_batch(views, rows, "standard").views["label"].inputs
        ids, mask = (torch.from_numpy(x.astype(np.int64)).to(device()) for x in rectangle(inputs, 8))

        def theirs(_, ids=ids, mask=mask):
            with torch.inference_mode():
                return model.generate(ids, attention_mask=mask, max_new_tokens=most, do_sample=False)

        def our_side(_, inputs=inputs):
            return ours(params, inputs)

        tokens = check_equal(np.asarray(our_side(0)), theirs(0)[:, 1:].cpu().numpy())
        names = (f"cot_jax, batch {batch_size}", f"torch, batch {batch_size}")
        seconds = measure.in_turn(dict(zip(names, (our_side, theirs), strict=True)), options.repeats)
        for name, time in seconds.items():
            report.row(name, time, **{"S": str(inputs.width), "tokens/s": f"{tokens / time.median:.4g}"})
        report.ratio(f"times as fast, batch {batch_size}", seconds[names[0]], seconds[names[1]])
    report.close()


def check_equal(ours: np.ndarray, theirs: np.ndarray, pad_id: int = 0) -> int:
    """Returns the number of tokens before padding.

    Raises:
      ValueError: the two differ in a token.
    """
    beyond = ((0, 0), (0, ours.shape[1] - theirs.shape[1]))
    theirs = np.pad(theirs, beyond, constant_values=pad_id)
    if different := int((ours != theirs).sum()):
        raise ValueError(f"{different} of {ours.size} generated tokens differ")
    return int((ours != pad_id).sum())


def _options() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--model", default="small", choices=PRESETS)
    parser.add_argument("--lengths", default="cqa", choices=LENGTHS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=32)
    return parser.parse_args()


if __name__ == "__main__":
    main()
