# SPDX-License-Identifier: LGPL-2.1-or-later
"""The plan: every address, size and byte count before anything is touched. Pure.

:func:`make_plan` does no I/O and reads no clock and no environment: the same facts, settings and
payload give the same plan, on this host or another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Optional

from crashlend import filemode, fileroom, lowmem
from crashlend.arch import Layout, for_machine
from crashlend.capture.initramfs import load_archive
from crashlend.crash_cpus import crash_cpus
from crashlend.errors import RefusedError
from crashlend.formats.bzimage import BzImage
from crashlend.formats.cmdline import USUAL_LIMIT, CrashCmdline, make_line
from crashlend.jsonable import to_json
from crashlend.lenders import NOTHING, Offer
from crashlend.lenders.asked import find_in_request
from crashlend.lenders.combined import make_offer
from crashlend.lenders.unasked import hands_over_ranges
from crashlend.load_conf import load_variables
from crashlend.quiesce import Quiesce, parse_quiesce, plan_quiesce, quiesce_notes
from crashlend.ranges import Ranges, align_up
from crashlend.sizes import MIB, mib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crashlend.arch import MapEntry
    from crashlend.config import Settings
    from crashlend.facts import Facts
    from crashlend.formats.elfcore import ProgramHeader

# makedumpfile's levels that leave out page cache, private page cache and user data
USER_DATA_LEVELS = 2 | 4 | 8
# kernel/kexec_file.c, arch/x86/purgatory: it verifies the segments and loops when one is wrong
KERNELS_PURGATORY = (
    "kexec_file_load: the kernel's own purgatory runs, which keeps no record, does not wait, and "
    "hangs where crashlend's would reset the machine"
)
# What a crash kernel, its tables and the tools of the capture take of its memory (docs/initramfs.md)
KERNELS_SHARE_BYTES = 160 * MIB
CORE_HEADER_WORD = "elfcorehdr={:#x}"


@dataclass(frozen=True)
class Payload:
    """The crash kernel image and the capture initramfs, as far as planning needs them.

    ``threads``: the capture writes the dump with as many threads as it has CPUs. ``notes`` is what
    people must know of its programs. ``target_bytes``: memory that reaching the dump target takes at
    once (LUKS).
    """

    image: BzImage
    initramfs_bytes: int
    threads: bool = False
    notes: tuple[str, ...] = ()
    target_bytes: int = 0


@dataclass(frozen=True)
class Costs:
    """What each side has, in bytes.

    ``taken_bytes`` production loses for good (the reservation), ``shared_bytes`` it uses until
    the crash (lent), ``crash_kernel_bytes`` the crash kernel gets. Of these
    ``crash_kernel_low_bytes`` lie between 1 MiB and 4 GiB, where every device can reach them.
    ``required_bytes`` must fit in the reservation.
    """

    taken_bytes: int
    shared_bytes: int
    crash_kernel_bytes: Optional[int] = None
    crash_kernel_low_bytes: Optional[int] = None
    required_bytes: Optional[int] = None


@dataclass(frozen=True)
class Plan:
    """What ``load`` would do. ``layout`` is None where ``incomplete`` says why.

    With kexec_file_load ``by_word`` is what of ``lent`` goes onto the command line, and
    ``program_headers`` what the core header of crashlend's own has then (filemode.py).
    """

    arch: str
    release: str
    lender: str
    offer: Offer
    lent: Ranges
    reservation: Ranges
    system_ram: Ranges
    syscall: str
    dump_level: int
    allow_missing_user_data: bool
    quiesce: Quiesce
    on_mismatch: str
    costs: Costs
    load_variables: dict[str, str]
    cmdline: Optional[CrashCmdline] = None
    layout: Optional[Layout] = None
    incomplete: str = ""
    notes: tuple[str, ...] = ()
    by_word: Ranges = NOTHING
    program_headers: tuple[ProgramHeader, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The plan as ``crashlend plan --json`` prints it."""
        return {"schema": 1, **to_json(self)}


def make_plan(
    facts: Facts, settings: Settings, payload: Optional[Payload], *, held_only: bool = False
) -> Plan:
    """Decide what to lend and where everything goes.

    ``held_only``: lend what can be lent as it is and try for no more (what load does in the end).

    Without ``payload``, or without root's view of memory, the plan is a coarse one: what would be
    lent and what it costs, no addresses in the reservation. Errors are those of the lender, of
    the dump level's policy (RefusedError) and of a reservation that is missing or too small.
    """
    arch = for_machine(facts.arch)
    syscall = _syscall(facts, settings)
    offer = make_offer(facts, settings, syscall, held_only=held_only)
    lent = offer.foreseen
    # kexec_file_load leaves the kernel's own ranges out of every dump, asked for or not
    unasked = syscall == "file" and hands_over_ranges(facts)
    _check_level(settings, bool(lent), unasked)
    by_word, notes = NOTHING, offer.notes
    limit = (payload.image.cmdline_limit if payload else 0) or USUAL_LIMIT
    if syscall == "file":
        threads = payload is not None and payload.threads
        cpus = crash_cpus(facts, settings, lent.size, threads=threads)
        handed = filemode.hand_over(
            facts, lent, cpus.words, settings.append, limit, settings.cmdline
        )
        lent, by_word, notes = handed.lent, handed.by_word, (*notes, *handed.notes)
    wish = parse_quiesce(settings.dma_quiesce)
    quiesce = plan_quiesce(facts, wish, lending=bool(lent), syscall=syscall, by_word=bool(by_word))
    reservation = arch.reservations(facts)
    own = Ranges(facts.cma_ranges or ()) - lent if unasked else NOTHING
    variables = load_variables(facts, offer, lent, settings, own, bool(lent) or unasked)
    taken = reservation.size or facts.crash_size_bytes or 0
    plan = Plan(
        arch=facts.arch,
        release=facts.release,
        lender=offer.lender,
        offer=offer,
        lent=lent,
        reservation=reservation,
        system_ram=arch.system_ram(facts),
        syscall=syscall,
        dump_level=settings.dump_level,
        allow_missing_user_data=settings.allow_missing_user_data,
        quiesce=quiesce,
        on_mismatch=settings.on_mismatch,
        costs=Costs(taken, lent.size),
        # another program's capture reads none, and its initramfs stays as it is
        load_variables={} if settings.cmdline else variables,
        by_word=by_word,
        notes=(
            *notes,
            *_findings(facts, enough=settings.lend is not None or lent.size >= offer.asked_bytes),
            *_doubts(facts, lent),
            *quiesce_notes(facts, wish, quiesce, lent.size),
        ),
    )
    if not facts.iomem:
        why = facts.missing.get("/proc/iomem", "it is empty")
        return replace(plan, incomplete=f"/proc/iomem can't be read: {why}")
    if not reservation:
        raise arch.no_reservation()
    if payload is None:
        return replace(plan, incomplete="no kernel image was given")
    return _complete(plan, facts, settings, payload)


def _check_level(settings: Settings, lends: bool, unasked: bool) -> None:
    """Refuse a dump level that wants what the dump will not have."""
    level = settings.dump_level
    if (
        (lends or unasked)
        and level & USER_DATA_LEVELS != USER_DATA_LEVELS
        and not settings.allow_missing_user_data
    ):
        raise RefusedError(
            f"dump level {level} wants user data or page cache",
            "lent memory holds just that, and it will be missing from the dump",
            hint="use a level with 2, 4 and 8 set (31), --allow-missing-user-data, or "
            + ("boot without a ,cma word" if unasked else "--lend 0"),
        )


def _complete(plan: Plan, facts: Facts, settings: Settings, payload: Payload) -> Plan:
    """Add the command line, the layout of the reservation and the crash kernel's memory."""
    arch = for_machine(facts.arch)
    initramfs_bytes = align_up(payload.initramfs_bytes, 4) + len(load_archive(plan.load_variables))
    limit = payload.image.cmdline_limit or USUAL_LIMIT
    if plan.syscall == "file":
        return _complete_file(plan, facts, settings, payload, initramfs_bytes, limit)
    cpus = crash_cpus(facts, settings, plan.lent.size, threads=payload.threads)
    reservation = arch.main_reservation(facts)
    if reservation is None:
        raise arch.no_reservation()
    headers = arch.exclude_from_vmcore(facts, plan.lent)
    core = arch.core_header_segment(reservation, headers)

    def lay_out(more: list[tuple[str, str]]) -> tuple[CrashCmdline, Layout]:
        words = [(CORE_HEADER_WORD.format(core.start), "where the core header of production lies")]
        line = make_line(
            facts.cmdline_bytes,
            settings.cmdline,
            [*cpus.words, *words, *more],
            settings.append,
            limit,
        )
        length = len(line.encode())
        return line, arch.lay_out(
            facts,
            payload.image,
            initramfs_bytes,
            length,
            plan.lent,
            settings.placement,
            plan.quiesce,
        )

    cmdline, layout = lay_out([])
    ram = _ram(layout.memory_map, arch.RAM)
    unpacked = (layout.kernel_runs_at, layout.kernel_runs_at + payload.image.init_size)
    stored = ((s.start, s.end) for s in layout.segments)
    bounce = lowmem.bounce_word(ram, Ranges([*stored, unpacked]))
    if bounce:
        cmdline, layout = lay_out([(bounce, lowmem.BOUNCE_REASON)])
    return replace(
        plan,
        cmdline=cmdline,
        layout=layout,
        costs=replace(_costs(plan, ram), required_bytes=layout.required_bytes),
        notes=(
            *plan.notes,
            *cpus.notes,
            *payload.notes,
            *_target_notes(payload, ram.size),
            *arch.firmware_notes(facts, payload.image),
            *lowmem.warnings(ram, facts.narrow_devices),
        ),
    )


def _complete_file(
    plan: Plan,
    facts: Facts,
    settings: Settings,
    payload: Payload,
    initramfs_bytes: int,
    limit: int,
) -> Plan:
    """The same for kexec_file_load, where the kernel places everything.

    It makes map and core header by itself; what it leaves out of the first goes into words, and a
    core header of crashlend's own leaves that out of the second.
    """
    arch = for_machine(facts.arch)
    image, reservation = payload.image, arch.main_reservation(facts)
    if reservation is None:
        raise arch.no_reservation()
    headers: tuple[ProgramHeader, ...] = ()
    given = plan.lent | Ranges(facts.cma_ranges or ())
    if plan.by_word:
        headers = arch.exclude_from_vmcore(facts, given)
        initramfs_bytes += filemode.core_header_bytes(len(headers))
    fileroom.check_room(reservation, image, initramfs_bytes)
    ram = _ram(arch.include_in_memory_map(facts, None, given), arch.RAM)
    cpus = crash_cpus(facts, settings, plan.lent.size, threads=payload.threads)
    words = [*cpus.words, *filemode.words_of(plan.by_word)]
    taken = fileroom.taken_at_start(reservation, image, initramfs_bytes)
    bounce = lowmem.bounce_word(ram, taken)
    if bounce:
        words.append((bounce, lowmem.BOUNCE_REASON))
    cmdline = make_line(
        facts.cmdline_bytes,
        settings.cmdline,
        words,
        settings.append,
        limit - filemode.KERNELS_OWN_BYTES,
    )
    return replace(
        plan,
        cmdline=cmdline,
        program_headers=headers,
        costs=_costs(plan, ram),
        notes=(
            *plan.notes,
            *cpus.notes,
            *payload.notes,
            *_target_notes(payload, ram.size),
            KERNELS_PURGATORY,
            *lowmem.warnings(ram, facts.narrow_devices),
        ),
        incomplete="kexec_file_load: the kernel places the segments",
    )


def _ram(memory_map: Sequence[MapEntry], kind: str) -> Ranges:
    return Ranges((e.start, e.end) for e in memory_map if e.kind == kind)


def _target_notes(payload: Payload, ram_bytes: int) -> tuple[str, ...]:
    """Whether the crash kernel could open the dump target with its memory."""
    if not payload.target_bytes or ram_bytes >= payload.target_bytes + KERNELS_SHARE_BYTES:
        return ()
    return (
        f"opening the dump target takes {mib(payload.target_bytes)} at once, and the crash kernel has "
        f"{mib(ram_bytes)} in all, of which it needs much itself: lend more, or convert the key slot "
        "(cryptsetup luksConvertKey --pbkdf-memory)",
    )


def _costs(plan: Plan, ram: Ranges) -> Costs:
    """What the crash kernel gets when ``ram`` is its memory."""
    low = lowmem.low_bytes(ram)
    return replace(plan.costs, crash_kernel_bytes=ram.size, crash_kernel_low_bytes=low)


def _syscall(facts: Facts, settings: Settings) -> str:
    """kexec_load unless it is refused."""
    choice = settings.syscall
    locked = facts.lockdown in ("integrity", "confidentiality")
    if choice == "auto":
        choice = "file" if locked else "load"
    if choice == "load" and locked:
        raise RefusedError(
            "kexec_load is refused on this host",
            f"kernel lockdown is in force ({facts.lockdown})",
            hint="use --syscall file, with the distribution's signed kernel",
        )
    if facts.kexec_load_limit_panic == 0:
        raise RefusedError(
            "no crash kernel can be loaded or changed",
            "kernel.kexec_load_limit_panic is 0 until the next reboot",
            hint="look for it in /etc/sysctl.d; it must leave room for crashlend's loads",
        )
    if facts.kexec_load_disabled:
        raise RefusedError(
            "no crash kernel can be loaded or changed",
            "kernel.kexec_load_disabled is 1 until the next reboot",
            hint="look for it in /etc/sysctl.d; it must be set after crashlend has loaded",
        )
    return choice


def _findings(facts: Facts, *, enough: bool) -> tuple[str, ...]:
    """What became of the ``,cma`` word.

    Not that it is too little where ``enough`` is lent, or as much as a setting asks for instead.
    """
    return tuple(str(f) for f in find_in_request(facts) if not (f.less and enough))


def _doubts(facts: Facts, lent: Ranges) -> tuple[str, ...]:
    """What the plan rests on and could not be looked at."""
    paths = ("/dev/kmsg",) * bool(lent) + (
        "/sys/firmware/efi/systab",
        "/sys/firmware/efi/runtime-map",
    )
    return tuple(f"{path}: {facts.missing[path]}" for path in paths if path in facts.missing)
