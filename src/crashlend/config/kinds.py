# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kinds of values: text in (ValueError where it is not one), text out, words for people."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Union

from crashlend import quiesce, sizes
from crashlend.errors import UsageError

Value = Union[None, bool, int, float, str]


@dataclass(frozen=True)
class Size:
    """Bytes, written with K, M, G or T."""

    metavar = "SIZE"
    allowed = "a size such as 512M or 1G"

    def parse(self, text: str) -> Value:
        try:
            return sizes.parse_size(text)
        except UsageError as error:
            raise ValueError(text) from error

    def show(self, value: Value) -> str:
        return sizes.format_size(value) if isinstance(value, int) else ""


@dataclass(frozen=True)
class Whole:
    """A whole number between two bounds, both allowed."""

    least: int
    most: int
    metavar = "N"

    @property
    def allowed(self) -> str:
        return f"a whole number from {self.least} to {self.most}"

    def parse(self, text: str) -> Value:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not self.least <= int(text) <= self.most:
            raise ValueError(text)
        return int(text)

    def show(self, value: Value) -> str:
        return "" if value is None else str(value)


@dataclass(frozen=True)
class WholeOr:
    """A whole number between two bounds, both allowed, or one word."""

    word: str
    least: int
    most: int

    @property
    def metavar(self) -> str:
        return f"{self.word}|N"

    @property
    def allowed(self) -> str:
        return f"{self.word}, or {self._whole.allowed}"

    @property
    def _whole(self) -> Whole:
        return Whole(self.least, self.most)

    def parse(self, text: str) -> Value:
        return text if text == self.word else self._whole.parse(text)

    def show(self, value: Value) -> str:
        return str(value)


@dataclass(frozen=True)
class Seconds:
    """A number of seconds between two bounds, fractions allowed."""

    least: float
    most: float
    metavar = "SECONDS"

    @property
    def allowed(self) -> str:
        return f"a number of seconds from {self.least:g} to {self.most:g}"

    def parse(self, text: str) -> Value:
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text):
            raise ValueError(text)
        if not self.least <= float(text) <= self.most:
            raise ValueError(text)
        return float(text)

    def show(self, value: Value) -> str:
        return f"{value:.6f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Bool:
    """Yes or no, in the spellings of systemd."""

    metavar = "yes|no"
    allowed = "yes or no"

    def parse(self, text: str) -> Value:
        if text.lower() in ("yes", "true", "on", "1"):
            return True
        if text.lower() in ("no", "false", "off", "0"):
            return False
        raise ValueError(text)

    def show(self, value: Value) -> str:
        return "yes" if value else "no"


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def metavar(self) -> str:
        return "|".join(self.words)

    @property
    def allowed(self) -> str:
        return f"one of {', '.join(self.words)}"

    def parse(self, text: str) -> Value:
        if text not in self.words:
            raise ValueError(text)
        return text

    def show(self, value: Value) -> str:
        return str(value)


@dataclass(frozen=True)
class Words:
    """Some of a few words by comma, in order of preference; those of ``alone`` stand alone."""

    words: tuple[str, ...]
    alone: tuple[str, ...]
    metavar = "NAME[,NAME...]"

    @property
    def allowed(self) -> str:
        return f"one of {', '.join(self.alone)}, or some of {', '.join(self.words)} (by comma)"

    def parse(self, text: str) -> Value:
        given = [word.strip() for word in text.split(",")]
        if given[0] in self.alone and len(given) == 1:
            return given[0]
        if len(set(given)) < len(given) or not set(given) <= set(self.words):
            raise ValueError(text)
        return ",".join(given)

    def show(self, value: Value) -> str:
        return str(value)


@dataclass(frozen=True)
class AbsolutePath:
    """A path from "/" on. It is not looked up here."""

    metavar = "PATH"
    allowed = "an absolute path"

    def parse(self, text: str) -> Value:
        if not text.startswith("/") or not text.isprintable():
            raise ValueError(text)
        return text

    def show(self, value: Value) -> str:
        return str(value)


@dataclass(frozen=True)
class Text:
    """Free text on one line; continued lines of the file are joined with a space."""

    metavar = "TEXT"
    allowed = "printable text"

    def parse(self, text: str) -> Value:
        joined = " ".join(line.strip() for line in text.splitlines())
        if not joined.isprintable():
            raise ValueError(text)
        return joined

    def show(self, value: Value) -> str:
        return str(value)


@dataclass(frozen=True)
class DmaQuiesce:
    """What is done about late DMA, in the words of quiesce.py; the text is put into its usual form."""

    metavar = "ITEM[,ITEM...]"
    allowed = (
        "some of wait=SECONDS, bus-masters-off or bus-masters-off=bridges, watch=SECONDS[:LIMIT] "
        "(by comma, each once)"
    )

    def parse(self, text: str) -> Value:
        return str(quiesce.parse_quiesce(text))

    def show(self, value: Value) -> str:
        return str(value)


Kind = Union[Size, Whole, WholeOr, Seconds, Bool, Choice, Words, AbsolutePath, Text, DmaQuiesce]
