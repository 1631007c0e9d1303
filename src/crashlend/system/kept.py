# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copies of loaded images on disk, so that the old one can be loaded again when a new one fails.

/var/lib/crashlend/loaded/FINGERPRINT is one image: a line of JSON behind its digest (where every segment
goes and what it is made of), then the parts: the kernel's file, the initramfs, and what is in neither. A copy is
there, synced, before the kernel is given the image, and it is only good together with the record in
the state file, which /run forgets at a reboot: one that no record names is removed by the next load.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashlend.arch import Layout
from crashlend.errors import CrashlendError, FormatError
from crashlend.formats.bzimage import BzImage
from crashlend.jsonable import from_json, to_json
from crashlend.payload import Files
from crashlend.plan import Payload
from crashlend.system.image import CrashImage
from crashlend.system.state import write_parts_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable

DIRECTORY = Path("/var/lib/crashlend/loaded")
NEW = ".new"
SCHEMA = 1
MOST_HEADER_BYTES = 1 << 26
# what is smaller is not looked for in the kernel's file
WORTH_FINDING = 4096


@dataclass(frozen=True)
class Kept:
    """One image as it was loaded, and the files it was made of."""

    image: CrashImage
    files: Files


def keep(image: CrashImage, fingerprint: str, files: Files) -> str:
    """Write a copy, unless there is one; return why that did not work, else "".

    It never raises for want of room or the like: the copy is a net, not the load.
    """
    path = DIRECTORY / fingerprint
    if path.is_file():
        return ""
    parts: dict[str, bytes] = {"kernel": files.kernel, "initramfs": image.initramfs}
    segments = {}
    for name, data in image.segments.items():
        segments[name] = _found_in(parts, data)
        if not segments[name]:
            parts[f"segment {name}"] = data
            segments[name] = {"part": f"segment {name}", "at": 0, "bytes": len(data)}
    header = {
        "schema": SCHEMA,
        "kernel_path": str(files.kernel_path),
        "initramfs_path": str(files.initramfs_path),
        "initramfs_bytes": len(files.initramfs),
        "threads": files.payload.threads,
        "cmdline": image.cmdline.hex(),
        "layout": None if image.layout is None else to_json(image.layout),
        "core_header_at": image.core_header_at,
        "lending_at": image.lending_at,
        "segments": segments,
        "parts": [
            {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in parts.items()
        ],
    }
    try:
        DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
        line = _with_digest(json.dumps(header).encode())
        write_parts_atomically(path, [line, *parts.values()], temporary=DIRECTORY / NEW)
    except OSError as error:
        return f"{DIRECTORY}: {error.strerror or error}"
    return ""


def _found_in(parts: dict[str, bytes], data: bytes) -> dict[str, Any]:
    """Where a segment's bytes stand in a part that is stored anyway; empty when in none."""
    for name in ("initramfs", "kernel"):
        at = parts[name].find(data) if len(data) >= WORTH_FINDING else -1
        if at >= 0:
            return {"part": name, "at": at, "bytes": len(data)}
    return {}


def recall(fingerprint: str) -> Kept:
    """The copy of that image; CrashlendError when there is none or a byte of it is not as it was."""
    path = DIRECTORY / fingerprint
    try:
        with path.open("rb") as stream:
            header = _header(stream.readline(MOST_HEADER_BYTES))
            parts = {one["name"]: _part(stream.read(one["bytes"]), one) for one in header["parts"]}
        kept = _assemble(header, parts)
    except FileNotFoundError:
        raise CrashlendError(
            "there is no copy of the old image", f"{path} does not exist"
        ) from None
    except (CrashlendError, OSError, ValueError, KeyError, TypeError) as error:
        raise CrashlendError("the copy of the old image is damaged", f"{path}: {error}") from error
    if kept.image.fingerprint() != fingerprint:
        raise CrashlendError("the copy of the old image is damaged", f"{path}: it is another image")
    return kept


def _with_digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode() + b" " + text + b"\n"


def _header(line: bytes) -> dict[str, Any]:
    text = line.partition(b" ")[2].rstrip(b"\n")
    if line != _with_digest(text):
        raise FormatError("its first line", "its bytes are not what was written")
    header: dict[str, Any] = json.loads(text)
    return header


def _part(data: bytes, one: dict[str, Any]) -> bytes:
    if len(data) != one["bytes"] or hashlib.sha256(data).hexdigest() != one["sha256"]:
        raise FormatError(one["name"], "its bytes are not what was written")
    return data


def _assemble(header: dict[str, Any], parts: dict[str, bytes]) -> Kept:
    if header["schema"] != SCHEMA:
        raise FormatError("its first line", f"schema {header['schema']}, not {SCHEMA}")
    kernel, initramfs = parts["kernel"], parts["initramfs"]
    segments = {
        name: parts[where["part"]][where["at"] : where["at"] + where["bytes"]]
        for name, where in header["segments"].items()
    }
    layout = None if header["layout"] is None else from_json(Layout, header["layout"])
    image = CrashImage(
        layout,
        segments,
        kernel,
        initramfs,
        bytes.fromhex(header["cmdline"]),
        # copies of older versions have neither
        header.get("core_header_at"),
        header.get("lending_at", 0),
    )
    files = Files(
        Path(header["kernel_path"]),
        kernel,
        Path(header["initramfs_path"]),
        initramfs[: header["initramfs_bytes"]],
        # copies of older versions do not have threads
        Payload(BzImage.parse(kernel), header["initramfs_bytes"], header.get("threads", False)),
    )
    return Kept(image, files)


def forget_others(fingerprints: Iterable[str]) -> None:
    """Remove all copies but these. What can't be removed is left: nothing names it."""
    wanted = set(fingerprints)
    try:
        names = os.listdir(DIRECTORY)
    except OSError:
        return
    for name in sorted(set(names) - wanted):
        with suppress(OSError):
            os.unlink(DIRECTORY / name)
