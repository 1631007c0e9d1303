# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernel command lines: split as the kernel splits them, and the crash kernel's from production's.

Words that crashlend does not know are kept byte for byte, in their order. Which are dropped and
which are added, and why, are the two tables of cmdline_words.py.

Text is UTF-8 with ``surrogateescape``, so that any bytes survive; lengths are in bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, AnyStr, Optional, Union

from crashlend.errors import CrashlendError, UsageError
from crashlend.formats.cmdline_words import (
    ADDED,
    DROPPED,
    NEEDED,
    OTHERS_OWN,
    REPEATED,
    Drop,
    Reasoned,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# The bzImage header's cmdline_size of every current x86 kernel: without the NUL at the end.
USUAL_LIMIT = 2047

# isspace() of the kernel, which reads Latin-1: 0xa0 ends a word too [lib/ctype.c]
_SPACES = b"\t\n\v\f\r \xa0"
# what may follow "crashkernel=": no space, no quote
_VALUE = re.compile(r"[0-9A-Za-z,:@.-]+")


@dataclass(frozen=True)
class CrashCmdline:
    """The crash kernel's command line, and what became of production's words.

    ``kept`` and ``dropped`` together are production's words, each in production's order.
    ``limit_bytes`` is how long the line may be for its image.
    """

    line: str
    kept: tuple[str, ...]
    dropped: tuple[Reasoned, ...]
    added: tuple[Reasoned, ...]
    limit_bytes: int

    def encode(self) -> bytes:
        """The line as the kernel gets it, without a NUL."""
        return _encode(self.line)


def from_proc(data: bytes) -> bytes:
    """The command line in the content of /proc/cmdline, which ends it with a newline.

    [fs/proc/cmdline.c]
    """
    return data[:-1] if data.endswith(b"\n") else data


def split(line: AnyStr) -> list[AnyStr]:
    """The words of a command line, quotes and all; it ends at the first NUL.

    A double quote, wherever it stands, makes spaces part of the word until the next one; there is
    no escape. [lib/cmdline.c:next_arg]
    """
    if isinstance(line, str):
        return [_decode(word) for word in _split_bytes(_encode(line))]
    return _split_bytes(line)


def parameter_name(word: str) -> str:
    """The name that the kernel looks up for a word: unquoted, before "=", "_" for "-"."""
    return _unquoted_name(word).replace("-", "_")


def crash_cmdline(
    production: Union[bytes, str],
    add: Iterable[Union[str, tuple[str, str]]] = (),
    *,
    append: str = "",
    keep_all: bool = False,
    limit: int = USUAL_LIMIT,
) -> CrashCmdline:
    """Make the crash kernel's command line from production's.

    ``production`` is the line without /proc's newline. ``add`` holds the caller's words
    (``elfcorehdr=0x...``), each alone or with its reason; ``append`` the settings' extra words.
    Both replace what production says under the same name, and what :data:`ADDED` would.
    ``keep_all`` is for a line that somebody wrote for a crash kernel: only words that would change
    its memory are dropped then, and only what a crash kernel needs and the line lacks is added.
    ``limit`` is the image's cmdline_size in bytes.

    The order is: kept, always added, ``add``, ``append``; without words for init.

    Raises UsageError for words in ``append`` that would change the crash kernel's memory or the number
    of its CPUs, and CrashlendError where the line is longer than ``limit``.
    """
    own = [Reasoned(w, "crashlend's own") if isinstance(w, str) else Reasoned(*w) for w in add]
    extra = [Reasoned(word, "the setting append") for word in split(append)]
    for word, _ in extra:
        _check_append(word)
    set_here = {parameter_name(word) for word, _ in own}
    # append may repeat a name that production has (console=): only ADDED gives way to it.
    set_there = set_here | {parameter_name(word) for word, _ in extra}

    text = production if isinstance(production, str) else _decode(production)
    kept: list[str] = []
    init: list[str] = []
    dropped: list[Reasoned] = []
    always = {parameter_name(word) for word, _ in ADDED}
    words = split(text)
    for index, word in enumerate(words):
        if _ends_words(word):
            if keep_all:
                init = words[index:]
            else:
                dropped += [Reasoned(w, "is for production's init") for w in words[index:]]
            break
        reason = _reason_to_drop(word, set_here if keep_all else set_here | always, keep_all)
        if reason is None:
            kept.append(word)
        else:
            dropped.append(Reasoned(word, reason))

    present = set_there | {parameter_name(word) for word in kept}
    usual = NEEDED if keep_all else ADDED
    added = [a for a in usual if parameter_name(a.word) not in present] + own + extra
    # An open quote swallows all that follows, so that word (it can only be the last) stays last.
    closed = [word for word in kept if not _is_open(word)]
    opened = [word for word in kept if _is_open(word)]
    line = " ".join([*closed, *(a.word for a in added), *opened, *init])
    _check_length(line, limit, kept)
    return CrashCmdline(line, (*kept, *init), tuple(dropped), tuple(added), limit)


def make_line(
    production: bytes,
    given: str,
    add: Iterable[Union[str, tuple[str, str]]],
    append: str,
    limit: int,
) -> CrashCmdline:
    """The crash kernel's line: made from the one that was ``given`` for it, else production's."""
    return crash_cmdline(given or production, add, append=append, keep_all=bool(given), limit=limit)


def crash_base(production: bytes, append: str = "") -> str:
    """Of production's line what a crash kernel with another program's initramfs may keep.

    The words that :data:`DROPPED` has are gone, but not those about the root file system and init:
    such an initramfs may need them. What ``append`` sets is gone, too, but for the words that may
    stand there several times.
    """
    there = {parameter_name(word) for word in split(append)}
    kept = []
    for word in split(_decode(production)):
        if _ends_words(word):
            break
        row = _row(word)
        if _is_open(word) or (row is not None and row.reason not in OTHERS_OWN):
            continue
        if parameter_name(word) not in there or parameter_name(word) in REPEATED:
            kept.append(word)
    return " ".join(kept)


def with_crashkernel(line: bytes, main: str, cma: str) -> bytes:
    """Production's line with these ``crashkernel=`` words in place of those that it has.

    ``main`` is what protects memory ("100M"; "256M,high 64M,low" for two words), ``cma`` the size
    to share ("1G"); either may be empty. The shared part comes first: a kernel before 6.17 takes
    its word for a plain one, and the last plain one wins (get_last_crashkernel() in
    kernel/crash_core.c, now kernel/crash_reserve.c). Every other word, and the spaces between them,
    stay byte for byte.

    A word is replaced wherever it has "crashkernel=" in it, also inside quotes and behind "--",
    because the kernel looks for it there. The new words stand where the first of those was, else at
    the line's end, but before "--" and before a quote that is never closed.

    Raises UsageError for a value that could not be one.
    """
    values = [*([f"{cma},cma"] if cma else []), *filter(None, main.split(" "))]
    for value in values:
        if not _VALUE.fullmatch(value):
            raise UsageError("crashkernel", f"{value!r} is no value of it", hint="write 100M")
    new = b" ".join(b"crashkernel=" + value.encode("ascii") for value in values)
    line = line.split(b"\0", 1)[0]
    out = bytearray()
    copied = 0
    place: Optional[int] = None  # in out
    for start, end in _spans(line):
        word = line[start:end]
        if b"crashkernel=" not in word:
            text = _decode(word)
            if place is None and (_ends_words(text) or _is_open(text)):
                out += line[copied:start]
                place, copied = len(out), start
            continue
        out += line[copied:start]
        if place is None:
            place = len(out)
        else:
            del out[-1:]  # the space before it
        copied = end
    out += line[copied:]
    return _insert(bytes(out), len(out) if place is None else place, new)


def _reason_to_drop(word: str, set_here: set[str], keep_all: bool) -> Optional[str]:
    """Why the word must go, or None."""
    row = _row(word)
    if row is not None and (row.memory or not keep_all):
        return row.reason
    return "crashlend sets it" if parameter_name(word) in set_here else None


def _row(word: str) -> Optional[Drop]:
    """The row of :data:`DROPPED` that the word falls under."""
    # The kernel finds this one in the middle of words and inside quotes too.
    if "crashkernel=" in word:
        return DROPPED[0]
    name = parameter_name(word)
    if name.startswith("sysctl"):
        name = name.replace("/", ".")
    for row in DROPPED:
        if name == row.name or (row.name[-1] in "._" and name.startswith(row.name)):
            return row
    return None


def _check_append(word: str) -> None:
    """Refuse a word of the setting append that would take something out of the plan's hands."""
    if _is_open(word):
        raise UsageError("append", f"{word!r} has an open quote", hint="close the quote")
    row = _row(word)
    if row is not None and row.memory:
        raise UsageError(
            "append",
            f"{word!r} would change the crash kernel's memory ({row.reason})",
            hint="remove the word; crashlend gives the crash kernel the memory of the plan",
        )
    if row is not None and row.setting:
        raise UsageError(
            "append", f"{word!r} has a setting of its own", hint=f"use the setting {row.setting}"
        )
    if _ends_words(word):
        raise UsageError("append", "'--' ends the kernel's words", hint="remove it")


def _unquoted_name(word: str) -> str:
    """What stands before "=", without quotes around it [lib/cmdline.c:next_arg]."""
    at = word.find("=", 2 if word.startswith('"') else 1)
    if at >= 0:
        return word[:at].removeprefix('"')
    return word[1:].removesuffix('"') if word.startswith('"') else word


def _ends_words(word: str) -> bool:
    """Whether what follows is for init [kernel/params.c:parse_args]."""
    return "=" not in word and _unquoted_name(word) == "--"


def _is_open(word: str) -> bool:
    return word.count('"') % 2 == 1


def _check_length(line: str, limit: int, kept: Sequence[str]) -> None:
    """Raise where the image cannot take the line, and name what could be shorter."""
    length = len(_encode(line))
    if length <= limit:
        return
    longest = sorted(kept, key=len, reverse=True)[:3]
    names = ", ".join(f"{w[:40]}… ({len(_encode(w))} bytes)" if len(w) > 40 else w for w in longest)
    raise CrashlendError(
        "the crash kernel's command line is too long",
        f"{length} bytes, {length - limit} more than the {limit} that its image takes",
        hint=f"shorten production's command line or the setting append; longest words: {names}",
    )


def _split_bytes(line: bytes) -> list[bytes]:
    line = line.split(b"\0", 1)[0]
    return [line[start:end] for start, end in _spans(line)]


def _spans(line: bytes) -> Iterator[tuple[int, int]]:
    """Where each word of a line without a NUL begins and ends."""
    start: Optional[int] = None
    quoted = False
    for at, byte in enumerate(line):
        if byte in _SPACES and not quoted:
            if start is not None:
                yield start, at
            start = None
            continue
        if start is None:
            start = at
        if byte == 0x22:
            quoted = not quoted
    if start is not None:
        yield start, len(line)


def _insert(line: bytes, at: int, words: bytes) -> bytes:
    """``words`` put into the line at an offset, set off by spaces where it lacks them."""
    before, after = line[:at], line[at:]
    if not words:
        return before + (after[1:] if before[-1:].strip(_SPACES) == b"" else after)
    if before and before[-1] not in _SPACES:
        words = b" " + words
    if after and after[0] not in _SPACES:
        words += b" "
    return before + words + after


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
