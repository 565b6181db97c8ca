"""The T-maze as a picture and as text, with numpy alone."""

import numpy as np

from snaprl.envs import canvas, pixel_font
from snaprl.envs.gym import Renderers
from snaprl.envs.tmaze import LEFT, TMaze, TMazeState

HEIGHT, WIDTH = 264, 760  # pixels of every picture, whatever the corridor
CELL = 44  # pixels of a cell
SLOTS = 15  # cells side by side; of a longer corridor, start, agent and junction are shown

PAPER, FLOOR, WALL = (250, 249, 246), (255, 255, 255), (55, 62, 74)
GRID, QUIET, INK = (226, 228, 232), (168, 174, 184), (55, 62, 74)
AMBER, PALE_AMBER = (245, 158, 11), (238, 228, 208)
GREEN, PALE_GREEN = (34, 150, 84), (220, 242, 228)
RED, PALE_RED = (206, 66, 60), (250, 229, 227)
BLUE, DARK_BLUE = (46, 108, 223), (24, 66, 150)


def renderers(task: TMaze) -> Renderers:
    """Returns what draws `task`: "rgb_array", uint8 [264, 760, 3], and "ansi", a string."""
    return {
        "rgb_array": lambda state: picture(task, state),
        "ansi": lambda state: text(task, state),
    }


def slots(length: int, position: int) -> list[int | None]:
    """Returns the cells to draw from left to right, at most 15; None stands for cells left out."""
    if length + 1 <= SLOTS:
        return list(range(length + 1))
    last = SLOTS - 4  # of a run of cells that reaches one end
    if position <= last - 4:
        return [*range(last + 1), None, length - 1, length]
    if position >= length - (last - 4):
        return [0, 1, None, *range(length - last, length + 1)]
    return [0, 1, None, *range(position - 4, position + 5), None, length - 1, length]


def caption(task: TMaze, state: TMazeState) -> str:
    """Returns one line that says how things stand."""
    position, time = int(state.position), int(state.time)
    side = "left" if state.cue == LEFT else "right"
    cell = f"cell {min(position, task.length)}/{task.length}"
    return f"step {time}  {cell}  cue {side}: {'shown' if _sees_cue(task, state) else 'hidden'}"


def outcome(task: TMaze, state: TMazeState) -> str:
    """Returns how the episode ended, or "" while it runs."""
    turn = int(state.position) - task.length
    if turn > 0:
        return "solved" if turn - 1 == int(state.cue) else "wrong turn"
    if task.passive and int(state.time) > task.length:
        return "no turn"
    return "timeout" if task.timeout is not None and int(state.time) >= task.timeout else ""


def text(task: TMaze, state: TMazeState) -> str:
    """Draws in letters: A agent, S start, + junction, G goal, x the other arm, ~ cells left out."""
    position = int(state.position)
    signs = {0: "S", task.length: "+", position: "A"}
    shown = slots(task.length, min(position, task.length))
    row = "".join("~" if cell is None else signs.get(cell, ".") for cell in shown)
    arms = ["G", "x"] if state.cue == LEFT else ["x", "G"]
    if position > task.length:
        arms[position - task.length - 1] = "A"
    indent = " " * (len(row) - 1)
    lines = [f"{indent}{arms[0]}", row, f"{indent}{arms[1]}", caption(task, state)]
    return "\n".join([*lines, outcome(task, state)]).rstrip() + "\n"


def picture(task: TMaze, state: TMazeState) -> np.ndarray:
    """Draws a picture, uint8 [264, 760, 3]."""
    image = np.empty((HEIGHT, WIDTH, 3), np.float32)
    image[:] = PAPER
    position, cue = int(state.position), int(state.cue)
    shown = slots(task.length, min(position, task.length))
    x_0, y = (WIDTH - CELL * (len(shown) - 1)) / 2, HEIGHT / 2 - 6
    x_of = {cell: x_0 + CELL * i for i, cell in enumerate(shown) if cell is not None}
    x_end = x_of[task.length]
    arms = [y - CELL, y + CELL]

    for grow, colour in ((4.0, WALL), (0.0, FLOOR)):  # walls are what the floor leaves uncovered
        half = CELL / 2 + grow
        canvas.box(image, (x_0 + x_end) / 2, y, (x_end - x_0) / 2 + half, half, 7 + grow, colour)
        canvas.box(image, x_end, y, half, CELL + half, 7 + grow, colour)
    for side, centre in enumerate(arms):
        tint = PALE_GREEN if side == cue else PALE_RED
        canvas.box(image, x_end, centre, CELL / 2 - 2, CELL / 2 - 2, 6, tint)
        _mark(image, x_end, centre, side == cue)
    _floor(image, shown, x_0, y)
    _sign(image, x_of[0], y, cue, _sees_cue(task, state))

    if position > task.length:
        side = position - task.length - 1
        _agent(image, x_end, arms[side], (0, 2 * side - 1))
    else:
        _agent(image, x_of[position], y, (1, 0))
    canvas.write(image, caption(task, state), 24, HEIGHT - 32, INK)
    verdict = outcome(task, state)
    x_verdict = WIDTH - 24 - 2 * pixel_font.ADVANCE * len(verdict)
    canvas.write(image, verdict, x_verdict, HEIGHT - 32, GREEN if verdict == "solved" else RED)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _sees_cue(task: TMaze, state: TMazeState) -> bool:
    return bool(state.position == 0 and (task.cue_stays or state.time == 0))


def _floor(image: np.ndarray, shown: list[int | None], x_0: float, y: float) -> None:
    """Draws the joints between cells, and what stands for the cells left out."""
    for i, cell in enumerate(shown):
        x = x_0 + CELL * i
        if i and cell is not None and shown[i - 1] is not None:
            canvas.line(image, (x - CELL / 2, y - 15), (x - CELL / 2, y + 15), 0.8, GRID)
        if cell is None:
            before, after = shown[i - 1], shown[i + 1]
            assert before is not None and after is not None
            for dot in (-11, 0, 11):
                canvas.disc(image, x + dot, y, 2.4, QUIET)
            label = f"+{after - before - 1}"
            canvas.write(image, label, x - pixel_font.ADVANCE * len(label), y + 34, QUIET)


def _sign(image: np.ndarray, x: float, y: float, cue: int, seen: bool) -> None:
    """Draws the cue above the start: an arrow to the side of the goal, lit while it is shown."""
    plate, ink = (AMBER, FLOOR) if seen else (PALE_AMBER, QUIET)
    y = y - CELL - 8
    canvas.line(image, (x, y + 17), (x, y + 25), 2.0, plate)
    canvas.box(image, x, y, 17, 17, 5, plate)
    up = -1 if cue == LEFT else 1
    tip = (x, y + 10 * up)
    for tail in ((x, y - 10 * up), (x - 7, y + 3 * up), (x + 7, y + 3 * up)):
        canvas.line(image, tip, tail, 1.9, ink)


def _mark(image: np.ndarray, x: float, y: float, good: bool) -> None:
    if good:
        canvas.line(image, (x - 9, y + 1), (x - 3, y + 7), 2.4, GREEN)
        canvas.line(image, (x - 3, y + 7), (x + 9, y - 7), 2.4, GREEN)
    else:
        canvas.line(image, (x - 7, y - 7), (x + 7, y + 7), 2.4, RED)
        canvas.line(image, (x - 7, y + 7), (x + 7, y - 7), 2.4, RED)


def _agent(image: np.ndarray, x: float, y: float, ahead: tuple[int, int]) -> None:
    canvas.disc(image, x, y, 15.5, DARK_BLUE)
    canvas.disc(image, x, y, 13.5, BLUE)
    for side in (-1, 1):  # two eyes, to see which way it looks
        eye_x, eye_y = (
            x + 5 * ahead[0] + 5 * side * ahead[1],
            y + 5 * ahead[1] + 5 * side * ahead[0],
        )
        canvas.disc(image, eye_x, eye_y, 3.4, FLOOR)
        canvas.disc(image, eye_x + 1.2 * ahead[0], eye_y + 1.2 * ahead[1], 1.6, INK)
