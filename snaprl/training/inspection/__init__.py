"""`snaprl inspect`: what a core's influence keeps, and how far its gradient is off."""

from snaprl.training.inspection.command import add_arguments, check, run

__all__ = ["add_arguments", "check", "run"]
