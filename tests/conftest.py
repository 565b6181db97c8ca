"""Raises the bar for every test; pyproject.toml turns warnings into errors."""

import hashlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

# Before anything imports matplotlib: a test opens no window.
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import jax
import jaxlib
import pytest


def _compilation_cache() -> str:
    """Where compiled programs are kept from one run to the next.

    XLA compiles for the processor that it finds. A home folder may be shared by several machines,
    so each kind of processor has a folder of its own.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    kind = hashlib.sha256(features.encode()).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return str(home / "snaprl" / "jax" / f"{jaxlib.__version__}-{platform.machine()}-{kind}")


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


def _compile_fast() -> None:
    """Starts jax such that XLA optimises little: tests run thousands of small programs once.

    Programs that a test starts in processes of their own are compiled as for users.
    """
    given = os.environ.get("XLA_FLAGS")
    fast = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    os.environ["XLA_FLAGS"] = f"{fast} {given or ''}"
    jax.devices()  # reads the flags, once and for all
    if given is None:
        del os.environ["XLA_FLAGS"]
    else:
        os.environ["XLA_FLAGS"] = given


_compile_fast()
# A [B] added to a [T, B] is a mistake until someone writes which axis it belongs to.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", _compilation_cache())
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
