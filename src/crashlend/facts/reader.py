# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads single files of a host and keeps account of what could not be read."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Callable, Optional, TypeVar, Union

from crashlend.errors import CrashlendError
from crashlend.formats import procfs

if TYPE_CHECKING:
    from crashlend.hostfiles import HostFiles

T = TypeVar("T")
E = TypeVar("E")


class Reader:
    """Reads single files and keeps account of what could not be read."""

    def __init__(self, files: HostFiles) -> None:
        self.files = files
        self.missing: dict[str, str] = {}

    def raw(self, path: str, *, optional: bool = False, limit: int = 1 << 26) -> bytes:
        """The file's bytes; b"" when it can't be read, which is noted unless ``optional``."""
        try:
            return self.files.read(path, limit)
        except FileNotFoundError:
            if not optional:
                self.missing[path] = "no such file on this host"
        except OSError as error:
            why = error.strerror or str(error)
            if error.errno in (errno.EACCES, errno.EPERM) or isinstance(error, PermissionError):
                why = f"{why} (needs root)" if "needs root" not in why else why
            self.missing[path] = why
        return b""

    def text(self, path: str, *, optional: bool = False) -> str:
        data = self.raw(path, optional=optional).strip(b"\0\n\t ")
        return data.decode("utf-8", "surrogateescape")

    def parsed(
        self, path: str, parse: Callable[[bytes], T], empty: E, *, optional: bool = False
    ) -> Union[T, E]:
        """``parse(file)``; what is not there or makes no sense is noted and ``empty``."""
        data = self.raw(path, optional=optional)
        if not data:
            if not optional:
                self.missing.setdefault(path, "it is empty")
            return empty
        try:
            return parse(data)
        except (CrashlendError, ValueError, RecursionError) as error:
            self.missing[path] = str(error)
            return empty

    def hex(self, path: str) -> Optional[int]:
        """One hexadecimal number, None where there is none."""
        return self.parsed(path, lambda data: procfs.parse_hex(data, path), None)

    def decimal(self, path: str) -> Optional[int]:
        """One decimal number, None where there is none."""
        return self.parsed(path, lambda data: procfs.parse_decimal(data, path), None)

    def flag(self, path: str) -> Optional[bool]:
        """Whether the number is not zero, None where there is none."""
        number = self.decimal(path)
        return None if number is None else bool(number)
