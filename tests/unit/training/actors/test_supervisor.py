"""Who is replaced, and when that is too often."""

import pytest

from snaprl.training.actors.supervisor import Supervisor
from snaprl.training.errors import UserError


def test_replacements_are_counted_told_and_limited():
    now_s, told = [0.0], []
    supervisor = Supervisor(2, clock=lambda: now_s[0], tell=told.append)
    supervisor.replace(3, "died (exit code -9)")
    now_s[0] = 3000.0
    supervisor.replace(1, "hangs")
    assert supervisor.restarts == 2
    assert "actor 3 died (exit code -9)" in told[0]
    now_s[0] = 3601.0  # the first one is an hour ago
    supervisor.replace(1, "hangs")
    with pytest.raises(UserError, match=r"actor 0 broke; .*actors\.restarts = 2"):
        supervisor.replace(0, "broke")
    assert supervisor.restarts == 3
