"""Model, loss, loop and evaluation of supervised tasks."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from unit.training.supervised.pieces import drawn, made

from snaprl.cores import BPTT, RTRL, UORO, SnAp
from snaprl.cores.sparsity import fixed_fan_in
from snaprl.training import meters, parts
from snaprl.training.errors import UserError
from snaprl.training.learner import make_learner
from snaprl.training.supervised import loop as loops
from snaprl.training.supervised.build import build, optimizer
from snaprl.training.supervised.evaluate import Evaluator, numbers
from snaprl.training.supervised.loop import SupervisedLoop
from snaprl.training.supervised.loss import make_loss, totals
from snaprl.training.supervised.model import SequenceModel, parameter_count
from snaprl.training.supervised.schema import (
    ModelConfig,
    SupervisedConfig,
    SupervisedOptimizerConfig,
    TaskConfig,
)
from snaprl.training.supervised.types import Numbers, Piece, SupervisedSegment, Symbols

B = 3


def segment(piece: Piece, state) -> SupervisedSegment:
    numbers = jnp.arange(B, dtype=jnp.int32), jnp.zeros(B, jnp.int32)
    return SupervisedSegment(*map(jnp.asarray, piece), state.hidden, *numbers)


def model_for(task, **kwargs) -> SequenceModel:
    return SequenceModel(task.inputs, task.targets, **{"features": 5} | kwargs)


def start(model, piece, seed=0):
    state = model.initial_state(jax.random.key(seed), B)
    variables = model.init(jax.random.key(seed + 1), state, piece.inputs, piece.first)
    return variables, state


def test_cross_entropy_by_hand(x64):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, B, 2, 3))
    targets = rng.integers(0, 3, (4, B, 2))
    mask = rng.random((4, B)) < 0.6
    piece = Piece(np.zeros((4, B, 1)), targets, mask, np.zeros((4, B), bool))
    logits_or_nan = np.where(mask[..., None, None], logits, np.nan)
    found = totals(Symbols(3, 2), jnp.asarray(logits_or_nan), jax.tree.map(jnp.asarray, piece))
    error = right = 0.0
    for t in range(4):
        for b in range(B):
            for k in range(2 * mask[t, b]):
                p = np.exp(logits[t, b, k]) / np.exp(logits[t, b, k]).sum()
                error -= np.log(p[targets[t, b, k]]) / 2
                right += (p.argmax() == targets[t, b, k]) / 2
    np.testing.assert_allclose(found.error, error, atol=1e-12)
    assert (found.correct, found.targets) == (right, mask.sum())


def test_squared_error_by_hand(x64):
    rng = np.random.default_rng(1)
    values, targets = rng.normal(size=(2, 4, B, 2))
    mask = rng.random((4, B)) < 0.6
    piece = Piece(np.zeros((4, B, 1)), targets, mask, np.zeros((4, B), bool))
    found = totals(Numbers(2), jnp.asarray(values), jax.tree.map(jnp.asarray, piece))
    wanted = (((values - targets) ** 2).mean(-1) * mask).sum()
    np.testing.assert_allclose(found.error, wanted, atol=1e-12)
    assert found.correct == 0


@pytest.mark.parametrize("embedding", [0, 4])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_gradient_is_that_of_the_same_net_in_plain_flax(embedding, layers):
    """With exact RTRL from a fresh state, over a segment: embedding, core, stack and readout.

    A stack's lower layers are not exact across segments, but inside of one they are.
    """
    task = made("copy", start_level=3, symbols=3)
    piece = jax.tree.map(jnp.asarray, drawn(task, steps=7, streams=B))
    method = BPTT(tail=RTRL()) if layers > 1 else RTRL()
    model = model_for(task, embedding=embedding, layers=layers, readout=(6,), method=method)
    variables, state = start(model, piece)

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, inputs, first):
            if embedding:
                embed = nn.Embed(5, embedding, name="embed")
                x = embed(inputs[..., 0])
            else:
                x = jax.nn.one_hot(inputs[..., 0], 5)
            for layer in range(layers):
                cell = nn.GRUCell(5, name=f"cell_{layer}")
                h, ys = jnp.zeros((B, 5)), []
                for t in range(len(x)):
                    h = jnp.where(first[t, :, None], 0.0, h)
                    h, _ = cell(h, x[t])
                    ys.append(h)
                x = jnp.stack(ys)
            x = nn.relu(nn.Dense(6, name="hidden_layers_0")(x))
            return nn.Dense(3, name="head")(x)

    def plain_loss(params):
        log_probs = jax.nn.log_softmax(Plain().apply({"params": params}, *piece[:1], piece.first))
        chosen = jnp.take_along_axis(log_probs, piece.targets, -1)[..., 0]
        return -(chosen * piece.mask).sum() / piece.mask.sum()

    params = dict(variables["params"])
    core = params.pop("core")
    cells = [core["cell"]] if layers == 1 else [core[f"layers_{k}"]["cell"] for k in range(layers)]
    params |= {f"cell_{k}": cell for k, cell in enumerate(cells)}
    wanted, wanted_grads = jax.value_and_grad(plain_loss)(params)

    def ours(params):
        return make_loss(model)({"params": params}, state, segment(piece, state))[0]

    found, grads = jax.value_and_grad(ours)(variables["params"])
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    grads = dict(grads)
    core = grads.pop("core")
    cells = [core["cell"]] if layers == 1 else [core[f"layers_{k}"]["cell"] for k in range(layers)]
    grads |= {f"cell_{k}": cell for k, cell in enumerate(cells)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), grads, wanted_grads)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads["cell_0"])) > 1e-3


@pytest.mark.parametrize("layers", [1, 2])
def test_sparse_cores_have_the_fan_in_that_is_asked_for(layers):
    task = made("copy", symbols=6)
    model = model_for(task, features=10, layers=layers, pattern=fixed_fan_in(3), input_fan_in=2)
    piece = jax.tree.map(jnp.asarray, drawn(task, steps=2, streams=B))
    variables, _ = start(model, piece)
    cores = variables["sparsity"]["core"]
    masks = [cores["cell"]] if layers == 1 else [cores[f"layers_{k}"]["cell"] for k in range(2)]
    assert len(masks) == layers
    for mask in masks:
        for name in ("hr", "hz", "hn"):
            assert set(np.asarray(mask[name]["kernel"]).sum(0)) == {3}
        for name in ("ir", "iz", "in"):
            assert set(np.asarray(mask[name]["kernel"]).sum(0)) == {2}
    per_layer = 3 * (10 * 3 + 10 * 2 + 10) + 10  # kernels, and flax's four biases of a GRU
    assert parameter_count(variables) == layers * per_layer + 10 * 6 + 6


def make_loop(task, unroll, updates, method=None, rate=0.0, **kwargs) -> SupervisedLoop:
    model = model_for(task, method=method or SnAp(order=1), **kwargs)
    learner = make_learner(make_loss(model), optax.adam(rate), whole_bank=True)
    return SupervisedLoop(model, learner, task, streams=B, unroll=unroll, updates_per_chunk=updates)


@pytest.mark.parametrize("layers", [1, 2])
def test_any_number_of_steps_between_updates_reads_the_same_stream(layers):
    """Without learning, T = 1, 4 and 20 see the same tokens in the same states."""
    task = made("copy", start_level=4, threshold_bits=0.0)
    sums = {}
    for unroll in (1, 4, 20):
        loop = make_loop(task, unroll, 60 // unroll, method=BPTT(), layers=layers)
        state, chunk = loop.run(loop.init(jax.random.key(5)), 60 // unroll)
        sums[unroll] = chunk.episodes
        hidden = jax.tree.leaves(state.learner.bank.hidden)
        sums[unroll]["hidden"] = np.concatenate([np.asarray(h) for h in hidden])
        assert loop.steps_per_update == B * unroll
    for unroll in (1, 4):
        for name, value in sums[20].items():
            np.testing.assert_allclose(sums[unroll][name], value, rtol=2e-5, atol=1e-6)
    assert sums[20]["targets"] > 50


def test_a_run_in_pieces_is_one_run_and_compiles_once():
    task = made("copy", window=4)
    loop = make_loop(task, 3, 30, method=UORO(), rate=0.01)
    whole, chunk = loop.run(loop.init(jax.random.key(2)), 30)
    state, levels = loop.init(jax.random.key(2)), []
    for updates in (7, 1, 22):
        state, piece = loop.run(state, updates)
        state = loop.restore(jax.device_get(state))
        levels.extend(piece.metrics["level"][:updates])
    assert loop._chunk._cache_size() == 1

    def numbers(tree):
        is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
        return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)

    jax.tree.map(np.testing.assert_array_equal, numbers(state), numbers(whole))
    np.testing.assert_array_equal(levels, chunk.metrics["level"])


def test_a_report_weighs_targets_and_not_updates():
    metrics = {"loss": np.array([0.0, 4.0, 9.0]), "level": np.array([3, 4, 0])}
    sums = {"targets": 8.0, "error": 2.0, "correct": 6.0, "sequences": 3.0}
    found = meters.report(meters.Chunk(2, metrics, sums), knows_success=False)
    wanted = {"loss": 0.25, "bits_per_char": 0.25 / np.log(2), "accuracy": 0.75, "level": 4.0}
    assert found == pytest.approx(wanted)
    del sums["correct"]
    assert meters.of_targets(sums) == {"loss": 0.25}
    assert meters.of_targets(sums | {"targets": 0.0}) == {}


def test_evaluation_carries_the_state_from_one_program_to_the_next(monkeypatch, tmp_path):
    (tmp_path / "x").write_text("abcab cabba " * 200)
    task = made("characters", path=str(tmp_path / "x"))
    model = model_for(task)
    piece = jax.tree.map(jnp.asarray, drawn(task, steps=3, streams=B))
    variables, _ = start(model, piece)
    whole = Evaluator(model, task, steps=1)(variables, (), jax.random.key(0))
    monkeypatch.setattr("snaprl.training.supervised.evaluate.CHUNK", 7)
    cut = Evaluator(model, task, steps=1)(variables, (), jax.random.key(0))
    assert cut == pytest.approx(whole, rel=1e-5)
    assert whole.keys() == {
        f"eval_{split}_{name}"
        for split in ("valid", "test")
        for name in ("loss", "bits_per_char", "accuracy")
    }
    test = task.exams["test"].data
    hidden, error = jnp.zeros((1, 5)), 0.0
    for now, due in zip(test, test[1:], strict=False):
        x = jax.nn.one_hot(now, task.inputs.classes)[None]
        hidden, _ = nn.GRUCell(5).apply({"params": variables["params"]["core"]["cell"]}, hidden, x)
        head = variables["params"]["head"]
        error -= jax.nn.log_softmax(hidden @ head["kernel"] + head["bias"][None])[0, due]
    assert whole["eval_test_loss"] == pytest.approx(float(error) / (len(test) - 1), rel=1e-5)


def test_a_delayed_copy_is_learnt_update_by_update():
    task = made("delayed_copy", delay=1)
    loop = make_loop(task, 1, 3000, rate=0.01, features=12)
    state, chunk = loop.run(loop.init(jax.random.key(0)), 3000)
    assert np.mean(chunk.metrics["loss"][1:20]) > 0.5  # nats; chance is log 2 = 0.69
    assert np.mean(chunk.metrics["loss"][-100:]) < 0.2
    plain = make_loop(task, 1, 3000, method=BPTT(), rate=0.01, features=12)
    evaluate = Evaluator(plain._model, task, steps=2000)
    found = evaluate(state.learner.variables, (), jax.random.key(0))
    assert found["eval_accuracy"] > 0.95


def test_numbers_have_a_loss_and_nothing_else():
    task = made("adding", length=4)
    loop = make_loop(task, 8, 2, method=BPTT())
    state, chunk = loop.run(loop.init(jax.random.key(0)), 2)
    found = meters.report(chunk, knows_success=False)
    assert found.keys() == {"loss", "gaps", "grad_norm"}
    assert chunk.episodes["targets"] == B * 4  # four sequences of each stream
    evaluate = Evaluator(loop._model, task, steps=512)
    evaluated = evaluate(state.learner.variables, (), jax.random.key(0))
    assert evaluated.keys() == numbers(task) == {"eval_loss"}
    assert evaluated["eval_loss"] > 0.1


@pytest.mark.parametrize(
    ("name", "kwargs"), [("adding", {"length": 200}), ("copy", {"start_level": 99})]
)
def test_an_evaluation_goes_on_to_the_first_target(name, kwargs):
    task = made(name, **kwargs)
    model = model_for(task, features=2)
    variables, _ = start(model, drawn(task, steps=2, streams=B))
    found = Evaluator(model, task, steps=64)(variables, task.shared, jax.random.key(0))
    assert found.keys() == numbers(task)


def test_the_learner_is_the_agents_and_nothing_here_takes_a_gradient():
    sources = {
        path.stem: path.read_text("utf-8") for path in Path(loops.__file__).parent.glob("*.py")
    }
    assert "from snaprl.training.learner import Learner, make_learner" in sources["build"]
    for name, source in sources.items():
        assert "grad(" not in source, name
        assert "apply_updates" not in source, name


# ---- what a config describes -----------------------------------------------------------------


def test_noise_is_added_to_the_clipped_gradient_and_falls():
    config = SupervisedOptimizerConfig(
        learning_rate=1.0,
        name="sgd",
        max_grad_norm=1e-3,
        gradient_noise=0.5,
        gradient_noise_decay=1.0,
    )
    rule = optimizer(config, 10, seed=0)
    params = {"w": jnp.zeros(4000)}
    state = rule.init(params)
    spread = []
    for _ in range(4):
        steps, state = rule.update({"w": jnp.ones(4000)}, state, params)
        spread.append(float(jnp.std(steps["w"])))
    np.testing.assert_allclose(spread, [0.5 / np.sqrt(k) for k in (1, 2, 3, 4)], rtol=0.1)


@pytest.mark.parametrize("name", parts.OPTIMIZERS)
def test_optimisers_are_optaxs_own(name):
    config = SupervisedOptimizerConfig(name=name, learning_rate=0.1, max_grad_norm=1e9)
    rule, plain = optimizer(config, 5, 0), getattr(optax, name)(0.1)
    params, grads = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.3, 0.7])}
    ours, _ = rule.update(grads, rule.init(params), params)
    theirs, _ = plain.update(grads, plain.init(params), params)
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-6)


def test_arguments_of_an_optimiser_reach_it():
    config = SupervisedOptimizerConfig(
        name="sgd", learning_rate=0.1, kwargs={"momentum": 0.5}, max_grad_norm=1e9
    )
    rule = optimizer(config, 5, 0)
    params = {"w": jnp.zeros(1)}
    state = rule.init(params)
    for wanted in (-0.1, -0.15):
        steps, state = rule.update({"w": jnp.ones(1)}, state, params)
        np.testing.assert_allclose(steps["w"], wanted, rtol=1e-6)
    wrong = dataclasses.replace(config, kwargs={"momentun": 0.5})
    with pytest.raises(UserError, match="optax.sgd takes no 'momentun', but .*momentum"):
        optimizer(wrong, 5, 0)
    for name, kwargs in (("sgd", {"momentum": "fast"}), ("adam", {"b1": "x"})):
        wrong = dataclasses.replace(config, name=name, kwargs=kwargs)
        with pytest.raises(UserError, match=f"^optimizer.kwargs: optax.{name} takes no "):
            optimizer(wrong, 5, 0)


def test_the_mask_comes_from_the_seed():
    config = SupervisedConfig(model=ModelConfig(features=8, fan_in=2))
    masks = [build(dataclasses.replace(config, seed=s)).model.make_core().mask for s in (0, 0, 1)]
    assert masks[0] == masks[1]
    assert masks[0] != masks[2]


def test_a_text_shorter_than_a_segment_is_refused(tmp_path):
    (tmp_path / "x").write_text("abcdefghij" * 10)
    task = TaskConfig("characters", {"path": str(tmp_path / "x")})
    config = SupervisedConfig(task=task)
    build(config)
    long = dataclasses.replace(config.training, unroll=90)
    with pytest.raises(UserError, match="training.unroll is 90, but .* has 89 steps to read"):
        build(dataclasses.replace(config, training=long))
