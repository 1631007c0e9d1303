# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crashlend did to this host, recorded before it is done, and the lock around it.

/run/crashlend/state.json: {"schema": 1, "blocks": {INDEX: {"step", "zone"}},
"loaded": {...} or null, "learned": {NAME: true or false}, "cma": {"ranges", "active"}}. A block's step is "taking" from before it
goes offline until it is known to be movable, "lent" then, and "returning" from before it goes offline
for its way back; "spoiled" is movable by our doing, but holds pages that must not be lent and can't be
emptied now. What is loaded is "loading" from before the kernel is asked until all is decided
("previous" is the image that it drops for this one), then "loaded", or "lost" where the kernel dropped
the old image and there is no other. "cma" has the kernel's ,cma ranges, which Linux 6.17 and 6.18 tell
in their log alone, and those of them whose pages were seen to be CMA.
/run is emptied by a reboot, exactly as what it describes is.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend import records
from crashlend.errors import CrashlendError
from crashlend.facts import STATE_PATH
from crashlend.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from crashlend.facts import Facts

TAKING, LENT, RETURNING, SPOILED = "taking", "lent", "returning", "spoiled"
STEPS = (TAKING, LENT, RETURNING, SPOILED)
UNDER_WAY = (TAKING, RETURNING)


class State:
    """The state file. Every change is on disk before the method returns, else CrashlendError."""

    def __init__(self, path: Path = Path(STATE_PATH)) -> None:
        self.path = path
        self.blocks: dict[int, dict[str, Any]] = {}
        self.loaded: dict[str, Any] | None = None
        self.learned: dict[str, bool] = {}
        self.cma: dict[str, list[list[int]]] = {}
        try:
            value = json.loads(path.read_bytes())
            self.blocks = {int(k): dict(v) for k, v in value["blocks"].items()}
            self.loaded = None if value["loaded"] is None else dict(value["loaded"])
            why_not = records.fault(self.loaded)
            if why_not:
                raise ValueError(why_not)
            self.learned = dict(value.get("learned", {}))
            self.cma = dict(value.get("cma", {}))
            for block in self.blocks.values():
                if block["step"] not in STEPS:
                    raise ValueError(f"step {block['step']!r}")
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CrashlendError(
                f"cannot read {path}",
                f"it is damaged ({error})",
                hint="crashlend writes it atomically, so something else did this; compare "
                "/sys/devices/system/memory/*/state by hand, then remove the file",
            ) from error

    def set_block(self, index: int, step: str, zone: str = "") -> None:
        """Record that the block is now in ``step``; ``zone`` is where it came from."""
        known = self.blocks.get(index, {"zone": zone})
        self.blocks[index] = {**known, "step": step}
        self.write()

    def drop_block(self, index: int) -> None:
        """Forget a block that is production's own again."""
        self.blocks.pop(index, None)
        self.write()

    def set_loaded(self, loaded: dict[str, Any] | None) -> None:
        """Record what image is loaded (None: none)."""
        self.loaded = loaded
        self.write()

    def learn(self, name: str, known: bool) -> None:
        """Record what the kernel has shown of itself: it holds until the next boot."""
        if self.learned.get(name) is not known:
            self.learned[name] = known
            self.write()

    def see_cma(self, facts: Facts) -> None:
        """Record the kernel's ``,cma`` ranges: its log may lose them, and they stay till it ends."""
        seen = facts.cma_evidence
        marked = Ranges(seen.marked or ()) if seen is not None else Ranges()
        made = [list(pair) for pair in facts.cma_ranges or ()]
        now = {"ranges": made, "active": marked.to_json()}
        if now["ranges"] and now != self.cma:
            self.cma = now
            self.write()

    def write(self) -> None:
        value = {
            "schema": 1,
            "blocks": {str(index): block for index, block in sorted(self.blocks.items())},
            "loaded": self.loaded,
            "learned": self.learned,
            **({"cma": self.cma} if self.cma else {}),
        }
        # the lock allows one writer: always the same name, so that killed ones leave no heap of files
        temporary = self.path.with_name(f".{self.path.name}.new")
        try:
            write_atomically(self.path, json.dumps(value, indent=1).encode(), temporary=temporary)
        except OSError as error:
            raise CrashlendError(
                f"cannot write {self.path}",
                error.strerror or str(error),
                hint="make room there; crashlend does nothing that it could not record",
            ) from error


def write_atomically(
    path: Path, data: bytes, mode: int = 0o600, *, temporary: Path | None = None
) -> None:
    """Replace ``path`` by ``data``: after a crash at any moment it is the old or the new file.

    ``temporary``, in the same directory, is what is written first; by default no other process's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}")
    write_parts_atomically(path, [data], mode, temporary=temporary)


def write_parts_atomically(
    path: Path, parts: Iterable[bytes], mode: int = 0o600, *, temporary: Path
) -> None:
    """As :func:`write_atomically`, for what is long: one part after the other, joined nowhere."""
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            for part in parts:
                _write_all(fd, part)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class BusyError(CrashlendError):
    """Another process holds the lock."""


@contextmanager
def locked(directory: Path = Path(STATE_PATH).parent, name: str = "lock") -> Iterator[None]:
    """Hold crashlend's one lock; the kernel drops it when the process dies, however it dies.

    BusyError when another process holds it. ``name`` is for those who have a lock of their own.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CrashlendError(
            f"cannot lock {directory}", error.strerror or str(error), hint="run as root"
        ) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                "another crashlend is at work",
                f"it holds {directory}/{name}",
                hint="try again when it is done",
            ) from None
        yield
    finally:
        os.close(fd)
