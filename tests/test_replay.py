# SPDX-License-Identifier: LGPL-2.1-or-later
"""A stopped machine started again and again, with QEMU and a boot sector for a guest."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crashlend.lab.entry.gdbstub import GdbStub
from crashlend.lab.entry.memory_file import MemoryFile
from crashlend.lab.entry.replay import HANG, RESET, UP, Replay, save_state
from crashlend.lab.host import SOCKET, Host
from crashlend.lab.qemu import QEMU, Machine, run_machine

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY_BYTES = 32 << 20
START, CHOICE, SEEN = 0x7C00, 0x7D00, 0x7E00
# Writes 'A' to the console, CHOICE to SEEN, and does what CHOICE says
BOOT_SECTOR = bytes.fromhex(
    "fa"  # cli
    "ba f8 03 b0 41 ee"  # mov dx, 0x3f8; mov al, 'A'; out dx, al
    "a0 00 7d a2 00 7e"  # mov al, [CHOICE]; mov [SEEN], al
    "3c 01 74 0d"  # cmp al, 1; je up
    "3c 02 74 06"  # cmp al, 2; je hang
    "b0 fe e6 64"  # mov al, 0xfe; out 0x64, al
    "eb fe"  # jmp .
    "f4 eb fd"  # hang: hlt; jmp hang
    "be 2c 7c ba f8 02"  # up: mov si, message; mov dx, 0x2f8
    "ac 84 c0 74 f2 ee eb f8"  # next: lodsb; test al, al; jz hang; out dx, al; jmp next
)
MESSAGE = b'{"event": "crash_kernel"}\n\0'


@dataclass(frozen=True)
class BootSector(Machine):
    """A machine without a kernel: it boots its disk."""

    def argv(self, directory: Path) -> list[str]:
        words = [QEMU, *self.machine_words(), "-m", "32M", "-display", "none", "-nodefaults"]
        words += ["-no-user-config", "-no-reboot", *self.extra]
        words += ["-chardev", f"file,id=console,path={directory}/console.log"]
        words += ["-serial", "chardev:console"]
        words += ["-chardev", f"socket,id=report,path={directory}/report.sock"]
        words += ["-serial", "chardev:report"]
        words += ["-qmp", f"unix:{directory}/{SOCKET},server=on,wait=off"]
        return [*words, "-drive", f"file={self.kernel},format=raw,if=ide,snapshot=on"]


@dataclass(frozen=True)
class Stopped:
    machine: BootSector
    memory: MemoryFile
    state: Path


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stopped]:
    """The machine stopped at the boot sector's first instruction, saved and ended."""
    directory = tmp_path_factory.mktemp("stopped")
    disk = directory / "disk"
    sector = (BOOT_SECTOR + MESSAGE).ljust(510, b"\0") + b"\x55\xaa"
    disk.write_bytes(sector.ljust(1 << 20, b"\0"))
    with MemoryFile("test-guest", MEMORY_BYTES) as memory:
        machine = BootSector(
            kernel=disk,
            initramfs=disk,
            words="",
            memory_bytes=MEMORY_BYTES,
            memory_file=memory.path,
            extra=("-S",),
        )

        def stop(host: Host) -> None:
            server = f"gdbserver unix:{directory}/gdb.sock,server=on,wait=off"
            host.qmp("human-monitor-command", **{"command-line": server})
            stub = GdbStub(directory / "gdb.sock")
            stub.break_at(START)
            stub.resume()
            assert stub.wait_for_stop(60) == "05"
            assert stub.instruction_pointer() == START
            stub.remove_break(START)
            save_state(host, stub, memory.fd, START, directory / "state")
            stub.kill()
            stub.close()

        run_machine(machine, directory, timeout_seconds=100, on_start=stop)
        yield Stopped(replace(machine, extra=()), memory, directory / "state")


@pytest.mark.parametrize(("choice", "how", "budget"), [(2, HANG, 2), (0, RESET, 60), (1, UP, 60)])
def test_each_replay_begins_from_the_same_state(
    stopped: Stopped, tmp_path: Path, choice: int, how: str, budget: float
) -> None:
    """What memory has when a replay begins decides it; what it wrote is told and then gone."""
    os.pwrite(stopped.memory.fd, bytes([choice]), CHOICE)
    before = os.pread(stopped.memory.fd, MEMORY_BYTES, 0)
    began = time.monotonic()
    ending = Replay(stopped.state, (SEEN, 1), budget).run(stopped.machine, tmp_path)
    assert ending.how == how
    assert ending.console == "A"
    assert ending.memory == bytes([choice])
    assert bool(ending.where) == (how == HANG)
    assert 0 < ending.seconds <= time.monotonic() - began
    assert os.pread(stopped.memory.fd, MEMORY_BYTES, 0) == before
