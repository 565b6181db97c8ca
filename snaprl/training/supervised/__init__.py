"""Supervised tasks as streams that never have to end, learnt by the learner that trains agents."""
