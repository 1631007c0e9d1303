# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of settings: each field of :class:`Settings` carries its kind of value and its help."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NamedTuple, Optional, Union

from crashlend import quiesce
from crashlend.config.kinds import (
    AbsolutePath,
    Bool,
    Choice,
    DmaQuiesce,
    Kind,
    Seconds,
    Size,
    Text,
    Value,
    Whole,
    WholeOr,
    Words,
)


def _setting(default: Value, kind: Kind, help_text: str, *, unset: str = "") -> Any:
    """A row of the table. ``unset`` says what an empty default stands for."""
    return field(default=default, metadata={"kind": kind, "help": help_text, "unset": unset})


@dataclass(frozen=True)
class Settings:
    """The effective settings. Sizes are in bytes, times in seconds, empty text means unset."""

    lend: Optional[int] = _setting(
        None,
        Size(),
        "how much memory to lend to the crash kernel; 0 lends nothing",
        unset="what crashkernel=SIZE,cma on the command line asks for",
    )
    lender: str = _setting(
        "auto",
        Words(("cma", "movable-zone", "movable"), alone=("auto", "none")),
        "where lent memory comes from: the kernel's own ranges (cma), clean memory of a ZONE_MOVABLE "
        "that exists already (movable-zone), or memory blocks that crashlend makes movable (movable); "
        "of several each is asked for what those before it lack",
    )
    lend_min: int = _setting(0, Size(), "the least lent memory that counts as success")
    lend_share: int = _setting(
        50, Whole(0, 100), "how much of RAM may become movable for lending, in percent"
    )
    block_deadline: float = _setting(
        10.0, Seconds(0.1, 600), "how long the offlining of one memory block may take"
    )
    hotplug_quiet: float = _setting(
        5.0,
        Seconds(0, 600),
        "how long no further CPU or memory must have come before the crash kernel is loaded anew; "
        "twelve times that at most. Lent memory that leaves is answered at once",
    )
    kernel: str = _setting(
        "", AbsolutePath(), "the crash kernel's image", unset="/boot/vmlinuz-RELEASE"
    )
    initramfs: str = _setting(
        "", AbsolutePath(), "the initramfs that captures", unset="built by crashlend"
    )
    dump_level: int = _setting(31, Whole(0, 31), "makedumpfile's -d: which pages to leave out")
    target: str = _setting(
        "",
        Text(),
        "where dumps go, one or several in order of preference, by blanks: UUID=..., LABEL=... or /dev/..., "
        "raw:PARTUUID=... or raw:/dev/... (no file system), nfs://SERVER/EXPORT, ssh://USER@HOST/DIRECTORY, https://HOST/PATH/",
        unset="the file system that holds the setting path",
    )
    path: str = _setting("/var/crash", AbsolutePath(), "the directory for dumps on the target")
    key_file: str = _setting(
        "",
        AbsolutePath(),
        "the key file that opens the target's LUKS device in the crash kernel; it is put into the capture "
        "initramfs",
        unset="what /etc/crypttab names for that device",
    )
    ssh_key: str = _setting(
        "",
        AbsolutePath(),
        "the private key for dumps by SSH; it has no passphrase",
        unset="/root/.ssh/kdump_id_rsa, id_ed25519, id_ecdsa or id_rsa",
    )
    ssh_known_hosts: str = _setting(
        "",
        AbsolutePath(),
        "where the SSH server's own key is known",
        unset="/root/.ssh/known_hosts and /etc/ssh/ssh_known_hosts",
    )
    http_ca: str = _setting(
        "",
        AbsolutePath(),
        "the certificate authorities (PEM) that may vouch for an https server",
        unset="the distribution's",
    )
    http_headers: str = _setting(
        "",
        AbsolutePath(),
        "a file of mode 0600 with headers for dumps by https, one a line, such as Authorization: "
        "Bearer TOKEN",
        unset="none",
    )
    nfs_options: str = _setting(
        "", Text(), "further mount options for dumps by NFS, by comma", unset="none"
    )
    network_address: str = _setting(
        "auto",
        Choice(("auto", "dhcp", "static")),
        "how the crash kernel gets its IPv4 address: as production did (auto), by DHCP, or the one of "
        "production",
    )
    network_timeout: int = _setting(
        60,
        Whole(5, 600),
        "how many seconds the network may take to come up, DHCP included",
    )
    dma_quiesce: str = _setting(
        quiesce.DEFAULT,
        DmaQuiesce(),
        "what is done about late DMA before lent memory is written: switch off the bus mastering of "
        "PCI functions (bus-masters-off), wait where the kernel does not wait by itself (wait), wait "
        "until lent memory has not changed for SECONDS, LIMIT at most or 6 times that (watch)",
    )
    on_mismatch: str = _setting(
        "reset",
        Choice(("reset", "boot")),
        "what to do at the crash when the loaded image is damaged: reset the machine, or boot the "
        "crash kernel all the same",
    )
    allow_missing_user_data: bool = _setting(
        False, Bool(), "allow dump levels that want user data although lent memory has lost it"
    )
    syscall: str = _setting(
        "auto", Choice(("auto", "load", "file")), "kexec_load (load) or kexec_file_load (file)"
    )
    placement: str = _setting(
        "auto",
        Choice(("auto", "reserved", "lent")),
        "where the crash kernel runs: in the reservation whenever it fits there (auto), or in lent "
        "memory, which takes the smallest reservation but is exposed to late DMA",
    )
    shrink_margin: Optional[int] = _setting(
        None,
        Size(),
        "how much room load --shrink leaves for a payload that grows; 0 leaves none",
        unset="a quarter of the payload, 4 MiB at least",
    )
    nr_cpus: Union[int, str] = _setting(
        "auto",
        WholeOr("auto", 1, 512),
        "how many CPUs the crash kernel starts; auto starts as many as help makedumpfile and as lent "
        "memory carries, and one where nothing is lent. The one that firmware booted is spared where "
        "there are several",
    )
    append: str = _setting(
        "", Text(), "extra words for the crash kernel's command line", unset="none"
    )
    cmdline: str = _setting(
        "",
        Text(),
        "the command line of a crash kernel whose initramfs is another program's, as crashlend kexec is "
        "given it: of its words only those that would change the crash kernel's memory are dropped, and "
        "the initramfs is stored as it is",
        unset="made from production's",
    )
    shrink_on_load: bool = _setting(
        False,
        Bool(),
        "load and kexec give back what of the reservation is not needed, as load --shrink does",
    )
    final_action: str = _setting(
        "reboot",
        Choice(("reboot", "poweroff", "halt", "shell")),
        "what the crash kernel does after the capture",
    )
    total_timeout: Optional[int] = _setting(
        None,
        Whole(60, 604800),
        "after how many seconds the crash kernel leaves, whatever hangs; a dump that grows is never "
        "cut off by it",
        unset="twice stall_timeout",
    )
    target_timeout: int = _setting(
        60, Whole(5, 86400), "how many seconds a target may take to appear and to be reached"
    )
    stall_timeout: Optional[int] = _setting(
        None,
        Whole(10, 86400),
        "for how many seconds a dump may stand still before it is ended",
        unset="300, and 120 more for each TiB of memory",
    )
    dump_timeout: int = _setting(
        0,
        Whole(0, 604800),
        "after how many seconds a dump is ended although it grows, for one that leaves out more; 0: "
        "never",
    )
    hook_timeout: int = _setting(60, Whole(1, 86400), "how many seconds a hook may take")
    watchdog_timeout: int = _setting(
        60,
        Whole(0, 3600),
        "after how many seconds without a sign of life the hardware's watchdogs reset the crash kernel; "
        "0 leaves them alone",
    )
    pstore: str = _setting(
        "auto",
        Choice(("auto", "always", "never")),
        "whether the end of the log is kept over the reset where production's pstore keeps it; auto: "
        "when no dump was saved",
    )
    hooks: str = _setting(
        "/etc/crashlend/hooks", AbsolutePath(), "the directory of programs to run at the capture"
    )


class Row(NamedTuple):
    """One row of the table, as code that walks it wants it."""

    name: str
    kind: Kind
    default: Value
    help: str
    unset: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def table() -> dict[str, Row]:
    """All settings by name, in the order of :class:`Settings`."""
    rows = {}
    for one in fields(Settings):
        default = None if one.default is MISSING else one.default
        meta = one.metadata
        rows[one.name] = Row(one.name, meta["kind"], default, meta["help"], meta["unset"])
    return rows
