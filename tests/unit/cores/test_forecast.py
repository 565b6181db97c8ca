"""How much memory there is, and what is told where an influence does not fit into it."""

import os

import flax.linen as nn
import jax
import numpy as np
import pytest

from snaprl.cores import BPTT, KFRTRL, OKRTRL, RTRL, UORO, OnlineRNN, SnAp, forecast, reach

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


def test_an_influence_that_does_not_fit_into_memory():
    """Said before anything is allocated, with what would fit."""
    rnn = OnlineRNN(nn.GRUCell(1024), RTRL())
    wanted = (
        r"takes \d+\.\d GiB for 64 streams, of .* would fit, and SnAp\(order=1\) takes 1\.13 GiB;"
    )
    with pytest.raises(ValueError, match=wanted):
        rnn.initialize_carry(jax.random.key(0), (64, 512))


@pytest.mark.parametrize(
    ("method", "advice"),
    [
        (OKRTRL(rank=8), r", and OKRTRL\(rank=5\) takes .* GiB"),
        (BPTT(tail=OKRTRL(rank=8)), r", and OKRTRL\(rank=5\) takes .* GiB"),
        (KFRTRL(), ""),
        (UORO(), ""),
    ],
    ids=repr,
)
def test_what_would_fit_is_of_the_methods_own_kind(monkeypatch, method, advice):
    """No mask makes these smaller, and SnAp is another estimate: the rank is what there is."""
    rnn = OnlineRNN(nn.GRUCell(16), method)
    carry = rnn.initialize_carry(jax.random.key(0), (2, 3))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(carry.influence))
    monkeypatch.setattr(forecast, "_memory", lambda: int(0.7 * size))
    with pytest.raises(ValueError, match=f"1 stream would fit{advice}$"):
        rnn.initialize_carry(jax.random.key(0), (2, 3))


def test_a_pattern_that_would_not_fit_is_not_made(monkeypatch):
    """On 4 units that read one other each, by 2 inputs: order 3 holds three pairs for each unit."""
    ring = np.roll(np.eye(4, dtype=int), 1, axis=0)
    rnn = OnlineRNN(nn.SimpleCell(4), SnAp(3), mask={"h": {"kernel": ring}})
    made = []
    monkeypatch.setattr(reach, "pattern", lambda *args: made.append(args))
    numbers = 4 * 3 * (2 + 1 + 1)  # pairs, times inputs, bias and the one recurrent weight
    lists = 4 * (0 + 1 + 1)  # of the pairs that a pair hears of: its own hears of none
    monkeypatch.setattr(forecast, "_memory", lambda: 4 * numbers + 16 * lists - 1)
    wanted = r"for 1 stream, of .* not even one stream would fit, and SnAp\(order=2\) takes"
    with pytest.raises(ValueError, match=wanted):
        rnn.initialize_carry(jax.random.key(0), (1, 2))
    assert not made
    monkeypatch.setattr(forecast, "_memory", lambda: 4 * numbers + 16 * lists)
    with pytest.raises(AttributeError):  # of a pattern that is None
        rnn.initialize_carry(jax.random.key(0), (1, 2))
    assert made


class Unknown(nn.GRUCell):
    """A subclass may compute anything."""


@pytest.mark.parametrize("method", [SnAp(order=1), RTRL(), BPTT(tail=SnAp(order=1))], ids=repr)
def test_jacobians_that_would_not_fit_are_not_made(monkeypatch, method):
    rnn, fits = OnlineRNN(Unknown(4), method), OnlineRNN(Unknown(4), BPTT())
    numbers = 4 * (3 * (2 + 4) * 4 + 4 * 4)  # of the state, times those of the parameters
    monkeypatch.setattr(forecast, "_memory", lambda: 3 * 4 * numbers - 1)
    wanted = r"^Unknown is not known to be unit-wise, and its Jacobians .* GiB; BPTT\(\) would fit"
    with pytest.raises(ValueError, match=wanted):
        rnn.initialize_carry(jax.random.key(0), (1, 2))
    fits.initialize_carry(jax.random.key(0), (1, 2))
    monkeypatch.setattr(forecast, "_memory", lambda: 3 * 4 * numbers)
    OnlineRNN(Unknown(4), method).initialize_carry(jax.random.key(0), (1, 2))
