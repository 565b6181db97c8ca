"""How much memory there is: the machine's, or what a control group leaves of it."""

import os

import jax
import pytest

from snaprl.cores import forecast

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
V2, V1 = "0::/jobs/one\n", "5:cpu:/jobs/one\n4:hugetlb,memory:/jobs/one\n0::/\n"


@pytest.fixture
def groups(monkeypatch, tmp_path):
    """Writes the files of control groups, by their paths."""
    monkeypatch.setattr(forecast, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(forecast, "_GROUPS", tmp_path / "all")

    def write(own, files):
        (tmp_path / "own").write_text(own)
        for path, text in files.items():
            file = tmp_path / "all" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")

    return write


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU says what it has")
@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (V2, {"jobs/one/memory.max": 5000}, 5000),
        (V2, {"jobs/one/memory.max": "max", "jobs/memory.max": 6000}, 6000),
        (V2, {"jobs/one/memory.max": "max"}, MACHINE),
        (V2, {"jobs/one/memory.max": 2 * MACHINE}, MACHINE),
        # inside a container its own group is the top
        ("0::/\n", {"memory.max": 7000}, 7000),
        (V1, {"memory/jobs/one/memory.limit_in_bytes": 8000}, 8000),
        (V1, {"memory/memory.limit_in_bytes": 9000}, 9000),
        (V1, {"cpu/jobs/one/memory.limit_in_bytes": 1}, MACHINE),
        (V1, {}, MACHINE),
    ],
)
def test_the_smallest_limit_counts(groups, own, files, expected):
    groups(own, files)
    assert forecast._memory() == expected


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU says what it has")
def test_without_control_groups_it_is_the_machines(monkeypatch, tmp_path):
    monkeypatch.setattr(forecast, "_OWN_GROUPS", tmp_path / "none")
    assert forecast._memory() == MACHINE
