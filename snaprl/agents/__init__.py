"""What acts and learns: encoders, heads, losses, and agents made of them."""

from snaprl.agents.actor_critic import ActorCriticLoss
from snaprl.agents.agent import make_agent
from snaprl.agents.encoder import Encoder
from snaprl.agents.impala import ImpalaLoss
from snaprl.agents.losses import Loss, Outputs, Targets
from snaprl.agents.network import NetworkConfig, RecurrentActorCritic
from snaprl.agents.policy import Policy, policy_for
from snaprl.agents.ppo import PPOLoss
from snaprl.agents.types import Action, Agent, Segment

__all__ = [
    "Action",
    "ActorCriticLoss",
    "Agent",
    "Encoder",
    "ImpalaLoss",
    "Loss",
    "NetworkConfig",
    "Outputs",
    "PPOLoss",
    "Policy",
    "RecurrentActorCritic",
    "Segment",
    "Targets",
    "make_agent",
    "policy_for",
]
