"""Examples: a question, its gold answer, and a teacher's outputs."""

import dataclasses

ORDERS = ("random", "sequential")  # orders of training


@dataclasses.dataclass(frozen=True)
class Example:
    """One problem, its gold answer and a teacher's outputs.

    None or () means "missing": a method that needs the field leaves the example out of that loss and counts
    it. An empty string is text like any other and is trained on.

    Attributes:
      parts: the question, one text or several, such as a premise and a hypothesis.
      label: the gold answer.
      asked: the question as one text, if it is not the joined parts.
    """

    id: str
    parts: tuple[str, ...]
    label: str
    teacher_label: str | None = None
    rationales: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    asked: str | None = None

    @property
    def text(self) -> str:
        """The parts on separate lines, for people to read."""
        return "\n".join(self.parts)

    @property
    def rationale(self) -> str | None:
        """The first rationale; None: there is none."""
        return self.rationales[0] if self.rationales else None


def parts_as_json(parts: tuple[str, ...]) -> str | list[str]:
    """Returns the JSON that `files.Row.parts` reads: a text, or a list of texts."""
    return parts[0] if len(parts) == 1 else list(parts)
