"""Values of the losses' config keys, without JAX, so that parsing a command line is fast."""

# The mutual-information term.
VARIANTS = ("reference", "masked", "normalized", "kl")
REDUCTIONS = ("max", "mean")
DETACHABLE = ("label", "rationale", "none")

# Soft targets.
SELF_DISTILLATION = ("dlb", "dynamic", "dynsdpb")
OUTPUTS = ("vmm", "full", "top_k")
