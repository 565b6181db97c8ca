"""Who is replaced, and when that has happened too often."""

import sys
import time
from collections import deque
from collections.abc import Callable

from snaprl.training.errors import UserError

HOUR_S = 3600.0


class Supervisor:
    """Counts replacements of actors, tells of them, and gives up when there are too many.

    Attributes:
      restarts: how many there were.
    """

    def __init__(
        self,
        budget: int,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    ):
        """Allows `budget` replacements an hour."""
        self._budget, self._clock, self._tell = budget, clock, tell
        self._recent: deque[float] = deque()
        self.restarts = 0

    def replace(self, actor: int, why: str) -> None:
        """Notes that an actor has to be replaced.

        Raises:
          UserError: that was one too many; the sentence says why it had to be.
        """
        now_s = self._clock()
        self._recent.append(now_s)
        while now_s - self._recent[0] > HOUR_S:
            self._recent.popleft()
        if len(self._recent) > self._budget:
            raise UserError(
                f"actor {actor} {why}; that is more than actors.restarts = {self._budget} "
                "replacements within an hour, so the run gives up"
            )
        self.restarts += 1
        self._tell(f"snaprl: actor {actor} {why}: replaced, its streams start anew")
