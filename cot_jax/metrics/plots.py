"""Pictures of a run."""

import importlib.util
import json
from collections import defaultdict
from pathlib import Path

from cot_jax.errors import UserError

LAYER_NORM = "grad_norm/"


def require_matplotlib() -> None:
    """Raises UserError where there is nothing to draw with."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("plots need Matplotlib: pip install 'cot-jax[plots]'")


def draw_layer_norms(metrics_file: Path, picture: Path) -> None:
    """Draws the gradient norm of every layer over the steps, a panel for each stack.

    Args:
      metrics_file: `metrics.jsonl`; rows with `grad_norm/STACK/LAYER` count.
      picture: PNG to write.
    """
    from matplotlib.figure import Figure

    stacks: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in map(json.loads, metrics_file.read_text(encoding="utf-8").splitlines()):
        for name, value in row.items():
            if name.startswith(LAYER_NORM):
                _, stack, layer = name.split("/")
                stacks[stack][int(layer)].append((row["step"], value))
    figure = Figure(figsize=(5 * len(stacks), 3.6), layout="constrained")
    panels = figure.subplots(1, len(stacks), sharey=True, squeeze=False)[0]
    for panel, (stack, layers) in zip(panels, stacks.items(), strict=True):
        for layer, points in sorted(layers.items()):
            steps, norms = zip(*points, strict=True)
            shade = 0.15 + 0.75 * layer / max(len(layers) - 1, 1)
            panel.plot(steps, norms, color=(0.1, 0.3 + 0.4 * (1 - shade), shade), label=f"layer {layer}")
        panel.set_title(stack)
        panel.set_xlabel("step")
        panel.set_yscale("log")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("norm of the gradient")
    panels[-1].legend(frameon=False, fontsize="small", ncols=2 if len(layers) > 6 else 1)
    figure.savefig(picture, dpi=120)
