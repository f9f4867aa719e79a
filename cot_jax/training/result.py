"""What a finished run measured: its result.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_jax.errors import UserError
from cot_jax.files import Shape, misfit, read_json

RESULT_FILE = "result.json"


def metric_of(result: Mapping[str, Any]) -> str:
    """Returns the name of the metric that a run was selected by; older runs name none."""
    return result.get("metric") or "accuracy"


def read_result(
    workdir: Path, splits: Sequence[str] = ("valid", "test"), shape: Mapping[str, Shape] | None = None
) -> dict[str, Any] | None:
    """Returns a run's result.json; None of a run that is not finished.

    Args:
      splits: those whose score, `SPLIT/METRIC`, must be there.
      shape: of what else must be there.

    Raises:
      UserError: the file cannot be read or lacks something.
    """
    file = workdir / RESULT_FILE
    if not file.exists():
        return None
    result = read_json(file)
    scores = {f"{split}/{metric_of(result)}": float for split in splits}
    if wrong := misfit(result, {"metric?": str} | scores | dict(shape or {})):
        raise UserError(f"{file}: {wrong}; delete it and train again: the run ends from its last checkpoint")
    return result
