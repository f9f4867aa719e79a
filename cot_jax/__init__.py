"""Chain-of-thought distillation into small language models, in JAX and Flax.

    import cot_jax as cj

    config = cj.config("svamp_mi", **{"data.root": "data", "train.steps": 200})
    run = cj.train(config, "runs/short")            # or resumes; cj.load("runs/short") reads a finished run
    run.predict(["Tom has 3 pens and buys 4. How many has he?"])
    run.evaluate()
    run.export("student")

These names are public. Everything else is internal and may change. JAX is imported on first use.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Trained", "UserError", "config", "load", "train"]

if TYPE_CHECKING:
    from cot_jax.api import Trained as Trained
    from cot_jax.api import load as load
    from cot_jax.api import train as train
    from cot_jax.config import make as config
    from cot_jax.errors import UserError as UserError
else:

    def __getattr__(name: str) -> Any:
        if name in ("config", "train"):  # callable modules
            import importlib

            return importlib.import_module(f"cot_jax.{name}")
        if name == "UserError":
            from cot_jax.errors import UserError

            return UserError
        if name in __all__:
            from cot_jax import api

            return getattr(api, name)
        raise AttributeError(f"module 'cot_jax' has no attribute {name!r}")
