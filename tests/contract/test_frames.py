"""How many of FlexGen's own frames lie between a command and the work that it is for."""

import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flexgen as package
from flexgen.metrics import PriorAgreement
from flexgen.objectives import WGANGP
from tests.conftest import SMALL

HOME = Path(package.__file__).parent
TINY = (*SMALL, "steps=2", "report=false")

Stack = list[tuple[str, str]]


def stack_at(patched: pytest.MonkeyPatch, owner: type, name: str) -> Stack:
    """The stack of a method's first call, noted when it comes.

    Returns:
        File and function of each frame of FlexGen's own, the outermost first, the caller last.
    """
    method, stack = getattr(owner, name), []

    def noting(*args: Any) -> Any:
        if not stack:
            for frame, _ in traceback.walk_stack(inspect.currentframe()):
                file = Path(frame.f_code.co_filename)
                if file.is_relative_to(HOME):
                    stack.insert(0, (str(file.relative_to(HOME)), frame.f_code.co_qualname))
        return method(*args)

    patched.setattr(owner, name, noting)
    return stack


def check(stack: Stack, frames: int, files: int) -> None:
    """Refuse a way of more than `frames`, or through more than `files`."""
    through = {file for file, _ in stack}
    told = "\n".join(f"{file}: {function}" for file, function in stack)
    told = f"{len(stack)} frames in {len(through)} files\n{told}"
    print(told)
    assert 0 < len(stack) <= frames, told
    assert len(through) <= files, told


def test_the_way_to_a_critic_step(
    flexgen: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = stack_at(monkeypatch, WGANGP, "critic")
    flexgen("train", *TINY)
    check(stack[:-1], frames=8, files=5)  # the last is the step itself


def test_the_way_to_a_score_in_training(
    flexgen: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = stack_at(monkeypatch, PriorAgreement, "compute")
    flexgen("train", *TINY)
    check(stack, frames=10, files=7)


def test_the_way_to_a_score_alone(
    flexgen: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = flexgen("train", *TINY)
    stack = stack_at(monkeypatch, PriorAgreement, "compute")
    flexgen("evaluate", f"run={run}")
    check(stack, frames=7, files=5)
