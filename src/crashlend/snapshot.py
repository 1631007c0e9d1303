# SPDX-License-Identifier: LGPL-2.1-or-later
"""A snapshot: the files that facts are read from, as a tar archive for use elsewhere.

The archive is made by reading the facts through a recorder, so it holds exactly what
:func:`~crashlend.facts.read_facts` looks at, no more. Unpacked or not, ``--root`` reads it.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from typing import TYPE_CHECKING

from crashlend.facts import Facts, read_facts
from crashlend.hostfiles import (
    CENSUS,
    CLEAN_RUNS,
    CMA_EVIDENCE,
    LENT_PAGES,
    MANIFEST,
    MAX_BYTES,
)
from crashlend.jsonable import to_json

if TYPE_CHECKING:
    from crashlend.hostfiles import HostFiles


KERNEL_LOG = "/dev/kmsg"
# what was made of them is recorded in their place
NOT_KEPT = ("/proc/kpageflags", "/proc/pagetypeinfo", "/sys/kernel/btf/vmlinux")
# who has a graphics card open: how many is all that facts look for
CLIENTS = re.compile(r"/sys/kernel/debug/dri/[^/]+/clients")
# all that facts look for in the log; the rest of it is nobody's business elsewhere
LOG_WORDS = (
    b"Linux version",  # its first line: without it the log counts as cut
    b"cma: Reserved",
    b"crashkernel CMA",
    b"CMA area crashkernel could not be activated",
    b"Memory Encryption Features",
)


class Recorder:
    """Hands reads through to ``files`` and remembers what came back."""

    def __init__(self, files: HostFiles) -> None:
        self.files = files
        self.found: dict[str, bytes] = {}
        self.directories: set[str] = set()
        self.unreadable: dict[str, str] = {}

    def read(self, path: str, limit: int = MAX_BYTES, offset: int = 0) -> bytes:
        try:
            data = self.files.read(path, limit, offset)
        except FileNotFoundError:
            raise
        except OSError as error:
            self.unreadable[path] = error.strerror or str(error)
            raise
        if not offset:  # beyond the headers of /proc/kcore lies the kernel's memory
            self.found[path] = data
        return data

    def names(self, path: str) -> list[str]:
        names = self.files.names(path)
        self.directories.update(f"{path}/{name}" for name in names)
        return names

    def exists(self, path: str) -> bool:
        found = self.files.exists(path)
        if found:
            self.directories.add(path)
        return found


def take_snapshot(files: HostFiles, *, census: bool = False) -> tuple[bytes, Facts]:
    """Read a host and return the archive (tar.gz) and the facts it stands for.

    With ``census`` the archive has the counts of every memory block and the clean runs of a
    ZONE_MOVABLE, so that a plan made elsewhere is the one ``load`` would have made on the host at
    that moment.
    """
    recorder = Recorder(files)
    facts = read_facts(recorder, census=census)
    for path in NOT_KEPT:
        recorder.found.pop(path, None)
    if facts.block_census:
        recorder.found[CENSUS] = json.dumps(to_json(facts.block_census)).encode()
    if facts.clean_runs is not None:
        recorder.found[CLEAN_RUNS] = json.dumps(to_json(facts.clean_runs)).encode()
    if facts.lent_pages is not None:
        recorder.found[LENT_PAGES] = json.dumps(to_json(facts.lent_pages)).encode()
    if facts.cma_evidence is not None:
        recorder.found[CMA_EVIDENCE] = json.dumps(to_json(facts.cma_evidence)).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=9) as archive:
        if KERNEL_LOG in recorder.found:
            recorder.found[KERNEL_LOG] = _lines_that_matter(recorder.found[KERNEL_LOG])
        for path, data in recorder.found.items():
            if CLIENTS.fullmatch(path):
                recorder.found[path] = b"-\n" * len(data.splitlines())
        manifest = {"schema": 1, "unreadable": recorder.unreadable}
        _add(archive, MANIFEST, json.dumps(manifest, indent=1).encode())
        for path in sorted(recorder.directories - set(recorder.found)):
            if not any(other.startswith(path + "/") for other in recorder.found):
                info = tarfile.TarInfo(path.lstrip("/"))
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
        for path, data in sorted(recorder.found.items()):
            _add(archive, path.lstrip("/"), data)
    return out.getvalue(), facts


def _lines_that_matter(log: bytes) -> bytes:
    lines = [line for line in log.splitlines() if any(word in line for word in LOG_WORDS)]
    return b"".join(line + b"\n" for line in lines)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    archive.addfile(info, io.BytesIO(data))
