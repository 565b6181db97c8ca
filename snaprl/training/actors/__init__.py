"""Actors: who plays environments on the host, in this process, in others, or on a cluster."""

from snaprl.training.actors.actor import Actor, ActorState, Played, played_like
from snaprl.training.actors.engine import Engine, LocalEngine, Message
from snaprl.training.actors.loop import ActorLoop, ActorLoopState
from snaprl.training.actors.on_ray import RayEngine
from snaprl.training.actors.processes import ProcessEngine
from snaprl.training.actors.supervisor import Supervisor

__all__ = [
    "Actor",
    "ActorLoop",
    "ActorLoopState",
    "ActorState",
    "Engine",
    "LocalEngine",
    "Message",
    "Played",
    "ProcessEngine",
    "RayEngine",
    "Supervisor",
    "played_like",
]
