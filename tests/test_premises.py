# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must be so before a trial of a target proves anything, by the words that were really said."""

from __future__ import annotations

import gzip
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from crashlend.formats import newc
from crashlend.lab.packages import find_tool
from crashlend.lab.premises import check_opening, check_own_tools, loaded_files
from crashlend.lab.servers.results import check_net, server_logs
from crashlend.lab.shows import check_shows
from crashlend.lab.spec import Saved, Spec
from crashlend.lab.suites.targets_local import TARGETS_LOCAL
from crashlend.lab.suites.targets_net import TARGETS_NET
from crashlend.lab.targets.layouts import LAYOUTS
from crashlend.sizes import MIB

if TYPE_CHECKING:
    from pathlib import Path

TRIALS = {trial.name: trial for trial in (*TARGETS_LOCAL, *TARGETS_NET)}
LEASE = (
    "udhcpc: lease of 192.168.77.101 obtained from 192.168.77.1, lease time 3600\n"
    "network on eth1 (eth1): 192.168.77.101/24\n"
)
KEPT = (
    "no DHCP answer on eth1 within 14 s, tried with the last address\n"
    "network on eth1 (eth1): 192.168.77.101/24; no DHCP answer on eth1 within 14 s\n"
)
LAST = "target nfs://192.168.77.1/lab/crash is mounted, NFS version "
SIX = "network on eth1 (eth1): fd77::5054:ff:fe77:2/64 fe80::5054:ff:fe77:2/64\n"
FOUR = "network on eth1 (eth1): 192.168.77.101/24\n"
CAME = "Accepted publickey for root from {} port 46738 ssh2: ED25519 SHA256:s7eNpV\n"
PUT = '{} - - [26/Nov/2026:01:33:01 +0000] "PUT {} HTTP/1.1" {} 0 "-" "curl/7.88.1"\n'
DUMP = "/host-2026-11-26-013258/vmcore.flat"


@pytest.mark.parametrize(
    ("trial", "good", "bad"),
    [
        ("net-nfs4-6.1", f"{LEASE}{LAST}4.2", (f"{KEPT}{LAST}4.2", f"{LEASE}{LAST}4.1", LEASE)),
        (
            "net-nfs3-6.1",
            f"network on eth1 (eth1): 192.168.77.20/24\n{LAST}3",
            (f"{LEASE}{LAST}3", f"network on eth1 (eth1): 192.168.77.20/24\n{LAST}4.2"),
        ),
        (
            "net-vlan-6.1",
            f"network on vlan7 (bond0.7): 192.168.78.20/24\n{LAST}3",
            (f"network on bond0 (bond0): 192.168.78.20/24\n{LAST}3",),
        ),
        (
            "net-ssh-6.1",
            SIX + CAME.format("fd77::5054:ff:fe77:2"),
            (FOUR + CAME.format("192.168.77.101"), SIX),
        ),
        (
            "net-https-6.1",
            PUT.format("fd77::2", "/dumps" + DUMP, 201),
            (
                PUT.format("fd77::2", "/dumps" + DUMP, 401),
                PUT.format("fd77::2", "/dumps/host/dmesg.txt", 201),
                PUT.format("fd77::2", "/bucket" + DUMP, 201),
            ),
        ),
        (
            "net-signed-6.1",
            SIX + PUT.format("fd77::2", f"/bucket{DUMP}?signature=x", 201),
            (
                SIX + PUT.format("192.168.77.101", f"/bucket{DUMP}?signature=x", 201),
                SIX + PUT.format("fd77::2", f"/bucket{DUMP}?signature=x", 403),
            ),
        ),
        (
            "raid1-missing-6.1",
            "mdadm: /dev/md100 has been started with 1 drive (out of 2).",
            ("mdadm: /dev/md100 has been started with 2 drives.", ""),
        ),
    ],
)
def test_a_dump_that_came_another_way_is_none(trial: str, good: str, bad: tuple[str, ...]) -> None:
    """An old lease, another version, another family, a whole array: the dump would be there as well."""
    shows = TRIALS[trial].spec["shows"]
    assert check_shows("x", shows, f"before\n{good}\nafter").ok
    for text in bad:
        assert not check_shows("x", shows, text).ok, text


def test_each_trial_on_the_network_says_how_it_shows() -> None:
    """By words for the way that it took, or by the reasons why others failed; none of them is empty."""
    for trial in TARGETS_NET:
        reasons = trial.spec.get("net_reasons", ())
        assert trial.spec.get("shows") or reasons, trial.name
        assert all(reasons)
        assert not any(re.search(words, "something else") for words in reasons)


def test_reasons_are_patterns(tmp_path: Path) -> None:
    """A target that failed of something else fails the trial."""

    class Nobody:
        class report:  # as an attribute
            events: tuple[Any, ...] = ()

    spec = Spec(kernel=None, net="stalls", net_reasons=TRIALS["net-stalls-6.1"].spec["net_reasons"])  # type: ignore[arg-type]
    for last, ok in (("write: Input/output error", True), ("No space left on device", False)):
        said = ("nothing was taken for 30 s", "curl: (28) Operation too slow.", last)
        ladder: list[dict[str, Any]] = [{"ok": False, "reason": reason} for reason in said]
        saved = Saved({"ladder": [*ladder, {"ok": True}]}, "", None, place=tmp_path)
        assert next(iter(check_net(spec, saved, Nobody()))).ok == ok  # type: ignore[arg-type]


def test_opening_must_take_more_than_is_reserved_and_be_seen() -> None:
    """Both that the key slot wants more, and that the crash kernel had it in use."""
    wants = LAYOUTS["combined"].opening_bytes
    assert wants == 256 * MIB
    for reserved, peak, ok in (
        (128, 311, True),
        (320, 311, False),
        (128, 200, False),
        (0, 311, False),
    ):
        plan = {"reservation": [[1 << 30, (1 << 30) + reserved * MIB]] if reserved else []}
        capture = {"crash_kernel": {"peak_used_bytes": peak * MIB}}
        assert check_opening(wants, plan, capture).ok == ok
    assert not check_opening(wants, {}, {}).ok


def test_the_key_slot_is_made_as_the_layout_says() -> None:
    for name in ("luks", "combined"):
        kib = LAYOUTS[name].opening_bytes >> 10
        assert f"--pbkdf argon2id --pbkdf-memory {kib} " in LAYOUTS[name].prepare
        assert "/dev/v" in LAYOUTS[name].prepare
        assert "{" not in LAYOUTS[name].prepare.replace("${", "")


def test_own_tools_means_without_busybox() -> None:
    """Also where it has another name in front, and an initramfs that could not be read shows nothing."""
    assert check_own_tools(["bin/dash", "bin/cat"]).ok
    assert not check_own_tools(["bin/dash", "usr/bin/busybox"]).ok
    assert not check_own_tools(["bin/busybox.static", "bin/dash"]).ok
    assert not check_own_tools([]).ok


def image(tmp_path: Path, files: dict[str, bytes]) -> Path:
    """An ext4 with these files."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, data in files.items():
        (tree / name).write_bytes(data)
    disk = tmp_path / "disk.ext4"
    disk.write_bytes(b"")
    tool = find_tool("mke2fs", "install the package e2fsprogs")
    words = [tool, "-q", "-t", "ext4", "-d", str(tree), str(disk), "4M"]
    subprocess.run(words, check=True)
    return disk


def test_what_is_looked_at_is_what_was_loaded(tmp_path: Path) -> None:
    """The initramfs comes off the lab's disk, compressed as it is."""
    archive = newc.build([newc.regular("bin/dash", b"#"), newc.regular("init", b"#")])
    disk = image(tmp_path, {"initramfs": gzip.compress(archive)})
    assert sorted(loaded_files(disk, tmp_path)) == ["bin/dash", "init"]
    assert not list(tmp_path.glob("loaded*"))


def test_no_initramfs_on_the_disk_is_no_file(tmp_path: Path) -> None:
    assert not list(loaded_files(image(tmp_path, {"job.json": b"{}"}), tmp_path))


def test_the_servers_logs_are_read_off_their_disk(tmp_path: Path) -> None:
    disk = image(tmp_path, {"sshd.log": b"Accepted", "access.log": b"PUT"})
    assert server_logs(disk) == "Accepted\nPUT"
