"""A Ray cluster: joined, or started on this machine; and whether its head is still there."""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from snaprl.training.errors import UserError

REACH_S = 5.0  # in which a cluster that is there answers
JOIN_S = 60.0  # and in which it has taken us in
# Ray ends this process, checkpoint or not, when its head has been silent for 60 s: we end before
ASK_S, LOST_S = 3.0, 30.0  # how often the head is asked, and how long it may be silent
# A cluster of this machine alone talks to no other: no usage reports, and loopback only.
PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
}


def import_ray(address: str, what: str, way_out: str) -> Any:
    """Ray's package; what it reads when it is first imported is settled for good.

    Args:
        address: The cluster's that will be joined; empty for one that starts on this machine.
        what: Who needs it.
        way_out: What to do without it.

    Raises:
        UserError: It is not installed.
    """
    if not address:
        os.environ.update(PRIVATE)  # read when Ray is imported
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError(f"{what} needs Ray: pip install 'snaprl[ray]', or {way_out}") from error
    return ray


def join(ray: Any, address: str, key: str, way_out: str) -> "Head":
    """Joins the cluster at `address`, or starts one here where that is empty.

    Args:
        ray: The package.
        address: The cluster's.
        key: Where the address is given.
        way_out: What to do without that cluster.

    Raises:
        UserError: Nobody answers there.
    """
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        try:
            _knock(address, REACH_S)
        except (OSError, ValueError) as error:  # Ray itself would ask for minutes
            raise UserError(
                f"no Ray cluster answers at {key} = '{address}' ({error}): start one there, or "
                f"{way_out}"
            ) from error
        options |= {"address": address}
    else:
        options |= {
            "address": "local",
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    try:
        with _quiet(), _signals_kept():
            if address:
                within(JOIN_S, lambda: ray.init(**options))
            else:  # what starts here ends with the thread that starts it; Ray has limits of its own
                ray.init(**options)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        where = address or "this machine"
        raise UserError(f"no Ray cluster could be reached at {where}: {error}") from error
    # of a client, Ray tells the address that it has on the inside
    client = address.startswith("ray://")
    try:
        return Head(address if client else ray.get_runtime_context().gcs_address)
    except BaseException:
        ray.shutdown()
        raise


class Head:
    """The machine that a cluster cannot be without.

    Attributes:
        lost: Whether it was found to be.
    """

    def __init__(self, address: str):
        """Known to be there."""
        self._address = address
        self._asked_s = time.monotonic()
        self._silent_since_s: float | None = None
        self.lost = False

    def check(self) -> None:
        """Raises UserError where it has been silent for long."""
        now_s = time.monotonic()
        if now_s < self._asked_s + ASK_S:
            return
        self._asked_s = now_s
        try:
            _knock(self._address, 1.0)
        except OSError as error:
            if self._silent_since_s is None:
                self._silent_since_s = now_s
            elif now_s - self._silent_since_s > LOST_S:
                self.lost = True
                raise UserError(
                    f"the head of the Ray cluster, {self._address}, has not answered for "
                    f"{LOST_S:.0f} s ({error})"
                ) from error
        else:
            self._silent_since_s = None


def within(limit_s: float, call: Callable[[], Any]) -> Any:
    """What a call returns that Ray sets no limit to; where it hangs, it is left behind.

    Raises:
        TimeoutError: It took longer than `limit_s`, seconds.
        Exception: Whatever the call raised.
    """
    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # whatever it is, it is for who waits
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(limit_s)
    except TimeoutError as error:
        if answer.done():  # the call's own
            raise
        raise TimeoutError(f"no answer within {limit_s:g} s") from error


def why(error: Exception) -> str:
    """The first line of what went wrong, which names it."""
    cause = getattr(error, "cause", None)
    name, text = type(cause or error).__name__, str(error if cause is None else cause)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{name}: {first}" if cause is not None else first or name


def _knock(address: str, timeout_s: float) -> None:
    """Raises OSError where nobody answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():  # not `auto`, which looks for a cluster in Ray's own ways
        socket.create_connection((host, int(port)), timeout=timeout_s).close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what is said to everyone who starts Ray after jax."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # Ray forks to start other programs, not to go on in the copy
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        yield


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; a run that is asked to end wants to leave a checkpoint."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread: nothing was taken
            signal.signal(signal.SIGTERM, before)
