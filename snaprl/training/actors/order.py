"""Segments in the order in which their streams made them."""

from collections import deque

from snaprl.training.actors.engine import Message


class Order:
    """Holds segments back until those before them are there, within a small window.

    Influence is carried from a segment to the next, so a stream's segments must reach the learner
    in order. What is late beyond the window is given up: the learner sees the gap in `number` and
    restarts the stream's influence.

    Attributes:
      missing: segments that were given up.
      repeated: segments that came twice, or after they had been given up; they are not used.
      stale: segments of an actor that has been replaced since; they are not used.
    """

    def __init__(self, numbers: list[int], window: int):
        """Starts anywhere.

        Args:
          numbers: of the segment that each actor sends next.
          window: segments of an actor that may wait for one that is late.
        """
        self._window = window
        self._life = [0] * len(numbers)
        self._number = list(numbers)
        self._held: list[dict[int, Message]] = [{} for _ in numbers]
        self._ready: deque[Message] = deque()
        self.missing = self.repeated = self.stale = 0

    def put(self, message: Message) -> None:
        """Takes in a segment."""
        actor = message.actor
        if message.life < self._life[actor]:
            self.stale += 1
            message.release()
            return
        if message.life > self._life[actor]:
            self._replaced(actor, message.life)
        held = self._held[actor]
        if message.number < self._number[actor] or message.number in held:
            self.repeated += 1
            message.release()
            return
        held[message.number] = message
        if len(held) > self._window:
            self.missing += min(held) - self._number[actor]
            self._number[actor] = min(held)
        while self._number[actor] in held:
            self._ready.append(held.pop(self._number[actor]))
            self._number[actor] += 1

    def __len__(self) -> int:
        """How many segments are ready."""
        return len(self._ready)

    def take(self, count: int) -> list[Message] | None:
        """The oldest ready segments of `count` different actors; None where there are fewer."""
        found: dict[int, Message] = {}
        for message in self._ready:
            if len(found) == count:
                break
            found.setdefault(message.actor, message)
        if len(found) < count:
            return None
        taken = list(found.values())
        self._ready = deque(m for m in self._ready if not any(m is t for t in taken))
        return sorted(taken, key=lambda m: m.actor)

    def _replaced(self, actor: int, life: int) -> None:
        """Starts an actor's streams anew; what its earlier life left ready is still good."""
        for message in self._held[actor].values():
            self.stale += 1
            message.release()
        self._held[actor] = {}
        self._life[actor], self._number[actor] = life, 0
