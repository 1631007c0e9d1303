# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reading settings from files and flags, and showing them.

Files are INI with one section, ``[crashlend]``, and are read in this order, later ones winning:

    /etc/crashlend.conf
    /usr/lib/crashlend.conf.d/*.conf and /etc/crashlend.conf.d/*.conf, together, by file name

A file in /etc hides the one of the same name in /usr/lib; as a link to /dev/null it masks it. That
is how systemd does it: drop-ins win over the main file, wherever they are. Flags win over all. An
empty value means the default again.
"""

from __future__ import annotations

import configparser
import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.config.kinds import AbsolutePath, Bool, Value
from crashlend.config.settings import Row, Settings, table
from crashlend.errors import CrashlendError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

SECTION = "crashlend"
MAIN_FILE = "etc/crashlend.conf"
# Later directories hide files of the same name in earlier ones.
DROP_IN_DIRS = ("usr/lib/crashlend.conf.d", "etc/crashlend.conf.d")


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
