"""The names that keys of the losses may have. Without JAX: who reads a command line does not wait for it."""

# Of the mutual-information term.
VARIANTS = ("reference", "masked", "normalized", "kl")
REDUCTIONS = ("max", "mean")
DETACHABLE = ("label", "rationale", "none")

# Of soft targets.
SELF_DISTILLATION = ("dlb", "dynamic", "dynsdpb")
OUTPUTS = ("vmm", "full", "top_k")
MAP_LOGITS = ("log", "minmax")
DIFFICULTIES = ("clip", "sqrt", "none")
UNCERTAINTIES = ("log_vocabulary", "batch_maximum")
