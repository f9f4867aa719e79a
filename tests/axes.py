"""Checks the axes that names promise: x_GXD has three, and in a function x_GXD and y_GD have the same D."""

import contextlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterator

import cot_jax

_AXES = re.compile(r"_([A-Z][A-Z0-9]*|h[A-Z]*)_?$")


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Checks the arguments and variables of every function of cot_jax that returns meanwhile.

    Raises:
      AssertionError: on leaving, some do not have the axes of their names, or there was nothing to check.
    """
    wrong: set[str] = set()
    count = 0

    def check(frame, event, _):
        nonlocal count
        if event != "return" or not frame.f_globals.get("__name__", "").startswith(f"{cot_jax.__name__}."):
            return
        sizes = defaultdict(set)
        place = f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"
        for name, value in frame.f_locals.items():
            match, shape = _AXES.search(name), getattr(value, "shape", None)
            if not match or not isinstance(shape, tuple):
                continue
            count += 1
            if len(match[1]) != len(shape):
                wrong.add(f"{place}: {name} has the shape {shape}")
                continue
            for axis, size in zip(match[1], shape, strict=True):
                sizes[axis].add(size)
        for axis, found in sizes.items():
            if len(found) > 1 or (axis.isdigit() and found != {int(axis)}):
                wrong.add(f"{place}: axis {axis} has the sizes {sorted(found)}")

    before = sys.getprofile()
    sys.setprofile(check)
    try:
        yield
    finally:
        sys.setprofile(before)
    assert not wrong, "\n".join(sorted(wrong))
    assert count, "no variable is named after its axes"
