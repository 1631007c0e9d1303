# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kexec_file_load does not hand over by itself, and how it reaches the crash kernel. Pure.

There the kernel builds the crash kernel's memory map and the core header. It knows its own
``,cma`` ranges (Linux 6.17 and later, with CONFIG_CMA) and no other lent memory. So all other lent
ranges become words of the crash kernel's command line, and so does the place of a core header of
crashlend's own that leaves them out: of two ``elfcorehdr=`` the last one counts (setup_elfcorehdr()
in kernel/crash_dump.c), and the kernel puts its own at the front (setup_cmdline() in
arch/x86/kernel/kexec-bzimage64.c).

The header lies at the end of the initramfs, which the kernel stores in the reservation and whose
digest its purgatory verifies. The crash kernel reads it at fs_initcall (vmcore_init()), before it
unpacks the initramfs and gives its memory to others (rootfs_initcall).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from crashlend.errors import CrashlendError, RefusedError
from crashlend.formats import elfcore, newc
from crashlend.formats.cmdline import make_line, parameter_name, split
from crashlend.formats.cmdline_words import Reasoned
from crashlend.lenders.unasked import unasked_notes
from crashlend.ranges import Ranges
from crashlend.sizes import format_size, mib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.facts import Facts
    from crashlend.formats.elfcore import ProgramHeader
    from crashlend.ranges import Range

PAGE = 4096
# the NUL and what the kernel puts before the line: elfcorehdr= and, since Linux 6.16, dmcryptkeys=
# (MAX_ELFCOREHDR_STR_LEN, MAX_DMCRYPTKEYS_STR_LEN, kexec-bzimage64.c)
KERNELS_OWN_BYTES = 64
# its address is known once the kernel has placed the initramfs; the length must be known before
PLACEHOLDER = "elfcorehdr=0x0000000000000000"
CORE_HEADER_REASON = (
    "crashlend's own core header, which leaves lent memory out; the load puts its address here"
)
MEMORY_REASON = "lent memory: kexec_file_load hands over no other than its own ,cma ranges"
BOUNCE_BYTES = len(" swiotlb=32768")
CORE_HEADER_PATH = "etc/crashlend/elfcorehdr"
# kexec_file_load: the first finds out where the kernel puts the initramfs
LOADS = 2
# what kernel.kexec_load_limit_panic must allow: when the second one fails it is unloaded, and the old
# image, which may lend by words as well, is loaded again
COUNTS = LOADS + 1 + LOADS


class Handed(NamedTuple):
    """What reaches the crash kernel: ``lent`` in all, ``by_word`` of it on the command line."""

    lent: Ranges
    by_word: Ranges
    notes: tuple[str, ...]


def hand_over(
    facts: Facts,
    foreseen: Ranges,
    more: Sequence[tuple[str, str]],
    append: str,
    limit: int,
    given: str = "",
) -> Handed:
    """Which of the ``foreseen`` ranges can be lent by kexec_file_load.

    ``more`` are the other words of crashlend's own; ``limit`` is the image's limit for its command line in bytes: where that is too short, the
    largest ranges are taken. ``given`` is the line of the setting cmdline. RefusedError where the loaded image can't be looked at, or may not
    be loaded twice.
    """
    kernels = Ranges(facts.cma_ranges or ())
    wanted = foreseen - kernels
    if not wanted:
        return Handed(foreseen, wanted, unasked_notes(facts, foreseen))
    _demand_a_look(facts)
    words = [*more, Reasoned(PLACEHOLDER, ""), Reasoned("memmap=", "")]
    line = make_line(facts.cmdline_bytes, given, words, append, limit - KERNELS_OWN_BYTES)
    room = limit - KERNELS_OWN_BYTES - len(line.encode()) - BOUNCE_BYTES
    by_word = largest(wanted, room)
    notes = list(unasked_notes(facts, foreseen))
    if by_word != wanted:
        notes.append(
            f"{mib(wanted.size - by_word.size)} in {len(wanted) - len(by_word)} ranges are not lent: "
            f"the crash kernel's command line, {limit} bytes at most, has no room for more than the "
            f"{len(by_word)} largest"
        )
    if not kernels:
        notes.append(
            "nothing waits for DMA before the crash kernel uses lent memory: the purgatory of "
            "kexec_file_load is the kernel's own, and it waits only where it has ,cma ranges"
        )
    return Handed((foreseen & kernels) | by_word, by_word, tuple(notes))


def _demand_a_look(facts: Facts) -> None:
    if facts.iomem and (facts.page_offset is None or facts.kernel_text is None):
        locked = facts.lockdown == "confidentiality"
        raise RefusedError(
            "kexec_file_load can't lend memory on this host",
            "kernel lockdown (confidentiality) hides /proc/kcore, where crashlend looks for the "
            "image that it has loaded"
            if locked
            else "/proc/kcore, where crashlend looks for the image that it has loaded, can't be read",
            hint="use --lender cma where the kernel made ,cma ranges, or --lend 0"
            + ("; lockdown=integrity, what Secure Boot asks for, is enough for most" * locked),
        )
    left = facts.kexec_load_limit_panic
    if left is not None and 0 < left < COUNTS:
        raise RefusedError(
            "kexec_file_load can't lend memory now",
            f"kernel.kexec_load_limit_panic allows {left} more loads; it takes {LOADS}, and up to "
            f"{COUNTS} where one fails and the old image is brought back",
            hint="use --lend 0; the limit is set anew at the next reboot",
        )


# --- the words -----------------------------------------------------------------------------------


def words_of(by_word: Ranges) -> tuple[Reasoned, ...]:
    """The words that lend ``by_word``; none where it is empty."""
    if not by_word:
        return ()
    return (
        Reasoned("memmap=" + ",".join(map(_item, by_word)), MEMORY_REASON),
        Reasoned(PLACEHOLDER, CORE_HEADER_REASON),
    )


def largest(wanted: Ranges, room_bytes: int) -> Ranges:
    """Of the ranges the largest whose words take no more than ``room_bytes``."""
    taken: list[Range] = []
    for one in sorted(wanted, key=lambda r: (-r.size, r.start)):
        room_bytes -= len(_item(one)) + bool(taken)
        if room_bytes < 0:
            break
        taken.append(one)
    return Ranges(taken)


def _item(one: Range) -> str:
    """SIZE@START as memparse() reads it; the shorter of hexadecimal and a suffix."""
    return "@".join(min(f"{n:#x}", format_size(n), key=len) for n in (one.size, one.start))


def at_address(cmdline: bytes, core_header_phys: int) -> bytes:
    """The command line with the core header's address in the placeholder's place."""
    word = f"elfcorehdr={core_header_phys:#018x}"
    if cmdline.count(PLACEHOLDER.encode()) != 1 or len(word) != len(PLACEHOLDER):
        raise CrashlendError("cannot name the core header's address", f"{core_header_phys:#x}")
    return cmdline.replace(PLACEHOLDER.encode(), word.encode())


def without_lending(cmdline: bytes, mark: str) -> bytes:
    """A command line of the same length that lends nothing and contains ``mark``.

    The words that lend become one that no kernel knows: with a dot it counts as a parameter of
    some module (unknown_bootoption() in init/main.c). Nobody but crashlend has put such words
    there: production's are dropped, the setting append may not have them.
    """
    lending = {parameter_name(PLACEHOLDER), "memmap"}
    kept = []
    freed = 0
    for word in split(cmdline.decode("utf-8", "surrogateescape")):
        if parameter_name(word) in lending:
            freed += len(word) + 1
        else:
            kept.append(word)
    inert = f"crashlend.mark={mark}".ljust(freed - 1, ".")
    # at the front: an open quote, which can only be the last word's, would swallow it
    line = " ".join([inert, *kept]).encode("utf-8", "surrogateescape")
    if len(line) != len(cmdline) or mark not in inert:
        raise CrashlendError(
            "cannot make a command line that lends nothing", cmdline.decode("latin1")
        )
    return line


# --- the core header -----------------------------------------------------------------------------


def with_core_header(initramfs: bytes, headers: Sequence[ProgramHeader]) -> tuple[bytes, int]:
    """The initramfs with the core header in an archive behind it; where in it the header begins.

    That is at a page's start. ``initramfs`` must end where an archive may begin (a multiple of 4).
    """
    data = elfcore.build_core_header(headers)
    archive = newc.build([newc.regular(CORE_HEADER_PATH, data)])
    at = archive.index(data)
    padding = -(len(initramfs) + at) % PAGE
    return initramfs + bytes(padding) + archive, len(initramfs) + padding + at


def core_header_bytes(number: int) -> int:
    """What a header with that many program headers adds to the initramfs at most."""
    return elfcore.EHDR.size + elfcore.PHDR.size * number + 2 * PAGE
