# SPDX-License-Identifier: LGPL-2.1-or-later
"""When a console showed certain words: for guests in which nothing of the lab's can report."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

POLL_SECONDS = 0.05


class Stamps:
    """Watches a file that grows, in a thread of its own, while the ``with`` block runs.

    ``wanted`` are (name, words) in the order in which they come: each is looked for behind the one before
    it. ``seen`` has the seconds since the block began for each that was found.
    """

    def __init__(self, console: Path, wanted: Sequence[tuple[str, str]]) -> None:
        self.console = console
        self.wanted = [(name, words.encode()) for name, words in wanted]
        self.seen: dict[str, float] = {}
        self._text = b""
        self._at = 0
        self._began = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Stamps:
        self.console.unlink(missing_ok=True)
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Read what came since the last time."""
        try:
            with self.console.open("rb") as stream:
                stream.seek(self._at)
                new = stream.read()
        except OSError:
            return
        self._at += len(new)
        self._text += new
        while self.wanted:
            name, words = self.wanted[0]
            _, found, rest = self._text.partition(words)
            if not found:
                return
            self.seen[name] = round(time.monotonic() - self._began, 3)
            self._text = rest
            del self.wanted[0]

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            self.look()
