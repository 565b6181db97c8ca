"""What the tests of both loops share: a learner that hands its segments out, and a maze by hand."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from gymnasium import spaces

from snaprl.agents import (
    ActorCriticLoss,
    NetworkConfig,
    RecurrentActorCritic,
    Segment,
    make_agent,
)
from snaprl.cores import BPTT, CoreState
from snaprl.training.learner import Learner, make_learner

LENGTH, TIMEOUT = 2, 5
GAMMA, LAMBDA = 0.9, 0.8


# truncated BPTT compiles fast, and has no influence to carry
MAZE_NETWORK = NetworkConfig(features=3, method=BPTT())
MAZE_READ = dict.fromkeys(("last_action", "last_reward", "observation"), 0)
MAZE_SPACES = spaces.Box(0.0, 1.0, (4,), np.float32), spaces.Discrete(3)


def maze_agent():
    loss = ActorCriticLoss(discount=GAMMA, trace_decay=LAMBDA)
    return make_agent(*MAZE_SPACES, MAZE_NETWORK, loss)


def spying(agent, learning_rate: float = 0.0) -> Learner:
    """A learner whose metrics are also the leaves of the segments that it was given."""
    learner = make_learner(agent.loss, optax.sgd(learning_rate), whole_bank=True)

    def update(state, segment):
        state, metrics = learner.update(state, segment)
        leaves = jax.tree.leaves(segment)
        return state, metrics | {f"leaf {k}": jnp.asarray(x) for k, x in enumerate(leaves)}

    return learner._replace(update=update)


def segments(metrics: dict[str, Any], read: dict[str, Any]) -> list[Segment]:
    """The segments in a chunk's metrics; `read` has the form of what the network reads."""
    one = Segment(jax.tree.map(lambda _: 0, read), *[0] * 6, hidden=0, stream=0, number=0)
    leaves = [metrics[f"leaf {k}"] for k in range(len(jax.tree.leaves(one)))]
    updates = len(leaves[0])
    return [
        jax.tree.unflatten(jax.tree.structure(one), [x[u] for x in leaves]) for u in range(updates)
    ]


def unrolled(variables, segment: Segment):
    """The log-probabilities `[T, B]` of a segment's actions as the learner sees them.

    Returns:
      Also the hidden state after the segment.
    """
    observed = MAZE_NETWORK.observed(*MAZE_SPACES)
    net = RecurrentActorCritic(MAZE_NETWORK, observed, 3)
    start = CoreState(segment.hidden, ())
    end, logits, _ = net.apply(variables, start, segment.observation, segment.first)
    log_prob = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_prob, segment.action[..., None], axis=-1)[..., 0]
    return chosen, end.hidden


class Sums(NamedTuple):
    """Episodes that ended."""

    episodes: int = 0
    episode_return: float = 0.0
    episode_length: int = 0
    success: int = 0


def replay(history: list[Segment]) -> Sums:
    """Goes through the active T-maze by hand, along the actions taken, and compares every number.

    Returns:
      What the episodes that ended on the way came to.
    """
    total = Sums()
    for segment, following in zip(history, history[1:], strict=False):
        for leaf, continued in zip(
            jax.tree.leaves((segment.observation, segment.first)),
            jax.tree.leaves((following.observation, following.first)),
            strict=True,
        ):
            np.testing.assert_array_equal(leaf[-1], continued[0])
    streams = history[0].action.shape[1]
    for b in range(streams):
        total = Sums(*map(sum, zip(total, _replay_stream(history, b), strict=True)))
    return total


def _replay_stream(history: list[Segment], b: int) -> Sums:
    total, ended = Sums(), False
    cue = position = time = 0
    score = 0.0
    for u, segment in enumerate(history):
        assert segment.stream[b] == b
        assert segment.number[b] == u
        for t in range(len(segment.action)):
            seen, following = (
                {k: v[i, b] for k, v in segment.observation.items()} for i in (t, t + 1)
            )
            if segment.first[t, b]:
                cue, position, time, score = int(seen["observation"][1]), 0, 0, 0.0
                np.testing.assert_array_equal(seen["observation"], np.eye(4)[cue])
                assert (seen["last_action"], seen["last_reward"]) == (-1, 0)
            action, reward = int(segment.action[t, b]), segment.reward[t, b]
            if ended:  # this step was none: it brought the next episode
                assert segment.mask[t, b] == 0
                assert segment.first[t + 1, b]
                assert (reward, segment.discount[t, b]) == (0, 1)
                ended = False
                continue
            assert segment.mask[t, b] == 1
            assert not segment.first[t + 1, b]
            time += 1
            turned = position == LENGTH and action > 0
            right = turned and action - 1 == cue
            moved = position < LENGTH and action == 0
            position += moved
            wanted = (4.0 if right else -0.1) if turned else (0.0 if moved else -0.1)
            late = time == TIMEOUT and not turned
            np.testing.assert_allclose(reward, wanted, rtol=1e-6)
            assert segment.discount[t, b] == (0 if turned else 1)
            place = np.zeros(4) if turned else np.eye(4)[3 if position == LENGTH else 2]
            np.testing.assert_array_equal(following["observation"], place)
            assert following["last_action"] == action
            assert following["last_reward"] == reward
            score += wanted
            ended = turned or late
            if ended:
                total = Sums(*np.add(total, (1, score, time, right)).tolist())
    return total
