# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shapes of hosts in the lab: QEMU's words for them, and that a guest of another shape fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crashlend.cli.main import main
from crashlend.errors import CrashlendError
from crashlend.lab import firmware
from crashlend.lab.firmware import find_ovmf
from crashlend.lab.qemu import Disk, Machine, Report
from crashlend.lab.shape import shape
from crashlend.lab.spec import Trial
from crashlend.lab.suite import judge
from crashlend.sizes import GIB, MIB
from test_checks import SHAPE, Case, case

__all__ = ["case"]
MOVABLE = Trial("made-up", "", "6.1")


def machine(**words: Any) -> Machine:
    return Machine(Path("vmlinuz"), Path("initramfs"), "", 4 * GIB, **words)


def after(argv: list[str], word: str) -> list[str]:
    """All values of one of QEMU's options."""
    return [value for name, value in zip(argv, argv[1:]) if name == word]


# ---- QEMU's words


def test_bios_guest_has_no_flash(tmp_path: Path) -> None:
    """Nothing changes for those who ask for nothing: no flash, no nodes."""
    argv = machine().argv(tmp_path)
    assert after(argv, "-machine") == ["pc,memory-backend=ram"]
    assert not [word for word in argv if "pflash" in word or word == "-numa"]


def test_a_disk_has_its_bus_and_keeps_what_it_must(tmp_path: Path) -> None:
    """The root is shared by all guests: what they write to it goes away with them."""
    disks = (Disk(Path("root"), kept=False), Disk(Path("lab"), bus="ide"))
    root, lab = after(machine(disks=disks).argv(tmp_path), "-drive")
    assert "file=root,format=raw,if=virtio," in root
    assert root.endswith("snapshot=on")
    assert "file=lab,format=raw,if=ide," in lab
    assert lab.endswith("snapshot=off")


def test_no_memory_is_set_aside(tmp_path: Path) -> None:
    """A guest may have more memory than its host, on one node or on several."""
    for nodes in (1, 2):
        large = Machine(Path("vmlinuz"), Path("initramfs"), "", 66 * GIB, nodes=nodes)
        words = after(large.argv(tmp_path), "-object")
        assert len(words) == nodes
        assert all(word.endswith(",reserve=off") for word in words)


def test_each_uefi_guest_writes_to_variables_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code is shared and read-only; the variables are a fresh copy at every start."""
    monkeypatch.setattr(firmware, "find_ovmf", lambda: (tmp_path / "CODE", tmp_path / "VARS"))
    (tmp_path / "VARS").write_bytes(b"fresh")
    for name in ("one", "two", "one"):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        code, variables = after(machine(firmware="uefi", machine="q35").argv(directory), "-drive")
        assert code == f"if=pflash,unit=0,format=raw,readonly=on,file={tmp_path}/CODE"
        assert variables == f"if=pflash,unit=1,format=raw,file={directory}/efi-variables.fd"
        assert (directory / "efi-variables.fd").read_bytes() == b"fresh"
        (directory / "efi-variables.fd").write_bytes(b"written by the guest")


def test_ovmf_is_found_as_a_pair(tmp_path: Path) -> None:
    """Code of one layout with variables of another does not boot; Secure Boot's needs more."""
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
    for path in (
        first / "OVMF_CODE_4M.fd",
        first / "OVMF_VARS.fd",
        first / "OVMF_CODE_4M.ms.fd",
        second / "OVMF_CODE.fd",
        second / "OVMF_VARS.fd",
    ):
        path.touch()
    found = find_ovmf((str(first), str(second)))
    assert found == (second / "OVMF_CODE.fd", second / "OVMF_VARS.fd")
    with pytest.raises(CrashlendError, match="OVMF is in none of") as error:
        find_ovmf((str(first),))
    assert "apt install ovmf" in error.value.hint


@pytest.mark.parametrize(("cpus", "nodes"), [(1, 2), (2, 2), (3, 2), (8, 4), (4, 3)])
def test_nodes_share_memory_and_processors(tmp_path: Path, cpus: int, nodes: int) -> None:
    """All of the memory and every CPU is in exactly one node; QEMU wants no less."""
    argv = machine(cpus=cpus, nodes=nodes).argv(tmp_path)
    sizes = [int(word.partition("size=")[2].partition(",")[0]) for word in after(argv, "-object")]
    assert sum(sizes) == 4 * GIB
    assert not [size for size in sizes if size % 4096]
    assert max(sizes) - min(sizes) <= 4096
    seen: list[int] = []
    for number, word in enumerate(after(argv, "-numa")):
        assert word.startswith(f"node,nodeid={number},memdev=node{number}")
        first, dash, last = word.partition(",cpus=")[2].partition("-")
        seen += range(int(first), int(last) + 1) if dash else ()
    assert seen == list(range(cpus))


# ---- what the guest said


def test_shape_is_what_the_guest_said() -> None:
    """Without a report nothing is claimed."""
    assert set(shape(Report()).values()) == {None}
    found = shape(Report([{"event": "booted", **SHAPE}]))
    assert (found["firmware"], found["machine"], found["nodes"]) == ("bios", "pc", 1)


@pytest.mark.parametrize(
    ("words", "odd"),
    [
        ({"firmware": "uefi"}, "firmware uefi"),
        ({"machine": "q35"}, "machine q35"),
        ({"cpus": 2}, "cpus 2"),
        ({"nodes": 2}, "nodes 2"),
        ({"block_bytes": 2 * GIB}, "block_bytes 2147483648"),
        ({"cpu_model": "max,la57=off"}, "five_level False"),
        ({"cpu_model": "qemu64"}, "five_level False"),
        ({"cmdline": "crashkernel=256M,high crashkernel=1G,cma"}, "crash_ranges 2"),
        ({"cmdline": "no5lvl crashkernel=1G,cma crashkernel=100M"}, "five_level False"),
    ],
)
def test_guest_of_another_shape_fails(case: Case, words: dict[str, Any], odd: str) -> None:
    """A trial of a shape that did not come about does not pass, whatever else held."""
    assert judge(MOVABLE, case.outcome()) == ""
    case.spec = replace(case.spec, **words)
    assert odd in judge(MOVABLE, case.outcome())


@pytest.mark.parametrize(
    ("config", "passes"),
    [("CONFIG_X86_5LEVEL=y\n", False), ("# CONFIG_X86_5LEVEL is not set\n", True), ("", False)],
)
def test_a_kernel_without_5_level_paging_has_none(
    config: str, passes: bool, case: Case, tmp_path: Path
) -> None:
    """Debian 11's was built without; since the option is gone every kernel has it."""
    (tmp_path / "config").write_text(config)
    case.spec = replace(case.spec, kernel=replace(case.spec.kernel, config=tmp_path / "config"))
    case.events["booted"]["la57"] = False
    assert (judge(MOVABLE, case.outcome()) == "") is passes


def test_trial_tells_the_real_shape(case: Case) -> None:
    """The JSON has what the guest saw, not what the spec asked for."""
    case.events["booted"].update(efi=True, host_bridge="0x29c0", nodes={"0": [1, {}], "1": [1, {}]})
    told = case.outcome().to_json()
    assert (told["firmware"], told["machine"], told["nodes"]) == ("uefi", "q35", 2)
    del case.events["booted"]
    assert case.outcome().to_json()["firmware"] is None


def test_node_that_lends_too_much_fails(case: Case) -> None:
    """Each node's share is judged by itself, and one must be left with memory for the kernel."""
    case.spec = replace(case.spec, nodes=2)
    halves = {"0": [2 * GIB, {"Normal": 12, "Movable": 4}], "1": [2 * GIB, {"Movable": 4, "x": 12}]}
    case.events["booted"]["nodes"] = halves
    case.events["loaded"] = {"nodes": halves}
    assert judge(MOVABLE, case.outcome()) == ""
    for blocks in ({"Normal": 7, "Movable": 9}, {"Movable": 8}):
        case.events["loaded"]["nodes"] = {**halves, "1": [2 * GIB, blocks]}
        assert "no node lends more than its share" in judge(MOVABLE, case.outcome())


def test_crash_kernel_without_acpi_fails(case: Case) -> None:
    """It may come up and save its dump all the same; that is no reason to pass."""
    case.events["crash_kernel"]["acpi"] = False
    assert "crash kernel found ACPI" in judge(MOVABLE, case.outcome())
    case.events["booted"]["acpi"] = False
    assert judge(MOVABLE, case.outcome()) == ""


def test_low_range_that_shrank_or_moved_fails(case: Case) -> None:
    """Of two reserved ranges only the upper one may become smaller (hazard 10)."""
    low, high = [GIB, GIB + 64 * MIB], [2 * GIB, 2 * GIB + 100 * MIB]
    case.events["booted"]["crash_ranges"] = [low, high]
    for after in ([low, high], [low, [high[0], high[0] + MIB]]):
        case.events["loaded"] = {"crash_ranges": after}
        assert judge(MOVABLE, case.outcome()) == ""
    for after in ([], [low], [high], [[GIB, GIB + 20 * MIB], high]):
        case.events["loaded"] = {"crash_ranges": after}
        assert "low part of the reservation" in judge(MOVABLE, case.outcome())


def test_silent_rounding_fails(case: Case) -> None:
    """What is lent beyond what was asked for is said, and it is whole blocks."""
    case.spec = replace(case.spec, lend_bytes=GIB - 28 * MIB)
    case.plan["offer"]["asked_bytes"] = GIB - 28 * MIB
    case.plan["notes"] = ["memory blocks are 128 MiB here: the request is rounded up"]
    assert judge(MOVABLE, case.outcome()) == ""
    case.plan["notes"] = []
    assert "rounded up to whole blocks" in judge(MOVABLE, case.outcome())


def test_memory_that_ends_elsewhere_fails(case: Case) -> None:
    """With mem= production's RAM ends at that very byte."""
    end = 5 * GIB - 3 * 1024
    words = f"crashkernel=1G,cma crashkernel=100M mem={end // 1024}K"
    case.spec = replace(case.spec, cmdline=words)
    assert "production's memory ends where it was told to" in judge(MOVABLE, case.outcome())
    case.plan["system_ram"][-1][1] = end
    failed = [c.name for c in case.outcome().checks if not c.ok]
    assert "production's memory ends where it was told to" not in failed


@pytest.mark.parametrize("words", [["--nodes", "0"], ["--cpus", "-1"], ["--firmware", "efi"]])
def test_flags_that_describe_no_machine_are_refused(words: list[str]) -> None:
    """Usage errors, before anything is fetched."""
    with pytest.raises(SystemExit) as end:
        main(["lab", "trial", *words])
    assert end.value.code == 2


def test_sizes_reach_qemu_whole(tmp_path: Path) -> None:
    """Memory that is no whole number of MiB is not rounded down."""
    odd = Machine(Path("vmlinuz"), Path("initramfs"), "", 3 * GIB + 8192)
    argv = odd.argv(tmp_path)
    assert after(argv, "-m") == [f"{3 * 1024 * 1024 + 8}K"]
    assert f"size={3 * GIB + 8192}," in after(argv, "-object")[0]
    assert after(machine(dimms=(GIB,)).argv(tmp_path), "-m")[0].startswith(f"{4 << 20}K,slots=1")
