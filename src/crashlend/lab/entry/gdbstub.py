# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client of QEMU's gdb stub: as much as it takes to stop a machine at an address.

The protocol is the GDB manual's appendix E, "GDB Remote Serial Protocol".
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

from crashlend.errors import CrashlendError

if TYPE_CHECKING:
    from pathlib import Path

ANSWER_SECONDS = 30.0
GENERAL_REGISTERS = 16  # of 8 bytes; rip comes after them
BREAKPOINT = "05"  # SIGTRAP
INTERRUPT = b"\x03"


class GdbError(CrashlendError):
    """The stub refused, went away, or said what nobody asked."""


def packet(payload: str) -> bytes:
    """A payload as it goes over the wire: ``$payload#sum``."""
    data = payload.encode("ascii")
    return b"$" + data + b"#" + f"{sum(data) % 256:02x}".encode()


def take_packet(buffer: bytes) -> tuple[str | None, bytes]:
    """The first whole packet's payload and what follows it; (None, buffer) when there is none yet.

    Acknowledgements before it are dropped. GdbError when the sum is wrong.
    """
    start = buffer.find(b"$")
    end = buffer.find(b"#", start)
    if start < 0 or end < 0 or len(buffer) < end + 3:
        return None, buffer
    payload, given = buffer[start + 1 : end], buffer[end + 1 : end + 3]
    if packet(payload.decode("ascii"))[-2:] != given.lower():
        raise GdbError("the gdb stub", f"a packet's sum is not {given!r}: {payload[:40]!r}")
    return payload.decode("ascii"), buffer[end + 3 :]


def is_stop(payload: str) -> bool:
    """Whether a packet says that the machine has stopped."""
    return payload[:1] in ("T", "S")


class GdbStub:
    """One connection. Connecting stops the machine; so do a breakpoint that is hit and stop().

    Every method raises GdbError when the stub refuses or does not answer.
    """

    def __init__(self, path: Path) -> None:
        """Connect to the UNIX socket at ``path``."""
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(os.path.relpath(path) if len(str(path)) > 100 else str(path))
        except OSError as error:
            self._socket.close()
            raise GdbError("the gdb stub", f"cannot connect: {error}") from error
        # it reports a stop that nobody asked about: the answer to a question comes behind that
        self.command("qAttached")

    def close(self) -> None:
        """Hang up; the machine stays as it is."""
        self._socket.close()

    def command(self, payload: str) -> str:
        """The answer to a command that leaves the machine stopped."""
        self._send(packet(payload))
        while True:
            answer = self._receive(ANSWER_SECONDS)
            if not is_stop(answer):
                return answer

    def break_at(self, address: int) -> None:
        """Stop whichever CPU comes to this address, without touching memory (Z1, not Z0)."""
        self._demand(f"Z1,{address:x},1")

    def remove_break(self, address: int) -> None:
        """Take that breakpoint away."""
        self._demand(f"z1,{address:x},1")

    def resume(self) -> None:
        """Let the machine run."""
        self._send(packet("c"))

    def wait_for_stop(self, timeout_seconds: float | None = None) -> str:
        """The signal (two hexadecimal digits) with which the running machine stops; None: for ever."""
        while True:
            answer = self._receive(timeout_seconds)
            if is_stop(answer):
                return answer[1:3]
            if answer[:1] in ("W", "X"):
                raise GdbError("the gdb stub", "the machine ended before it stopped")

    def stop(self) -> None:
        """Stop the running machine where it is."""
        self._send(INTERRUPT)
        self.wait_for_stop(ANSWER_SECONDS)

    def kill(self) -> None:
        """End the machine."""
        self._send(packet("k"))

    def instruction_pointer(self) -> int:
        """RIP of the CPU that stopped."""
        registers = bytes.fromhex(self.command("g"))
        (rip,) = struct.unpack_from("<Q", registers, GENERAL_REGISTERS * 8)
        return int(rip)

    def _demand(self, payload: str) -> None:
        answer = self.command(payload)
        if answer != "OK":
            raise GdbError("the gdb stub", f"{payload} was answered with {answer or 'nothing'!r}")

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise GdbError("the gdb stub", f"the connection is gone: {error}") from error

    def _receive(self, timeout_seconds: float | None) -> str:
        """The next packet's payload, acknowledged."""
        self._socket.settimeout(timeout_seconds)
        while True:
            payload, self._buffer = take_packet(self._buffer)
            if payload is not None:
                self._send(b"+")
                return payload
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise GdbError("the gdb stub", f"silent for {timeout_seconds:g} s") from None
            except OSError as error:
                raise GdbError("the gdb stub", f"the connection is gone: {error}") from error
            if not data:
                raise GdbError("the gdb stub", "it hung up")
            self._buffer += data
