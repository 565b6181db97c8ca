"""Raises the bar for every test; pyproject.toml turns warnings into errors."""

import os
from collections.abc import Iterator
from pathlib import Path

# Before anything imports matplotlib: a test opens no window.
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import jax
import pytest

from snaprl.training import compile_cache


def pytest_configure(config: pytest.Config) -> None:
    """Lets a damaged or unwritable cache be slow, not an error.

    A run that is killed while it writes leaves half an entry behind. jax then warns and compiles
    anew, at every later run: that says nothing about the code under test.
    """
    config.addinivalue_line(
        "filterwarnings", "ignore:Error (reading|writing) persistent compilation cache:UserWarning"
    )


def _mappings() -> int:
    """How many ranges of memory this process has mapped; 0 where the system does not say."""
    try:
        with Path("/proc/self/maps").open("rb") as lines:
            return sum(1 for _ in lines)
    except OSError:
        return 0


_since_last_look = 0


def pytest_runtest_teardown() -> None:
    """Lets go of compiled programs before there are too many of them.

    XLA maps each program's code into memory. Linux allows a process 65 530 mappings, and what asks
    for more of them dies of a segmentation fault.
    """
    global _since_last_look
    _since_last_look += 1
    if _since_last_look >= 10:
        _since_last_look = 0
        if _mappings() > 30_000:
            jax.clear_caches()


# A [B] added to a [T, B] is a mistake until someone writes which axis it belongs to.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(compile_cache.folder()))
# jax keeps only what took a second to compile; the tests compile hundreds of smaller programs.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# The same examples every time, and no limit on the first one, which compiles. Fixtures of ours
# hold no state that one example could leave for the next.
_COMMON = hypothesis.settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
)
hypothesis.settings.register_profile("fast", _COMMON, max_examples=10)
hypothesis.settings.register_profile("thorough", _COMMON, max_examples=100)
hypothesis.settings.load_profile("fast")


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs one test in float64, where exact means 1e-12. It is never on for all tests."""
    with jax.enable_x64(True):
        yield
