# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each ``crashkernel=`` word of a line does on one kernel, in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional

from crashlend.crashkernel.grammar import CMA, HIGH, LOW, WARN, read_word, tokens
from crashlend.sizes import mib

if TYPE_CHECKING:
    from crashlend.crashkernel.boot import Prediction
    from crashlend.crashkernel.generations import BootKernel

PLAIN = b""


class Word(NamedTuple):
    """One ``crashkernel=`` word: as the kernel cuts it out, whether it counts, and what it does."""

    text: bytes
    counts: bool
    effect: str

    def to_json(self) -> dict[str, object]:
        text = self.text.decode("utf-8", "backslashreplace")
        return {"word": text, "counts": self.counts, "effect": self.effect}


def explain(cmdline: bytes, kernel: BootKernel, prediction: Prediction) -> tuple[Word, ...]:
    """The words of ``cmdline`` in their order, with their part in ``prediction``."""
    line = cmdline.split(b"\0", 1)[0][: kernel.line_bytes - 1]
    found = list(tokens(line))
    kinds = [kind_of(token, kernel.generation.suffixes) for token in found]
    last = {kind: index for index, kind in enumerate(kinds)}
    reader = _Reader(line, kernel, prediction, {kind: found[at] for kind, at in last.items()})
    words = []
    for index, (token, kind) in enumerate(zip(found, kinds)):
        if index != last[kind]:
            later = found[last[kind]].decode("utf-8", "backslashreplace")
            words.append(Word(token, False, _unknown(token, kernel) + f"ignored: {later} counts"))
        else:
            words.append(Word(token, *reader.tell(kind)))
    return tuple(words)


def kind_of(token: bytes, suffixes: tuple[bytes, ...]) -> bytes:
    """The suffix that a kernel with these ``suffixes`` sees at the end of a word; b"" for none."""
    return next((suffix for suffix in suffixes if token.endswith(suffix)), PLAIN)


def _unknown(token: bytes, kernel: BootKernel) -> str:
    """For a word whose suffix this kernel does not know, the beginning of a sentence about it."""
    if token.endswith(CMA) and not kernel.knows_cma:
        return "this kernel does not know ,cma and takes it for a plain word; "
    return ""


class _Reader:
    """Tells of the last word of each kind."""

    def __init__(
        self,
        line: bytes,
        kernel: BootKernel,
        prediction: Prediction,
        last: dict[bytes, bytes],
    ) -> None:
        self.line, self.kernel, self.prediction, self.last = line, kernel, prediction, last
        self.request = prediction.request

    def tell(self, kind: bytes) -> tuple[bool, str]:
        if kind == CMA:
            return self._cma()
        if kind == HIGH:
            return self._high()
        if kind == LOW:
            return self._low()
        return self._plain()

    def _complaint(self, kind: bytes) -> Optional[str]:
        """What the kernel says of the last word of a kind, as "the kernel says: …"; None if good."""
        found = read_word(self.line, 0, kind or None, self.kernel.generation)
        bad = [m.text for m in found.messages if m.level == WARN]
        return f'the kernel says "{bad[0]}"' if bad else None

    def _plain(self) -> tuple[bool, str]:
        ram = self.prediction.ram_bytes
        found = read_word(self.line, ram, None, self.kernel.generation)
        prefix = _unknown(self.last[PLAIN], self.kernel)
        if not found.valid:
            says = f'the kernel says "{found.messages[-1].text}"'
            if self.request.accepted:
                return False, f"{prefix}bad, {says}, and goes on with the ,high word"
            return True, f"{prefix}bad, {says} and reserves nothing at all"
        if not found.size:
            if self.request.accepted:
                return False, f"{prefix}asks for nothing, so the ,high word counts"
            return True, f"{prefix}asks for nothing, so nothing at all is reserved"
        if found.size >= ram:
            return True, f"asks for {mib(found.size)}, all of RAM or more: nothing is reserved"
        at = f" at {found.base:#x}" if found.base else ""
        got = "" if self._main_bytes() else ", for which there is no room"
        return True, f"{mib(found.size)} kept for the crash kernel{at}{got}"

    def _high(self) -> tuple[bool, str]:
        if self.kernel.generation.high_after == "never":
            return False, f"ignored: {self.kernel.arch} does not read ,high"
        if not self.request.high:
            if self.request.accepted:
                return False, "ignored: the plain word counts"
            if PLAIN in self.last and self.kernel.generation.high_after == "absent":
                return False, "ignored: beside a plain word, even a bad one, ,high does not count"
            says = self._complaint(HIGH) or "it asks for nothing"
            if LOW in self.last and not self._complaint(HIGH) and self._complaint(LOW):
                says = "the ,low word is bad"
            return True, f"{says}: nothing at all is reserved"
        got = "" if self._main_bytes() else ", for which there is no room"
        size = mib(self.request.size_bytes)
        return True, f"{size} kept for the crash kernel, above 4 GiB where there is room{got}"

    def _low(self) -> tuple[bool, str]:
        low = [r for r in self.prediction.ranges if r.kind == "low"]
        if not self.request.high and not (self.kernel.generation.low_late and low):
            return False, "ignored: ,low counts only beside a ,high word that counts"
        if self._complaint(LOW):
            if self.kernel.generation.low_late:
                return False, f"bad, {self._complaint(LOW)}; the default size is taken"
            return True, f"bad, {self._complaint(LOW)} and nothing at all is reserved"
        if not self.request.low_bytes and self.request.high:
            return True, "no memory below 4 GiB for the crash kernel"
        if not low:
            return False, "not needed: the main part lies below 4 GiB"
        return True, f"{mib(low[0].size)} of it below 4 GiB, for devices that reach no further"

    def _cma(self) -> tuple[bool, str]:
        if not self.kernel.generation.reads_cma:
            return False, f"passed over: on {self.kernel.arch} this kernel does not carry ,cma out"
        if not self.request.accepted:
            return False, "not looked at: without a main word that works nothing is reserved"
        asked = self.request.cma_bytes
        complaint = self._complaint(CMA)
        note = f"; {complaint}, and takes what it has read so far" if complaint else ""
        if not asked:
            return False, f"asks for nothing{note}"
        if not self.kernel.config_cma:
            return False, f"asks for {mib(asked)}, but this kernel was built without CONFIG_CMA"
        got = self.prediction.shared_bytes
        if got < asked:
            return True, f"asks for {mib(asked)} to share until the crash, gets {mib(got)}{note}"
        return True, f"{mib(got)} that production uses until the crash{note}"

    def _main_bytes(self) -> int:
        return sum(r.size for r in self.prediction.ranges if r.kind == "main")
