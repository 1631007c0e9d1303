# SPDX-License-Identifier: LGPL-2.1-or-later
"""``crashkernel=`` words as the kernel itself reads them, mistakes included.

    plain   := size[@offset]
    ranges  := start-[end]:size[,start-[end]:size ...][@offset]      (chosen when a ":" occurs)
    high    := size,high        low := size,low        cma := size,cma

The kernel looks for the bytes ``crashkernel=`` anywhere in the line, quotes or not, before or after
"--", and ends the word at the first ASCII space. Of each kind the last word counts, whatever the
order between the kinds. Nothing here rejects what the kernel accepts, or the reverse.

What differs between kernels is data in a :class:`Generation`; ``generations.py`` has the table of
them. What the kernel then does with a :class:`Request` is in ``boot.py``.

Kernel source: kernel/crash_reserve.c, before 6.8 kernel/crash_core.c; lib/cmdline.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = b"crashkernel="
_U64_MAX = (1 << 64) - 1
_SZ_128M = 128 << 20

# x86_64: max(swiotlb's default of 64 MiB + 8 MiB, 256 MiB) [arch/x86/include/asm/crash_reserve.h]
DEFAULT_CRASH_KERNEL_LOW_SIZE = 256 << 20

ERR = "err"
WARN = "warn"
INFO = "info"


class Message(NamedTuple):
    """A line of the kernel log: ``level`` is "err", "warn" or "info", ``text`` has no line end."""

    level: str
    text: str

    def to_json(self) -> dict[str, str]:
        return {"level": self.level, "text": self.text}


def memparse(data: bytes) -> tuple[int, bytes]:
    """Read a number with an optional K, M, G, T, P or E (either case); return it and the rest.

    "0x" makes it hexadecimal (and eats every a-f that follows), another leading 0 octal. Overflow
    wraps at 64 bits without a word. A lone letter is a valid 0. The rest equals ``data`` when there
    was no number. Linux up to 7.1. [lib/cmdline.c:memparse, lib/kstrtox.c:simple_strtoull]
    """
    value, at = strtoull(data, saturate=False)
    power = _power(data, at)
    return (value << 10 * power) & _U64_MAX, data[at + (power > 0) :]


def memparse_saturating(data: bytes) -> tuple[int, bytes]:
    """The same as Linux 7.2 and later do it.

    What does not fit into 64 bits becomes ULLONG_MAX, and a letter without a digit before it is not
    consumed. [lib/cmdline.c:memparse, lib/kstrtox.c:_parse_integer_limit]
    """
    value, at = strtoull(data, saturate=True)
    power = _power(data, at) if at else 0
    return min(value << 10 * power, _U64_MAX), data[at + (power > 0) :]


def _power(data: bytes, at: int) -> int:
    """How many times 1024 the letter at ``at`` stands for; 0 where there is none."""
    return b"KMGTPE".find(data[at : at + 1].upper()) + 1 if at < len(data) else 0


def strtoull(data: bytes, *, saturate: bool) -> tuple[int, int]:
    """The number at the start, made to fit into 64 bits, and how many bytes it took.

    Without a letter behind it. [lib/kstrtox.c:simple_strtoull]
    """
    base, at = 10, 0
    if data[:1] == b"0":
        base = 8
        if data[1:2] in (b"x", b"X") and _digit(data, 2) < 16:
            base, at = 16, 2
    value = 0
    # int() would do for the digits but for its limit of 4300, and for underscores and signs.
    while (digit := _digit(data, at)) < base:
        value = value * base + digit
        value = min(value, _U64_MAX) if saturate else value & _U64_MAX
        at += 1
    return value, at


def _digit(data: bytes, at: int) -> int:
    """The value of the hexadecimal digit at ``at``; 16 where there is none."""
    found = b"0123456789abcdef".find(data[at : at + 1].lower()) if at < len(data) else -1
    return 16 if found < 0 else found


@dataclass(frozen=True)
class Generation:
    """What one generation of kernels knows of ``crashkernel=``.

    ``suffixes`` is the kernel's table of them: a word that ends in one of these is not a plain
    word. A suffix that is not in the table has no meaning to that kernel. ``memparse`` reads a
    number and returns it with the rest.

    ``high_after``: when ",high" is looked for: "absent" (no plain word), "failure" (or a bad or
    zero one, as on x86 up to 6.6), "never". ``low_late``: ",low" is read only once the main part
    lies above 4 GiB, and what is wrong with it then does not matter (x86 up to 6.6).
    ``rounds_total``: ranges are compared with RAM rounded up to 128 MiB. ``below_ram``: a size of
    all RAM or more is refused here, without a message. ``reads_cma`` False: ",cma" words are known
    and passed over. ``no_size`` and ``no_offset`` are two messages whose spelling changed.
    """

    name: str
    suffixes: tuple[bytes, ...]
    memparse: Callable[[bytes], tuple[int, bytes]]
    high_after: str = "absent"
    low_late: bool = False
    rounds_total: bool = True
    below_ram: bool = True
    reads_cma: bool = True
    no_size: str = "crashkernel: Memory value expected"
    no_offset: str = "crashkernel: Memory value expected after '@'"


HIGH, LOW, CMA = b",high", b",low", b",cma"
LINUX_6_17 = Generation("6.17", (HIGH, LOW, CMA), memparse)


@dataclass(frozen=True)
class Request:
    """What a kernel makes of its command line, before it looks for free memory.

    ``accepted`` False means that the kernel reserves nothing at all, no CMA either; every size is
    then 0, and only ``messages`` tells anything. ``base`` is the address asked for with "@" (None:
    the kernel chooses). ``low_bytes`` is None unless ``high``.
    """

    accepted: bool
    size_bytes: int = 0
    base: Optional[int] = None
    high: bool = False
    low_bytes: Optional[int] = None
    cma_bytes: int = 0
    messages: tuple[Message, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The ``request`` object of ``crashlend predict --json``."""
        return {
            "accepted": self.accepted,
            "size_bytes": self.size_bytes,
            "base": self.base,
            "high": self.high,
            "low_bytes": self.low_bytes,
            "cma_bytes": self.cma_bytes,
            "messages": [message.to_json() for message in self.messages],
        }


def parse_crashkernel(
    cmdline: bytes,
    system_ram_bytes: int,
    *,
    default_low_bytes: int = DEFAULT_CRASH_KERNEL_LOW_SIZE,
    generation: Generation = LINUX_6_17,
) -> Request:
    """Read the ``crashkernel=`` words of a whole command line.

    ``cmdline`` is the kernel's boot_command_line; it ends at the first NUL. /proc/cmdline has a
    newline more, which would spoil a word at the end: ``formats.cmdline.from_proc()`` takes it off.
    ``system_ram_bytes`` is memblock_phys_mem_size(): all RAM, reserved parts included.
    ``default_low_bytes`` is the architecture's DEFAULT_CRASH_KERNEL_LOW_SIZE.

    Never raises; what the kernel would say is in the result's ``messages``.
    [kernel/crash_reserve.c:parse_crashkernel]
    """
    line = cmdline.split(b"\0", 1)[0]
    plain = read_word(line, system_ram_bytes, None, generation)
    messages = plain.messages
    high, low_bytes = False, None

    # ",high" counts only where there is no plain word at all: a bad plain word is not "none".
    # On x86 up to 6.6 it is.
    absent = not plain.found
    failed = absent or not plain.valid or not plain.size
    if {"absent": absent, "failure": failed}.get(generation.high_after, False):
        plain = read_word(line, system_ram_bytes, HIGH, generation)
        messages += plain.messages
        if not (plain.found and plain.valid and plain.size):
            return Request(accepted=False, messages=messages)
        low = low_request(line, generation, default_low_bytes)
        if not generation.low_late:
            messages += low.messages
            if not low.valid:
                return Request(accepted=False, messages=messages)
        high, low_bytes = True, low.size

    # The kernel ignores whether the ",cma" word was valid; what it had read until then stays.
    cma = read_word(line, system_ram_bytes, CMA, generation) if generation.reads_cma else Lookup()
    messages += cma.messages
    if not (plain.found and plain.valid and plain.size):
        return Request(accepted=False, messages=messages)
    if generation.below_ram and plain.size >= system_ram_bytes:
        return Request(accepted=False, messages=messages)
    return Request(
        accepted=True,
        size_bytes=plain.size,
        base=plain.base or None,  # the kernel takes a base of 0 for "anywhere"
        high=high,
        low_bytes=low_bytes,
        cma_bytes=cma.size,
        messages=messages,
    )


def low_request(line: bytes, generation: Generation, default_low_bytes: int) -> Lookup:
    """What the last ",low" word asks for; ``default_low_bytes`` where there is none.

    Where the generation reads it late, a bad one counts as none. ``line`` has no NUL.
    """
    low = read_word(line, 0, LOW, generation)
    if not low.found or (generation.low_late and not low.valid):
        return low._replace(size=default_low_bytes)
    return low


def lent_request(cmdline: bytes) -> int:
    """How many bytes the last ``crashkernel=SIZE,cma`` word asks for; 0 when there is none.

    The word is read by the rules of 6.17 whatever kernel is running, for this is the request that
    crashlend carries out where the kernel does not know the suffix. The other words play no part:
    a 6.17 kernel gives nothing at all for ``,cma`` without a valid main word, this function still
    tells its size. ``cmdline`` is as for :func:`parse_crashkernel`.
    """
    return read_word(cmdline.split(b"\0", 1)[0], 0, CMA, LINUX_6_17).size


class Lookup(NamedTuple):
    """What the search for one kind of word gave (``found`` False: -ENOENT, then still valid)."""

    found: bool = False
    valid: bool = True
    size: int = 0
    base: int = 0
    messages: tuple[Message, ...] = ()

    def warn(self, text: str) -> Lookup:
        """The same after a warning that makes the kernel return -EINVAL."""
        return self._replace(valid=False, messages=(*self.messages, Message(WARN, text)))


def read_word(
    line: bytes, system_ram_bytes: int, suffix: Optional[bytes], generation: Generation
) -> Lookup:
    """Find and read the last word of one kind (``suffix`` None: plain or ranges).

    ``line`` has no NUL. A suffix that the generation does not know is never found.
    [kernel/crash_reserve.c:__parse_crashkernel, get_last_crashkernel]
    """
    if suffix is not None and suffix not in generation.suffixes:
        return Lookup()
    last = None
    for token in tokens(line):
        if suffix is None:
            wanted = not token.endswith(generation.suffixes)
        else:
            wanted = token.endswith(suffix)
        if wanted:
            last = token
    if last is None:
        return Lookup()
    value = last[len(_NAME) :]
    if suffix is not None:
        return _parse_suffix(value, suffix, generation)
    if b":" in value:
        return _parse_mem(value, system_ram_bytes, generation)
    return _parse_simple(value, generation)


def tokens(line: bytes) -> Iterator[bytes]:
    """Every place where the name begins, up to the next space. They may overlap."""
    at = line.find(_NAME)
    while at >= 0:
        yield line[at:].split(b" ", 1)[0]
        at = line.find(_NAME, at + 1)


def _parse_simple(value: bytes, generation: Generation) -> Lookup:
    """``size[@offset]``; what follows the offset is ignored.

    [parse_crashkernel_simple]
    """
    size, rest = generation.memparse(value)
    out = Lookup(found=True, size=size)
    if rest == value:
        return out.warn("crashkernel: memory value expected")
    if rest.startswith(b"@"):
        return out._replace(base=generation.memparse(rest[1:])[0])
    return out.warn(_unrecognized(rest)) if rest else out


def _parse_suffix(value: bytes, suffix: bytes, generation: Generation) -> Lookup:
    """``size,suffix``. The size counts for ",cma" even where this fails.

    [parse_crashkernel_suffix]
    """
    size, rest = generation.memparse(value)
    out = Lookup(found=True, size=size)
    if rest == value:
        return out.warn("crashkernel: memory value expected")
    if not rest.startswith(suffix):
        return out.warn(_unrecognized(rest))
    rest = rest[len(suffix) :]
    return out.warn(_unrecognized(rest)) if rest else out


def _parse_mem(value: bytes, system_ram_bytes: int, generation: Generation) -> Lookup:
    """``start-[end]:size[,...][@offset]``; the first range that holds the RAM size decides.

    [parse_crashkernel_mem]
    """
    out = Lookup(found=True)
    total = system_ram_bytes
    if generation.rounds_total:
        # Firmware keeps some RAM for itself, so the kernel rounds up before it compares.
        total = ((total + _SZ_128M - 1) & _U64_MAX) // _SZ_128M * _SZ_128M
    cur = value
    while True:
        start, rest = generation.memparse(cur)
        if rest == cur:
            return out.warn("crashkernel: Memory value expected")
        if not rest.startswith(b"-"):
            return out.warn("crashkernel: '-' expected")
        cur, end = rest[1:], _U64_MAX
        if not cur.startswith(b":"):
            end, rest = generation.memparse(cur)
            if rest == cur:
                return out.warn("crashkernel: Memory value expected")
            if end <= start:
                return out.warn("crashkernel: end <= start")
            cur = rest
        if not cur.startswith(b":"):
            return out.warn("crashkernel: ':' expected")
        cur = cur[1:]
        size, rest = generation.memparse(cur)
        if rest == cur:
            return out.warn(generation.no_size)
        if size >= total:
            return out.warn("crashkernel: invalid size")
        cur = rest
        if start <= total < end:
            out = out._replace(size=size)
            break
        if not cur.startswith(b","):
            break
        cur = cur[1:]

    if not out.size:
        zero = Message(INFO, "crashkernel size resulted in zero bytes")
        return out._replace(messages=(*out.messages, zero))
    _, at, offset = cur.partition(b"@")
    if at:
        base, rest = generation.memparse(offset)
        if rest == offset:
            return out.warn(generation.no_offset)
        out = out._replace(base=base)
    return out


def _unrecognized(rest: bytes) -> str:
    """The complaint about one byte, which /dev/kmsg shows escaped unless it is printable ASCII."""
    byte = rest[0]
    char = chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}"
    return f"crashkernel: unrecognized char: {char}"
