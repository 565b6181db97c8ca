"""What acts and learns: encoders, heads, losses, and agents made of them."""

from snaprl.agents.actor_critic import ActorCriticLoss, actor_critic
from snaprl.agents.encoder import Encoder
from snaprl.agents.network import NetworkConfig, RecurrentActorCritic
from snaprl.agents.policy import Policy, policy_for
from snaprl.agents.types import Action, Agent, Segment

__all__ = [
    "Action",
    "ActorCriticLoss",
    "Agent",
    "Encoder",
    "NetworkConfig",
    "Policy",
    "RecurrentActorCritic",
    "Segment",
    "actor_critic",
    "policy_for",
]
