"""Learner, loops, runs and the command `snaprl`.

The reading order: `learner.py`, `device_loop.py`, `run.py`, then the rest.
"""
