# SPDX-License-Identifier: LGPL-2.1-or-later
"""The readers of what the kernel made of ``,cma``: its ranges, and what shows that they are CMA."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Optional

from crashlend.crashkernel.grammar import lent_request
from crashlend.facts.data import CmaEvidence
from crashlend.facts.pageblocks import cma_parts
from crashlend.formats import procfs
from crashlend.formats.cmdline import from_proc
from crashlend.hostfiles import CMA_EVIDENCE
from crashlend.jsonable import from_json
from crashlend.ranges import Ranges

if TYPE_CHECKING:
    from crashlend.facts.own import OwnRecord, Pairs
    from crashlend.facts.reader import Reader

LISTS = ("/sys/kernel/kexec/crash_cma_ranges", "/sys/kernel/kexec_crash_cma_ranges")
AREAS = "/sys/kernel/mm/cma"
NAME = "crashkernel"  # of every area that reserve_crashkernel_cma() makes
NOT_TOLD = "no such file, and the kernel's log does not go back to the boot"
FAILED = b"CMA area crashkernel could not be activated"


def cma_ranges(reader: Reader, meminfo: dict[str, int], own: OwnRecord) -> Optional[Pairs]:
    """What the kernel made of ``,cma``: () nothing, None it can't be known to do such a thing.

    The file exists since Linux 6.19 (commit 37a0a436c843, "kdump: expose crash_cma_ranges").
    6.17 and 6.18 only log it (commits ab475510e042, bf8be1c36108), and crashlend's own record has
    the ranges when the log has lost them. CmaTotal does not say whether to look: it is 0 when all
    of them are lost. Where a kernel with CONFIG_CMA has the word and the log's beginning is gone, that
    is noted.
    """
    for path in LISTS:
        if reader.files.exists(path):
            return reader.parsed(path, procfs.parse_crash_cma_ranges, ())
    asked = lent_request(from_proc(reader.raw("/proc/cmdline")))
    if not asked and not meminfo.get("CmaTotal") and not own.cma_ranges:
        return None
    logged = reader.parsed("/dev/kmsg", procfs.parse_dmesg_cma, None, optional=True)
    made = logged or own.cma_ranges or None
    if asked and "CmaTotal" in meminfo and not made and not _log_is_whole(reader):
        reader.missing[LISTS[0]] = NOT_TOLD
    return made


def _log_is_whole(reader: Reader) -> bool:
    """Whether the kernel's log goes back to the boot."""
    return b"Linux version" in reader.raw("/dev/kmsg", optional=True)


def cma_evidence(reader: Reader, made: Pairs, own: OwnRecord) -> Optional[CmaEvidence]:
    """What shows whether their pages are CMA; None where there are no ranges.

    The marks take a tenth of a second, and never change after the boot: what a load has seen, it has
    recorded.
    """
    if not made:
        return None
    recorded = reader.parsed(
        CMA_EVIDENCE, lambda data: from_json(CmaEvidence, json.loads(data)), None, optional=True
    )
    if recorded is not None:
        return recorded
    ranges = Ranges(made)
    remembered = Ranges(own.cma_active).covers(ranges)
    marked, why_not = (ranges, "") if remembered else cma_parts(reader, ranges)
    log = reader.raw("/dev/kmsg", optional=True)
    return CmaEvidence(
        marked=None if marked is None else tuple((r.start, r.end) for r in marked),
        why_not=why_not,
        area_pages=_area_pages(reader) if len(made) == 1 else None,
        sysfs=reader.files.exists(AREAS),
        failures=log.count(FAILED),
        log_whole=_log_is_whole(reader),
        remembered=remembered,
    )


def _area_pages(reader: Reader) -> Optional[int]:
    """What sysfs says of the only area: how many pages it has, 0 when it was not activated.

    7.2 and 7.3 list active areas alone, 6.12 all, and total_pages is 0 after a failure. None where
    there is no such tree, or the area may have got another name (mm/cma_sysfs.c: cma_sysfs_init()).
    """
    if not reader.files.exists(AREAS):
        return None
    path = f"{AREAS}/{NAME}/total_pages"
    if reader.files.exists(path):
        return reader.parsed(path, int, None, optional=True)
    return None if any(n.startswith(NAME) for n in reader.files.names(AREAS)) else 0
