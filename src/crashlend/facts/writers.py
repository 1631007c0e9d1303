# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reader of DMA that no wait ends: devices that write user memory which nobody has pinned.

A device that was given a page for one request ends with that request. Those of :data:`KINDS` follow
a process's page tables instead and keep what is mapped there until the owner of the memory tells
them to let go, which a dead kernel does no more. Such memory may lie in lent ranges: it has no
long-term pin that would have moved it away.

Each kind is recognised by the driver of a PCI function (or a class of devices), and by whether any
process uses it now. What can't be told counts as in use.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional

from crashlend.facts.data import EndlessWriter
from crashlend.facts.pci import ADDRESS, event_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.facts.data import PciFunction
    from crashlend.facts.reader import Reader

MODULES = "/proc/modules"
CARDS = "/sys/kernel/debug/dri"
QUEUES = "/sys/bus/dsa/devices"
UACCE = "/sys/class/uacce"
UACCE_SVA = 1  # UACCE_DEV_SVA, include/uapi/misc/uacce/uacce.h
VERBS = "/sys/class/infiniband_verbs"


class WriterKind(NamedTuple):
    """How one kind is recognised: the ``driver`` of the function, and who uses it.

    ``module`` is the one whose count tells of users. ``users`` gives None when nobody uses the
    function, else what shows that somebody does or may. ``why`` no wait ends it; ``source`` is
    where the kernel (or the driver's own tree) has that.
    """

    driver: str
    module: str
    name: str
    why: str
    source: str
    users: Callable[[Reader, str, WriterKind], Optional[str]]


def _module_users(reader: Reader, _address: str, kind: WriterKind) -> Optional[str]:
    """What /proc/modules says: references beyond those of other modules are open files.

    A driver that is not in the list is built in, and its users are not told.
    """
    counted = _references(reader, kind.module)
    if counted is None:
        return f"{MODULES} does not tell who uses {kind.module}"
    return f"{kind.module} has {counted} users ({MODULES})" if counted > 0 else None


def _references(reader: Reader, module: str) -> Optional[int]:
    for line in reader.text(MODULES, optional=True).splitlines():
        words = line.split()
        if len(words) >= 4 and words[0] == module and words[2].isdecimal():
            others = [name for name in words[3].split(",") if name not in ("", "-")]
            return int(words[2]) - len(others)
    return None


def _outside_users(reader: Reader, address: str, kind: WriterKind) -> Optional[str]:
    """As :func:`_module_users`, for a module that no kernel has built in."""
    modules = reader.text(MODULES, optional=True)
    if modules and _references(reader, kind.module) is None:
        return None
    return _module_users(reader, address, kind)


def _card_users(reader: Reader, address: str, kind: WriterKind) -> Optional[str]:
    """The card's open files from debugfs, else from the module's count (which the console raises)."""
    for name in reader.files.names(CARDS):
        card = reader.text(f"{CARDS}/{name}/name", optional=True)
        if f"dev={address}" not in card.split():
            continue
        # drivers/gpu/drm/drm_debugfs.c, drm_clients_info(): a head line, then one per open file
        lines = reader.text(f"{CARDS}/{name}/clients", optional=True).splitlines()
        if lines:
            clients = len(lines) - 1
            return f"{clients} open files ({CARDS}/{name}/clients)" if clients else None
    return _module_users(reader, address, kind)


def _verbs_users(reader: Reader, address: str, kind: WriterKind) -> Optional[str]:
    return _module_users(reader, address, kind) if reader.files.names(VERBS) else None


def _queue_users(reader: Reader, _address: str, _kind: WriterKind) -> Optional[str]:
    """User-space clients of the accelerator's work queues (ABI/stable/sysfs-driver-dma-idxd)."""
    used = [
        name
        for name in reader.files.names(QUEUES)
        if name.startswith("wq")
        # what can't be read counts as in use
        and reader.text(f"{QUEUES}/{name}/type", optional=True) in ("user", "")
        and reader.text(f"{QUEUES}/{name}/clients", optional=True) != "0"
    ]
    return f"{', '.join(used)} has clients ({QUEUES})" if used else None


def _gpu(driver: str, source: str) -> WriterKind:
    why = (
        "memory of user space (userptr, HMM) is mapped in the device until its owner takes it away"
    )
    return WriterKind(driver, driver, "GPU", why, f"drivers/gpu/drm/{source}", _card_users)


SHARING = "accelerator that shares a process's addresses"
FOLLOWS = "it follows a process's page tables, which nothing changes any more"
KINDS = (
    WriterKind(
        "mlx5_core",
        "ib_uverbs",
        "RDMA with on-demand paging",
        "remote hosts may write what is registered on demand, which is not pinned",
        "drivers/infiniband/hw/mlx5/odp.c, drivers/infiniband/core/umem_odp.c",
        _verbs_users,
    ),
    _gpu("amdgpu", "amd/amdgpu/amdgpu_hmm.c (amdgpu_mn.c before 6.5)"),
    _gpu("radeon", "radeon/radeon_ttm.c"),
    _gpu("i915", "i915/gem/i915_gem_userptr.c"),
    _gpu("xe", "xe/xe_hmm.c, xe_userptr.c"),
    _gpu("nouveau", "nouveau/nouveau_svm.c"),
    _gpu("nvidia", "")._replace(
        module="nvidia_uvm",
        source="open-gpu-kernel-modules: kernel-open/nvidia-uvm/uvm_hmm.c",
        users=_outside_users,
    ),
    WriterKind(
        *("amdxdna", "amdxdna", SHARING, FOLLOWS),
        "drivers/accel/amdxdna/amdxdna_pci_drv.c: iommu_sva_bind_device()",
        _module_users,
    ),
    WriterKind(
        *("idxd", "idxd", SHARING, FOLLOWS),
        "drivers/dma/idxd/cdev.c: iommu_sva_bind_device()",
        _queue_users,
    ),
)
# found by its class: the drivers are many
SHARED = WriterKind(
    *("", "uacce", SHARING, FOLLOWS),
    "drivers/misc/uacce/uacce.c: iommu_sva_bind_device()",
    _module_users,
)


def endless_writers(reader: Reader, functions: Sequence[PciFunction]) -> tuple[EndlessWriter, ...]:
    """What of this host writes, or may write, user memory that nothing has pinned."""
    out = []
    kinds = {kind.driver: kind for kind in KINDS}
    for one in functions:
        kind = kinds.get(one.driver)
        seen = kind.users(reader, one.address, kind) if kind else None
        if kind and seen:
            out.append(EndlessWriter(kind.name, one.driver, one.address, kind.why, seen))
    return (*out, *_uacce(reader))


def _uacce(reader: Reader) -> tuple[EndlessWriter, ...]:
    """Devices of the class uacce that share a process's addresses, whatever their driver is."""
    out = []
    for name in reader.files.names(UACCE):
        flags = reader.text(f"{UACCE}/{name}/flags", optional=True)
        if not re.fullmatch(r"[0-9]{1,9}", flags) or not int(flags) & UACCE_SVA:
            continue
        words = event_words(reader, f"{UACCE}/{name}/device/uevent")
        address = words.get("PCI_SLOT_NAME", "")
        place = address if ADDRESS.fullmatch(address) else ""
        seen = SHARED.users(reader, address, SHARED)
        if seen:
            driver = words.get("DRIVER", name)
            out.append(EndlessWriter(SHARED.name, driver, place, SHARED.why, seen))
    return tuple(out)
