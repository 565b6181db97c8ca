"""The encoder: every space becomes one vector, whatever axes stand in front."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from snaprl.agents.encoder import Encoder, check_space

LEADS = [(), (3,), (4, 3)]
EYE = np.eye(9)


def one_hot(x, n):
    return EYE[x][..., :n]


def flat(x, space):
    return np.reshape(x, (*x.shape[: x.ndim - len(space.shape)], -1)).astype(np.float64)


# space -> what its observation is expected to become, in numpy
PLAIN = {
    "discrete": (spaces.Discrete(4), lambda x, s: one_hot(x, 4)),
    "discrete from 5": (spaces.Discrete(3, start=5), lambda x, s: one_hot(x - 5, 3)),
    "discrete from -2": (spaces.Discrete(3, start=-2), lambda x, s: one_hot(x + 2, 3)),
    "multi discrete": (
        spaces.MultiDiscrete([3, 2]),
        lambda x, s: np.concatenate([one_hot(x[..., 0], 3), one_hot(x[..., 1], 2)], -1),
    ),
    "multi discrete from somewhere": (
        spaces.MultiDiscrete([2, 2], start=[1, -1]),
        lambda x, s: np.concatenate([one_hot(x[..., 0] - 1, 2), one_hot(x[..., 1] + 1, 2)], -1),
    ),
    "multi binary": (spaces.MultiBinary(5), flat),
    "multi binary table": (spaces.MultiBinary((2, 3)), flat),
    "box": (spaces.Box(-2, 2, (3,), np.float32), flat),
    "box without axes": (spaces.Box(-2, 2, (), np.float32), flat),
    "box with two axes": (spaces.Box(-2, 2, (2, 3), np.float32), flat),
    "wide box": (spaces.Box(-2, 2, (3,), np.float64), flat),
    "box of whole numbers": (spaces.Box(-5, 5, (3,), np.int64), flat),
    "bytes": (spaces.Box(0, 255, (6,), np.uint8), lambda x, s: flat(x, s) / 255),
}


def batch(space: gymnasium.Space, lead: tuple[int, ...], seed: int = 0):
    """Samples with axes `lead` in front of every leaf."""
    space.seed(seed)
    samples = [space.sample() for _ in range(int(np.prod(lead)))]
    stacked = jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *samples)
    return jax.tree.map(lambda x: x.reshape((*lead, *x.shape[1:])), stacked)


def encode(space, x, **options):
    run = jax.jit(Encoder(space, **options).init_with_output)
    return run(jax.random.key(0), x)[0]


@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize(("space", "expected"), PLAIN.values(), ids=PLAIN)
def test_plain_spaces(space, expected, lead):
    check_space(space)
    x = batch(space, lead)
    found = encode(space, x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected(x, space), rtol=1e-6)


@pytest.mark.parametrize("lead", LEADS, ids=str)
@pytest.mark.parametrize("shape", [(5, 5, 3), (32, 24, 1)], ids=str)
def test_images_go_one_by_one_through_the_same_network(lead, shape):
    space = spaces.Box(0, 255, shape, np.uint8)
    check_space(space)
    x = batch(space, lead)
    found, variables = jax.jit(Encoder(space).init_with_output)(jax.random.key(0), x)
    assert found.shape == (*lead, 128)
    assert (found >= 0).all()
    assert np.isfinite(found).all()
    apply = jax.jit(Encoder(space).apply)
    one_by_one = [apply(variables, image) for image in x.reshape(-1, *shape)]
    np.testing.assert_allclose(found.reshape(-1, 128), np.stack(one_by_one), atol=1e-5)
    assert np.std(found) > 0


NESTED = spaces.Dict(
    {
        "b": spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,))]),
        "a": spaces.Dict(
            {"x": spaces.MultiBinary(2), "image": spaces.Box(0, 255, (4, 4, 1), np.uint8)}
        ),
        "c": spaces.Box(-np.inf, np.inf, ()),
    }
)


@pytest.mark.parametrize("lead", LEADS, ids=str)
def test_nested_spaces_are_their_leaves_side_by_side(lead):
    check_space(NESTED)
    x = batch(NESTED, lead)
    found = encode(NESTED, x)
    assert found.shape == (*lead, 3 + 2 + 2 + 128 + 1)
    plain = [
        x["a"]["x"],
        one_hot(x["b"][0], 3),
        x["b"][1],
        x["c"][..., None],
    ]
    # gymnasium sorts the keys of a Dict: a.image, a.x, b.0, b.1, c
    np.testing.assert_allclose(found[..., 128:], np.concatenate(plain, -1), rtol=1e-6)


def test_two_images_have_networks_of_their_own():
    image = spaces.Box(0, 255, (4, 4, 1), np.uint8)
    space = spaces.Tuple([image, image])
    x = batch(image, (2,))
    found = encode(space, (x, x))
    assert not np.allclose(found[:, :128], found[:, 128:])


@pytest.mark.parametrize("none", [-1, 4])
def test_an_entry_outside_becomes_zeros(none):
    x = jnp.array([none, 2])
    np.testing.assert_array_equal(encode(spaces.Discrete(4), x), [[0] * 4, [0, 0, 1, 0]])
    x = jnp.array([[-1, -1], [1, -1]])
    found = encode(spaces.MultiDiscrete([2, 3]), x)
    np.testing.assert_array_equal(found, [[0] * 5, [0, 1, 0, 0, 0]])


def test_hidden_layers_and_types():
    space = spaces.Box(-1, 1, (3,))
    x = batch(space, (2,))
    found, variables = Encoder(space, (7, 5)).init_with_output(jax.random.key(0), x)
    assert found.shape == (2, 5)
    assert (found >= 0).all()
    assert [p["kernel"].shape for p in variables["params"].values()] == [(3, 7), (7, 5)]
    assert encode(space, x, hidden=(4,), dtype=jnp.bfloat16).dtype == jnp.bfloat16


UNSUPPORTED = {
    "text": (spaces.Text(3), r"^the observation space Text"),
    "sequence": (spaces.Sequence(spaces.Discrete(2)), r"^the observation space Sequence"),
    "inside": (
        spaces.Dict({"a": spaces.Tuple([spaces.Discrete(2), spaces.Text(3)])}),
        r"^the observation.a.1 space Text",
    ),
    "table": (spaces.MultiDiscrete([[2, 2], [2, 2]]), r"^the observation space MultiDiscrete"),
}


@pytest.mark.parametrize(("space", "start"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_cannot_be_encoded_is_said(space, start):
    way_out = r".* is not supported; wrap the environment so that it gives Box, Discrete, .*$"
    with pytest.raises(ValueError, match=start + way_out):
        check_space(space)
