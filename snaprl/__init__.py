"""Recurrent policies trained online: SnAp-n and its relatives, in JAX.

Import the rooms by name: `snaprl.cores` (recurrent cores and their gradient methods),
`snaprl.envs` (memory tasks), `snaprl.agents` (what acts and learns) and `snaprl.training`
(learners, loops, the command line). This module imports none of them, so that
`import snaprl.envs` stays light.
"""

__version__ = "0.1.0"
