# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must never be lent: one table of hosts and memory, how each is recognised, and its verdict.

Rows with a ``sign`` make this host's refusals; all others are excluded by what is named there.
docs/census.md is made from the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional

from crashlend.facts.data import Refusal

if TYPE_CHECKING:
    from crashlend.facts.reader import Reader

LOG_CUT = "the beginning of the kernel's log is gone: memory encryption would not be noticed"
VIRTIO_BALLOON, MUST_TELL_HOST = 5, 0  # device id and feature bit: include/uapi/linux/virtio_*.h


@dataclass(frozen=True)
class Signs:
    """What of a host tells that its memory must not be lent."""

    log: bytes
    cmdline: bytes
    cpu_flags: tuple[str, ...]
    unaccepted_bytes: int
    hypervisor: str
    hyperv_balloon: bool
    snp_guest: bool
    tdx_guest: bool
    tdx_host: bool
    sev_host: bool
    sev_users: Optional[int]
    strict_balloon: str


Sign = Callable[[Signs], Optional[str]]


class Never(NamedTuple):
    """One row: ``sign`` gives the reason why ``lender`` is refused, None where all is well."""

    what: str
    recognised_by: str
    verdict: str
    source: str
    lender: str = ""
    sign: Optional[Sign] = None


def _encryption(signs: Signs) -> Optional[str]:
    """SEV, SEV-ES, SEV-SNP, TDX and SME: all say so in one line."""
    found = re.search(rb"Memory Encryption Features active:([^\n]*)", signs.log)
    if not found:
        return None
    features = found.group(1).decode("ascii", "replace").strip()
    return f"memory encryption is active ({features})"


def _sev_guests(signs: Signs) -> Optional[str]:
    if not signs.sev_host:
        return None
    if signs.sev_users is None:
        return "SEV guests may be running: kvm_amd.sev is on and users of /dev/sev are not counted"
    if signs.sev_users > 0:
        return "SEV guests may be running: kvm_amd.sev is on and /dev/sev is in use"
    return None


def _when(reason: str, holds: Callable[[Signs], bool]) -> Sign:
    return lambda signs: reason if holds(signs) else None


ANY, MOVABLE = "any", "movable"
REFUSED = "refused"
NEVER_LENT = (
    Never(
        "active memory encryption: SEV, SEV-ES, SEV-SNP and TDX guests, hosts with SME",
        "`Memory Encryption Features active:` in the kernel's log; where its beginning is gone, the "
        "plan says so",
        REFUSED,
        "arch/x86/mm/mem_encrypt.c; on a crash only one CPU's caches are written back: "
        "machine_kexec()",
        ANY,
        _encryption,
    ),
    Never(
        "SEV-SNP guests",
        "/sys/devices/platform/sev-guest or /dev/sev-guest",
        REFUSED,
        "arch/x86/coco/sev/core.c: snp_init_platform_device()",
        ANY,
        _when("this is an AMD SEV guest", lambda s: s.snp_guest),
    ),
    Never(
        "TDX guests",
        "the processor flag tdx_guest, or /sys/devices/virtual/misc/tdx_guest",
        REFUSED,
        "arch/x86/coco/tdx/tdx.c: tdx_early_init(); drivers/virt/coco/tdx-guest",
        ANY,
        _when("this is an Intel TDX guest", lambda s: s.tdx_guest),
    ),
    Never(
        "active SME",
        "mem_encrypt=on on the command line (where it is the default, the log tells)",
        REFUSED,
        "arch/x86/boot/startup/sme.c: sme_enable()",
        ANY,
        _when(
            "mem_encrypt=on is on the command line",
            lambda s: re.search(rb"(^|\s)mem_encrypt=on(\s|$)", s.cmdline) is not None,
        ),
    ),
    Never(
        "hosts of SEV guests",
        "kvm_amd's parameter sev is on, and the module ccp has more references than modules that "
        "hold it: somebody has /dev/sev open",
        REFUSED,
        "arch/x86/kvm/svm/sev.c: sev_pin_memory(), up to 6.12 without FOLL_LONGTERM",
        ANY,
        _sev_guests,
    ),
    Never(
        "hosts of TDX guests",
        "kvm_intel's parameter tdx is on",
        REFUSED,
        "arch/x86/kvm/vmx/tdx.c: tdx_bringup(); private memory has keys of its own",
        ANY,
        _when("TDX guests may be running: kvm_intel.tdx is on", lambda s: s.tdx_host),
    ),
    Never(
        "unaccepted memory",
        "Unaccepted in /proc/meminfo; a kernel that does not know of it has it not as RAM",
        REFUSED,
        "mm/page_alloc.c: accept_page(); drivers/firmware/efi/libstub/unaccepted_memory.c",
        ANY,
        _when(
            "there is unaccepted memory, which faults when touched",
            lambda s: s.unaccepted_bytes > 0,
        ),
    ),
    Never(
        "a virtio balloon that must tell its host before a page is used again",
        "MUST_TELL_HOST (bit 0) among the negotiated features of a virtio device with the id 5",
        REFUSED,
        "drivers/virtio/virtio_balloon.c: leak_balloon(); the crash kernel can't tell",
        ANY,
        lambda signs: (
            f"the balloon {signs.strict_balloon} must tell the host before memory is used again"
            if signs.strict_balloon
            else None
        ),
    ),
    Never(
        "Xen guests",
        "/sys/hypervisor/type is xen",
        f"{REFUSED} (lender movable)",
        "drivers/xen/balloon.c: xen_online_page()",
        MOVABLE,
        _when(
            "under Xen, memory that goes online again ends in the balloon",
            lambda s: s.hypervisor == "xen",
        ),
    ),
    Never(
        "Hyper-V guests with its balloon",
        "a device is bound to hv_balloon",
        f"{REFUSED} (lender movable)",
        "drivers/hv/hv_balloon.c: hv_online_page(), up to 7.1",
        MOVABLE,
        _when(
            "Hyper-V's balloon driver keeps boot memory that goes online again",
            lambda s: s.hyperv_balloon,
        ),
    ),
    Never(
        "virtio-mem's memory",
        "`System RAM (virtio_mem)` below its device in /proc/iomem: not plain System RAM",
        "excluded",
        "drivers/virtio/virtio_mem.c; it may be unplugged, and unplugged parts must not be touched",
    ),
    Never(
        "memory that other drivers added (kmem, device DAX, CXL regions)",
        "`System RAM (kmem)` or System RAM below `dax0.0`, `region0`, `CXL Window 0` …",
        "excluded",
        "drivers/dax/kmem.c, drivers/cxl/core/region.c",
    ),
    Never(
        "soft-reserved and persistent memory, device DAX",
        "`Soft Reserved`, `Persistent Memory`, `dax0.0`, `namespace0.0` in /proc/iomem: no System RAM",
        "excluded",
        "arch/x86/kernel/e820.c: e820_type_to_string(); drivers/dax, drivers/nvdimm",
    ),
    Never(
        "the reservation, the kernel's image and whatever else is named inside System RAM",
        "a resource below System RAM in /proc/iomem",
        "excluded",
        "arch/x86/kernel/setup.c",
    ),
    Never(
        "memory that holds its own memmap",
        "the parameter memory_hotplug.memmap_on_memory is on",
        f"{REFUSED} (lenders movable and movable-zone)",
        "mm/memory_hotplug.c: mhp_supports_memmap_on_memory()",
    ),
    Never(
        "other CMA areas",
        "more CMA pages in a ZONE_MOVABLE, by /proc/zoneinfo, than the kernel's ,cma ranges have; a "
        "block with such pages does not go offline",
        "excluded (all of that node's zone)",
        "mm/cma.c: cma_alloc() gives such pages to drivers",
    ),
    Never(
        "the kernel's ,cma ranges that failed to activate, though it lists them",
        "their pageblocks are not marked as CMA (/proc/kcore, BTF); without the marks: the area's "
        "total_pages, a zone's border in the range, CMA counts of zones and in all, the log",
        "excluded; refused where nothing else is left, and with kexec_file_load, which can't leave them out",
        "mm/cma.c: cma_activate_area()",
    ),
    Never(
        "poisoned memory",
        "KPF_HWPOISON; HardwareCorrupted in /proc/meminfo counts more than pages show: nothing is "
        "taken",
        "excluded; its block never goes offline",
        "mm/memory-failure.c; such a block does not come back online (EHWPOISON)",
    ),
    Never(
        "hugetlb pages",
        "KPF_HUGE; nr_hugepages before and after",
        "excluded",
        "mm/hugetlb.c: dissolve_free_hugetlb_folios() when a block goes offline",
    ),
    Never(
        "a balloon's pages (virtio, VMware) that need not be told of",
        "KPF_OFFLINE",
        "left out at load; harmless later: the hypervisor gives memory back to whoever touches it",
        "drivers/virtio/virtio_balloon.c, drivers/misc/vmw_balloon.c: __SetPageOffline()",
    ),
)


def refusals(
    reader: Reader, cpu_flags: tuple[str, ...], meminfo: dict[str, int]
) -> tuple[Refusal, ...]:
    """Why memory of this host can't be lent: each row of the table whose sign is there."""
    signs = _read_signs(reader, cpu_flags, meminfo)
    found = ((row.lender, row.sign(signs)) for row in NEVER_LENT if row.sign)
    return tuple(Refusal(lender, reason) for lender, reason in found if reason)


def _read_signs(reader: Reader, cpu_flags: tuple[str, ...], meminfo: dict[str, int]) -> Signs:
    exists = reader.files.exists
    log = reader.raw("/dev/kmsg", optional=True)
    if log and b"Linux version" not in log:
        reader.missing["/dev/kmsg"] = LOG_CUT
    return Signs(
        log=log,
        cmdline=reader.raw("/proc/cmdline"),
        cpu_flags=cpu_flags,
        unaccepted_bytes=meminfo.get("Unaccepted", 0),
        hypervisor=reader.text("/sys/hypervisor/type", optional=True),
        hyperv_balloon=any(
            re.match(r"[0-9a-f]{8}-", name)
            for name in reader.files.names("/sys/bus/vmbus/drivers/hv_balloon")
        ),
        snp_guest=exists("/sys/devices/platform/sev-guest") or exists("/dev/sev-guest"),
        tdx_guest="tdx_guest" in cpu_flags or exists("/sys/devices/virtual/misc/tdx_guest"),
        tdx_host=_is_on(reader, "kvm_intel", "tdx"),
        sev_host=_is_on(reader, "kvm_amd", "sev"),
        sev_users=_sev_users(reader),
        strict_balloon=_strict_balloon(reader),
    )


def _is_on(reader: Reader, module: str, parameter: str) -> bool:
    path = f"/sys/module/{module}/parameters/{parameter}"
    return reader.text(path, optional=True)[:1] in ("Y", "1")


def _users(reader: Reader, module: str) -> Optional[int]:
    """How many hold a module beside other modules: who has its device open. None: not counted.

    kernel/module/sysfs.c; a module that is built in has no refcnt.
    """
    count = reader.parsed(f"/sys/module/{module}/refcnt", int, None, optional=True)
    return (
        None if count is None else count - len(reader.files.names(f"/sys/module/{module}/holders"))
    )


def _sev_users(reader: Reader) -> Optional[int]:
    """Who has /dev/sev open: what holds ccp beside modules and beside those who use it for DMA.

    dma_chan_get() takes a reference for each channel in use (drivers/dma/dmaengine.c): raid456 does so
    on every host that has such channels.
    """
    users = _users(reader, "ccp")
    if not users:
        return users
    base = "/sys/class/dma"
    channels = (
        name
        for name in reader.files.names(base)
        if "DRIVER=ccp" in reader.text(f"{base}/{name}/device/uevent", optional=True).split()
    )
    busy = (
        reader.text(f"{base}/{name}/in_use", optional=True) not in ("", "0") for name in channels
    )
    return max(0, users - sum(busy))


def _strict_balloon(reader: Reader) -> str:
    """A virtio balloon with MUST_TELL_HOST, if there is one.

    ``features`` has one digit per bit, bit 0 first (drivers/virtio/virtio.c: features_show()).
    """
    base = "/sys/bus/virtio/devices"
    for name in reader.files.names(base):
        kind = reader.parsed(
            f"{base}/{name}/device", lambda data: int(data, 16), None, optional=True
        )
        if kind == VIRTIO_BALLOON:
            features = reader.text(f"{base}/{name}/features", optional=True)
            if features[MUST_TELL_HOST : MUST_TELL_HOST + 1] == "1":
                return name
    return ""
