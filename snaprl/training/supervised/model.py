"""The network of a supervised task: symbols or numbers in, a recurrent core, a readout."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from snaprl.cores import CoreState, GradientMethod, OnlineRNN, SnAp, sparsity
from snaprl.cores.stack import OnlineStack
from snaprl.training.supervised.types import Array, Numbers, PyTree, Space, Symbols


class SequenceModel(nn.Module):
    """Input layer, one core or several above each other, and a readout with hidden ReLU layers.

    Attributes:
      inputs: what it reads.
      targets: what it foretells: a distribution over symbols, or numbers.
      cell: a flax cell class.
      features: units of each core.
      layers: how many cores.
      method: how the cores' gradient travels through time.
      pattern: of the recurrent weights, drawn once; None for all of them.
      shared: whether the gates share what is drawn.
      input_fan_in: how many inputs a unit reads, drawn likewise; 0 for all.
      embedding: width of a learnt embedding of symbols; 0 for one-hot.
      readout: widths of the hidden layers.
      mask_seed: from which the random masks come.
    """

    inputs: Space
    targets: Space
    cell: Callable[..., nn.RNNCellBase] = nn.GRUCell
    features: int = 128
    layers: int = 1
    method: GradientMethod = SnAp(order=1)
    pattern: sparsity.Pattern | None = None
    shared: bool = True
    input_fan_in: int = 0
    embedding: int = 0
    readout: tuple[int, ...] = ()
    mask_seed: int = 0

    def setup(self):
        """Makes the parts."""
        if self.embedding and isinstance(self.inputs, Symbols):
            self.embed = nn.Embed(self.inputs.classes, self.embedding)
        self.core = self.make_core()
        self.hidden_layers = [nn.Dense(width) for width in self.readout]
        match self.targets:
            case Symbols(classes, parallel):
                self.head = nn.Dense(classes * parallel)
            case Numbers(size):
                self.head = nn.Dense(size)

    def __call__(self, carry: CoreState, inputs: Array, first: Array) -> tuple[CoreState, Array]:
        """Runs a segment.

        Args:
          carry: where the streams stand.
          inputs: `[T, B, K]`.
          first: bool `[T, B]`, where a stream starts anew before the step.

        Returns:
          The state after the segment, and the outputs: logits `[T, B, K, C]` for symbols, values
          `[T, B, K]` for numbers.
        """
        carry, ys = self._run(carry, self.encode(inputs), first)
        for layer in self.hidden_layers:
            ys = nn.relu(layer(ys))
        ys = self.head(ys)
        if isinstance(self.targets, Symbols):
            ys = ys.reshape(*ys.shape[:-1], self.targets.parallel, self.targets.classes)
        return carry, ys

    @nn.nowrap
    def initial_state(self, key: Array, streams: int) -> CoreState:
        """The state of streams that have seen nothing; a stack's states are tuples by layer."""
        state: Any = self.make_core().initialize_carry(key, (streams, self._width()))
        return _joined(state) if self.layers > 1 else state

    @nn.nowrap
    def make_core(self) -> OnlineRNN | OnlineStack:
        """The core, or the stack of cores.

        Raises:
          ValueError: a pattern does not fit the core.
        """
        cells = [self.cell(self.features) for _ in range(self.layers)]
        widths = [self._width()] + [self.features] * (self.layers - 1)
        if self.pattern is None and not self.input_fan_in:
            masks: list[PyTree] = [None] * self.layers
        else:
            masks = [
                sparsity.mask(
                    cell,
                    width,
                    self.pattern,
                    shared=self.shared,
                    inputs=sparsity.fixed_fan_in(self.input_fan_in) if self.input_fan_in else None,
                    seed=self.mask_seed + layer,
                )
                for layer, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
        if self.layers == 1:
            return OnlineRNN(cells[0], self.method, masks[0])
        return OnlineStack(tuple(cells), self.method, masks=tuple(masks))

    @nn.nowrap
    def _width(self) -> int:
        """How many numbers the core reads."""
        match self.inputs:
            case Symbols(classes, parallel):
                return (self.embedding or classes) * parallel
            case Numbers(size):
                return size

    def encode(self, inputs: Array) -> Array:
        """What the first core reads of `inputs [T, B, K]`: `[T, B, M]`."""
        if isinstance(self.inputs, Numbers):
            return inputs
        x = self.embed(inputs) if self.embedding else jax.nn.one_hot(inputs, self.inputs.classes)
        return x.reshape(*x.shape[:-2], -1)

    def _run(self, carry: CoreState, xs: Array, first: Array) -> tuple[CoreState, Array]:
        core: Any = self.core
        if self.layers == 1:
            return core(carry, xs, first)
        states, ys = core(_parted(carry), xs, first)
        return _joined(states), ys


def _joined(states: tuple[CoreState, ...]) -> CoreState:
    """The states of a stack as one, which a learner can keep in its bank."""
    return CoreState(tuple(s.hidden for s in states), tuple(s.influence for s in states))


def _parted(state: CoreState) -> tuple[CoreState, ...]:
    """Undoes `_joined`."""
    return tuple(CoreState(*pair) for pair in zip(state.hidden, state.influence, strict=True))


def parameter_count(variables: PyTree) -> int:
    """How many weights there are; masked ones are left out."""
    total = sum(jnp.size(leaf) for leaf in jax.tree.leaves(variables["params"]))
    masks = jax.tree.leaves(_masks(variables.get("sparsity", {}).get("core", {})))
    return int(total - sum(jnp.size(mask) - int(mask.sum()) for mask in masks))


def _masks(tree: PyTree) -> list[PyTree]:
    """The masks in a core's collection, or in those of a stack's layers."""
    return [
        value if name == "cell" else _masks(value)
        for name, value in tree.items()
        if name != "pattern"
    ]
