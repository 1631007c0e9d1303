# SPDX-License-Identifier: LGPL-2.1-or-later
"""Traps in ``crashkernel=`` words, and the line that works on every kernel. Pure.

What another kernel would do is not guessed from the words: it is predicted, on the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Optional

from crashlend.crashkernel.boot import BootMemory, Prediction, predict
from crashlend.crashkernel.generations import BootKernel, Span, every_kernel, in_words
from crashlend.crashkernel.grammar import (
    CMA,
    HIGH,
    LINUX_6_17,
    lent_request,
    memparse,
    read_word,
    tokens,
)
from crashlend.crashkernel.params import early_words
from crashlend.crashkernel.words import kind_of
from crashlend.formats.cmdline import split
from crashlend.ranges import align_down, align_up
from crashlend.sizes import GIB, MIB, format_size, mib

NAME = b"crashkernel="
# Words of the kernel are less alike: crash_kexec_post_notifiers has 0.5.
ALIKE = 0.8
# More than this part of RAM in CMA areas leaves too little for what can't be in them.
MOST_SHARED = 0.5
# What a proposal keeps for the crash kernel's image and initramfs where nothing else is asked for.
KEPT = 256 * MIB
# A kernel boots with less, but not every one: 16G,cma on 2 GiB left 230 MiB, image and initramfs
# included, with which a small 7.3 came up and the stock one panicked in cma_init_reserved_areas().
BOOTS_WITH = 192 * MIB
# struct page has 64 bytes and stands for 4096.
PAGES_PER_STRUCT = 64
# What is told here already needs no telling of other versions.
FALLS_SHORT = "the line does not do what it asks for"


@dataclass(frozen=True)
class Advice:
    """What to know about a line, for people.

    ``warnings`` are traps that this line is in, ``notes`` what follows from it. ``proposal`` is the
    line's ``crashkernel=`` part as it should be, None where no such words would work. ``cheaper`` are
    words that give the crash kernel as much or more and take less from production, None where the
    line has ``,cma`` already or takes little.
    ``works_everywhere``: every kernel of this architecture reserves the main part of this line, and
    those that carry ``,cma`` out share all that it asks for.
    """

    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    proposal: Optional[str]
    cheaper: Optional[str]
    works_everywhere: bool


def advise(
    memory: BootMemory, cmdline: bytes, kernel: BootKernel, prediction: Prediction
) -> Advice:
    """The traps of ``cmdline``, given what ``kernel`` makes of it."""
    line = cmdline.split(b"\0", 1)[0]
    elsewhere = _other_kernels(memory, line, kernel.arch)
    here = _nothing(prediction, line)
    share = _share(prediction, (memory.ram & memory.reserved).size)
    warnings = [
        *_length(line, kernel),
        *here,
        *misspelt(line),
        *_wrong_syntax(line),
        *share,
        *(text for text in elsewhere if not (text.startswith(FALLS_SHORT) and (here or share))),
        *_zone_words(line, prediction),
    ]
    return Advice(
        tuple(warnings),
        tuple(_notes(prediction, kernel, line)),
        propose(memory, line, kernel.arch),
        _cheaper(memory, line, kernel.arch, prediction),
        works_everywhere=NAME in line and not elsewhere,
    )


def _length(line: bytes, kernel: BootKernel) -> list[str]:
    if len(line) < kernel.line_bytes:
        return []
    return [f"the line has {len(line)} bytes; the kernel reads {kernel.line_bytes - 1} of them"]


def _nothing(prediction: Prediction, line: bytes) -> list[str]:
    """Nothing is reserved though words ask for it."""
    if NAME not in line:
        return ["there is no crashkernel= word: nothing is reserved, and kdump can't work"]
    if not prediction.modelled or prediction.production_loses_bytes:
        return []
    silent = "" if prediction.messages else ", and says nothing about it"
    out = [f"the kernel reserves nothing{silent}: kdump can't work"]
    kinds = {kind_of(token, LINUX_6_17.suffixes) for token in tokens(line)}
    if kinds == {CMA}:
        out[0] = (
            f"crashkernel=SIZE,cma alone reserves nothing{silent}: it needs a main word beside it"
        )
    elif prediction.shared_bytes:
        out = [
            "the kernel keeps nothing for the crash kernel's image: kdump can't work, and the "
            "range to share is made for nothing"
        ]
    return out


def misspelt(line: bytes) -> list[str]:
    """Words that are nearly ``crashkernel=``, and say nothing to the kernel."""
    out = []
    for word in split(line):
        if NAME in word:
            continue
        name = word.split(b"=", 1)[0].split(b":", 1)[0][:40].decode("ascii", "replace")
        plain = name.lower().replace("-", "").replace("_", "")
        if SequenceMatcher(None, plain, "crashkernel").ratio() < ALIKE:
            continue
        shown = word[:60].decode("utf-8", "backslashreplace")
        why = (
            "has no ="
            if plain == "crashkernel" and b"=" not in word
            else "is no word of the kernel's"
        )
        out.append(f"{shown!r} {why}: it is passed over in silence; write crashkernel=")
    return out


def _wrong_syntax(line: bytes) -> list[str]:
    out = []
    for token in dict.fromkeys(tokens(line)):
        value = token[len(NAME) :]
        shown = token.decode("utf-8", "backslashreplace")
        if token.endswith(CMA):
            out += _wrong_cma(shown, value[: -len(CMA)])
        elif value.lower().endswith((CMA, HIGH, b",low")) and not value.endswith((HIGH, b",low")):
            out.append(f"{shown}: the kernel knows the suffix in small letters only")
        elif b"," in value and b":" not in value and kind_of(token, LINUX_6_17.suffixes) == b"":
            out.append(f"{shown}: what follows the comma is no suffix; known are high, low, cma")
        if value[:1] == b"0" and value[1:2].isdigit():
            out.append(f"{shown}: a number that begins with 0 is octal")
    return out


def _wrong_cma(shown: str, value: bytes) -> list[str]:
    if b":" in value or b"-" in value:
        size, _ = memparse(value)
        return [
            f"{shown}: ranges do not work with ,cma; a kernel that knows it takes the first number, "
            f"{mib(size)}, for the size"
        ]
    if b"@" in value:
        return [f"{shown}: ,cma has no address; the kernel places it where it likes"]
    return []


def _share(prediction: Prediction, early_bytes: int) -> list[str]:
    """More asked for than there is, or more taken than production can miss."""
    out = []
    asked, got = prediction.request.cma_bytes, prediction.shared_bytes
    count = len(prediction.of_kind("cma"))
    left = prediction.ram_bytes - prediction.production_loses_bytes - got - early_bytes
    if got and got < asked:
        ranges = f"{count} range{'s' if count > 1 else ''}"
        out.append(
            f",cma asks for {mib(asked)}, which there is not in {ranges}: the kernel halves the size "
            f"until it fits, takes {mib(got)} and keeps it"
        )
    if got and left < BOOTS_WITH + prediction.ram_bytes // PAGES_PER_STRUCT:
        out.append(
            f"production may panic while it boots: {mib(max(left, 0))} are left for all that can't be "
            "in a ,cma range"
        )
    elif got > prediction.ram_bytes * MOST_SHARED:
        out.append(
            f"{mib(got)} of {mib(prediction.ram_bytes)} can hold user memory and page cache only; "
            f"{mib(left)} are left for the kernel's own data"
        )
    return out


def _other_kernels(memory: BootMemory, line: bytes, arch: str) -> list[str]:
    """On which kernels of the architecture the line does not do what it asks for, and why."""
    if NAME not in line:
        return []
    asked = lent_request(line)
    before: list[Span] = []
    others: list[Span] = []
    for span in every_kernel(arch):
        got = predict(memory, line, span.kernel)
        main = got.production_loses_bytes if got.modelled else got.request.size_bytes
        if not main:
            (others if span.kernel.knows_cma else before).append(span)
        elif span.kernel.carries_cma and got.modelled and got.shared_bytes < asked:
            others.append(span)
    if before and asked:
        return [_why_before(memory, line, before)]
    if before or others:
        return [f"{FALLS_SHORT} on Linux {in_words([*before, *others])}"]
    return []


def _why_before(memory: BootMemory, line: bytes, spans: list[Span]) -> str:
    """Why kernels that do not know ",cma" reserve nothing."""
    where = f"on Linux {in_words(spans)} this line reserves nothing"
    plain = read_word(line, memory.ram_bytes, None, LINUX_6_17)
    if not plain.found and any(token.endswith(HIGH) for token in tokens(line)):
        return (
            f"{where}: they take the ,cma word for a plain one, and beside a plain word ,high does "
            "not count, in any order"
        )
    return (
        f"{where}: they do not know ,cma and give up at such a word unless a plain one follows it; "
        "put ,cma first"
    )


def _zone_words(line: bytes, prediction: Prediction) -> list[str]:
    if not prediction.shared_bytes:
        return []
    names = {name for name, _ in early_words(line)} & {b"kernelcore", b"movablecore"}
    if not names:
        return []
    return [
        f"{names.pop().decode()}= may end a zone inside the ,cma range: the kernel then gives it up "
        "without taking it off its list (crashlend status tells)"
    ]


def _notes(prediction: Prediction, kernel: BootKernel, line: bytes) -> list[str]:
    out = []
    low = prediction.of_kind("low")
    if low:
        out.append(
            f"the main part lies above 4 GiB, so {mib(low[0].size)} more are kept below it for devices "
            "that reach no further"
        )
    if prediction.request.accepted and not kernel.carries_cma and lent_request(line):
        out.append(
            f"this kernel does not carry ,cma out; crashlend reads the word from /proc/cmdline and "
            f"lends the {mib(lent_request(line))} itself, at load time"
        )
    if prediction.shared_bytes or lent_request(line):
        out.append(
            "a dump leaves out what is shared: with makedumpfile -d 31 nothing is missing, with a "
            "level that keeps user data or page cache some of it is"
        )
    if len(prediction.of_kind("cma")) > 1:
        out.append(
            "for a second range of one name dmesg will show a stack trace of cma_sysfs, and "
            "/sys/kernel/mm/cma will be gone; the ranges work"
        )
    return out


def propose(memory: BootMemory, line: bytes, arch: str) -> Optional[str]:
    """``crashkernel=`` words for the same purpose that work on every kernel: ``,cma`` first.

    None where the memory has no room for them.
    """
    ram = memory.ram_bytes
    main = _main_text(line, ram)
    shared = _shared_bytes(line, ram)
    for text in (main, *(format_size(size) for size in (KEPT, KEPT // 2, KEPT // 4))):
        words = [f"crashkernel={format_size(shared)},cma"] if shared else []
        proposal = " ".join([*words, f"crashkernel={text}"])
        if text and not _other_kernels(memory, proposal.encode(), arch):
            return proposal
    return None


def _main_text(line: bytes, ram: int) -> str:
    """The main word's value, if it is a good one; ",high" is left out, for it ends on old kernels."""
    plain = read_word(line, ram, None, LINUX_6_17)
    if plain.found and plain.valid and 0 < plain.size < ram:
        last = [t for t in tokens(line) if kind_of(t, LINUX_6_17.suffixes) == b""][-1]
        return last[len(NAME) :].decode("ascii", "replace")
    high = read_word(line, ram, HIGH, LINUX_6_17)
    if high.found and high.valid and 0 < high.size < ram:
        return format_size(high.size)
    return format_size(KEPT if ram >= 2 * GIB else KEPT // 2)


def _shared_bytes(line: bytes, ram: int) -> int:
    """How much the ,cma word means to share, at most half of RAM; the usual where that is nothing."""
    asked = lent_request(line)
    last = [t for t in tokens(line) if t.endswith(CMA)]
    if last and b":" in last[-1]:
        # ranges in a ,cma word: what they would have meant
        meant = read_word(last[-1][: -len(CMA)], ram, None, LINUX_6_17)
        asked = meant.size if meant.valid else 0
    if not asked and (NAME not in line or last):
        asked = _usual_share(ram)
    return min(asked, align_down(_nominal(ram) // 2, 128 * MIB))


def _usual_share(ram: int) -> int:
    return min(GIB, align_down(_nominal(ram) // 4, 128 * MIB))


def _nominal(ram: int) -> int:
    """RAM as people count it: the kernel sees a little less of what is built in."""
    return align_up(ram, 128 * MIB)


def _cheaper(memory: BootMemory, line: bytes, arch: str, prediction: Prediction) -> Optional[str]:
    loses = prediction.production_loses_bytes
    if lent_request(line) or loses <= KEPT or any(t.endswith(CMA) for t in tokens(line)):
        return None
    shared = min(max(loses, _usual_share(memory.ram_bytes)), align_down(memory.ram_bytes // 2, MIB))
    words = f"crashkernel={format_size(shared)},cma crashkernel={format_size(KEPT)}"
    return None if _other_kernels(memory, words.encode(), arch) else words
