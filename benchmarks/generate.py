"""Greedy generation, ours against `generate` of transformers: float32, same weights, outputs checked equal.

python -m benchmarks.generate --model=small --batches 1 8 --tokens=32
"""

import argparse
import functools
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch

from benchmarks import measure
from benchmarks.published import device, load_model
from benchmarks.workload import LENGTHS, longest, model_config, random_params, synthetic_views
from cot_jax.models.t5 import PRESETS, T5


def main() -> None:
    options = _options()
    report = measure.Report(options)
    torch.set_flush_denormal(True)
    # TF32 products would turn near ties; PyTorch's default is float32 as well.
    jax.config.update("jax_default_matmul_precision", "highest")
    config = model_config(options.model)
    params = random_params(config)
    with tempfile.TemporaryDirectory() as directory:
        huggingface.save(Path(directory), config, params)
        model = load_model(Path(directory), "sdpa").eval()
    params = jax.device_put(params)
    ours = jax.jit(functools.partial(T5(config).generate, max_new_tokens=options.tokens))
    view = synthetic_views(options.lengths, "standard", config.vocab_size)["label"]
    rng = np.random.default_rng(0)
    report.note(
        f"{options.model}, {options.lengths} lengths (drawn), float32, {options.tokens} tokens at most; "
        "outputs are equal; random weights seldom end early"
    )
    for batch_size in options.batches:
        rows = rng.choice(len(view.inputs), batch_size)
        ids_BS, length_B = view.inputs.take(rows, longest({"": view}, rows, 8)[0], 0)
        mask = torch.from_numpy(np.arange(ids_BS.shape[1]) < length_B[:, None]).to(device())
        ids = torch.from_numpy(ids_BS.astype(np.int64)).to(device())

        def theirs(_, ids=ids, mask=mask):
            with torch.inference_mode():
                return model.generate(
                    ids, attention_mask=mask, max_new_tokens=options.tokens, do_sample=False
                )

        def our_side(_, ids_BS=ids_BS, length_B=length_B):
            return ours(params, ids_BS, length_B)[0]

        tokens = check_equal(np.asarray(our_side(0)), theirs(0)[:, 1:].cpu().numpy())
        names = (f"cot_jax, batch {batch_size}", f"torch, batch {batch_size}")
        seconds = measure.in_turn(dict(zip(names, (our_side, theirs), strict=True)), options.repeats)
        for name, time in seconds.items():
            report.row(name, time, **{"S": str(ids_BS.shape[1]), "tokens/s": f"{tokens / time.median:.4g}"})
        report.ratio(f"times as fast, batch {batch_size}", seconds[names[0]], seconds[names[1]])
    report.close()


def check_equal(ours: np.ndarray, theirs: np.ndarray) -> int:
    """Returns the number of tokens before padding.

    Raises:
      ValueError: the two differ in a token.
    """
    theirs = np.pad(theirs, ((0, 0), (0, ours.shape[1] - theirs.shape[1])))
    if different := int((ours != theirs).sum()):
        raise ValueError(f"{different} of {ours.size} generated tokens differ")
    return int((ours != 0).sum())


def _options() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--model", default="small", choices=PRESETS)
    parser.add_argument("--lengths", default="cqa", choices=LENGTHS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=32)
    return parser.parse_args()


if __name__ == "__main__":
    main()
