# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can go wrong, as the user reads it: what, why, and then what to do.

    CrashlendError            exit 1
    ├── UsageError            exit 2: the words of the call are off
    ├── RefusedError          exit 11: possible, but policy forbids it
    ├── TooSmallError         exit 1: the reservation is; only a reboot makes it larger
    └── FormatError           exit 1: bytes that are not what they should be, with offset

Only ``cli.main`` prints these and exits.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_LOADED = 3
EXIT_UNKNOWN = 4
EXIT_REBOOT_NEEDED = 10
EXIT_REFUSED = 11


class CrashlendError(Exception):
    """An error with a message for people: ``WHAT: WHY``, then a hint.

    ``what`` is the thing that could not be done, ``why`` the cause, ``hint`` what to do next
    (may be empty), ``exit_code`` what the command ends with.
    """

    exit_code = EXIT_FAILED

    def __init__(self, what: str, why: str = "", *, hint: str = "") -> None:
        super().__init__(f"{what}: {why}" if why else what)
        self.what = what
        self.why = why
        self.hint = hint


class UsageError(CrashlendError):
    """The call's words or the settings are off."""

    exit_code = EXIT_USAGE


class RefusedError(CrashlendError):
    """It could be done, but it would be unsafe or the host forbids it."""

    exit_code = EXIT_REFUSED


class TooSmallError(CrashlendError):
    """The reservation is too small for the crash kernel: exit 10 where an older image stays."""


class FormatError(CrashlendError):
    """Bytes that are not what their format demands; ``offset`` is where (None: the whole)."""

    def __init__(self, what: str, why: str, *, offset: int | None = None, hint: str = "") -> None:
        where = "" if offset is None else f" at offset {offset:#x}"
        super().__init__(what, f"{why}{where}", hint=hint)
        self.offset = offset


class Terminated(BaseException):  # like KeyboardInterrupt: an event, not an error
    """SIGTERM or SIGHUP arrived; ``args[0]`` is the signal's number."""
