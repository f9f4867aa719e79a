"""The names that keys of the model may have. Without JAX: who reads a command line does not wait for it."""

# Of `student.PRESETS`, the sizes of students from scratch.
PRESETS = (
    "tiny", "small", "base", "large", "xl", "xxl", "t5-small", "t5-base", "t5-large",
    "tiny-llama", "smollm2-135m", "smollm2-1.7b", "qwen3-0.6b", "llama2-7b", "llama3-8b",
    "tiny-bert", "minilm-l6", "bert-base", "bert-large", "tiny-deberta", "deberta-v3-base",
)  # fmt: skip

# Of `layers.REMAT`, what a layer keeps for the backward pass.
REMAT = ("none", "elementwise", "layers")
