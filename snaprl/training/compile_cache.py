"""Where compiled programs are kept from one run to the next."""

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path


def folder() -> Path:
    """A folder for each version of XLA and kind of processor.

    XLA compiles for the processor that it finds, and a home folder may be shared by several
    machines.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    kind = hashlib.sha256(features.encode()).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "snaprl" / "jax" / f"{version('jaxlib')}-{platform.machine()}-{kind}"
