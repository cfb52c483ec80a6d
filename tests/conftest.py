"""What several test files share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import pytest

from tp_solver.errors import TPError


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Names of tests must not depend on the process, or two workers cannot share them out."""
    unstable = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if unstable:
        raise pytest.UsageError(f"a memory address is part of a test's name: {unstable[0]}; give ids=")


@pytest.fixture(scope="session")
def compilations() -> list[str]:
    """Every tracing or compilation that jax reports, appended as it happens."""
    seen: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if "compile" in event:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x + 1)(0.0)
    assert seen, "the listener hears compilations"
    return seen


@pytest.fixture
def must_be_answered(compilations: list[str]) -> Callable[[Callable[[], Any], str, str], None]:
    """Checks that a call fails as promised: ``field`` opens the message and ``value`` is shown as what it got; then what is
    allowed and a hint; in under half a second and before anything is compiled."""

    def answer(call: Callable[[], Any]) -> tuple[TPError, float]:
        start = time.perf_counter()
        with pytest.raises(TPError) as caught:
            call()
        return caught.value, time.perf_counter() - start

    def check(call: Callable[[], Any], field: str, value: str) -> None:
        before = len(compilations)
        error, seconds = answer(call)
        if seconds > 0.5:  # a first call may have waited for a module to load, or for a busy machine
            error, seconds = answer(call)
        text = str(error)
        assert type(error) is not TPError, "a child says on which floor the mistake lies"
        assert text.startswith(f"{field}: got "), text
        assert value in text.split("; expected ")[0], text
        assert error.expected, text
        assert f"; expected {error.expected}" in text, text
        assert error.hint, text
        assert text.endswith(f" Hint: {error.hint}"), text
        assert len(text) < 800, "an answer, not a dump"
        assert seconds < 0.5, "answered at once"
        assert len(compilations) == before, "answered before anything is compiled"

    return check
