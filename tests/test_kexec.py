# SPDX-License-Identifier: LGPL-2.1-or-later
"""kexec_load and kexec_file_load: the structure as the kernel reads it, errno in words.

No system call is made here: libc is replaced.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from crashlend.arch import Segment
from crashlend.errors import CrashlendError, RefusedError
from crashlend.system import kexec


class Libc:
    """Takes the arguments of ``syscall`` and answers with ``code`` as errno."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.calls: list[tuple[Any, ...]] = []
        self.memory: list[tuple[bytes, int, int]] = []

    def syscall(self, number: ctypes.c_long, *args: Any) -> int:
        values = tuple(a.value if isinstance(a, ctypes.c_long) else a for a in args)
        self.calls.append((number.value, *values))
        if number.value == 246 and args[2] is not None:
            count = values[1]
            raw = bytes(memoryview(args[2]).cast("B"))
            for buf, bufsz, mem, memsz in struct.iter_unpack("<QQQQ", raw[: 32 * count]):
                self.memory.append((ctypes.string_at(buf, bufsz), mem, memsz))
        return -1 if self.code else 0


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    fake = Libc()
    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_more: fake)
    monkeypatch.setattr(ctypes, "get_errno", lambda: fake.code)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "h", "6.1", "#1", "x86_64")))
    monkeypatch.setattr(kexec, "_lockdown", lambda: "")
    return fake


def test_struct_kexec_segment_is_that_of_the_uapi_header() -> None:
    """Four 8-byte fields: buf, bufsz, mem, memsz (include/uapi/linux/kexec.h)."""
    layout = [(name, getattr(kexec._Segment, name).offset) for name, _ in kexec._Segment._fields_]
    assert layout == [("buf", 0), ("bufsz", 8), ("mem", 16), ("memsz", 24)]
    assert ctypes.sizeof(kexec._Segment) == 32


def test_load_hands_over_entry_segments_and_flags(libc: Libc) -> None:
    """Syscall 246 with KEXEC_ON_CRASH and x86_64; buffers hold the bytes, NULs included."""
    segments = [
        (Segment("kernel", 0xA0000000, 5, 0x3000), b"\0k\0l\0"),
        (Segment("entry", 0x1_2000_0000, 3, 0x1000), b"abc"),
    ]
    kexec.load(0x1_2000_0000, segments)
    assert libc.calls[0][:3] == (246, 0x1_2000_0000, 2)
    assert libc.calls[0][4] == 1 | 62 << 16
    assert libc.memory == [(b"\0k\0l\0", 0xA0000000, 0x3000), (b"abc", 0x1_2000_0000, 0x1000)]


def test_hotplug_flags_are_never_set() -> None:
    """KEXEC_UPDATE_ELFCOREHDR and HOTPLUG_SUPPORT would put lent RAM back (hazard 15)."""
    flags = kexec.KEXEC_ON_CRASH | kexec.KEXEC_ARCH_X86_64
    assert flags & (0x4 | 0x8) == 0


def test_unload_is_a_load_of_nothing(libc: Libc) -> None:
    """No segments, the same flags."""
    kexec.unload()
    assert libc.calls == [(246, 0, 0, None, 1 | 62 << 16)]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES])
def test_where_kexec_load_is_refused_kexec_file_load_unloads(
    libc: Libc, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Lockdown and IMA refuse it even with nothing to load; flags UNLOAD and ON_CRASH, no files."""
    libc.code = code

    def syscall(number: ctypes.c_long, *args: Any) -> int:
        libc.calls.append((number.value, *(getattr(a, "value", a) for a in args)))
        return -1 if number.value == 246 else 0

    monkeypatch.setattr(libc, "syscall", syscall)
    kexec.unload()
    assert libc.calls[1] == (320, -1, -1, 0, None, 1 | 2)


@pytest.mark.parametrize("how", ["lockdown", "by_file"])
def test_where_it_is_known_to_be_refused_kexec_load_is_not_asked(
    libc: Libc, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Each call counts against kernel.kexec_load_limit_panic, a refused one too."""
    monkeypatch.setattr(kexec, "_lockdown", lambda: "integrity" if how == "lockdown" else "")
    kexec.unload(by_file=how == "by_file")
    assert libc.calls == [(320, -1, -1, 0, None, 1 | 2)]


def test_load_file_counts_the_terminating_nul(libc: Libc) -> None:
    """kexec_file_load wants cmdline_len with the NUL, flag KEXEC_FILE_ON_CRASH."""
    kexec.load_file(3, 4, b"a=1")
    assert libc.calls == [(320, 3, 4, 4, b"a=1\0", 2)]


def test_more_than_16_segments_are_refused_before_the_call(libc: Libc) -> None:
    """KEXEC_SEGMENT_MAX is 16; the old image must not be dropped for a call that fails."""
    with pytest.raises(CrashlendError, match="17 segments"):
        kexec.load(0, [(Segment("x", 0, 1, 4096), b"x")] * 17)
    assert libc.calls == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EADDRNOTAVAIL, "outside the reservation"),
        (errno.ENOMEM, "no room for the kernel's control pages"),
        (errno.EBUSY, "another kexec"),
        (errno.ENOSYS, "no such system call"),
        (errno.EINVAL, "impossible"),
    ],
)
def test_errno_becomes_words_and_a_hint(libc: Libc, code: int, words: str) -> None:
    """The message has the errno's name, its likely cause and what to do."""
    libc.code = code
    with pytest.raises(CrashlendError, match=words) as caught:
        kexec.unload()
    assert errno.errorcode[code] in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 1


def test_eacces_is_a_refusal_by_ima(libc: Libc) -> None:
    """Seen under Secure Boot, where IMA is asked before lockdown: exit 11 and the other call."""
    libc.code = errno.EACCES
    with pytest.raises(RefusedError, match="IMA") as caught:
        kexec.load(0, [])
    assert "--syscall file" in caught.value.hint


@pytest.mark.parametrize("level", ["", "integrity"])
def test_eperm_is_a_refusal_and_lockdown_is_named(
    libc: Libc, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """EPERM ends in exit 11; with lockdown the message says so."""
    libc.code = errno.EPERM
    monkeypatch.setattr(kexec, "_lockdown", lambda: level)
    with pytest.raises(RefusedError, match="EPERM") as caught:
        kexec.load(0, [])
    assert caught.value.exit_code == 11
    assert ("lockdown" in str(caught.value)) == bool(level)


def test_an_unknown_errno_is_told_as_the_system_does(libc: Libc) -> None:
    """Strerror where there are no better words."""
    libc.code = errno.EIO
    with pytest.raises(CrashlendError, match=os.strerror(errno.EIO)):
        kexec.unload()


def test_other_machines_are_refused(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    """System call numbers of another architecture are never guessed."""
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "h", "6.1", "#1", "mips")))
    with pytest.raises(CrashlendError, match="architecture mips"):
        kexec.unload()
    assert libc.calls == []


def test_uapi_header_has_these_flags() -> None:
    """The constants are those of <linux/kexec.h>."""
    header = Path("/usr/include/linux/kexec.h")
    if not header.exists():
        pytest.skip("no uapi headers (linux-libc-dev)")
    found = {
        words[1]: "".join(words[2:])
        for words in map(str.split, header.read_text().splitlines())
        if words[:1] == ["#define"]
    }
    assert int(found["KEXEC_ON_CRASH"], 16) == kexec.KEXEC_ON_CRASH
    assert found["KEXEC_ARCH_X86_64"] == "(62<<16)"
    assert kexec.KEXEC_ARCH_X86_64 == 62 << 16
    assert int(found["KEXEC_FILE_UNLOAD"], 16) == kexec.KEXEC_FILE_UNLOAD
    assert int(found["KEXEC_FILE_ON_CRASH"], 16) == kexec.KEXEC_FILE_ON_CRASH
    assert int(found["KEXEC_SEGMENT_MAX"]) == kexec.MAX_SEGMENTS


def test_without_efi_there_is_no_secure_boot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Under BIOS boot_params says nothing of it; under EFI 2 is off, 3 on, all else unknown."""
    data, efi = tmp_path / "data", tmp_path / "efi"
    places = {"/sys/firmware/efi": efi, "/sys/kernel/boot_params/data": data}
    monkeypatch.setattr(kexec, "Path", lambda path: places[path])
    data.write_bytes(bytes(4096))
    assert kexec._secure_boot() is False
    efi.mkdir()
    for mode, expected in ((0, None), (1, None), (2, False), (3, True)):
        data.write_bytes(bytes(0x1EC) + bytes([mode]) + bytes(4096 - 0x1ED))
        assert kexec._secure_boot() is expected
    data.unlink()
    assert kexec._secure_boot() is None
