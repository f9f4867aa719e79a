"""Examples: a question, its gold answer, and what a teacher said."""

import dataclasses

ORDERS = ("random", "sequential")  # in which a run sees them


@dataclasses.dataclass(frozen=True)
class Example:
    """One problem, its gold answer and what a teacher said about it.

    `None`, or no text among several, means "there is none": a method that needs the field leaves the example
    out of that loss and counts it. The empty string is text like any other and is trained on.

    Attributes:
      parts: the question, one text or several, such as a premise and a hypothesis.
      label: the gold answer.
      asked: the question as one text, where joining the parts is not how it is asked.
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
        """The parts, one below the other, for people to read."""
        return "\n".join(self.parts)

    @property
    def rationale(self) -> str | None:
        """The first one."""
        return self.rationales[0] if self.rationales else None

    @property
    def program(self) -> str | None:
        """The first one."""
        return self.programs[0] if self.programs else None


def parts_as_json(parts: tuple[str, ...]) -> str | list[str]:
    """Returns what `files.Row.parts` reads: a text, or a list of several."""
    return parts[0] if len(parts) == 1 else list(parts)
