"""Actors on a Ray cluster, or on one that starts on this machine."""

import contextlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from snaprl.training import cluster
from snaprl.training.actors.engine import MakeActor, Message
from snaprl.training.actors.layout import Layout
from snaprl.training.actors.processes import ENVIRONMENT, STARTUP_S
from snaprl.training.actors.supervisor import Supervisor
from snaprl.training.errors import UserError

PyTree = Any
END_S = 4.0  # in which a cluster that is there lets go of its actors
ASK_S = 2.0  # in which an actor that is there answers
STORE_S = 30.0  # in which this machine's store, or the cluster's head, does
SIGNS = "signs"  # the thread of an actor that says so
OWN = {"CPU", "memory", "object_store_memory"}  # resources that Ray knows by other ways


class _Remote:
    """What lives on the cluster: an actor, and the parameters that it last saw.

    It learns which actor it is when it first plays for the learner: a spare one has all but that
    behind it, imports, environments and compiling.
    """

    def __init__(self, make: MakeActor, played: Layout, variables: Layout):
        self._make = make
        self._actor: Any = None
        self._state: Any = None  # of an actor that plays for the learner
        self._played, self._layout = played, variables
        self._version, self._variables = -1, None
        self._beat_s = time.monotonic()

    def silent_s(self) -> float:
        """Seconds since the last step; answered beside a segment that is being played."""
        return time.monotonic() - self._beat_s

    def _touch(self) -> None:
        self._beat_s = time.monotonic()

    def warm_up(self, version: int, parameters: np.ndarray) -> None:
        """Plays a segment for nobody, so that the first one for the learner comes at once."""
        actor = self._make(0, alive=self._touch)
        self._read(version, parameters)
        actor.play(self._variables, actor.start(0))
        self._actor = actor

    def play(self, index: int, seed: int, version: int, parameters: np.ndarray) -> np.ndarray:
        """A segment as one buffer, uint8 `[nbytes]`."""
        if self._state is None:
            self._actor = self._actor or self._make(index, alive=self._touch)
            self._actor.stand_in(index)
            self._state = self._actor.start(seed)
        self._read(version, parameters)
        self._state, played = self._actor.play(self._variables, self._state)
        buffer = np.zeros(self._played.nbytes, np.uint8)
        self._played.write(played, buffer)
        return buffer

    def _read(self, version: int, parameters: np.ndarray) -> None:
        if version != self._version:
            # a copy: Ray's store may take its memory back
            self._variables = jax.device_put(self._layout.views(parameters.copy()))
            self._version = version


class _Order(NamedTuple):
    """A segment that was asked for."""

    actor: int
    life: int
    version: int
    due_s: float  # when the actor is asked whether it is still there


class RayEngine:
    """Actors as Ray's actors: one message per segment, one stored object per parameter version.

    Each actor has a few segments ordered ahead, each with the newest parameters of that moment.
    """

    exact = False
    ahead = True

    def __init__(
        self,
        make: MakeActor,
        actors: int,
        *,
        played: PyTree,
        variables: PyTree,
        ahead: int,
        patience_s: float,
        supervisor: Supervisor,
        address: str = "",
        cpus: float = 1.0,
        resources: Mapping[str, float] | None = None,
        spread: bool = False,
    ):
        """Starts nothing yet.

        Args:
          make: `(index, *, alive) -> Actor`; runs on the cluster, so it must pickle.
          actors: how many.
          played: shapes and types of what an actor plays.
          variables: those of the parameters.
          ahead: segments that an actor may be ahead of the learner.
          patience_s: seconds without a step after which an actor is replaced.
          supervisor: counts replacements.
          address: the cluster's; where it is empty, one starts on this machine.
          cpus: processor cores that Ray keeps for an actor.
          resources: what else Ray keeps for an actor, by the names that the machines gave it.
          spread: put actors on as many machines as there are; else where there is room first.

        Raises:
          UserError: Ray is not installed, or a resource is one of its own.
        """
        ray = cluster.import_ray(address, "actors.engine = 'ray'", "use 'processes'")
        self._ray = ray
        self._make, self._count, self._ahead = make, actors, ahead
        self._patience_s, self._supervisor = patience_s, supervisor
        self._played, self._variables = Layout(played), Layout(variables)
        self._pack = jax.jit(self._variables.pack)
        self._address, self._spread = address, spread
        for name in OWN & (resources or {}).keys():
            raise UserError(
                f"actors.ray_resources.{name} is one of Ray's own, which actors cannot be given "
                "so: leave it out; cores are actors.ray_cpus"
            )
        self._needs = {"CPU": cpus, **(resources or {})}  # of an actor
        self._seed = np.random.SeedSequence(0)
        self._handles: list[Any] = []
        self._spare: Any = None  # stands by, where the cluster has room for one more
        self._lives, self._seeds = [0] * actors, [0] * actors
        self._orders: dict[Any, _Order] = {}  # by Ray's reference
        self._parameters: Any = None
        self._version = 0
        self._started_here = False
        self._head: cluster.Head | None = None

    def start(self, seed: int) -> None:
        """Reaches the cluster; actors start when a segment is asked for.

        Raises:
          UserError: it is not there, or too small.
        """
        self._seed = np.random.SeedSequence(seed)
        self._connect()

    def publish(self, variables: PyTree, version: int) -> None:
        """Puts parameters where actors that play next find them."""
        packed = np.asarray(self._pack(variables))
        try:
            put = cluster.within(STORE_S, lambda: self._ray.put(packed))
        except (self._ray.exceptions.RayError, TimeoutError) as error:
            raise UserError(f"Ray's store takes no parameters ({cluster.why(error)})") from error
        self._parameters, self._version = put, version

    def receive(self, timeout_s: float) -> Message | None:
        """The next segment of any actor.

        Raises:
          UserError: actors had to be replaced too often, the cluster is too small, or its head
            is lost.
        """
        if self._head is not None:
            self._head.check()
        if not self._handles:
            self._handles = [self._remote() for _ in range(self._count)]
            for actor in range(self._count):
                self._begin(actor)
            if not self._lacking(self._count + 1):
                self._spare = self._stand_by()
        self._replace_late()  # whatever the others send
        ready, _ = self._ray.wait(self._first_of_each(), num_returns=1, timeout=timeout_s)
        if not ready:
            return None
        order = self._orders.pop(ready[0])
        try:
            buffer = self._ray.get(ready[0], timeout=ASK_S)  # it is on this machine already
        except self._ray.exceptions.RayError as error:
            self._replace(order.actor, f"failed ({cluster.why(error)})")
            return None
        played = self._played.views(buffer)
        life = order.life
        self._expect(order.actor, time.monotonic() + self._patience_s)

        def release() -> None:
            # it may have been replaced since
            if self._handles and self._lives[order.actor] == life:
                self._ask(order.actor, self._patience_s)

        return Message(played, order.actor, life, order.version, release)

    def waiting(self) -> int:
        """How many segments have come that `receive` has not given yet."""
        orders = list(self._orders)
        return len(self._ray.wait(orders, num_returns=len(orders), timeout=0)[0]) if orders else 0

    def numbers(self) -> list[int]:
        """The number of the segment that each actor sends next: streams start anew."""
        return [0] * self._count

    def snapshot(self) -> PyTree:
        """Nothing: who plays on meanwhile cannot be saved."""
        return ()

    def restore(self, snapshot: PyTree) -> None:
        """Actors start anew."""
        del snapshot

    def report(self) -> dict[str, float]:
        """How many actors there are and how many were replaced."""
        return {"actors": float(self._count), "restarts": float(self._supervisor.restarts)}

    def close(self) -> None:
        """Ends all actors, and the cluster if it is ours."""
        handles, ours = [*self._handles, *filter(None, [self._spare])], self._started_here
        self._handles, self._spare, self._orders, self._parameters = [], None, {}, None
        self._started_here = False

        def end() -> None:
            for handle in handles:
                with contextlib.suppress(Exception):
                    self._ray.kill(handle)
            if ours:
                with contextlib.suppress(Exception):
                    self._ray.shutdown()

        # where the head is lost nobody may be there to tell; actors end with their cluster
        with contextlib.suppress(TimeoutError):
            cluster.within(END_S, end)

    def _connect(self) -> None:
        if self._ray.is_initialized():
            return
        way_out = "leave the address out to start one on this machine"
        self._head = cluster.join(self._ray, self._address, "actors.ray_address", way_out)
        self._started_here = True
        for name, have in self._lacking(self._count).items():
            each = self._needs[name]
            key, unit = f"actors.ray_resources.{name}", f"of '{name}'"
            if name == "CPU":
                key, unit = "actors.ray_cpus", "cores"
            raise UserError(
                f"actors.count = {self._count} actors of {key} = {each} need "
                f"{self._count * each:g} {unit}, and the cluster has {have:g}: lower either"
            )

    def _lacking(self, actors: int) -> dict[str, float]:
        """What the cluster has of what it has too little of for so many actors."""
        try:
            have = cluster.within(STORE_S, self._ray.cluster_resources)
        except (self._ray.exceptions.RayError, TimeoutError) as error:
            raise UserError(
                f"the Ray cluster does not say what it has ({cluster.why(error)})"
            ) from error
        return {
            name: have.get(name, 0.0)
            for name, each in self._needs.items()
            if have.get(name, 0.0) < actors * each
        }

    def _remote(self) -> Any:
        own: dict[str, Any] = {
            "num_cpus": self._needs["CPU"],
            "num_gpus": self._needs.get("GPU", 0),
        }
        options = own | {"runtime_env": {"env_vars": ENVIRONMENT}}
        options["resources"] = {k: v for k, v in self._needs.items() if k not in ("CPU", "GPU")}
        options["scheduling_strategy"] = "SPREAD" if self._spread else "DEFAULT"
        remote = self._ray.remote(concurrency_groups={SIGNS: 1})(_Remote).options(**options)
        return remote.remote(self._make, self._played, self._variables)

    def _stand_by(self) -> Any:
        """One for the place of the next that fails; if it fails itself, that is seen then."""
        spare = self._remote()
        spare.warm_up.remote(self._version, self._parameters)
        return spare

    def _begin(self, actor: int) -> None:
        """Asks an actor that has not played yet for its first segments."""
        self._seeds[actor] = int(self._seed.spawn(1)[0].generate_state(1)[0])
        for _ in range(self._ahead):
            self._ask(actor, STARTUP_S)

    def _ask(self, actor: int, within_s: float) -> None:
        reference = self._handles[actor].play.remote(
            actor, self._seeds[actor], self._version, self._parameters
        )
        due_s = time.monotonic() + within_s
        life = self._lives[actor]
        self._orders[reference] = _Order(actor, life, self._version, due_s)

    def _first_of_each(self) -> list[Any]:
        """What each actor sends next: Ray may learn of a later segment earlier."""
        first: dict[int, Any] = {}
        for reference, order in self._orders.items():
            first.setdefault(order.actor, reference)
        return list(first.values())

    def _expect(self, actor: int, due_s: float) -> None:
        """Puts the next look at an actor off."""
        for reference, order in self._orders.items():
            if order.actor == actor:
                self._orders[reference] = order._replace(due_s=due_s)

    def _replace_late(self) -> None:
        now_s = time.monotonic()
        late = [r for r in self._first_of_each() if self._orders[r].due_s < now_s]
        if late:  # if its segment is there, it is the learner who was late
            _, late = self._ray.wait(late, num_returns=len(late), timeout=0)
        for actor in [self._orders[reference].actor for reference in late]:
            handle = self._handles[actor].silent_s.options(concurrency_group=SIGNS)
            try:
                silent_s = self._ray.get(handle.remote(), timeout=ASK_S)
            except self._ray.exceptions.RayError as error:
                self._replace(actor, f"does not answer ({cluster.why(error)})")
                continue
            if silent_s > self._patience_s:
                self._replace(actor, f"gave no sign of life for {silent_s:.0f} s")
            else:  # it plays, slowly
                self._expect(actor, now_s + self._patience_s - silent_s)

    def _replace(self, actor: int, why: str) -> None:
        self._orders = {r: o for r, o in self._orders.items() if o.actor != actor}
        self._ray.kill(self._handles[actor])
        self._supervisor.replace(actor, why)
        self._lives[actor] += 1
        if self._spare is None:
            self._handles[actor] = self._remote()
        else:
            self._handles[actor], self._spare = self._spare, self._stand_by()
        self._begin(actor)
