"""Sweeps: many runs, side by side, and the page that tells what came of them."""
