"""A learner on several devices: streams and their influence spread out, parameters if asked for."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from snaprl.training.errors import UserError
from snaprl.training.learner import PER_STREAM, Learner, LearnerState

PyTree = Any
DATA = "data"  # the mesh's axis over which streams are spread


class Spread(NamedTuple):
    """A learner on a mesh, and the ways onto it.

    Gradients are sums over streams: where the compiler finds streams spread over devices, it adds
    the devices' parts by itself.

    Attributes:
      mesh: of one axis, over the devices.
      parameters: each device keeps its part of parameters and optimiser only, and an update gathers
        the parameters for itself (ZeRO, Rajbhandari et al., 2020, arXiv 1910.02054); else every
        device keeps all.
    """

    mesh: Mesh
    parameters: bool = False

    def state(self, like: LearnerState) -> Any:
        """The shardings of a learner's state."""
        everywhere = jax.tree.map(lambda _: self._sharding(), like)
        parted = {
            "bank": jax.tree.map(lambda _: self._sharding(DATA), like.bank),
            "number": self._sharding(DATA),
        }
        if self.parameters:
            parted["variables"] = jax.tree.map(self._part, like.variables)
            parted["optimizer"] = jax.tree.map(self._part, like.optimizer)
        return everywhere._replace(**parted)

    def segment(self, like: Any) -> Any:
        """The shardings of a segment: most fields are `[T, B, ...]`, some `[B, ...]`."""

        def of(name: str) -> NamedSharding:
            return self._sharding(DATA) if name in PER_STREAM else self._sharding(None, DATA)

        fields = {
            name: jax.tree.map(lambda _, n=name: of(n), getattr(like, name))
            for name in like._fields
        }
        return like._replace(**fields)

    def keep(self, state: LearnerState) -> LearnerState:
        """Takes a learner's state to the devices."""
        return jax.device_put(state, self.state(state))

    def put(self, segment: Any) -> Any:
        """Takes a segment of host arrays to the devices.

        Where several hosts share the mesh, each brings the streams of its own devices.
        """

        def leaf(x: Any, sharding: NamedSharding) -> jax.Array:
            return jax.make_array_from_process_local_data(sharding, np.asarray(x))

        return jax.tree.map(leaf, segment, self.segment(segment))

    def learner(self, learner: Learner) -> Learner:
        """The learner whose state stays where it is from one update to the next."""

        def update(state: LearnerState, segment: Any) -> tuple[LearnerState, dict[str, Any]]:
            segment = jax.lax.with_sharding_constraint(segment, self.segment(segment))
            if self.parameters:
                whole = jax.lax.with_sharding_constraint(state.variables, self._sharding())
                state = state._replace(variables=whole)
            state, metrics = learner.update(state, segment)
            return jax.lax.with_sharding_constraint(state, self.state(state)), metrics

        return learner._replace(update=update)

    def _part(self, leaf: Any) -> NamedSharding:
        """By the longest axis that the devices can share; whole, where there is none."""
        axes = [k for k, size in enumerate(leaf.shape) if size % self.mesh.size == 0 and size]
        if not axes:
            return self._sharding()
        longest = max(axes, key=lambda k: leaf.shape[k])
        return self._sharding(*[None] * longest, DATA)

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))


def spread(devices: int, streams: int, *, parameters: bool = False) -> Spread:
    """A learner's mesh.

    Args:
      devices: how many of those that there are; 0 for all.
      streams: that an update takes in.
      parameters: whether parameters and optimiser are shared out too, see `Spread`.

    Raises:
      UserError: there are fewer devices, or they cannot share the streams.
    """
    found = jax.devices()
    count = devices or len(found)
    if count > len(found):
        raise UserError(
            f"training.devices = {count}, but jax finds {len(found)} of kind {found[0].platform}: "
            "ask for fewer, or for 0, which takes all"
        )
    if streams % count:
        raise UserError(
            f"{streams} streams in an update cannot be shared by training.devices = {count}: make "
            "training.streams a multiple"
        )
    return Spread(Mesh(np.array(found[:count]), (DATA,)), parameters)
