# SPDX-License-Identifier: LGPL-2.1-or-later
"""init's parts for devices and stacks, run by the host's busybox with stand-ins for the tools."""

from __future__ import annotations

import struct
import uuid
from typing import TYPE_CHECKING

import pytest

from capture_shell import SHELLS, STUBS, executable, needs_busybox, shell
from disk_host import UUID, ext4_superblock, luks1_header, luks2_header

if TYPE_CHECKING:
    from pathlib import Path

LUKS = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
BTRFS = "00010203-0405-0607-0809-0a0b0c0d0e0f"


def btrfs_superblock() -> bytes:
    data = bytearray(1 << 17)
    data[65536 + 0x20 : 65536 + 0x30] = uuid.UUID(BTRFS).bytes
    data[65536 + 0x12B : 65536 + 0x12E] = b"big"
    return bytes(data)


@needs_busybox
@pytest.mark.parametrize(
    ("spec", "kind", "found"),
    [
        (f"UUID={UUID}", "ext4", "ext4"),
        ("LABEL=my disk", "ext4", "ext4"),
        (f"UUID={BTRFS}", "btrfs", "btrfs"),
        (f"UUID={BTRFS.upper()}", "btrfs", "btrfs"),
        ("LABEL=big", "btrfs", "btrfs"),
        (f"UUID={LUKS}", "luks", "luks2"),
        ("UUID=11111111-2222-3333-4444-555555555556", "ext4", ""),
        (f"UUID={UUID}", "luks", ""),
    ],
)
def test_find_device(tmp_path: Path, spec: str, kind: str, found: str) -> None:
    """By UUID or label of each kind; what has no LUKS magic is no LUKS device."""
    for name, data in {
        "empty": b"",
        "ext4": ext4_superblock("my disk"),
        "btrfs": btrfs_superblock(),
        "luks2": luks2_header(LUKS),
        "luks1": luks1_header(UUID.replace("1", "2")),
    }.items():
        (tmp_path / name).write_bytes(data)
    script = STUBS + f"find_device '{spec}' {kind} empty ext4 btrfs luks2 luks1"
    assert shell(script, tmp_path).strip() == found


def gpt_disk(guid: uuid.UUID, number: int) -> bytes:
    """A disk whose GPT (UEFI 2.10, 5.3) has one entry, the ``number``-th."""
    header = struct.pack("<8s64xQII", b"EFI PART", 2, 128, 128)
    entry = uuid.uuid4().bytes_le + guid.bytes_le
    return (bytes(512) + header).ljust(1024, b"\0") + (bytes(128 * (number - 1)) + entry).ljust(
        16384
    )


@needs_busybox
def test_partition_uuids_from_gpt_and_mbr(tmp_path: Path) -> None:
    """The kernel tells them in sysfs only since 6.15, so the table is read."""
    guid = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")
    block = tmp_path / "sys/devices/vda"
    for number in (1, 3):
        (block / f"vda{number}").mkdir(parents=True)
        (block / f"vda{number}/partition").write_text(f"{number}\n")
    (block / "queue").mkdir()
    (block / "queue/logical_block_size").write_text("512\n")
    (tmp_path / "class").mkdir()
    for name in ("vda", "vda1", "vda3"):
        target = block if name == "vda" else block / name
        (tmp_path / "class" / name).symlink_to(target)
    script = f"""{STUBS}
    partition() {{ echo "$(partition_uuid $PWD/$1)"; }}
    partition vda3
    """
    init = shell("cat ./init", tmp_path)
    assert "/sys/class/block/${1##*/}" in init
    (tmp_path / "vda").write_bytes(gpt_disk(guid, 3))
    text = init.replace("/sys/class/block", str(tmp_path / "class")).replace(
        "disk=/dev/${disk##*/}", f"disk={tmp_path}/${{disk##*/}}"
    )
    (tmp_path / "moved").write_text(text)
    load = f". ./moved; defaults; PATH=/bin:/usr/bin TMP=$PWD LOG=$PWD/log\n{script}"
    assert shell(load, tmp_path).strip() == str(guid)
    (tmp_path / "vda").write_bytes(bytes(440) + bytes.fromhex("78563412") + bytes(1000))
    assert shell(load, tmp_path).strip() == "12345678-03"


TOOL = """
echo "${0##*/} $*" >>calls
case "$*" in *--no-degraded*) exit $(cat fails 2>/dev/null || echo 0) ;; esac
exit $(cat "fails.${0##*/}" 2>/dev/null || echo 0)
"""
# mdadm as of 4.2 where a member is missing until there is a file "whole": --no-degraded ends with 0
# and leaves the array inactive, which holds the members that are there.
MDADM = """
echo "mdadm $*" >>calls
state=read-auto
case "$*" in
  *--stop*) rm -r block/md100 && exit ;;
  *--no-degraded*) [ -e whole ] || state=inactive ;;
esac
[ ! -e block/md100 ] || exit 1
mkdir -p block/md100/md
echo $state >block/md100/md/array_state
echo /dev/md100 >there
"""
# What exists once a tool has run cannot be a block device here: "[ -b" is asked of a function.
WORLD = (
    STUBS
    + """
TARGET_TIMEOUT=3 LOG=$PWD/log
mkdir() { :; }
usleep() { clock=$((clock + 100)); }
clock=0
now() { echo $clock; }
block_devices() { echo "any-$1"; }
find_device() { echo "/dev/found-$3"; }
"""
)


def world(where: Path, script: str, mdadm: str = TOOL) -> tuple[str, list[str]]:
    """What the script prints, and the calls of tools. sysfs has its block devices in ``where``/block."""
    for tool, text in {"mdadm": mdadm, "cryptsetup": TOOL, "lvm": TOOL}.items():
        executable(where / f"bin/{tool}", text)
    init = (
        shell("cat ./init", where)
        .replace("[ -b ", "is_there ")
        .replace('[ ! -b "/dev/mapper', '! is_there "/dev/mapper')
        .replace("/sys/class/block", str(where / "block"))
    )
    (where / "moved").write_text(init)
    setup = ". ./moved; defaults; TMP=$PWD LOG=$PWD/log ETC=$PWD PATH=$PWD/bin:/bin:/usr/bin\n"
    setup += 'is_there() { grep -q -s "$1" there; }\n'
    out = shell(setup + WORLD + script, where)
    calls = where / "calls"
    return out, calls.read_text().splitlines() if calls.exists() else []


@needs_busybox
@pytest.mark.parametrize(
    ("status", "why"),
    [
        (2, "no key slot takes the key file"),
        (3, "out of memory"),
        (137, "out of memory"),
        (5, "with 5"),
    ],
)
def test_why_a_luks_device_does_not_open(tmp_path: Path, status: int, why: str) -> None:
    """Cryptsetup's exit status becomes a reason that people can act on."""
    (tmp_path / "fails.cryptsetup").write_text(str(status))
    out, calls = world(tmp_path, f'stack_luks {LUKS} crash /key stacked || echo "failed: $WHY"')
    assert why in out
    assert calls == [
        "cryptsetup open --type luks --disable-locks --key-file /key /dev/found-any-stacked crash"
    ]


@needs_busybox
def test_the_stack_is_taken_down_from_the_top(tmp_path: Path) -> None:
    """The volume in the middle goes after what is on it, and the array last."""
    (tmp_path / "array.100").write_text("1:2\n")
    script = f"""
    TARGET_STACK='raid 1:2 plain
lvm vg secret vg-secret stacked
luks {LUKS} crash /key stacked'
    stack_down
    """
    _, calls = world(tmp_path, script)
    assert calls == [
        "cryptsetup close --disable-locks crash",
        "lvm lvchange --sysinit -a n vg/secret",
        "mdadm --stop /dev/md100",
    ]
    assert not (tmp_path / "array.100").exists()


@needs_busybox
def test_steps_are_taken_in_order_until_one_fails(tmp_path: Path) -> None:
    """Each step gets its own words."""
    script = """
    stack_raid() { echo "raid $*"; }
    stack_lvm() { echo "lvm $*"; return 1; }
    stack_luks() { echo "luks $*"; }
    TARGET_STACK='raid 1:2 plain
lvm vg lv vg-lv stacked
luks u n k stacked'
    stack_up || echo failed
    """
    out, _ = world(tmp_path, script)
    assert [line.split() for line in out.splitlines()] == [
        ["raid", "1:2", "plain"],
        ["lvm", "vg", "lv", "vg-lv", "stacked"],
        ["failed"],
    ]


@needs_busybox
def test_a_missing_member_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    """Complete at first; after a third of the time with what there is."""
    (tmp_path / "fails").write_text("1")
    (tmp_path / "fails.mdadm").write_text("1")
    out, calls = world(
        tmp_path,
        'stack_began=0; bounded() { clock=$((clock + 60)); shift; "$@"; }\n'
        'stack_raid 1:2 plain || echo "failed: $WHY"',
    )
    assert "cannot assemble the RAID 1:2" in out
    whole = [call for call in calls if "--no-degraded" in call]
    rest = [call for call in calls if "--run" in call]
    assert whole
    assert rest
    assert calls.index(whole[-1]) < calls.index(rest[0])


@needs_busybox
def test_an_array_that_does_not_run_is_not_taken(tmp_path: Path) -> None:
    """Of an incomplete array mdadm makes a device without a byte, and calls that success.

    It is stopped, and started without the member that does not come.
    """
    out, calls = world(
        tmp_path, "stack_began=0; stack_raid 1:2 plain || echo failed; cat said", MDADM
    )
    assert out.splitlines() == [
        "not all members of the RAID 1:2 have appeared: going on without",
        "RAID 1:2 is /dev/md100",
    ]
    tried = f"mdadm --assemble --scan --config={tmp_path}/mdadm.conf"
    stop = "mdadm --stop /dev/md100"
    whole = f"{tried} --no-degraded"
    assert calls == [whole, stop, whole, stop, f"{tried} --run"]
    assert (tmp_path / "array.100").read_text() == "1:2\n"


@needs_busybox
def test_a_member_that_comes_late_is_in_the_array(tmp_path: Path) -> None:
    """The attempt before has let go of the other members, so that the array becomes complete."""
    late = 'stack_began=0; usleep() { : >whole; }; stack_raid 1:2 plain || echo "failed: $WHY"'
    out, calls = world(tmp_path, late, MDADM)
    assert not out
    assert [call.split()[-1] for call in calls] == ["--no-degraded", "/dev/md100", "--no-degraded"]


@needs_busybox
def test_an_array_is_frozen_within_a_bound(tmp_path: Path) -> None:
    """Who writes the word may have to wait for a resync to end: the shell must not do that itself."""
    (tmp_path / "whole").touch()
    script = """
    bounded() { echo "$*" >>bounds; shift; "$@"; }
    stack_began=0
    stack_raid 1:2 plain
    cat bounds block/md100/md/sync_action
    """
    out, _ = world(tmp_path, script, MDADM)
    bounds = out.splitlines()
    assert bounds.pop() == "frozen"
    assert "sync_action" in bounds[-1]


@needs_busybox
def test_a_target_without_a_stack_needs_no_stack(tmp_path: Path) -> None:
    """fs_close of a plain disk calls no tool."""
    out, calls = world(
        tmp_path, "DIR=; TARGET_STACK=; TARGET_MOUNTED=; sync() { :; }; fs_close; echo $?"
    )
    assert out.strip() == "0"
    assert calls == []


@pytest.mark.parametrize("by", SHELLS[1:])  # Debian's busybox runs its own insmod
def test_a_driver_that_takes_minutes_is_left_to_it(tmp_path: Path, by: tuple[str, ...]) -> None:
    """One that is killed while its card comes up fails for good."""
    executable(tmp_path / "bin/insmod", "exec sleep 50\n")
    script = """
    say() { echo "$*"; }
    await() { return 124; }
    usleep() { :; }
    insert slow.ko
    ended $LOADING || echo "it lives"
    LOAD_BEGAN=$(now)
    loading && echo loading
    kill $LOADING
    until ended $LOADING; do :; done
    loading || echo loaded
    """
    out = shell(script, tmp_path, by).splitlines()
    assert out == ["still loading slow.ko: going on without", "it lives", "loading", "loaded"]


def test_a_target_s_time_begins_when_its_driver_is_there(tmp_path: Path) -> None:
    """A disk behind a card that takes two minutes is waited for; a driver that hangs is not, for ever."""
    script = """
    clock=0
    now() { echo "$clock"; }
    left() { echo 400; }
    usleep() { clock=$((clock + 1000)); }
    say() { :; }
    sleep 50 & LOADING=$!
    TARGET_TIMEOUT=60
    find_target_device() { [ "$clock" -lt 22000 ] || echo /dev/sda; }
    wait_for_device && echo "$device after $clock"
    clock=0
    find_target_device() { :; }
    wait_for_device || echo "none after $clock"
    kill "$LOADING"
    """
    assert shell(script, tmp_path).splitlines() == [
        "/dev/sda after 22000",
        "none after 23000",  # 180 s for the driver, then the target's own
    ]


def test_a_disk_that_does_not_answer_is_asked_once(tmp_path: Path) -> None:
    """What no signal ends, dd for one, keeps no pipe open; the other disks are still looked at."""
    (tmp_path / "good").write_bytes(bytes(8) + b"\x12\x34")
    script = """
    say() { echo "$*" >>said; }
    bounded() {
      case $3 in
        *dead) sleep 50 & echo $! >left_behind; return 124 ;;
      esac
      shift
      "$@"
    }
    echo "<$(bytes_at dead 0 2)>"
    read -r pid <left_behind
    ended "$pid" || echo "it lives"
    kill "$pid"
    echo "<$(text_at dead 0 2)> <$(bytes_at good 8 2)>"
    """
    assert shell(script, tmp_path).splitlines() == ["<>", "it lives", "<> <1234>"]
    assert (tmp_path / "said").read_text() == "dead does not answer\n"
