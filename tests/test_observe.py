# SPDX-License-Identifier: LGPL-2.1-or-later
"""Observing a kernel, with a guest that is made up: what it tells, and how it can fail."""

from __future__ import annotations

import base64
import gzip
import json
import lzma
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from build import bz_image
from crashlend.errors import CrashlendError, FormatError
from crashlend.facts.data import FirmwareRange
from crashlend.formats import newc
from crashlend.lab import observe as lab
from crashlend.lab.kernels import Kernel
from crashlend.lab.observation import (
    FILES,
    Answer,
    LogLine,
    Observation,
    parse_kmsg,
    parse_memmap,
)
from crashlend.lab.qemu import Machine, Report, parse_event
from crashlend.lab.vmlinux import unpack_payload
from crashlend.ranges import Range, Ranges

KERNEL = Kernel("7.3", "7.3.4", "trixie", Path("vmlinuz"), Path("modules"), None)
MARK = b"12,3,9,-;crashlend-observe: end\n"
LOG = (
    b"5,0,0,-;Linux version 7.3.4\n"
    b"6,1,0,-;crashkernel reserved: 0x000000002f000000 - 0x000000003f000000 (256 MB)\n"
    b" SUBSYSTEM=none\n"
    b"4,2,7,-;crashkernel: unrecognized char: \\xff\n"
)
BOOT_PARAMS = bytearray(4096)
struct.pack_into("<II", BOOT_PARAMS, 0x218, 0x3FEC_C000, 0x1000)
struct.pack_into("<II", BOOT_PARAMS, 0x0C0, 1, 0)
TOLD = {
    "log": LOG + MARK,
    "memmap": b"0x0 0x9fbff System RAM\n0x100000 0x3fffffff System RAM\n0x9fc00 0x9ffff Reserved\n",
    "cmdline": b"nokaslr crashkernel=256M\n",
    "iomem": b"00100000-3fffffff : System RAM\n  2f000000-3effffff : Crash kernel\n",
    "kexec_crash_size": b"268435456\n",
    "crash_cma_ranges": b"27000000-2effffff\n",
    "boot_params": bytes(BOOT_PARAMS),
    "meminfo": b"MemTotal:  1048056 kB\n",
}


def line(name: str, data: bytes, code: int = 0) -> bytes:
    """A line of the report port as guestfiles/observe writes it."""
    packed = base64.b64encode(gzip.compress(data)).decode()
    return f'{{"event": "observed", "name": "{name}", "exit": {code}, "data": "{packed}"}}'.encode()


class Guest:
    """Stands for run_machine: plays the lines of the port, and leaves a console."""

    def __init__(self, lines: list[bytes], console: str = "", *, timed_out: bool = False) -> None:
        self.lines, self.console, self.timed_out = lines, console, timed_out
        self.machine: Machine | None = None
        self.lost = ""

    def __call__(self, machine: Machine, directory: Path, **more: Any) -> Report:
        self.machine = machine
        self.members, _ = newc.parse(gzip.decompress(machine.initramfs.read_bytes()))
        (directory / "console.log").write_text(self.console)
        for text in self.lines:
            event = parse_event(text)
            if event is not None:
                more["on_event"](event)
        self.lost = more["is_lost"]()
        return Report([], 8.5, self.timed_out)


def told(**other: bytes) -> list[bytes]:
    up, done = b'{"event": "up"}', b'{"event": "done"}'
    return [up, *(line(name, data) for name, data in {**TOLD, **other}.items()), done]


@pytest.fixture
def see(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Observe a made-up guest."""
    monkeypatch.setattr(lab, "busybox_package", lambda kernel, say: Path("busybox.deb"))
    monkeypatch.setattr(lab, "read_busybox", lambda deb: b"\x7fELF")

    def run(played: Guest, cmdline: str = "crashkernel=256M", **more: Any) -> Observation:
        monkeypatch.setattr(lab, "run_machine", played)
        return lab.observe(KERNEL, cmdline, 1 << 30, **more)

    return run


def test_what_the_guest_told_is_read(see: Any) -> None:
    """Each file arrives whole, and each property reads the kernel's own format of it."""
    seen = see(Guest(told()))
    assert seen.release == "7.3.4"
    assert seen.words == "crashkernel=256M"
    assert seen.cmdline == b"nokaslr crashkernel=256M"
    assert seen.crash_ranges == Ranges([(0x2F00_0000, 0x3F00_0000)])
    assert seen.crash_size_bytes == 256 << 20
    assert seen.cma_ranges == (Range(0x2700_0000, 0x2F00_0000),)
    assert seen.ramdisk == Range(0x1_3FEC_C000, 0x1_3FEC_D000)
    assert seen.meminfo["MemTotal"] == 1048056 << 10
    assert seen.log_complete
    assert seen.seconds == 8.5


def test_log_is_records_in_order_with_the_kernels_escapes() -> None:
    """Level and facility are apart; continuation lines and the observer's mark are no records."""
    lines = parse_kmsg(LOG + b"12,3,8,-;from user space\n" + MARK)
    assert [x.level for x in lines] == [5, 6, 4, 4]
    assert lines[2] == LogLine(4, 0, 2, 7, "crashkernel: unrecognized char: \\xff")
    assert lines[3].facility == 1
    with pytest.raises(FormatError, match="line 1"):
        parse_kmsg(b"no record\n")


def test_a_log_that_wrapped_is_not_complete(see: Any) -> None:
    """Where the boot's first records are gone, or the end was not reached, the observation says so."""
    assert not see(Guest(told(log=LOG.split(b"\n", 1)[1] + MARK))).log_complete
    assert not see(Guest(told(log=LOG))).log_complete


def test_firmware_map_is_half_open_and_sorted() -> None:
    """Sysfs has inclusive ends in the order of its directory."""
    assert parse_memmap(TOLD["memmap"]) == (
        FirmwareRange(0, 0x9FC00, "System RAM"),
        FirmwareRange(0x9FC00, 0xA0000, "Reserved"),
        FirmwareRange(0x100000, 0x4000_0000, "System RAM"),
    )
    with pytest.raises(FormatError):
        parse_memmap(b"0x0\n")


def test_cma_ranges_are_none_where_the_kernel_has_no_file(see: Any) -> None:
    """Before 6.19 no file tells: that is not the same as none; then the log is asked."""
    lines = [x for x in told() if b"crash_cma_ranges" not in x]
    assert see(Guest(lines)).cma_ranges is None
    area = b"6,3,0,-;cma: Reserved 128 MiB at 0x0000000027000000\n"
    area += b"6,4,0,-;crashkernel CMA reserved: 128 MB in 1 ranges\n"
    assert see(Guest(told(log=LOG + area))).logged_cma_ranges == (Range(0x2700_0000, 0x2F00_0000),)


def test_the_asked_words_come_last_and_unchanged(see: Any) -> None:
    """A word's end matters to the kernel's parser: nothing follows the words that were asked for."""
    guest = Guest(told())
    see(guest, "crashkernel=256M\tx crashkernel=,cma")
    assert guest.machine is not None
    assert guest.machine.words == lab.OWN_WORDS + " crashkernel=256M\tx crashkernel=,cma"
    see(guest, "")
    assert guest.machine.words == lab.OWN_WORDS


def test_commands_and_files_reach_the_guest_and_their_answers_come_back(see: Any) -> None:
    """A command that fails is an answer; its name is the caller's, whatever characters it has."""
    answers = [line("command-0", b"16777216\n", 0), line("command-1", b"no\n", 3)]
    lines = told()
    guest = Guest([*lines[:-1], line("prepare", b"fine\n"), *answers, lines[-1]])
    seen = see(
        guest,
        prepare="echo 1 >/x",
        commands={"a size": "cat /y", "b/c": "exit 3"},
        guest_files={"/deep/er/tool": b"#!"},
    )
    assert seen.answers == {
        "a size": Answer(0, "16777216\n"),
        "b/c": Answer(3, "no\n"),
        "prepare": Answer(0, "fine\n"),
    }
    members = {member.path: member.data for member in guest.members}
    assert members["ask/prepare"] == b"echo 1 >/x\n"
    assert members["ask/command-1"] == b"exit 3\n"
    assert members["deep/er/tool"] == b"#!"
    assert b"iomem /proc/iomem\n" in members["files"]
    assert members["files"].count(b"\n") == len(FILES)


def test_the_initramfs_is_the_same_each_time() -> None:
    """Where it lies in the guest's memory depends on its size, and so do the addresses compared."""
    assert lab.build_initramfs(b"busybox") == lab.build_initramfs(b"busybox")


def test_a_guest_that_has_told_everything_need_not_power_off(see: Any) -> None:
    """Once it is done the machine is ended, so that a kernel that can't reset costs a second."""
    guest = Guest(told())
    see(guest)
    assert guest.lost
    early = Guest(told()[:-1])
    with pytest.raises(lab.ObserveError):
        see(early)
    assert not early.lost


@pytest.mark.parametrize(
    ("lines", "late", "words"),
    [
        ([], False, "died before its init ran"),
        (told()[:3], False, "died while it was telling"),
        ([], True, "not done after 300 s, ended before its init ran"),
        ([x for x in told() if b'"iomem"' not in x], False, "did not tell iomem"),
        ([*told()[:-1], line("prepare", b"no\n", 1), told()[-1]], False, "ended with 1: no"),
    ],
)
def test_no_observation_says_why_and_shows_the_consoles_end(
    see: Any, lines: list[bytes], late: bool, words: str
) -> None:
    """Each way to fail is an error of its own words, with the last lines of the console."""
    console = "".join(f"line {n}\n" for n in range(40)) + "Kernel panic - not syncing\n"
    with pytest.raises(lab.ObserveError, match=words) as caught:
        see(Guest(lines, console, timed_out=late), prepare="false")
    assert "Kernel panic" in str(caught.value)
    assert "line 3\n" not in str(caught.value)
    assert caught.value.console == console
    assert isinstance(caught.value, CrashlendError)


def test_bytes_lost_on_the_way_are_noticed(see: Any) -> None:
    """A character that the port dropped makes no observation, not a wrong one."""
    lines = told()
    at = lines[1].index(b'"data": "') + 40
    lines[1] = lines[1][:at] + lines[1][at + 4 :]
    assert json.loads(lines[1])
    with pytest.raises(lab.ObserveError, match="spoilt"):
        see(Guest(lines))


def test_the_guests_script_is_a_shell_script() -> None:
    """guestfiles/observe is accepted by a POSIX shell, and by shellcheck where it is installed."""
    script = Path(lab.__file__).parent / "guestfiles/observe"
    subprocess.run(["sh", "-n", script], check=True)
    if shutil.which("shellcheck"):
        words = ["shellcheck", "-S", "warning", "-s", "dash", str(script)]
        subprocess.run(words, check=True)


# ---- the kernel without its decompressor


def packed_image(payload: bytes) -> bytes:
    """A bzImage that holds this payload, 64 bytes into the protected-mode code."""
    image = bytearray(bz_image(kernel=bytes(64) + payload + bytes(8192)))
    struct.pack_into("<II", image, 0x248, 64, len(payload))
    return bytes(image)


def test_a_kernel_is_unpacked_with_the_size_behind_it() -> None:
    """The build appends the unpacked size, which neither xz nor zstd takes for its own."""
    elf = b"\x7fELF" + bytes(range(256)) * 64
    size = len(elf).to_bytes(4, "little")
    assert unpack_payload(packed_image(lzma.compress(elf) + size)) == elf
    if shutil.which("zstd"):
        packed = subprocess.run(["zstd", "-cq"], input=elf, capture_output=True, check=True).stdout
        assert unpack_payload(packed_image(packed + size)) == elf


def test_what_is_packed_otherwise_is_named() -> None:
    """Better no boot than one of something else."""
    with pytest.raises(CrashlendError, match="02214c18"):
        unpack_payload(packed_image(b"\x02\x21\x4c\x18" + bytes(64)))
    with pytest.raises(FormatError, match="no ELF image"):
        unpack_payload(packed_image(lzma.compress(b"MZ" + bytes(64)) + bytes(4)))


def test_an_unpacked_guest_starts_that_image(see: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bzImage is the default: it is what hosts boot."""
    monkeypatch.setattr(lab, "unpack_kernel", lambda kernel, say: Path("vmlinux"))
    guest = Guest(told())
    see(guest)
    assert guest.machine is not None
    assert guest.machine.kernel == Path("vmlinuz")
    see(guest, guest=lab.Guest(unpacked=True))
    assert guest.machine.kernel == Path("vmlinux")
