# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which dumps may go, and their removal.

A dump that goes is first renamed to a name that no reader takes for a dump, then removed: whoever is
killed on the way leaves no half dump behind, and the next prune finishes it. A capture that is still
being written by another host is left alone, and so is every directory that holds what is not ours or
what could not be judged: no answer is no reason to remove anything.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crashlend.dumps.directory import NAME, RECOVERING, read_dump, strange_of
from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from crashlend.dumps.directory import Dump

GOING = ".pruned-"
# A capture that has not written for so long has ended: longer than its dead-man timer allows by default.
QUIET_SECONDS = 3600
CHANGED = "it has changed since it was chosen"
FASTER = "another prune was faster"


@dataclass(frozen=True)
class Choice:
    """What a prune would do, newest first. ``kept`` has the reason of each that stays."""

    go: tuple[Dump, ...]
    kept: tuple[tuple[Dump, str], ...]


def choose(dumps: Sequence[Dump], keep: int, under_way: Iterable[Dump] = ()) -> Choice:
    """Of each host's dumps the ``keep`` that are of most use stay. Pure.

    Partial ones go before complete ones, older before newer. The newest one of a host always stays,
    whatever ``keep`` is and whatever is in it, and so do its newest complete one, those of
    ``under_way``, those that could not be judged and those with strange files.
    """
    busy = {dump.path for dump in under_way}
    go: list[Dump] = []
    kept: list[tuple[Dump, str]] = []
    for host in sorted({dump.host for dump in dumps}):
        own = sorted((d for d in dumps if d.host == host), key=_by_use, reverse=True)
        newest = max(own, key=_by_time)
        for place, dump in enumerate(own):
            if dump.unknown:
                kept.append((dump, f"it can't be judged: {'; '.join(dump.unknown)}"))
            elif dump.path in busy:
                kept.append((dump, "it is still being written"))
            elif dump.strange:
                kept.append((dump, _not_ours(dump.strange)))
            elif place < keep:
                kept.append((dump, f"one of the {keep} to keep"))
            elif place == 0 and dump.complete:
                kept.append((dump, "the newest complete one"))
            elif dump is newest:
                kept.append((dump, "the newest one"))
            else:
                go.append(dump)
    return Choice(
        tuple(sorted(go, key=_by_time, reverse=True)),
        tuple(sorted(kept, key=lambda pair: _by_time(pair[0]), reverse=True)),
    )


def _by_time(dump: Dump) -> tuple[str, str]:
    return dump.when, dump.path.name


def _by_use(dump: Dump) -> tuple[bool, str, str]:
    return dump.complete, *_by_time(dump)


def is_under_way(dump: Dump, now: float) -> bool:
    """Whether a capture may still be writing it: it is partial, and something in it is new.

    ``now`` is UNIX time by the clock of whoever keeps the files' times. What has no time to be read
    may be new.
    """
    return not dump.complete and _is_new(dump.path, now)


def _is_new(path: Path, now: float) -> bool:
    try:
        newest = max(item.stat().st_mtime for item in (path, *path.iterdir()))
    except OSError:
        return True
    return now - newest < QUIET_SECONDS


def leftovers(where: Path, now: float) -> list[Path]:
    """What a prune, or a recovery that is not at work any more, was killed over."""
    with suppress(OSError):
        return sorted(path for path in where.iterdir() if _is_leftover(path, now))
    return []


def _is_leftover(path: Path, now: float) -> bool:
    going = path.name.startswith(GOING)
    prefix = GOING if going else RECOVERING
    return (
        path.name.startswith(prefix)
        and NAME.fullmatch(path.name[len(prefix) :]) is not None
        and path.is_dir()
        and not path.is_symlink()
        and (going or not _is_new(path, now))
    )


def remove(dump: Dump) -> str:
    """Remove a dump, if it still is what it was when it was chosen. Why it stayed, or empty.

    Raises:
        CrashlendError: the system refused.

    """
    going = dump.path.with_name(GOING + dump.path.name)
    if read_dump(dump.path) != dump:
        return CHANGED if os.path.lexists(dump.path) else FASTER
    try:
        os.rename(dump.path, going)
        why = remove_leftover(going)
        if why:
            os.rename(going, dump.path)
    except FileNotFoundError:
        return FASTER
    except OSError as error:
        raise _refused(dump.path, error) from error
    return why


def remove_leftover(path: Path) -> str:
    """Remove a renamed directory, if all in it is ours. Why it stayed, whole, or empty.

    Again where it was interrupted. A directory in it is never removed.

    Raises:
        CrashlendError: the system refused.

    """
    try:
        names = sorted(os.listdir(path))
        if strange_of(names):
            return _not_ours(strange_of(names))
        for name in names:
            with suppress(FileNotFoundError):
                (path / name).unlink()
        path.rmdir()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise _refused(path, error) from error
    return ""


def _not_ours(names: Sequence[str]) -> str:
    return f"it holds what is not ours: {', '.join(names)}"


def _refused(path: Path, error: OSError) -> CrashlendError:
    why = error.strerror or str(error)
    return CrashlendError(
        f"cannot remove {path}", why, hint="what is left goes with the next prune"
    )
