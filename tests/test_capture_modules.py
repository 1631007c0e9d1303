# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which modules go in for watchdogs and pstore: hosts built by code."""

from __future__ import annotations

from pathlib import Path

import pytest

from crashlend.capture.modulelists import module_lists
from crashlend.capture.modules import ModuleTree, Want
from crashlend.capture.pstore import PstoreModule, find_pstore
from crashlend.capture.watchdogs import watchdog_wants
from crashlend.cli import hosts
from crashlend.config import Settings
from disk_host import Host

WATCHDOG = "sys/devices/pci0000:00/0000:00:1f.0"


def tree(**files: str) -> ModuleTree:
    """A kernel with these modules, each with its directory in the tree."""
    paths = {name: f"kernel/{path}/{name}.ko" for name, path in files.items()}
    none: dict[str, tuple[str, ...]] = dict.fromkeys(files, ())
    return ModuleTree(Path("/m"), paths, none, {}, (), frozenset(), ())


TREE = tree(
    lpc_ich="drivers/mfd",
    iTCO_wdt="drivers/watchdog",
    softdog="drivers/watchdog",
    ipmi_watchdog="drivers/char/ipmi",
    virtio_blk="drivers/block",
    efi_pstore="drivers/firmware/efi",
    ramoops="fs/pstore",
)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with a watchdog below a bridge, and softdog."""
    host = Host(tmp_path)
    host.driver(WATCHDOG, "lpc_ich", "lpc_ich")
    host.driver(f"{WATCHDOG}/iTCO_wdt", "iTCO_wdt", "iTCO_wdt")
    host.link("sys/bus/any/drivers/iTCO_wdt/iTCO_wdt", f"{WATCHDOG}/iTCO_wdt")
    host.link("sys/module/iTCO_wdt/drivers/platform:iTCO_wdt", "sys/bus/any/drivers/iTCO_wdt")
    for name in ("iTCO_wdt", "softdog", "ipmi_watchdog", "virtio_blk"):
        host.write(f"sys/module/{name}/initstate", "live\n")
    return host


def test_watchdogs_that_production_has_loaded(host: Host) -> None:
    """Those of hardware, behind what their device hangs on; built-in code has no initstate."""
    host.write("sys/module/efi_pstore/parameters/x", "1")
    names = [want.name for want in watchdog_wants(host.root, TREE)]
    assert names == ["lpc_ich", "iTCO_wdt", "ipmi_watchdog"]
    assert all(want.optional for want in watchdog_wants(host.root, TREE))
    assert watchdog_wants(host.root, tree()) == ()


def test_a_bmc_s_watchdog_comes_after_what_reaches_the_bmc(host: Host) -> None:
    """ipmi_watchdog finds no BMC by itself, and depends on no driver that does."""
    host.write("sys/module/ipmi_si/initstate", "live\n")
    names = [want.name for want in watchdog_wants(host.root, TREE)]
    assert names == ["lpc_ich", "iTCO_wdt", "ipmi_si", "ipmi_watchdog"]


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("", ()),
        ("(null)", ()),
        ("erst", ()),  # built in
        ("efi", (PstoreModule("efi_pstore"),)),
        ("efi_pstore", (PstoreModule("efi_pstore"),)),
        ("ramoops", (PstoreModule("ramoops", ("max_reason=4",)),)),
    ],
)
def test_the_backend_is_production_s(
    host: Host, backend: str, expected: tuple[PstoreModule, ...]
) -> None:
    """What production does not use it would not read."""
    host.write("sys/module/pstore/parameters/backend", backend + "\n")
    assert find_pstore(host.root) == expected


def test_ramoops_gets_production_s_layout(host: Host) -> None:
    """Its parameters say where the memory is and how it is divided; firmware tells neither."""
    host.write("sys/module/pstore/parameters/backend", "ramoops\n")
    for key, value in (("mem_address", "4294967296"), ("mem_size", "1048576"), ("ecc", "1")):
        host.write(f"sys/module/ramoops/parameters/{key}", value + "\n")
    (found,) = find_pstore(host.root)
    assert found.parameters == (
        "mem_address=4294967296",
        "mem_size=1048576",
        "ecc=1",
        "max_reason=4",
    )


def test_each_module_is_in_one_list(host: Host) -> None:
    """Watchdogs first, pstore last, and nothing of either where it is not wanted."""
    host.write("sys/module/pstore/parameters/backend", "ramoops\n")
    wants = (Want("virtio_blk", "disk"), Want("lpc_ich", "disk"))
    lists = module_lists(host.root, TREE, wants, watchdogs=True, pstore=True)
    assert [[i.module.name for i in inserts] for inserts in lists] == [
        ["lpc_ich", "iTCO_wdt", "ipmi_watchdog"],
        ["virtio_blk"],
        ["ramoops"],
    ]
    assert lists.pstore[0].line == "/lib/modules/ramoops.ko max_reason=4\n"
    assert lists.modules[0].line == "/lib/modules/virtio_blk.ko\n"
    lists = module_lists(host.root, TREE, wants, watchdogs=False, pstore=False)
    assert [len(inserts) for inserts in lists] == [0, 2, 0]


@pytest.mark.parametrize(
    ("settings", "total", "stall"),
    [
        (Settings(), 600, 300),
        (Settings(stall_timeout=40), 80, 40),
        (Settings(stall_timeout=40, total_timeout=500), 500, 40),
    ],
)
def test_the_times_of_the_settings_are_in_the_initramfs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Settings, total: int, stall: int
) -> None:
    """Also for loads by others, who add nothing to it."""
    monkeypatch.setattr(hosts, "find_targets", lambda *_: ())
    spec = hosts.capture_spec(settings, "6.1", tmp_path)
    assert (spec.total_timeout, spec.stall_timeout) == (total, stall)


def test_dumps_are_named_after_the_host(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    """By its name as it is now, else as it is configured; dumps of several may meet on a server."""
    monkeypatch.setattr(hosts, "find_targets", lambda *_: ())
    assert hosts.capture_spec(Settings(), "6.1", host.root).host == ""
    host.write("proc/sys/kernel/hostname", "(none)\n")
    assert hosts.capture_spec(Settings(), "6.1", host.root).host == ""
    host.write("etc/hostname", "web0\n")
    assert hosts.capture_spec(Settings(), "6.1", host.root).host == "web0"
    host.write("proc/sys/kernel/hostname", "web1.example.org\n")
    assert hosts.capture_spec(Settings(), "6.1", host.root).host == "web1.example.org"
