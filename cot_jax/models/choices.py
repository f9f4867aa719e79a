"""Values of the model's config keys, without JAX, so that parsing a command line is fast."""

# Keys of `student.PRESETS`.
PRESETS = (
    "tiny", "small", "base", "large", "xl", "xxl", "t5-small", "t5-base", "t5-large",
    "tiny-llama", "smollm2-135m", "smollm2-1.7b", "qwen3-0.6b", "llama2-7b", "llama3-8b",
    "tiny-bert", "minilm-l6", "bert-base", "bert-large", "tiny-deberta", "deberta-v3-base",
)  # fmt: skip

# What `layers.stack` recomputes in the backward pass.
REMAT = ("none", "elementwise", "layers")
