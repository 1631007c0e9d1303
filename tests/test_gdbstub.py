# SPDX-License-Identifier: LGPL-2.1-or-later
"""The client of QEMU's gdb stub, against a made-up stub and against QEMU's own."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from crashlend.lab.entry.gdbstub import GdbError, GdbStub, packet, take_packet
from crashlend.lab.entry.memory_file import MemoryFile
from crashlend.lab.qemu import QEMU

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RIP = 0x4EFFC000


class FakeStub(threading.Thread):
    """Answers as QEMU does: a stop packet that nobody asked for comes first."""

    def __init__(self, path: Path, answers: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.answers = {"qAttached": "1", **answers}
        self.heard: list[str] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)

    def run(self) -> None:
        with self.listener, self.listener.accept()[0] as connection:
            connection.sendall(packet("T02thread:01;"))
            buffer = b""
            while data := connection.recv(4096):
                buffer += data
                while True:
                    buffer = buffer.lstrip(b"+")
                    if buffer.startswith(b"\x03"):
                        buffer = buffer[1:]
                        connection.sendall(packet("T02thread:01;"))
                    heard, buffer = take_packet(buffer)
                    if heard is None:
                        break
                    self.heard.append(heard)
                    answer = self.answers.get(heard, "")
                    if answer == "hang up":
                        return
                    if answer != "silence":
                        # in two pieces, as a stream may bring it
                        whole = b"+" + packet(answer)
                        connection.sendall(whole[:3])
                        connection.sendall(whole[3:])


@pytest.fixture
def answers() -> dict[str, str]:
    registers = bytes(16 * 8) + RIP.to_bytes(8, "little") + bytes(32)
    return {
        "Z1,4effc000,1": "OK",
        "z1,4effc000,1": "OK",
        "g": registers.hex(),
        "c": "T05thread:02;",
    }


@pytest.fixture
def fake(tmp_path: Path, answers: dict[str, str]) -> FakeStub:
    stub = FakeStub(tmp_path / "gdb.sock", answers)
    stub.start()
    return stub


def test_packets_are_summed() -> None:
    """A packet is its payload between $ and # and the sum of its bytes modulo 256."""
    assert packet("OK") == b"$OK#9a"
    assert packet("") == b"$#00"
    assert take_packet(b"++$OK#9a$T05#b9") == ("OK", b"$T05#b9")
    for short in (b"", b"+", b"$OK", b"$OK#9"):
        assert take_packet(short) == (None, short)
    with pytest.raises(GdbError):
        take_packet(b"$OK#9b")


def test_a_breakpoint_stops_the_machine(tmp_path: Path, fake: FakeStub) -> None:
    """The unasked stop packet does not shift the answers; the stop that counts is told with RIP."""
    stub = GdbStub(tmp_path / "gdb.sock")
    stub.break_at(RIP)
    stub.resume()
    assert stub.wait_for_stop(20) == "05"
    assert stub.instruction_pointer() == RIP
    stub.remove_break(RIP)
    stub.stop()
    stub.close()
    fake.join(20)
    assert fake.heard == ["qAttached", "Z1,4effc000,1", "c", "g", "z1,4effc000,1"]


def test_a_refusal_is_an_error(tmp_path: Path, fake: FakeStub) -> None:
    """A stub that can't set the breakpoint says nothing or E22: an error, not a trial without one."""
    fake.answers |= {"Z1,1000,1": "", "Z1,2000,1": "E22"}
    stub = GdbStub(tmp_path / "gdb.sock")
    for address in (0x1000, 0x2000):
        with pytest.raises(GdbError, match="was answered with"):
            stub.break_at(address)
    stub.close()


@pytest.mark.parametrize(
    ("answer", "words"), [("W00", "ended"), ("hang up", "hung up"), ("silence", "silent")]
)
def test_no_stop_is_an_error(tmp_path: Path, fake: FakeStub, answer: str, words: str) -> None:
    """A machine that ends, a stub that hangs up or stays silent is no stop."""
    fake.answers["c"] = answer
    stub = GdbStub(tmp_path / "gdb.sock")
    stub.resume()
    with pytest.raises(GdbError, match=words):
        stub.wait_for_stop(1 if answer == "silence" else 20)
    stub.close()


def test_no_stub_is_an_error(tmp_path: Path) -> None:
    """Nobody at the socket."""
    with pytest.raises(GdbError, match="cannot connect"):
        GdbStub(tmp_path / "gdb.sock")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[MemoryFile]:
    """QEMU with a memory file and a boot sector's worth of code: an endless loop at 0x7c00."""
    with MemoryFile("test-machine", 32 << 20) as memory:
        words = ["-machine", "pc,memory-backend=ram", "-m", "32M", "-display", "none", "-S"]
        words += ["-object", f"memory-backend-file,id=ram,size=32M,share=on,mem-path={memory.path}"]
        words += ["-nodefaults", "-no-user-config"]
        words += ["-gdb", f"unix:{tmp_path}/gdb.sock,server=on,wait=off"]
        with subprocess.Popen([QEMU, *words], stdin=subprocess.DEVNULL) as qemu:
            try:
                while not (tmp_path / "gdb.sock").exists() and qemu.poll() is None:
                    time.sleep(0.05)
                yield memory
            finally:
                qemu.kill()


def test_qemus_own_stub(tmp_path: Path, machine: MemoryFile) -> None:
    """QEMU stops at the address and says so; the memory file is the machine's memory."""
    stub = GdbStub(tmp_path / "gdb.sock")
    # the BIOS's reset vector jumps to 0xfe05b on every SeaBIOS; real mode: RIP is the offset
    stub.break_at(0xFE05B)
    stub.resume()
    assert stub.wait_for_stop(30) == "05"
    assert stub.instruction_pointer() == 0xE05B
    stub.remove_break(0xFE05B)
    stub.command(f"M500,4:{b'lend'.hex()}")
    with open(machine.path, "rb") as file:
        file.seek(0x500)
        assert file.read(4) == b"lend"
    stub.resume()
    stub.stop()
    stub.close()
