"""The result.json of a finished run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_jax.errors import UserError
from cot_jax.files import Shape, misfit, read_json

RESULT_FILE = "result.json"


def metric_of(result: Mapping[str, Any]) -> str:
    """Returns the name of a run's selection metric; older runs do not record it."""
    return result.get("metric") or "accuracy"


def read_result(
    workdir: Path, splits: Sequence[str] = ("valid", "test"), shape: Mapping[str, Shape] | None = None
) -> dict[str, Any] | None:
    """Returns a run's result.json; None if the run is not finished.

    Args:
      splits: splits whose score, `SPLIT/METRIC`, is required.
      shape: shape of further required values.

    Raises:
      UserError: the file is unreadable or lacks something.
    """
    file = workdir / RESULT_FILE
    if not file.exists():
        return None
    result = read_json(file)
    scores = {f"{split}/{metric_of(result)}": float for split in splits}
    if wrong := misfit(result, {"metric?": str} | scores | dict(shape or {})):
        raise UserError(
            f"{file}: {wrong}; delete it and train again: the run resumes from its last checkpoint"
        )
    return result
