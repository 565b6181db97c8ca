"""Smooth shapes and words on a numpy image, float32 [height, width, 3] with values 0..255.

Coordinates are pixels from the upper left corner.  A shape is given by its distance function,
negative inside; a pixel that the edge crosses is blended by how much of it lies inside.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from snaprl.envs import pixel_font

Colour: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]


def _paint(
    image: np.ndarray,
    box: tuple[float, float, float, float],
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray],
    colour: Colour,
) -> None:
    """Blends `colour` into `image` within `box` (x, y, half width, half height)."""
    x, y, half_x, half_y = box
    top, bottom = max(int(y - half_y) - 1, 0), int(y + half_y) + 3
    left, right = max(int(x - half_x) - 1, 0), int(x + half_x) + 3
    part = image[top:bottom, left:right]
    ys, xs = np.mgrid[top : top + part.shape[0], left : left + part.shape[1]].astype(np.float32)
    cover = np.clip(0.5 - distance(xs + 0.5 - x, ys + 0.5 - y), 0, 1)[..., None]
    part += cover * (np.array(colour, np.float32) - part)


def box(
    image: np.ndarray,
    x: float,
    y: float,
    half_x: float,
    half_y: float,
    radius: float,
    colour: Colour,
) -> None:
    """Fills a box with round corners; `x` and `y` are its centre."""

    def distance(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        out_x, out_y = np.abs(dx) - half_x + radius, np.abs(dy) - half_y + radius
        outside = np.hypot(np.maximum(out_x, 0), np.maximum(out_y, 0))
        return outside + np.minimum(np.maximum(out_x, out_y), 0) - radius

    _paint(image, (x, y, half_x, half_y), distance, colour)


def disc(image: np.ndarray, x: float, y: float, radius: float, colour: Colour) -> None:
    """Fills a disc."""
    _paint(image, (x, y, radius, radius), lambda dx, dy: np.hypot(dx, dy) - radius, colour)


def line(image: np.ndarray, a: Point, b: Point, radius: float, colour: Colour) -> None:
    """Draws from `a` to `b`, both (x, y), with round ends."""
    run_x, run_y = b[0] - a[0], b[1] - a[1]

    def distance(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        px, py = dx + run_x / 2, dy + run_y / 2  # seen from `a`
        along = np.clip((px * run_x + py * run_y) / (run_x**2 + run_y**2), 0, 1)
        return np.hypot(px - along * run_x, py - along * run_y) - radius

    middle = ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)
    reach = (abs(run_x) / 2 + radius, abs(run_y) / 2 + radius)
    _paint(image, (*middle, *reach), distance, colour)


def write(
    image: np.ndarray, words: str, x: float, y: float, colour: Colour, scale: int = 2
) -> None:
    """Writes from the upper left corner (x, y); what does not fit is cut."""
    glyphs = np.kron(pixel_font.text(words), np.ones((scale, scale), bool))
    part = image[int(y) : int(y) + glyphs.shape[0], int(x) : int(x) + glyphs.shape[1]]
    part[glyphs[:, : part.shape[1]]] = colour
