# SPDX-License-Identifier: LGPL-2.1-or-later
"""What opens a LUKS device where no human is: a key file, and cryptsetup."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional

from crashlend.capture.hosttree import read_text
from crashlend.capture.libraries import resolve
from crashlend.capture.targets.access import read_secret
from crashlend.capture.targets.opened import opened_library
from crashlend.capture.targets.target import File, Program
from crashlend.errors import CrashlendError, FormatError
from crashlend.formats.luks import Luks, header_bytes, parse_luks
from crashlend.sizes import mib

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_CRYPTSETUP = Program(
    ("sbin/cryptsetup", "usr/sbin/cryptsetup"),
    "bin/cryptsetup",
    "cryptsetup",
    "opens the target's LUKS device",
)
_KEY_BYTES_MAX = 8 << 20  # as cryptsetup's own limit (cryptsetup --help)
# Options of crypttab(5) with which the key file alone does not open the device.
_STRANGE_OPTIONS = (
    *("keyscript", "header", "keyfile-offset", "keyfile-size", "plain", "tcrypt", "bitlk"),
    *("tpm2-device", "fido2-device", "pkcs11-uri", "offset", "skip"),
)


class _Line(NamedTuple):
    """A line of crypttab(5)."""

    name: str
    device: str
    key: str
    options: Sequence[str]


def luks_programs(root: Path) -> tuple[Program, ...]:
    """cryptsetup, and the library that it takes at run time without naming it.

    libargon2 ends its threads with pthread_cancel, for which the C library loads libgcc_s.
    """
    why = "the C library loads it to end a thread"
    return (_CRYPTSETUP, *opened_library(root, _CRYPTSETUP, "libgcc_s.so.1", why))


def find_key(root: Path, name: str, uuid: str, devices: Sequence[str], key_file: str) -> File:
    """The key file of the LUKS device ``name``: ``key_file``, or the one of /etc/crypttab.

    Raises CrashlendError where there is none that works without a human.
    """
    what = f"cannot open the LUKS device {name} in the crash kernel"
    hint = (
        "add a key file: dd if=/dev/urandom of=FILE bs=64 count=1, chmod 600 FILE, cryptsetup luksAddKey "
        f"{devices[0] if devices else 'DEVICE'} FILE, and set key_file=FILE"
    )
    path = key_file
    if not path:
        line = _crypttab(root, name, uuid, devices) or _Line(name, "", "", ())
        path = line.key if line.key not in ("none", "-") else ""
        own = f"/etc/cryptsetup-keys.d/{name}.key"  # systemd takes it where the line names none
        if not path and resolve(root, own).is_file():
            path = own
        if not path:
            raise CrashlendError(what, "it is opened with a passphrase", hint=hint)
        strange = [word for word in line.options if word.split("=")[0] in _STRANGE_OPTIONS]
        if strange or not path.startswith("/") or path.startswith("/dev/"):
            why = f"/etc/crypttab opens it by {(strange or [path])[0]}"
            raise CrashlendError(what, why, hint=hint)
    data = read_secret(root, path, f"the key file of the LUKS device {name}", hint)
    if not 0 < len(data) <= _KEY_BYTES_MAX:
        raise CrashlendError(what, f"key file {path} has {len(data)} bytes", hint=hint)
    return File(f"etc/crashlend/keys/{uuid}", data, 0o600, f"key file of the LUKS device {name}")


def read_luks(device: Path) -> Optional[Luks]:
    """The LUKS header of ``device``; None when it cannot be read, as in a snapshot."""
    try:
        with device.open("rb") as stream:
            data = stream.read(4096)
            data += stream.read(header_bytes(data) - len(data))
        return parse_luks(data)
    except (OSError, FormatError):
        return None


def luks_note(name: str, header: Luks) -> str:
    """What people should know of the memory that opening it takes."""
    return (
        f"opening the LUKS device {name} takes {mib(header.memory_bytes)} of the crash kernel's memory "
        f"({header.kdf} of the key slot that wants most)"
    )


def _crypttab(root: Path, name: str, uuid: str, devices: Sequence[str]) -> Optional[_Line]:
    specs = {f"UUID={uuid}", f"/dev/disk/by-uuid/{uuid}", *devices}
    found = None
    for text in read_text(root / "etc/crypttab").splitlines():
        words = text.split()
        if len(words) < 2 or words[0].startswith("#"):
            continue
        words += [""] * (4 - len(words))
        line = _Line(words[0], words[1].replace('"', ""), words[2], words[3].split(","))
        if line.name == name:
            return line
        if line.device in specs:
            found = line
    return found
