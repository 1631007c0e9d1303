# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the judges' guests are told to load and are read, and what the command makes of it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import crashlend
from crashlend.cli.main import main
from crashlend.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, CrashlendError
from crashlend.formats.elfcore import build_core_header
from crashlend.lab.judges import guests
from crashlend.lab.judges.guests import CASES, KERNEL, LENDING, TOOLS, Case
from crashlend.lab.judges.image import parse_image
from crashlend.lab.judges.report import readings_from
from crashlend.lab.kernels import Kernel
from crashlend.lab.outcome import Outcome
from crashlend.lab.qemu import LostVmError, Report
from crashlend.lab.spec import Check, Spec
from test_judges import CORE, CORE_AT, IMAGE, RESERVATION, page, raw, reading

# --- what runs in the guest


def guest_program() -> Any:
    """guestfiles/reading.py, which is no module of the package."""
    path = Path(crashlend.__file__).parent / "lab/guestfiles/reading.py"
    spec = importlib.util.spec_from_file_location("reading", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FakeMemory:
    """The reservation alone, as bytes."""

    def __init__(self) -> None:
        self.start = RESERVATION[0].start
        self.data = bytearray(RESERVATION.size)

    def put(self, at: int, data: bytes) -> None:
        self.data[at - self.start : at - self.start + len(data)] = data

    def read(self, phys: int, size: int) -> bytes:
        at = phys - self.start
        if at < 0 or at + size > len(self.data):
            raise ValueError(f"physical {phys:#x}")
        return bytes(self.data[at : at + size])


def test_the_guest_finds_and_follows_boot_params(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two pages that look right the new one is taken, with all that it points at."""
    program = guest_program()
    memory = FakeMemory()
    memory.put(0x7100_0000, page())  # an earlier load's
    monkeypatch.setattr(program, "reservations", lambda: [(r.start, r.end) for r in RESERVATION])
    monkeypatch.setattr(program, "log_since", lambda number: (7, [f"after {number}"]))
    monkeypatch.setattr(program, "NOTE", tmp_path / "note")
    program.note(memory)

    data = bytearray(page(setup_data=0x7900_0000))
    struct.pack_into("<I", data, 0x238, 2047)
    memory.put(0x79FF_D000, bytes(data))
    line = b"quiet elfcorehdr=%dK" % (CORE_AT >> 10)
    memory.put(0x79FF_E000, line + b"\0rest")
    memory.put(CORE_AT, build_core_header(CORE))
    memory.put(0x7800_0000, b"r" * 1234)
    memory.put(0x7900_0000, struct.pack("<QII", 0x7900_1000, 9, 4) + b"seed")
    memory.put(0x7900_1000, struct.pack("<QII", 0, 3, 2) + b"ef")
    found = program.read(memory, tmp_path / "ramdisk", "said")
    image = parse_image(found["image"])
    assert found["log"] == ["after 7"]
    assert image.places == {
        "boot_params": 0x79FF_D000,
        "cmdline": 0x79FF_E000,
        "ramdisk": 0x7800_0000,
        "elfcorehdr": CORE_AT,
    }
    assert image.cmdline == line.decode()
    assert [(kind, size) for kind, size, _ in image.setup_data] == [(9, 4), (3, 2)]
    assert image.headers == IMAGE.headers
    assert (tmp_path / "ramdisk").read_bytes() == b"r" * 1234
    assert image.ramdisk_sha256 == hashlib.sha256(b"r" * 1234).hexdigest()

    program.note(memory)
    with pytest.raises(ValueError, match="0 new boot_params"):
        program.read(memory, tmp_path / "ramdisk", "said")


def test_the_guest_refuses_what_is_no_core_header(tmp_path: Path) -> None:
    """An address in the command line under which no ELF header lies is an error, not a reading."""
    program = guest_program()
    memory = FakeMemory()
    data = bytearray(page())
    struct.pack_into("<I", data, 0x238, 2047)
    memory.put(0x79FF_D000, bytes(data))
    memory.put(0x79FF_E000, b"elfcorehdr=%#x\0" % CORE_AT)
    with pytest.raises(ValueError, match="no ELF core header"):
        program.image(memory, 0x79FF_D000, tmp_path / "ramdisk")


# --- the guests and the command


KERNEL_FILES = Kernel("7.3", "7.3.4", "sid", Path("vmlinuz"), Path("modules"), None)


def words_of(case: Case, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that this guest gets, each on one line."""
    monkeypatch.setattr(guests, "fetch", lambda name, say: KERNEL_FILES)
    spec = guests.spec_of(case)
    assert (spec.crash, spec.syscall) == ("none", "load")
    return [" ".join((command.program, *command.words)) for command in spec.commands]


def test_each_judge_loads_what_crashlend_was_found_to_have_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What kexec -s gets is the initramfs of the load that lends, kexec -c of the one that does not."""
    case = next(case for case in CASES if case.name == "cma-7.3")
    words = words_of(case, monkeypatch)
    saved = [line.split()[-1] for line in words if " read /run" in line]
    assert saved[:2] == ["/run/ramdisk-crashlend-none", "/run/ramdisk-crashlend"]
    tools, kernel = (line for line in words if "kexec -d" in line)
    assert " -c -p " in tools
    assert "--initrd=/run/ramdisk-crashlend-none" in tools
    assert " -s -p " in kernel
    assert "--initrd=/run/ramdisk-crashlend;" in kernel
    # nothing of an earlier load is there when the next one is read
    assert [line for line in words if "unload" in line or " -u" in line] == [
        *("crashlend unload", "crashlend unload", "kexec -c -p -u", "kexec -s -p -u"),
    ]


def test_without_cma_one_load_of_crashlend_serves_both_judges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing asked is nothing lent, so a load with --lender none would be the same."""
    case = next(case for case in CASES if case.name == "bios-6.1")
    words = words_of(case, monkeypatch)
    assert sum(line.startswith("crashlend load") for line in words) == 1
    assert sum("--initrd=/run/ramdisk-crashlend;" in line for line in words) == 2


def outcome(spec: Spec, *answers: dict[str, Any], ok: bool = True) -> Outcome:
    """A trial in which the guest printed these readings."""
    events = [
        {"event": "command", "argv": [guests.READING, "read", "/run/r"], "answer": answer}
        for answer in answers
    ]
    return Outcome(spec, Report(list(events), 1.0), {}, {}, "", (Check("did", ok, "it"),), "")


def test_a_guest_is_read_load_by_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading gets the name of its load; a failed check and a missing reading are errors."""
    case = next(case for case in CASES if case.name == "bios-6.1")
    monkeypatch.setattr(guests, "fetch", lambda name, say: KERNEL_FILES)
    iomem = "70000000-79ffffff : Crash kernel"
    answers = [
        {"image": raw(), "said": "kexec-tools 2.0.25\nmore\n", "log": [], "iomem": iomem}
        for _ in range(3)
    ]
    lost = [LostVmError("lost", "gone")]

    def trial(spec: Spec, **_: Any) -> Outcome:
        if lost:
            raise lost.pop()
        return outcome(spec, *answers)

    monkeypatch.setattr(guests, "run_trial", trial)
    found = guests.read_guest(case)
    assert (found.name, found.release, found.kexec_tools) == (
        *("bios-6.1", "7.3.4", "kexec-tools 2.0.25"),
    )
    assert list(found.loads) == [LENDING, TOOLS, KERNEL]
    answers.pop()
    with pytest.raises(CrashlendError, match="2 readings"):
        guests.read_guest(case)
    monkeypatch.setattr(guests, "run_trial", lambda spec, **_: outcome(spec, ok=False))
    with pytest.raises(CrashlendError, match="did: it"):
        guests.read_guest(case)


def test_the_command_writes_the_page_and_the_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was read is kept, the page says it, and a difference is the exit code and a line."""
    guest = replace(reading(), name="bios-6.1")
    guest.loads[TOOLS] = replace(guest.loads[TOOLS], printed=IMAGE.memory_map)
    monkeypatch.setattr(guests, "read_guest", lambda case, **_: guest)
    monkeypatch.setattr("crashlend.lab.qemu.find_qemu", lambda: "true")
    monkeypatch.setattr("crashlend.lab.firmware.find_ovmf", lambda: "ovmf")
    data, page_file = tmp_path / "judges.json", tmp_path / "judges.md"
    words = ["lab", "judges", "--guest", "bios-6.1", "--data", str(data)]
    # every row of the table is gone from a guest in which nothing differs
    assert main([*words, "--report", str(page_file)]) == EXIT_FAILED
    assert "no longer differs as the table says" in capsys.readouterr().out
    assert readings_from(data.read_text()) == [guest]
    assert "| bios-6.1 | 6.1.0 | a kernel without ,cma | kernel |" in page_file.read_text()
    monkeypatch.setattr("crashlend.lab.judges.report.KNOWN", ())
    assert main(["lab", "judges", "--replay", str(data), "--json"]) == EXIT_DONE
    found = json.loads(capsys.readouterr().out)
    assert [v["ok"] for v in found["verdicts"]] == [True, True]
    assert main(["lab", "judges", "--guest", "nobody"]) == EXIT_USAGE
    # nothing is written over by a kernel that no guest has, and a file of something else is told
    kept = data.read_text()
    assert main([*words[:2], "--kernel", "9.9", "--data", str(data)]) == EXIT_USAGE
    data.with_name("other").write_text('{"guests": 1}')
    assert main([*words[:2], "--replay", str(data.with_name("other"))]) == EXIT_FAILED
    assert data.read_text() == kept
