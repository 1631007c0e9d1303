# SPDX-License-Identifier: LGPL-2.1-or-later
"""The settings: one table that makes the file's keys, the flags, the defaults, the help and docs.

The table is the class :class:`Settings`: each field carries its kind of value and its help. Files
are INI with one section, ``[crashlend]``, and are read in this order, later ones winning:

    /etc/crashlend.conf
    /usr/lib/crashlend.conf.d/*.conf and /etc/crashlend.conf.d/*.conf, together, by file name

A file in /etc hides the one of the same name in /usr/lib; as a link to /dev/null it masks it. That
is how systemd does it: drop-ins win over the main file, wherever they are. Flags win over all. An
empty value means the default again.
"""

from __future__ import annotations

import configparser
import os
import re
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

from crashlend import quiesce, sizes
from crashlend.errors import CrashlendError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

Value = Union[None, bool, int, float, str]

SECTION = "crashlend"
MAIN_FILE = "etc/crashlend.conf"
# Later directories hide files of the same name in earlier ones.
DROP_IN_DIRS = ("usr/lib/crashlend.conf.d", "etc/crashlend.conf.d")


# --- kinds of values: text in (ValueError where it is not one), text out, words for people -------


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


Kind = Union[Size, Whole, Seconds, Bool, Choice, Words, AbsolutePath, Text, DmaQuiesce]


# --- the table -----------------------------------------------------------------------------------


def _setting(default: Value, kind: Kind, help_text: str, *, unset: str = "") -> Any:
    """A row of the table. ``unset`` says what an empty default stands for."""
    return field(default=default, metadata={"kind": kind, "help": help_text, "unset": unset})


@dataclass(frozen=True)
class Settings:
    """The effective settings. Sizes are in bytes, times in seconds, empty text means unset."""

    lend: Optional[int] = _setting(
        None,
        Size(),
        "how much memory to lend to the crash kernel; 0 lends nothing",
        unset="what crashkernel=SIZE,cma on the command line asks for",
    )
    lender: str = _setting(
        "auto",
        Words(("cma", "movable-zone", "movable"), alone=("auto", "none")),
        "where lent memory comes from: the kernel's own ranges (cma), clean memory of a ZONE_MOVABLE "
        "that exists already (movable-zone), or memory blocks that crashlend makes movable (movable); "
        "of several each is asked for what those before it lack",
    )
    lend_min: int = _setting(0, Size(), "the least lent memory that counts as success")
    lend_share: int = _setting(
        50, Whole(0, 100), "how much of RAM may become movable for lending, in percent"
    )
    block_deadline: float = _setting(
        10.0, Seconds(0.1, 600), "how long the offlining of one memory block may take"
    )
    hotplug_quiet: float = _setting(
        5.0,
        Seconds(0, 600),
        "how long no further CPU or memory must have come before the crash kernel is loaded anew; "
        "twelve times that at most. Lent memory that leaves is answered at once",
    )
    kernel: str = _setting(
        "", AbsolutePath(), "the crash kernel's image", unset="/boot/vmlinuz-RELEASE"
    )
    initramfs: str = _setting(
        "", AbsolutePath(), "the initramfs that captures", unset="built by crashlend"
    )
    dump_level: int = _setting(31, Whole(0, 31), "makedumpfile's -d: which pages to leave out")
    target: str = _setting(
        "", Text(), "where dumps go", unset="the file system that holds the setting path"
    )
    path: str = _setting("/var/crash", AbsolutePath(), "the directory for dumps on the target")
    dma_quiesce: str = _setting(
        quiesce.DEFAULT,
        DmaQuiesce(),
        "what is done about late DMA before lent memory is written: switch off the bus mastering of "
        "PCI functions (bus-masters-off), wait where the kernel does not wait by itself (wait), wait "
        "until lent memory has not changed for SECONDS, LIMIT at most or 6 times that (watch)",
    )
    on_mismatch: str = _setting(
        "reset",
        Choice(("reset", "boot")),
        "what to do at the crash when the loaded image is damaged: reset the machine, or boot the "
        "crash kernel all the same",
    )
    allow_missing_user_data: bool = _setting(
        False, Bool(), "allow dump levels that want user data although lent memory has lost it"
    )
    syscall: str = _setting(
        "auto", Choice(("auto", "load", "file")), "kexec_load (load) or kexec_file_load (file)"
    )
    placement: str = _setting(
        "auto",
        Choice(("auto", "reserved", "lent")),
        "where the crash kernel runs: in the reservation whenever it fits there (auto), or in lent "
        "memory, which takes the smallest reservation but is exposed to late DMA",
    )
    shrink_margin: Optional[int] = _setting(
        None,
        Size(),
        "how much room load --shrink leaves for a payload that grows; 0 leaves none",
        unset="a quarter of the payload, 4 MiB at least",
    )
    nr_cpus: int = _setting(
        1,
        Whole(1, 512),
        "how many CPUs the crash kernel starts; the one that firmware booted is spared where there are "
        "several",
    )
    append: str = _setting(
        "", Text(), "extra words for the crash kernel's command line", unset="none"
    )
    final_action: str = _setting(
        "reboot",
        Choice(("reboot", "poweroff", "halt", "shell")),
        "what the crash kernel does after the capture",
    )
    hooks: str = _setting(
        "/etc/crashlend/hooks", AbsolutePath(), "the directory of programs to run at the capture"
    )


class Row(NamedTuple):
    """One row of the table, as code that walks it wants it."""

    name: str
    kind: Kind
    default: Value
    help: str
    unset: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def table() -> dict[str, Row]:
    """All settings by name, in the order of :class:`Settings`."""
    rows = {}
    for one in fields(Settings):
        default = None if one.default is MISSING else one.default
        meta = one.metadata
        rows[one.name] = Row(one.name, meta["kind"], default, meta["help"], meta["unset"])
    return rows


# --- flags ---------------------------------------------------------------------------------------


def add_flags(parser: argparse._ActionsContainer, names: Iterable[str]) -> None:
    """Add the flags of some settings, ``lend_min`` as ``--lend-min``.

    Their values stay text (None: not given) until :func:`load_settings` reads them, which gets
    ``vars()`` of the parsed arguments. A yes-no setting has a ``--no-...`` form beside it.
    """
    rows = table()
    for name in names:
        row = rows[name]
        default = row.unset or row.kind.show(row.default)
        text = f"{row.help} (default: {default})".replace("%", "%%")
        if isinstance(row.kind, Bool):
            parser.add_argument(
                row.flag, dest=name, action="store_const", const="yes", default=None, help=text
            )
            parser.add_argument(
                f"--no-{row.flag[2:]}",
                dest=name,
                action="store_const",
                const="no",
                default=None,
                help=f"the reverse of {row.flag}",
            )
        else:
            parser.add_argument(
                row.flag, dest=name, metavar=row.kind.metavar, default=None, help=text
            )


# --- reading -------------------------------------------------------------------------------------


def load_settings(root: Path, flags: Mapping[str, object]) -> Settings:
    """The effective settings: files under ``root``, then ``flags``.

    Of ``flags`` only the names of settings are looked at; None means not given. Raises UsageError
    with file (or flag), key, value and what is allowed.
    """
    return load_settings_and_sources(root, flags)[0]


def load_settings_and_sources(
    root: Path, flags: Mapping[str, object]
) -> tuple[Settings, dict[str, str]]:
    """As :func:`load_settings`, and where each value came from.

    The second dict has a file's path or a flag for each setting that was given, and no entry for
    one that has its default.
    """
    rows = table()
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def take(row: Row, text: str, source: str, where: str) -> None:
        values.pop(row.name, None)
        sources.pop(row.name, None)
        if not text:
            return  # an empty value: back to the default
        try:
            values[row.name] = row.kind.parse(text)
        except ValueError:
            raise UsageError(
                where, f"{text!r} is not allowed", hint=f"write {row.kind.allowed}"
            ) from None
        sources[row.name] = source

    for file in _config_files(root):
        for key, text in _read_file(file).items():
            if key not in rows:
                raise UsageError(str(file), f"unknown setting {key!r}", hint=_nearest(key, rows))
            take(rows[key], text, str(file), f"{file}: {key}")
    for name, row in rows.items():
        given = flags.get(name)
        if given is not None:
            text = row.kind.show(given) if isinstance(given, bool) else str(given)
            if text and isinstance(row.kind, AbsolutePath):
                text = os.path.abspath(text)  # the shell's user means the directory he is in
            take(row, text, row.flag, row.flag)
    return Settings(**values), sources


def _config_files(root: Path) -> list[Path]:
    """The files to read, in order; masked ones are left out."""
    found: dict[str, Path] = {}
    for directory in DROP_IN_DIRS:
        try:
            names = sorted(os.listdir(root / directory))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise _unreadable(root / directory, error) from error
        found.update({n: root / directory / n for n in names if n.endswith(".conf")})
    drop_ins = [found[name] for name in sorted(found)]
    return [file for file in (root / MAIN_FILE, *drop_ins) if not _is_masked(file)]


def _is_masked(file: Path) -> bool:
    try:
        return os.readlink(file) == "/dev/null"
    except OSError:
        return False


def _read_file(file: Path) -> dict[str, str]:
    """The keys of a file's one section; none where there is no such file."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unreadable(file, error) from error
    except UnicodeDecodeError as error:
        raise UsageError(str(file), "is not UTF-8 text", hint="save it as UTF-8") from error

    parser = configparser.ConfigParser(
        interpolation=None,  # "%" is a plain character in a path
        delimiters=("=",),
        default_section="",  # [DEFAULT] gets no meaning of its own
        empty_lines_in_values=False,
    )
    # mypy: the documented way to keep the case of keys is to assign to a method
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(text, str(file))
    except configparser.Error as error:
        why = " ".join(str(error).split())
        raise UsageError(
            str(file), why, hint=f"the file has one section, [{SECTION}], and lines KEY = VALUE"
        ) from error
    for section in parser.sections():
        if section != SECTION:
            raise UsageError(
                str(file),
                f"unknown section [{section}]",
                hint=f"all settings are in the section [{SECTION}]",
            )
    return dict(parser.items(SECTION)) if parser.has_section(SECTION) else {}


def _unreadable(path: Path, error: OSError) -> CrashlendError:
    return CrashlendError(
        f"cannot read {path}", error.strerror or str(error), hint="check its type and permissions"
    )


def _nearest(key: str, known: Iterable[str]) -> str:
    names = list(known)
    near = get_close_matches(key.replace("-", "_").lower(), names, n=1)
    return f"did you mean {near[0]}?" if near else f"the settings are {', '.join(names)}"


# --- showing -------------------------------------------------------------------------------------


def show_value(name: str, value: Value) -> str:
    """The text that the file would have for a value; empty where it is unset."""
    return table()[name].kind.show(value)


def to_text(settings: Settings) -> dict[str, str]:
    """All settings that have a value, as the file would have them."""
    values = {row.name: (row, getattr(settings, row.name)) for row in table().values()}
    return {
        name: row.kind.show(value) for name, (row, value) in values.items() if value is not None
    }


def from_text(texts: Mapping[str, str]) -> Settings:
    """What :func:`to_text` made; settings that this version does not know have no effect."""
    known = {name: text for name, text in texts.items() if name in table()}
    return load_settings(Path("/nonexistent"), known)


def settings_markdown() -> str:
    """The table for the docs, in Markdown."""
    lines = ["| Setting | Flag | Value | Default | Meaning |", "|---|---|---|---|---|"]
    for row in table().values():
        shown = row.kind.show(row.default)
        default = f"`{shown}`" if shown else f"unset: {row.unset}"
        cells = [f"`{row.name}`", f"`{row.flag}`", row.kind.allowed, default, row.help]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
