# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernel command lines: split as the kernel splits them, and the crash kernel's from production's.

Words that crashlend does not know are kept byte for byte, in their order. Which are dropped and
which are added, and why, are the two tables below. Among the words kept on purpose: ``console=``
and ``earlyprintk=`` (else nobody sees why a capture failed) and every IOMMU word (in-flight DMA
still uses the translations; switching them off turns its addresses into physical ones).

Text is UTF-8 with ``surrogateescape``, so that any bytes survive; lengths are in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, AnyStr, NamedTuple, Optional, Union

from crashlend.errors import CrashlendError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# The bzImage header's cmdline_size of every current x86 kernel: without the NUL at the end.
USUAL_LIMIT = 2047

# isspace() of the kernel, which reads Latin-1: 0xa0 ends a word too [lib/ctype.c]
_SPACES = b"\t\n\v\f\r \xa0"


class Reasoned(NamedTuple):
    """A word of a command line and why it was dropped or added, for people."""

    word: str
    reason: str


class Drop(NamedTuple):
    """One row of the table of dropped words.

    ``name`` is the parameter with "_" for "-"; one that ends in "." stands for all that begin so.
    ``memory`` marks words that change which memory the crash kernel has or tears away. The plan
    decides that alone, so such a word is not taken from the settings either.
    """

    name: str
    reason: str
    memory: bool = False


_MAP = "the crash kernel's memory map comes from crashlend"
_ZONE = "the crash kernel needs all of its memory for any use"
_HUGE = "huge pages would take the crash kernel's memory"
_CMA = "a CMA area would take the crash kernel's memory"
_CPUS = "names CPUs that the crash kernel does not start"
_ROOT = "the crash kernel runs from its initramfs and mounts the target by itself"
_HUNGRY = "takes memory that the capture needs"
_STRICT = "a warning must not end the capture"

DROPPED: tuple[Drop, ...] = (
    Drop("crashkernel", "the crash kernel prepares for no further crash", memory=True),
    Drop("mem", _MAP, memory=True),
    Drop("memmap", _MAP, memory=True),
    Drop("highmem", _MAP, memory=True),
    Drop("add_efi_memmap", _MAP, memory=True),
    Drop("efi_fake_mem", _MAP, memory=True),
    Drop("memblock", "only prints, and slows the crash kernel's start"),
    Drop("memtest", "would test all memory again, and slowly"),
    Drop("reserve_mem", "reserves memory for production's own use", memory=True),
    Drop("movable_node", _ZONE, memory=True),
    Drop("kernelcore", _ZONE, memory=True),
    Drop("movablecore", _ZONE, memory=True),
    Drop("memhp_default_state", "memory that is found later is production's", memory=True),
    Drop("memory_hotplug.", "memory that is found later is production's", memory=True),
    Drop("hugepages", _HUGE),
    Drop("hugepagesz", _HUGE),
    Drop("default_hugepagesz", _HUGE),
    Drop("hugetlb_cma", _HUGE),
    Drop("hugetlb_cma_only", _HUGE),
    Drop("sysctl.vm.", "tuned for production's memory, huge pages among it"),
    Drop("sysctl.vm/", "tuned for production's memory, huge pages among it"),
    Drop("swiotlb", "bounce buffers are sized for production's memory"),
    Drop("cma", _CMA),
    Drop("cma_pernuma", _CMA),
    Drop("numa_cma", _CMA),
    Drop("kho", "kexec handover is for a planned kexec", memory=True),
    Drop("kho_scratch", "kexec handover is for a planned kexec", memory=True),
    Drop("liveupdate", "kexec handover is for a planned kexec"),
    Drop("elfcorehdr", "described another crash", memory=True),
    Drop("kaslr", "the kernel must stay where it is entered", memory=True),
    Drop("nr_cpus", "crashlend sets the number of CPUs"),
    Drop("maxcpus", "crashlend sets the number of CPUs"),
    Drop("possible_cpus", "crashlend sets the number of CPUs"),
    Drop("disable_cpu_apicid", "named the boot CPU of another kexec"),
    Drop("isolcpus", _CPUS),
    Drop("nohz_full", _CPUS),
    Drop("rcu_nocbs", _CPUS),
    Drop("irqaffinity", _CPUS),
    Drop("kthread_cpus", _CPUS),
    Drop("BOOT_IMAGE", "names production's image to production's boot loader"),
    Drop("initrd", "names production's image to production's boot loader"),
    Drop("initrdmem", "names production's image to production's boot loader"),
    Drop("noinitrd", _ROOT),
    Drop("root", _ROOT),
    Drop("rootflags", _ROOT),
    Drop("rootfstype", _ROOT),
    Drop("rootdelay", _ROOT),
    Drop("rootwait", _ROOT),
    Drop("ro", _ROOT),
    Drop("rw", _ROOT),
    Drop("resume", "must not look for a hibernated system"),
    Drop("resume_offset", "must not look for a hibernated system"),
    Drop("init", "the initramfs has the init that captures"),
    Drop("rdinit", "the initramfs has the init that captures"),
    Drop("panic", "crashlend sets what follows a failed capture"),
    Drop("panic_on_warn", _STRICT),
    Drop("softlockup_panic", _STRICT),
    Drop("hung_task_panic", _STRICT),
    Drop("log_buf_len", _HUNGRY),
    Drop("trace_buf_size", _HUNGRY),
    Drop("trace_event", _HUNGRY),
    Drop("ftrace", _HUNGRY),
    Drop("page_owner", _HUNGRY),
    Drop("slub_debug", _HUNGRY),
    Drop("slab_debug", _HUNGRY),
    Drop("debug_pagealloc", _HUNGRY),
    Drop("retain_initrd", _HUNGRY),
)

ADDED: tuple[Reasoned, ...] = (
    Reasoned("nokaslr", "keeps the kernel where it is entered"),
    Reasoned("acpi_no_memhotplug", "keeps production's DIMMs out of the crash kernel's memory"),
    Reasoned("reset_devices", "drivers must expect devices that nobody shut down"),
    Reasoned("nr_cpus=1", "each further CPU takes memory, and the others may be stuck"),
    Reasoned("irqpoll", "interrupts may arrive where the crashed kernel had put them"),
    Reasoned("panic=10", "a crash kernel that fails must reset, not hang"),
)


@dataclass(frozen=True)
class CrashCmdline:
    """The crash kernel's command line, and what became of production's words."""

    line: str
    dropped: tuple[Reasoned, ...]
    added: tuple[Reasoned, ...]

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
    its memory are dropped then, and nothing is added that it says already.
    ``limit`` is the image's cmdline_size in bytes.

    The order is: kept, always added, ``add``, ``append``; without words for init.

    Raises UsageError for words in ``append`` that would change the crash kernel's memory, and
    CrashlendError where the line is longer than ``limit``.
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
        if _unquoted_name(word) == "--":
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
    added = [a for a in ADDED if parameter_name(a.word) not in present] + own + extra
    # An open quote swallows all that follows, so that word (it can only be the last) stays last.
    closed = [word for word in kept if not _is_open(word)]
    opened = [word for word in kept if _is_open(word)]
    line = " ".join([*closed, *(a.word for a in added), *opened, *init])
    _check_length(line, limit, kept)
    return CrashCmdline(line, tuple(dropped), tuple(added))


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
    for row in DROPPED:
        if name == row.name or (row.name[-1] in "./" and name.startswith(row.name)):
            return row
    return None


def _check_append(word: str) -> None:
    """Refuse a word of the settings that would take the memory out of the plan's hands."""
    if _is_open(word):
        raise UsageError("append", f"{word!r} has an open quote", hint="close the quote")
    row = _row(word)
    if row is not None and row.memory:
        raise UsageError(
            "append",
            f"{word!r} would change the crash kernel's memory ({row.reason})",
            hint="remove the word; crashlend gives the crash kernel the memory of the plan",
        )
    if _unquoted_name(word) == "--":
        raise UsageError("append", "'--' ends the kernel's words", hint="remove it")


def _unquoted_name(word: str) -> str:
    """What stands before "=", without quotes around it [lib/cmdline.c:next_arg]."""
    at = word.find("=", 2 if word.startswith('"') else 1)
    if at >= 0:
        return word[:at].removeprefix('"')
    return word[1:].removesuffix('"') if word.startswith('"') else word


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
    words: list[bytes] = []
    start: Optional[int] = None
    quoted = False
    for at, byte in enumerate(line):
        if byte in _SPACES and not quoted:
            if start is not None:
                words.append(line[start:at])
            start = None
            continue
        if start is None:
            start = at
        if byte == 0x22:
            quoted = not quoted
    if start is not None:
        words.append(line[start:])
    return words


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
