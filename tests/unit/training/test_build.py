"""From a config to what it describes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaprl.agents import ActorCriticLoss, ImpalaLoss, PPOLoss
from snaprl.cores import BPTT, RTRL, Frozen, SnAp
from snaprl.training import parts
from snaprl.training.build import build, loss, make_envs, network
from snaprl.training.device_loop import DeviceLoop
from snaprl.training.errors import UserError
from snaprl.training.optimizers import optimizer
from snaprl.training.schema import (
    AgentConfig,
    Config,
    EnvConfig,
    ImpalaConfig,
    LossConfig,
    OptimizerConfig,
    PPOConfig,
    RatesConfig,
    SparsityConfig,
    TrainingConfig,
)
from snaprl.training.supervised.build import build as build_supervised
from snaprl.training.supervised.schema import ModelConfig, SupervisedConfig, TaskConfig
from snaprl.training.updates import most_at_once, until_report


def rates(config: OptimizerConfig, updates: int) -> np.ndarray:
    """The learning rates of `updates` updates: on a constant gradient, Adam's steps are they."""
    made = optimizer(config, updates)
    params = jnp.zeros(())
    state, update = made.init(params), jax.jit(made.update)
    found = []
    for _ in range(updates):
        step, state = update(jnp.float32(0.5), state)
        found.append(-float(step))
    return np.array(found)


def test_a_constant_rate():
    np.testing.assert_allclose(rates(OptimizerConfig(learning_rate=0.3), 5), 0.3, rtol=1e-4)


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_a_linear_way_down(fraction):
    config = OptimizerConfig(
        learning_rate=0.4, schedule="linear", final_learning_rate_fraction=fraction
    )
    wanted = 0.4 * (1 - (1 - fraction) * np.arange(8) / 8)
    np.testing.assert_allclose(rates(config, 8), wanted, rtol=1e-4)


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_a_cosine_way_down(fraction):
    config = OptimizerConfig(
        learning_rate=0.4, schedule="cosine", final_learning_rate_fraction=fraction
    )
    cosine = (1 + np.cos(np.pi * np.arange(8) / 8)) / 2
    wanted = 0.4 * (fraction + (1 - fraction) * cosine)
    np.testing.assert_allclose(rates(config, 8), wanted, rtol=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warmup_comes_before_every_schedule(schedule):
    config = OptimizerConfig(learning_rate=0.4, schedule=schedule, warmup_fraction=0.5)
    found = rates(config, 8)
    np.testing.assert_allclose(found[:4], [0.0, 0.1, 0.2, 0.3], rtol=1e-4, atol=1e-9)
    without = dataclasses.replace(config, warmup_fraction=0.0)
    np.testing.assert_allclose(found[4:], rates(without, 4), rtol=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_training_of_one_update_or_of_nothing_but_warmup(schedule):
    for fraction in (0.0, 1.0):
        config = OptimizerConfig(schedule=schedule, warmup_fraction=fraction)
        assert np.isfinite(rates(config, 1)).all()


def test_long_gradients_are_clipped_by_their_norm():
    made = optimizer(OptimizerConfig(max_grad_norm=0.5), 3)
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    state = made.init(grads)
    _, state = made.update(grads, state)
    moments = optax.tree.get(state, "mu")  # a tenth of what came in
    np.testing.assert_allclose([moments["a"][0], moments["b"][0]], [0.03, 0.04], rtol=1e-4)


def test_counts():
    config = Config(training=TrainingConfig(steps=1000, streams=8, unroll=4, report_every=330))
    built = build(config)
    assert built.steps_per_update == 32
    assert built.updates == 32  # 1000 are not reached with 31
    assert built.updates_per_report == 10
    few = dataclasses.replace(config.training, steps=64, report_every=1000)
    assert build(dataclasses.replace(config, training=few)).updates_per_report == 2
    often = dataclasses.replace(config.training, report_every=1)
    assert build(dataclasses.replace(config, training=often)).updates_per_report == 1


@given(st.integers(1, 2000), st.integers(1, 300), st.integers(0, 2000))
def test_reports_keep_their_grid_and_the_last_one_is_no_scrap(updates, per_report, stopped):
    def reports(update: int) -> list[int]:
        ends = []
        while update < updates:
            update += until_report(update, updates, per_report)
            ends.append(update)
        return ends

    ends = reports(0)
    lengths = np.diff([0, *ends])
    assert ends[-1] == updates
    assert (lengths[:-1] == per_report).all()
    assert lengths[-1] <= most_at_once(per_report)
    assert len(ends) == 1 or lengths[-1] >= per_report / 2
    if stopped < updates:
        assert reports(stopped) == [end for end in ends if end > stopped]


@pytest.mark.parametrize(("loop", "pure"), [("auto", True), ("device", True), ("host", False)])
def test_ours_run_on_the_device_unless_told_otherwise(loop, pure):
    built = build(Config(training=TrainingConfig(loop=loop)))
    assert (built.pure is not None) is pure


def test_others_run_on_the_host():
    others = Config(env=EnvConfig("CartPole-v1"))
    assert build(others).pure is None
    with pytest.raises(UserError, match="CartPole-v1 is no environment of pure functions"):
        build(dataclasses.replace(others, training=TrainingConfig(loop="device")))


METHODS = {
    "snap1": SnAp(order=1),
    "rtrl": RTRL(),
    "bptt": BPTT(),
    "bptt+snap1": BPTT(tail=SnAp(order=1)),
    "bptt+rtrl": BPTT(tail=RTRL()),
    "frozen": Frozen(),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_network_is_what_its_config_says(name):
    agent = AgentConfig(
        cell="lstm", features=5, method=name, encoder=(7,), last_action=False, dtype="bfloat16"
    )
    found = network(Config(agent=agent))
    assert found.method == METHODS[name]
    assert (found.cell.__name__, found.features, found.encoder) == ("LSTMCell", 5, (7,))
    assert (found.last_action, found.last_reward, found.dtype) == (False, True, jnp.bfloat16)


@pytest.mark.parametrize("method", ["snap1", "snap2", "rtrl", "bptt+snap2"])
def test_a_sparse_policy_learns_with_the_weights_that_it_has(method):
    """Weights that are not there stay 0 to the rest of the network, whatever the optimiser does."""
    config = Config(
        agent=AgentConfig(features=8, fan_in=3, method=method),
        env=EnvConfig(kwargs={"length": 4}),
        training=TrainingConfig(streams=2, unroll=2, steps=64),
    )
    found = network(config)
    mask = found.core().mask
    assert mask.leaves["hr", "kernel"].sum(0).tolist() == [3] * 8
    built = build(config)
    variables = built.agent.init(jax.random.key(0), 2)
    assert {"params", "sparsity"} <= set(variables)
    fresh = built.agent.initial_state(jax.random.key(0), 2)
    assert jax.tree.leaves(fresh.influence)


PATTERNS = {
    "uniform": ({"density": 0.25}, 16),
    "fixed_fan_in": ({"fan_in": 3, "diagonal": False}, 24),
    "block": ({"density": 0.5, "block_size": 2}, 32),
    "n_of_m": ({"n": 1, "m": 4}, 16),
    "watts_strogatz": ({"neighbours": 2, "rewiring": 0.5}, 24),  # the diagonal comes on top
    "barabasi_albert": ({"attachments": 1}, 22),
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_of_recurrent_weights(name, shared):
    kwargs, count = PATTERNS[name]
    agent = AgentConfig(features=8, sparsity=SparsityConfig(name, kwargs, shared))
    leaves = network(Config(agent=agent)).core().mask.leaves
    gates = [leaves[layer, "kernel"] for layer in ("hr", "hz", "hn")]
    assert [int(gate.sum()) for gate in gates] == [count] * 3
    if kwargs.get("diagonal", True):
        assert all(gate.diagonal().all() for gate in gates)
    alike = all((gate == gates[0]).all() for gate in gates)
    assert alike == shared
    fan_in = network(Config(agent=AgentConfig(features=8, fan_in=3))).core().mask
    named = SparsityConfig("fixed_fan_in", {"fan_in": 3})
    assert fan_in == network(Config(agent=AgentConfig(features=8, sparsity=named))).core().mask


@pytest.mark.parametrize("cell", parts.COMPRESSED)
def test_a_cell_of_few_weights_has_as_many_as_the_config_says(cell):
    core = network(Config(agent=AgentConfig(cell=cell, features=8, fan_in=3))).core()
    assert core.mask is None
    assert (core.cell.features, core.cell.fan_in) == (8, 3)
    model = ModelConfig(cell=cell, features=8, fan_in=3, layers=2)
    built = build_supervised(SupervisedConfig(task=TaskConfig("copy"), model=model))
    assert [layer.fan_in for layer in built.model.make_core().cells] == [3, 3]
    for wrong in (0, 9):
        sentence = rf"agent.fan_in {wrong}: .* '{cell}' reads some of its 8 units, so give 1 to 8$"
        with pytest.raises(UserError, match=sentence):
            network(Config(agent=AgentConfig(cell=cell, features=8, fan_in=wrong)))


NOT_PATTERNS = {
    "two": (
        AgentConfig(fan_in=3, sparsity=SparsityConfig("uniform", {"density": 0.5})),
        "give one",
    ),
    "key": (
        SparsityConfig("uniform", {"densty": 0.5}),
        "uniform takes no 'densty', but density, d",
    ),
    "none": (SparsityConfig("uniform"), "uniform needs 'density'"),
    "range": (SparsityConfig("uniform", {"density": 2.0}), r"uniform: density is 2.0; it must lie"),
    "text": (SparsityConfig("uniform", {"density": "x"}), "density must be a number, not 'x'"),
    "truth": (SparsityConfig("uniform", {"density": True}), "density must be a number, not True"),
    "diagonal": (
        SparsityConfig("uniform", {"density": 0.5, "diagonal": "False"}),
        "diagonal must be true or false, not 'False'",
    ),
    "dense": (SparsityConfig("dense", {"density": 0.5}), "'dense' takes no density: sparsity.name"),
    "both": (AgentConfig(fan_in=3, sparsity=SparsityConfig(kwargs={"density": 0.5})), "give one"),
    "size": (
        SparsityConfig("block", {"density": 0.5, "block_size": 3}),
        "blocks of 3 x 3 do not f",
    ),
    "both, few weights": (
        AgentConfig(cell="sparse_gru", fan_in=3, sparsity=SparsityConfig("uniform")),
        "give one",
    ),
    "name": (SparsityConfig("unifrom"), "there is no pattern 'unifrom': did you mean 'uniform'"),
}


@pytest.mark.parametrize(("given", "sentence"), NOT_PATTERNS.values(), ids=NOT_PATTERNS)
def test_what_is_no_pattern_is_refused(given, sentence):
    agent = given if isinstance(given, AgentConfig) else AgentConfig(sparsity=given)
    with pytest.raises(UserError, match=f"^agent[.:] ?.*{sentence}"):
        network(Config(agent=agent))


WRONG = {
    "id": (EnvConfig("snaprl/TMaze-v1"), r"^env.id snaprl/TMaze-v1: .*did you mean"),
    "argument": (EnvConfig(kwargs={"lenght": 3}), r"^env.id snaprl/TMaze-v0: .*'length'\?$"),
    "value": (EnvConfig(kwargs={"length": "x"}), r"^env.id snaprl/TMaze-v0: TMaze's length is 'x'"),
    "package": (
        EnvConfig("nopackage.x:X-v0"),
        r"^env.id nopackage.x:X-v0: No module named 'nopackage': install .* PYTHONPATH$",
    ),
}


@pytest.mark.parametrize("loop", ["auto", "host"])
@pytest.mark.parametrize(("env", "sentence"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_built_is_said(env, sentence, loop):
    with pytest.raises(UserError, match=sentence):
        build(Config(env=env, training=TrainingConfig(loop=loop)))


def test_each_part_of_the_network_has_its_rate():
    """On a constant gradient Adam's first step is the rate."""
    rates = RatesConfig(encoder=0.5, policy_head=2.0, value_head=0.0)
    made = optimizer(OptimizerConfig(learning_rate=0.1, max_grad_norm=1e9, rates=rates), 3)
    parts = ("encoder", "core", "policy_head", "value_head")
    params = {name: {"kernel": jnp.zeros(2)} for name in parts}
    grads = jax.tree.map(jnp.ones_like, params)
    steps, _ = made.update(grads, made.init(params), params)
    found = [float(-steps[name]["kernel"][0]) for name in parts]
    np.testing.assert_allclose(found, [0.05, 0.1, 0.2, 0.0], rtol=1e-4)


def test_parts_are_those_of_the_network():
    """A factor on a part that does not exist would change nothing, in silence."""
    built = build(Config(agent=AgentConfig(encoder=(4,))))
    params = built.agent.init(jax.random.key(0), 1)["params"]
    assert params.keys() == dataclasses.asdict(RatesConfig()).keys()


COMMON = {"discount": 0.5, "trace_decay": 0.4, "entropy_cost": 0.3, "value_cost": 0.2}
LOSSES = {
    "actor_critic": (LossConfig(**COMMON), ActorCriticLoss(**COMMON)),
    "impala": (
        LossConfig(name="impala", **COMMON, impala=ImpalaConfig(2.0, 3.0)),
        ImpalaLoss(**COMMON, rho_clip=2.0, policy_rho_clip=3.0),
    ),
    "ppo": (
        LossConfig(name="ppo", **COMMON, ppo=PPOConfig(3, 2, 0.1, 0.7, False)),
        PPOLoss(**COMMON, ratio_clip=0.1, value_clip=0.7, normalise_advantage=False),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_what_its_config_says(name):
    described, wanted = LOSSES[name]
    assert loss(Config(loss=described), 10) == wanted


@pytest.mark.parametrize(("name", "half"), [("linear", 0.5), ("cosine", 0.5)])
def test_the_entropy_bonus_has_a_way_to_the_end(name, half):
    down = LossConfig(entropy_cost=0.4, entropy_schedule=name, final_entropy_cost_fraction=0.1)
    cost = loss(Config(loss=down), 10).entropy_cost
    found = [float(cost(count)) for count in (0, 5, 10, 99)]
    np.testing.assert_allclose(found, [0.4, 0.04 + 0.36 * half, 0.04, 0.04], rtol=1e-6)


def test_a_key_of_another_loss_is_refused():
    for described, sentence in (
        (
            LossConfig(ppo=PPOConfig(ratio_clip=0.1)),
            "loss.ppo.ratio_clip is a key of the loss 'ppo', and loss.name is 'actor_critic': "
            "leave it out, or set loss.name to 'ppo'",
        ),
        (
            LossConfig(name="ppo", impala=ImpalaConfig(rho_clip=2.0)),
            "loss.impala.rho_clip is a key of the loss 'impala', and loss.name is 'ppo': leave it "
            "out, or set loss.name to 'impala'",
        ),
    ):
        with pytest.raises(UserError) as caught:
            build(Config(loss=described))
        assert str(caught.value) == sentence


def test_minibatches_must_share_the_streams_out():
    config = Config(
        loss=LossConfig(name="ppo", ppo=PPOConfig(minibatches=3)),
        training=TrainingConfig(streams=8),
    )
    with pytest.raises(
        UserError, match=r"^the 8 streams of an update .* among 3 minibatches: set "
    ):
        build(config)


def test_a_schedule_goes_over_every_step_of_the_optimiser():
    """PPO makes several in an update; the last one of the training has the last rate."""
    config = Config(
        agent=AgentConfig(features=4, method="bptt"),
        env=EnvConfig(kwargs={"length": 4}),
        loss=LossConfig(
            name="ppo",
            entropy_cost=0.2,
            entropy_schedule="linear",
            ppo=PPOConfig(epochs=3, minibatches=2),
        ),
        optimizer=OptimizerConfig(schedule="linear"),
        training=TrainingConfig(streams=4, unroll=2, steps=16),
    )
    built = build(config)
    assert built.updates == 2
    loop = DeviceLoop(
        built.agent, built.learner, built.pure, streams=4, unroll=2, updates_per_chunk=2
    )
    state, chunk = loop.run(loop.init(jax.random.key(0)), 2)
    assert optax.tree.get(state.learner.optimizer, "ScaleByScheduleState").count == 12
    assert {"clipped", "kl"} <= chunk.metrics.keys()
    # what the entropy bonus is worth is the same for all passes over a segment
    np.testing.assert_allclose(chunk.metrics["entropy_cost"], [0.2, 0.1], rtol=1e-6)


OWN_CELL = """
import flax.linen as nn
import jax.numpy as jnp


class Leaky(nn.RNNCellBase):
    features: int
    param_dtype: object = jnp.float32
    num_feature_axes = 1

    @nn.compact
    def __call__(self, h, x):
        new = nn.Dense(self.features, param_dtype=self.param_dtype)(jnp.concatenate([h, x], -1))
        h = 0.9 * h + 0.1 * nn.tanh(new)
        return h, h

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], self.features))


class Sized(Leaky):
    features: int = 4
    units: int = 5

    def __init__(self, units):
        pass
"""


def test_a_cell_may_be_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_cell.py").write_text(OWN_CELL)
    monkeypatch.syspath_prepend(tmp_path)
    config = Config(
        agent=AgentConfig(cell="own_cell:Leaky", features=3),
        env=EnvConfig(kwargs={"length": 4}),
        training=TrainingConfig(streams=2, unroll=3, steps=12),
    )
    built = build(config)
    loop = DeviceLoop(
        built.agent, built.learner, built.pure, streams=2, unroll=3, updates_per_chunk=2
    )
    state, chunk = loop.run(loop.init(jax.random.key(0)), 2)
    cell = state.learner.variables["params"]["core"]["cell"]
    assert cell["Dense_0"]["kernel"].shape[1] == 3
    assert np.all(chunk.metrics["grad_norm"] > 0)
    for name, sentence in (
        ("own_cell:Nope", "^cell: 'own_cell:Nope' is not there: module .* no attribute 'Nope'$"),
        ("own_cell:nn", "^cell 'own_cell:nn' is no subclass of flax.linen.RNNCellBase$"),
        ("own_cell:", "^cell: 'own_cell:' must be written 'module:name'$"),
        (
            "own_cell:Sized",
            r"^cell 'own_cell:Sized' must be made as flax's are, Sized\(features, "
            r"param_dtype=...\): .*unexpected keyword argument 'param_dtype'",
        ),
        ("nowhere:X", "^cell: 'nowhere:X' is not there: No module named 'nowhere': install it"),
    ):
        with pytest.raises(UserError, match=sentence):
            parts.cell_class(name)


def test_wrappers_of_a_config_are_put_around_every_copy():
    wrappers = ("gymnasium.wrappers:FlattenObservation", "gymnasium.wrappers:TimeAwareObservation")
    config = Config(env=EnvConfig("CartPole-v1", wrappers=wrappers))
    made = make_envs(config, 2)
    assert made.single_observation_space.shape == (5,)
    assert made.reset(seed=0)[0].shape == (2, 5)
    made.close()
    # what is wrapped is no environment of pure functions any more
    maze = Config(env=EnvConfig(wrappers=("gymnasium.wrappers:FlattenObservation",)))
    assert build(maze).pure is None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("x", "^env.wrappers: 'x' must be written 'module:name'$"),
        (
            "nopackage:x",
            "^env.wrappers: 'nopackage:x' is not there: No module named 'nopackage': install it, "
            "go to the folder that holds it, or name that folder in PYTHONPATH$",
        ),
        ("gymnasium:Nothing", "^env.wrappers: 'gymnasium:Nothing' is not there: module [^:]*$"),
        (
            "gymnasium.wrappers:TimeLimit",
            r"^env.wrappers: 'gymnasium.wrappers:TimeLimit' is called with the environment alone "
            r"\(TimeLimit.__init__\(\) missing .*\): name a function of a module of yours .*$",
        ),
        (
            "snaprl.envs.minigrid:OneHotView",
            "^env.wrappers: 'snaprl.envs.minigrid:OneHotView' raised ValueError: .* has no "
            r"'image' .*minigrid.py, line \d+\)$",
        ),
        ("builtins:id", "^env.wrappers: 'builtins:id' gave no environment but int: it must return"),
        ("builtins:sum", r"^env.wrappers: 'builtins:sum' is called with the environment alone \("),
    ],
)
def test_a_wrapper_that_cannot_be_is_said_and_not_the_environment(name, sentence):
    with pytest.raises(UserError, match=sentence):
        build(Config(env=EnvConfig("CartPole-v1", wrappers=(name,))))


def test_a_module_that_lacks_another_is_there(tmp_path, monkeypatch):
    (tmp_path / "lacking_module.py").write_text("import nopackage")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="^env.id lacking_module:X: No module named 'nopackage'$"):
        build(Config(env=EnvConfig("lacking_module:X")))
