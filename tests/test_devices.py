# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts of devices: PCI functions, DMA that no wait ends, watchdogs; and snapshots of them."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING

import pytest

from build import MemoryFiles, facts, host, pci_function, write_tree
from crashlend.facts import EndlessWriter, Facts, PciFunction, Watchdog, read_facts
from crashlend.facts.writers import KINDS
from crashlend.hostfiles import ArchiveFiles, TreeFiles
from crashlend.jsonable import from_json, to_json
from crashlend.snapshot import take_snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CARD = "0000:00:02.0"
DRI = "/sys/kernel/debug/dri"
OPEN = b"             command  tgid dev master a   uid      magic\n"
GPU = pci_function(CARD, 0x030000, "i915")
# /proc/modules: name, size, references, users by comma, state, address
MODULES = (
    b"i915 3000000 %d snd_hda_intel, Live 0x0\nib_uverbs 163840 %d mlx5_ib,rdma_ucm, Live 0x0\n"
)


def writers(files: Mapping[str, bytes | None]) -> tuple[EndlessWriter, ...]:
    return facts(files=files).endless_writers


# --- PCI functions -------------------------------------------------------------------------------


def test_a_function_is_what_its_files_say() -> None:
    """Class, driver, header, command register and physical function, each from its own file."""
    found = facts(
        files={
            **pci_function("0000:00:1c.0", 0x060400, "pcieport", header=0x81),
            **pci_function("0000:00:04.0", 0x010802, "nvme", master=False),
            **pci_function("0000:01:10.1", 0x020000, virtual_of="0000:01:00.0"),
            **pci_function("10000:e1:00.0", 0x010802, "nvme"),
        }
    ).pci_functions
    assert found == (
        PciFunction("0000:00:04.0", 0x010802, "nvme", False, False, ""),
        PciFunction("0000:00:1c.0", 0x060400, "pcieport", True, True, ""),
        PciFunction("0000:01:10.1", 0x020000, "", False, True, "0000:01:00.0"),
        PciFunction("10000:e1:00.0", 0x010802, "nvme", False, True, ""),
    )


@pytest.mark.parametrize("config", [b"", b"\xff" * 64, b"\x86\x80"])
def test_what_the_header_does_not_say_is_unknown(config: bytes) -> None:
    """No, a cut or an absent device's configuration space: not taken for "is no bus master"."""
    some = facts(files=pci_function("0000:00:04.0", 0x010802, config=config))
    assert some.pci_functions[0].bus_master is None


def test_a_sleeping_function_is_not_woken() -> None:
    """In D3cold a read of its configuration space would switch it on."""
    files = {**pci_function("0000:00:04.0", 0x010802)}
    files["/sys/bus/pci/devices/0000:00:04.0/power_state"] = b"D3cold\n"
    memory = MemoryFiles(host(files=files))
    assert read_facts(memory).pci_functions[0].bus_master is None
    assert not [path for path in memory.read_paths if path.endswith("/config")]


def test_what_is_no_function_is_passed_over() -> None:
    """A name or a class that is none."""
    base = "/sys/bus/pci/devices"
    assert (
        facts(
            files={
                f"{base}/0000:00:04/uevent": b"PCI_CLASS=10802\n",
                f"{base}/0000:00:05.0/uevent": b"PCI_CLASS=zz\n",
                f"{base}/0000:00:06.0/uevent": b"",
            }
        ).pci_functions
        == ()
    )


# --- DMA that no wait ends -----------------------------------------------------------------------


def test_a_card_without_open_files_is_none() -> None:
    """A desktop's card that nobody has open: debugfs says so, whatever the console holds."""
    files = {
        **GPU,
        "/proc/modules": MODULES % (9, 2),
        f"{DRI}/0/name": b"i915 dev=0000:00:02.0 unique=0000:00:02.0\n",
        f"{DRI}/0/clients": OPEN,
    }
    assert writers(files) == ()


@pytest.mark.parametrize("directory", ["0", "128", "0000:00:02.0"])
def test_a_card_that_is_open_is_one(directory: str) -> None:
    """Each open file is a line of debugfs, in every kernel's way of naming the directory."""
    files = {
        **GPU,
        f"{DRI}/{directory}/name": b"i915 dev=0000:00:02.0 unique=0000:00:02.0\n",
        f"{DRI}/{directory}/clients": OPEN + b"  Xorg  812   0   y    y     0          0\n",
    }
    (one,) = writers(files)
    assert (one.name, one.driver, one.address) == ("GPU", "i915", CARD)
    assert "1 open files" in one.seen


def test_another_card_s_files_say_nothing() -> None:
    """The clients that count are those of this very function."""
    files = {
        **GPU,
        "/proc/modules": MODULES % (1, 2),
        f"{DRI}/1/name": b"ast dev=0000:03:00.0 unique=0000:03:00.0\n",
        f"{DRI}/1/clients": OPEN + b"  Xorg  812   0   y    y     0          0\n",
    }
    assert writers(files) == ()


@pytest.mark.parametrize(
    ("modules", "seen"),
    [
        (MODULES % (1, 2), None),
        (MODULES % (3, 2), "i915 has 2 users"),
        (b"i915 3000000 - - Live 0x0\n", "does not tell"),
        (b"other 1 0 - Live 0x0\n", "does not tell"),  # built in
        (None, "does not tell"),
    ],
)
def test_without_debugfs_the_module_s_count_decides(
    modules: bytes | None, seen: str | None
) -> None:
    """References of other modules are taken off; what can't be told counts as in use."""
    found = writers({**GPU, "/proc/modules": modules})
    assert [one.seen for one in found] == [] if seen is None else seen in found[0].seen


def test_rdma_counts_where_verbs_are_open() -> None:
    """mlx5 without an open verbs device is a network card."""
    card = pci_function("0000:3b:00.0", 0x020700, "mlx5_core")
    verbs = {"/sys/class/infiniband_verbs/uverbs0/ibdev": b"mlx5_0\n"}
    assert writers({**card, "/proc/modules": MODULES % (1, 5)}) == ()
    assert writers({**card, **verbs, "/proc/modules": MODULES % (1, 2)}) == ()
    (one,) = writers({**card, **verbs, "/proc/modules": MODULES % (1, 3)})
    assert (one.name, one.seen) == (
        "RDMA with on-demand paging",
        "ib_uverbs has 1 users (/proc/modules)",
    )


def test_a_module_from_outside_that_is_not_loaded_is_not_used() -> None:
    """nvidia_uvm can't be built in: not in the list is not there."""
    card = pci_function("0000:41:00.0", 0x030200, "nvidia")
    assert writers({**card, "/proc/modules": b"nvidia 1 40 - Live 0x0\n"}) == ()
    (one,) = writers({**card, "/proc/modules": b"nvidia_uvm 1 2 - Live 0x0\n"})
    assert one.driver == "nvidia"


@pytest.mark.parametrize(
    ("kind", "clients", "is_one"),
    [("user", "1", True), ("user", "0", False), ("kernel", "4", False)],
)
def test_accelerator_queues_count_by_their_users(kind: str, clients: str, is_one: bool) -> None:
    """The queues of the kernel itself work on memory that is pinned."""
    files = {
        **pci_function("0000:6a:01.0", 0x088000, "idxd"),
        "/sys/bus/dsa/devices/wq0.0/type": f"{kind}\n".encode(),
        "/sys/bus/dsa/devices/wq0.0/clients": f"{clients}\n".encode(),
    }
    assert bool(writers(files)) is is_one


@pytest.mark.parametrize(("flags", "is_one"), [("1", True), ("0", False), ("x", False)])
def test_uacce_counts_where_addresses_are_shared(flags: str, is_one: bool) -> None:
    """Its address comes from the device, where that is a PCI function."""
    base = "/sys/class/uacce/hisi_zip-0"
    files = {
        f"{base}/flags": f"{flags}\n".encode(),
        f"{base}/device/uevent": b"DRIVER=hisi_zip\nPCI_SLOT_NAME=0000:75:00.0\n",
        "/proc/modules": b"uacce 1 2 hisi_qm, Live 0x0\n",
    }
    found = writers(files)
    assert [(one.driver, one.address) for one in found] == [("hisi_zip", "0000:75:00.0")] * is_one


def test_every_kind_has_a_reason_and_a_source() -> None:
    """The table says why no wait ends it, and where that can be read; no driver stands twice."""
    assert all(kind.why and "/" in kind.source for kind in KINDS)
    assert len({kind.driver for kind in KINDS}) == len(KINDS)


# --- watchdogs -----------------------------------------------------------------------------------


def watchdog(**files: bytes) -> dict[str, bytes]:
    return {f"/sys/class/watchdog/watchdog0/{name}": data for name, data in files.items()}


def test_a_watchdog_is_what_its_files_say() -> None:
    """State, timeout and nowayout of hardware."""
    some = facts(
        files=watchdog(identity=b"iTCO_wdt\n", state=b"active\n", timeout=b"30\n", nowayout=b"1\n")
    )
    assert some.watchdogs == (Watchdog("watchdog0", "iTCO_wdt", True, 30, True),)
    rest = facts(files=watchdog(identity=b"iTCO_wdt\n", state=b"inactive\n", timeout=b"30\n"))
    assert rest.watchdogs == (Watchdog("watchdog0", "iTCO_wdt", False, 30, False),)


def test_the_kernel_s_own_watchdog_is_none() -> None:
    """Softdog is a timer of the kernel that has died."""
    dog = watchdog(identity=b"Software Watchdog\n", state=b"active\n", timeout=b"5\n")
    assert facts(files=dog).watchdogs == ()


# --- snapshots -----------------------------------------------------------------------------------

EVERYTHING = {
    **GPU,
    **pci_function("0000:01:10.1", 0x020000, virtual_of="0000:01:00.0"),
    **watchdog(identity=b"iTCO_wdt\n", state=b"active\n", timeout=b"30\n", nowayout=b"0\n"),
    f"{DRI}/0/name": b"i915 dev=0000:00:02.0 unique=0000:00:02.0\n",
    f"{DRI}/0/clients": OPEN + b"  secret-program  812   0   y    y     0          0\n",
}


def test_a_snapshot_brings_devices_along_and_no_program_s_name(tmp_path: Path) -> None:
    """The same facts from the archive and from its tree; who has a card open stays at home."""
    files = MemoryFiles(host(files=EVERYTHING))
    archive, some = take_snapshot(files)
    unpacked = ArchiveFiles(archive, "x")
    assert some.endless_writers
    assert read_facts(unpacked) == some
    assert b"secret-program" not in b"".join(unpacked.files.values())
    tree = write_tree(tmp_path, unpacked.files)
    assert read_facts(TreeFiles(tree)).pci_functions == some.pci_functions


def test_facts_of_devices_go_through_json() -> None:
    """As all facts do."""
    some = facts(files=EVERYTHING)
    assert from_json(Facts, json.loads(json.dumps(to_json(some)))) == some


def test_devices_that_cannot_be_read_are_missing() -> None:
    """A file that is there and fails is named; its function is still known."""
    path = "/sys/bus/pci/devices/0000:00:02.0/config"
    some = facts(files=GPU, errors={path: errno.EIO})
    assert path in some.missing
    assert some.pci_functions[0].bus_master is None
