# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rows of what can go wrong: data alone, see faults.py."""

from __future__ import annotations

from dataclasses import dataclass

HARDWARE = "real hardware only: not shown"


@dataclass(frozen=True)
class Fault:
    """One thing that can go wrong.

    Attributes:
        what: happens, for people.
        then: what crashlend does, and what holds afterwards.
        shown: names of trials, tests as ``FILE::NAME`` (below tests/), or :data:`HARDWARE`.

    """

    what: str
    then: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """Faults that belong together."""

    title: str
    faults: tuple[Fault, ...]


_LENDING = Section(
    "While memory is lent or given back",
    (
        Fault(
            "A page of a block does not migrate (a pipe, direct I/O, io_uring, RDMA has it): "
            "offlining would try for ever",
            "It is interrupted after block_deadline and the block is as before; other blocks are lent",
            ("pinned-6.1", "test_lending.py::test_an_offlining_that_never_ends_is_interrupted"),
        ),
        Fault(
            "A block refuses (kernel data, holes, several zones)",
            "The next candidate is tried; less than asked is said, below lend_min it is a failure",
            (
                "test_lending.py::test_busy_blocks_are_passed_over",
                "test_cli.py::test_lend_min_not_reached_is_a_failure_that_leaves_nothing",
            ),
        ),
        Fault(
            "A block goes offline and does not come online as movable",
            "It is brought back in any way that works; if none does, that is a loud error",
            (
                "test_lending.py::test_a_block_comes_home_by_any_way_that_works",
                "test_lending.py::test_a_block_that_never_comes_back_is_a_loud_error",
            ),
        ),
        Fault(
            "A block is online again without its pages (Hyper-V's or Xen's hooks)",
            "The zones' managed pages are compared; lending stops at the first such block",
            ("test_lending.py::test_a_zone_that_does_not_grow_stops_everything", HARDWARE),
        ),
        Fault(
            "A block holds a poisoned page, or poison that is not located",
            "It is never taken offline, also not for its return; such pages are never lent",
            (
                "zone-runs-6.1",
                "test_lending.py::test_poisoned_blocks_never_go_offline",
                "test_plan.py::test_poison_that_no_census_shows_stops_all_lending",
            ),
        ),
        Fault(
            "Free huge pages would be dissolved",
            "Blocks with huge pages are left alone, and the pools are counted before and after",
            ("huge-6.1", "test_lending.py::test_lost_huge_pages_are_said"),
        ),
        Fault(
            "Memory is short",
            "No block is emptied unless its pages fit elsewhere without reclaim; less is lent",
            ("full-ram-6.1", "test_lending.py::test_memory_pressure_ends_the_taking"),
        ),
        Fault(
            "crashlend is killed at any step (kill -9, also inside a system call)",
            "Each step is recorded before it is made: the next run, or status, puts it right",
            (
                *("kill-6.1", "kill-7.3", "kill-return-6.1", "kill-return-7.3"),
                "test_lending.py::test_killed_at_every_step_no_memory_stays_lost",
                "test_shrink.py::test_killed_at_any_step_the_next_load_puts_all_right",
            ),
        ),
        Fault(
            "/run is full: the state cannot be written",
            "Nothing is done that is not recorded; the image that is loaded stays",
            ("run-full-6.1", "test_faults.py::test_no_room_for_the_state_at_any_write"),
        ),
        Fault(
            "The state file is damaged",
            "Nothing is touched; the error says what to compare by hand",
            ("test_cli.py::test_a_damaged_state_file_stops_load",),
        ),
        Fault(
            "Somebody pins memory for good after it was lent (a guest with a passed-through device)",
            "The kernel moves the pages out of movable memory first (from Linux 5.14 on)",
            ("hog-6.1",),
        ),
        Fault(
            "A lent page goes bad, or a balloon takes it",
            "status tells, reload leaves it out; pages that a balloon holds do no harm",
            ("poison-6.1", "poison-7.3", "poison-cma-7.3", "balloon-6.1"),
        ),
        Fault(
            "Memory that must not be lent: a driver's, virtio-mem's; hosts on which none must be",
            "It is never lent, such hosts are refused: one table in code has them all (docs/census.md)",
            (
                "virtio-mem-6.1",
                "test_never.py::test_a_host_that_must_not_lend_is_refused",
                "test_never.py::test_memory_that_is_not_plain_ram_is_excluded",
            ),
        ),
        Fault(
            "Somebody takes a lent block offline",
            "status tells; the event has another one lent in its place and leaves theirs alone",
            ("change-offline-6.1",),
        ),
        Fault(
            "Memory or CPUs are added, a CPU goes and comes back",
            "status tells, the event loads again where that matters: both are in the dump",
            ("change-memory-6.1", "change-cpu-6.1"),
        ),
    ),
)
_LOADING = Section(
    "While the crash kernel is loaded",
    (
        Fault(
            "kexec_load fails before it begins (EPERM, EBUSY)",
            "The old image and its memory stay; a first load gives everything back",
            (
                "load-disabled-6.1",
                "errnos-6.1",
                "test_faults.py::test_a_reload_that_fails_keeps_or_tells",
            ),
        ),
        Fault(
            "kexec_load fails later (EADDRNOTAVAIL, ENOMEM, EINVAL, EFAULT ...)",
            "The kernel has dropped the old image: its copy is loaded again if all that it counts on is "
            "still there, else the loss is told loudly. What was lent for the new one goes back",
            (
                "errnos-6.1",
                "change-refused-6.1",
                "test_faults.py::test_a_first_load_that_fails_leaves_all_as_it_was",
                "test_put_back.py::test_the_very_same_image_comes_back",
                "test_put_back.py::test_an_image_that_must_not_come_back_is_loudly_gone",
            ),
        ),
        Fault(
            "/var/lib is full: no copy of the image can be kept",
            "That is said, and costs no load",
            (
                "run-full-6.1",
                "test_put_back.py::test_a_full_disk_costs_the_net_and_not_the_load",
            ),
        ),
        Fault(
            "Two crashlends at once",
            "The second one says so and touches nothing",
            ("errnos-6.1", "test_cli.py::test_a_second_crashlend_is_kept_out"),
        ),
        Fault(
            "Another program is inside kexec_load",
            "EBUSY is said; nothing is lent in vain",
            ("errnos-6.1",),
        ),
        Fault(
            "A crash while memory is being lent (a block is offline), or between that and kexec_load",
            "The old image is still there, its memory still lent: it saves the dump",
            ("crash-in-lending-6.1", "crash-before-load-6.1"),
        ),
        Fault(
            "A crash inside kexec_load",
            "No dump: the kernel has its own lock taken and the old image is gone. The machine comes "
            "back by itself where kernel.panic is not 0; the reason is on the console alone",
            ("crash-in-load-6.1",),
        ),
        Fault(
            "A signal comes between two images",
            "It waits until the new one is loaded",
            ("test_proof.py::test_a_signal_waits_while_one_image_is_gone_and_the_next_not_there",),
        ),
        Fault(
            "Dump levels that want user data, with lent memory",
            "Refused with exit 11, unless it is allowed; then capture.json says what is missing",
            ("user-data-refused-6.1", "user-data-allowed-6.1"),
        ),
        Fault(
            "The kernel needs more of the reservation than the plan says",
            "The load itself asks the kernel, and a shrink rehearses it first",
            (
                "exact-6.1-4g-max",
                "test_proof.py::test_a_kernel_that_needs_more_shrinks_only_where_the_margin_has_it",
            ),
        ),
    ),
)
_CRASH = Section(
    "At the crash",
    (
        Fault(
            "In a task, on each of four CPUs",
            "A dump",
            (
                *(f"crash-sysrq-cpu{cpu}-6.1" for cpu in range(3)),
                *("four-cpus-6.1", "eight-cpus-6.1"),
            ),
        ),
        Fault(
            "In a hardware interrupt",
            "A dump",
            ("crash-irq-cpu1-6.1", "crash-keyboard-7.3"),
        ),
        Fault("In a softirq", "A dump", ("crash-softirq-6.1",)),
        Fault(
            "In an NMI: from outside, and in a handler",
            "A dump",
            ("crash-nmi-6.1", "crash-nmi-7.3", "crash-nmi-handler-cpu1-6.1"),
        ),
        Fault(
            "An oops in a task or in an interrupt, a stack that runs over",
            "A dump; capture.json names the oops, for there is no panic in the log",
            (
                *("crash-oops-6.1", "crash-oops-irq-6.1", "crash-overflow-6.1"),
                "test_capture_init.py::test_panic_line",
            ),
        ),
        Fault(
            "A watchdog: soft lockup, hung task",
            "A dump",
            ("crash-lockup-6.1", "crash-hang-6.1"),
        ),
        Fault("Memory has run out", "A dump", ("crash-oom-6.1",)),
        Fault("90 % of RAM is in use", "A dump", ("full-ram-6.1",)),
        Fault("Lent memory is full of dirty page cache", "A dump", ("dirty-6.1",)),
        Fault("Huge pages, transparent ones and zswap are in use", "A dump", ("huge-6.1",)),
        Fault(
            "A guest's locked memory, pinned in part",
            "A dump; nothing that is pinned for good lies in lent memory",
            ("hog-6.1",),
        ),
    ),
)
_BETWEEN = Section(
    "Between the two kernels",
    (
        Fault(
            "A bit of the loaded image has flipped, or somebody wrote over it",
            "purgatory finds it by its digests, says which segment, and resets the machine; "
            "on_mismatch = boot prefers a doubtful dump",
            ("flips-reserved-6.1", "flips-lent-6.1", "flips-boot-6.1"),
        ),
        Fault(
            "An exception in purgatory, or an NMI",
            "The exception is told and the machine reset, by one way after another; an NMI changes "
            "nothing",
            (
                "test_purgatory.py::test_an_exception_at_any_stage_resets_the_machine",
                "test_purgatory.py::test_an_nmi_at_any_stage_changes_nothing",
                "test_purgatory.py::test_every_way_of_resetting_has_its_time",
            ),
        ),
        Fault(
            "Devices still write into lent memory",
            "dma_quiesce: wait, watch until it rests, or switch bus masters off (docs/late-dma.md)",
            (
                *("late-nvme-control-6.1", "late-nvme-wait-6.1", "late-nvme-watch-6.1"),
                *("late-edu-control-6.1", "late-edu-off-6.1"),
                *("late-lsi-control-6.1", "late-lsi-off-6.1"),
                *("late-iommu-control-6.1", "late-iommu-wait-6.1"),
            ),
        ),
        Fault(
            "Writers that no wait ends (pages that a device reaches without a pin)",
            "Lending is refused until their bus masters are to be switched off",
            (
                "test_quiesce.py::test_a_writer_without_end_refuses_lending_until_it_is_switched_off",
                HARDWARE,
            ),
        ),
        Fault(
            "A watchdog would reset the machine during the wait",
            "Such a wait is refused",
            (
                "watchdog-6.1",
                "test_quiesce.py::test_a_wait_that_an_armed_watchdog_surely_ends_is_refused",
            ),
        ),
        Fault(
            "The crash kernel changes memory that is to be dumped",
            "It cannot reach it: not one byte of /proc/vmcore differs from what purgatory found",
            (
                *("bytes-movable-6.1", "bytes-movable-lent-6.1", "bytes-zone-6.1"),
                *("bytes-zone-lent-7.3", "bytes-cma-7.3", "bytes-cma-lent-7.3"),
            ),
        ),
    ),
)
_CAPTURE = Section(
    "In the crash kernel",
    (
        Fault(
            "The reservation alone is too small for it",
            "Without lent memory the dump is lost; with it, it is saved",
            ("control-6.1", "small-6.1"),
        ),
        Fault(
            "The ELF core header was made wrong (a damaged one is a flipped bit, above)",
            "There is no /proc/vmcore: capture.json says so, the machine reboots",
            ("elfcorehdr-6.1",),
        ),
        Fault(
            "The target has no room for the dump",
            "A dump that leaves out more; else what there is stays as vmcore.incomplete, with the log and "
            "the reason",
            (
                *("ladder-little-room-6.1", "target-small-6.1"),
                "test_ladder.py::test_more_is_left_out_where_there_is_no_room",
            ),
        ),
        Fault(
            "A target is not there, full or read-only, and others are named",
            "The next one has the dump; capture.json tells of each",
            ("ladder-targets-6.1", "test_ladder.py::test_the_next_target_is_tried"),
        ),
        Fault(
            "The target has no room at all, and there is no other",
            "The reason is on the console, and in pstore where there is a backend; it reboots",
            ("target-full-6.1",),
        ),
        Fault(
            "No target can be reached",
            "The end of the log and the reason are on the console and in production's pstore",
            ("ladder-no-target-6.1",),
        ),
        Fault(
            "A target stands still, or breaks in the middle",
            "The dump is ended when nothing is written any more; the next target has it",
            (
                "test_ladder.py::test_a_dump_that_stands_still_is_ended",
                "test_ladder.py::test_a_target_that_breaks_in_the_middle",
                "test_capture_watch.py::test_what_no_signal_ends_is_left_behind",
            ),
        ),
        Fault(
            "A server is down, has another key or a bad certificate; DHCP gives no answer",
            "Its own words are the reason in capture.json, and the next target is tried",
            (
                "net-faults-6.1",
                "test_net_ladder.py::test_a_server_that_refuses_costs_one_rung",
                "test_net_shell.py::test_without_an_answer_the_last_address_is_tried",
            ),
        ),
        Fault(
            "A server stops answering, or the connection breaks, in the middle of a dump",
            "Nothing there looks like a dump; it is given up in time, and the next target has the dump",
            (
                "test_net_ladder.py::test_a_connection_that_breaks_in_the_middle_costs_one_rung",
                "test_net_shell.py::test_a_server_that_takes_nothing_is_given_up",
            ),
        ),
        Fault(
            "makedumpfile is out of memory, or dies of a signal",
            "It is tried again with less memory, then at a level that leaves out more",
            (
                "ladder-dying-6.1",
                "test_ladder.py::test_a_makedumpfile_that_dies_is_tried_at_each_level",
            ),
        ),
        Fault(
            "A hook takes all memory and CPU, kills all that it can, hangs",
            "It is the first to be killed; what it ended of the capture is started again",
            (
                "ladder-bad-hook-6.1",
                "test_capture_watch.py::test_what_a_hook_ends_is_started_again",
            ),
        ),
        Fault(
            "The crash kernel panics itself",
            "It resets after ten seconds; pstore keeps both panics where its backend is built in",
            ("ladder-panic-6.1",),
        ),
        Fault(
            "The crash kernel hangs after its init has begun",
            "A hardware watchdog, which it has fed until then, resets the machine",
            ("ladder-hang-6.1",),
        ),
        Fault(
            "A raw device is not the one that it was (disks change their order)",
            "Nothing is written to a device that is neither blank nor marked, or has another size",
            (
                "ladder-raw-6.1",
                "test_capture_raw.py::test_what_is_somebody_s_is_not_written_to",
                "test_capture_raw.py::test_a_device_of_another_size_is_not_it",
            ),
        ),
        Fault(
            "Devices that reach 32 bits only, lent memory above 4 GiB",
            "The bounce buffers are sized in the plan, and one block is lent below",
            ("narrow-disk-6.1", "narrow-disk-5.10"),
        ),
        Fault(
            "It finds memory by another way (ACPI, DIMMs)",
            "It is told not to: it has what was planned, and nothing else",
            ("movable-7.3-dimms", "zone-dimms-6.12"),
        ),
    ),
)
_HARDWARE = Section(
    "What emulation cannot show",
    (
        Fault(
            "Devices that go on writing for longer than the wait, and do not heed their bus master bit",
            "dma_quiesce waits, watches and switches off; QEMU's models are not real devices",
            (HARDWARE,),
        ),
        Fault(
            "Real IOMMUs, and firmware that reacts to a crash in its own way",
            "Production's iommu words are kept for the crash kernel",
            (HARDWARE,),
        ),
        Fault(
            "A crash kernel that hangs before its console is there",
            "Nothing in software ends it: have a hardware watchdog",
            (HARDWARE,),
        ),
        Fault(
            "Machine checks, memory errors during the dump",
            "makedumpfile's and the kernel's business; a dump may be incomplete",
            (HARDWARE,),
        ),
        Fault(
            "SME, SEV, TDX: caches of other CPUs that are written back late",
            "Lending is refused on such hosts",
            ("test_plan.py::test_confidential_hosts_lend_nothing", HARDWARE),
        ),
    ),
)
SECTIONS = (_LENDING, _LOADING, _CRASH, _BETWEEN, _CAPTURE, _HARDWARE)
