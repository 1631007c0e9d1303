# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the host does for a guest in the middle of a trial: the other end of the program "host".

The guest's agent asks over the report port, with the words of its command, and waits for the answer:
one line of JSON, ``{"return": …}`` or ``{"error": "…"}``.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from qemu.qmp import QMPError
from qemu.qmp.legacy import QEMUMonitorProtocol

from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Action = Callable[["Host", "Sequence[str]"], object]
SOCKET = "qmp.sock"
ANSWER_SECONDS = 60.0


class Host:
    """One running machine as the host can touch it. QEMU is connected to when first needed."""

    def __init__(self, directory: Path, actions: Mapping[str, Action] | None = None) -> None:
        """``directory`` is the machine's; ``actions`` come on top of :data:`ACTIONS`."""
        self.directory = directory
        self.actions = {**ACTIONS, **(actions or {})}
        self._monitor: QEMUMonitorProtocol | None = None

    def qmp(self, command: str, **arguments: object) -> object:
        """What QEMU answers to a QMP command; CrashlendError when it refuses."""
        try:
            if self._monitor is None:
                monitor = QEMUMonitorProtocol(str(self.directory / SOCKET))
                monitor.connect()
                monitor.settimeout(ANSWER_SECONDS)
                self._monitor = monitor
            return self._monitor.cmd(command, **arguments)
        except (QMPError, OSError, TimeoutError) as error:
            raise CrashlendError(f"QMP {command}", str(error) or type(error).__name__) from error

    def answer(self, ask: object) -> dict[str, Any]:
        """Do what the guest asks for; never raises, for the guest is to hear what went wrong."""
        if not isinstance(ask, list) or not ask or not all(isinstance(w, str) for w in ask):
            return {"error": "not a list of words"}
        action = self.actions.get(ask[0])
        if action is None:
            return {"error": f"unknown action {ask[0]!r}; there are {', '.join(self.actions)}"}
        try:
            return {"return": action(self, ask[1:])}
        except (CrashlendError, ValueError, OSError) as error:
            return {"error": str(error)}

    def close(self) -> None:
        """Let go of QEMU; it may be gone already."""
        if self._monitor is None:
            return
        with suppress(QMPError, OSError, EOFError):
            self._monitor.close()
        self._monitor = None


def _qmp(host: Host, words: Sequence[str]) -> object:
    command, *rest = words
    return host.qmp(command, **(json.loads(rest[0]) if rest else {}))


ACTIONS: dict[str, Action] = {"qmp": _qmp}
