# SPDX-License-Identifier: LGPL-2.1-or-later
"""What watches over the capture, its hooks, and what is left when no target took anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import crashlend
from capture_shell import SHELLS, executable, needs_busybox, shell

pytestmark = needs_busybox

INIT = Path(crashlend.__file__).parent / "capture/init"
HOOKS_PAGE = Path(__file__).parents[1] / "docs/hooks.md"

# Time that passes with each look at it: ten seconds, from a file, because subshells look, too.
CLOCK = """
clock() { read -r NOW <clock; echo $((NOW + 1000)) >clock; }
usleep() { :; }
say() { echo "$*" >>said; }
echo 0 >clock
"""


def test_the_deadline_moves_with_a_dump_that_grows(tmp_path: Path) -> None:
    """The total counts from the start; after that a dump has its time to stand still, and a grace."""
    script = """
    STARTED=500 TOTAL_TIMEOUT=600 STALL_TIMEOUT=300
    deadline; moved 1000; deadline; moved 100000; deadline
    now() { echo 100000; }
    left
    """
    assert shell(script, tmp_path).split() == ["60500", "60500", "154000", "480"]


# A process that has ended once its guard has given it up, or after a number of looks.
GUARDED = """
STALL_TIMEOUT=60 looks=0
sleep() { :; }
kill() { echo "killed $2"; }
ended() { looks=$((looks + 1)); [ -e stalled ] || [ "$looks" -gt 50 ]; }
grows() { read -r n <n; echo $((n + 1)) | tee n; }
echo 5 >n
"""


@pytest.mark.parametrize(
    ("total", "limit", "count", "why"),
    [
        (600, 0, "cat n", "nothing was written for 60 s"),
        (60, 0, "cat n", "nothing was written, and no time was left"),
        (60, 0, "grows", ""),  # a dump that grows moves the time that is left
        (600, 200, "grows", "the dump took longer than 200 s"),
    ],
)
def test_what_is_guarded_goes_on_as_long_as_it_grows(
    tmp_path: Path, total: int, limit: int, count: str, why: str
) -> None:
    """And no longer: a process that never writes does not move the deadline by being started."""
    script = CLOCK + GUARDED + f"TOTAL_TIMEOUT={total}; stall_guard 7 {limit} {count}"
    assert shell(script, tmp_path) == ("killed 7\n" if why else "")
    stalled = tmp_path / "stalled"
    assert (stalled.read_text() if stalled.exists() else "") == (f"{why}\n" if why else "")
    assert (tmp_path / "grown").exists() == (count == "grows")


def test_what_waits_for_disks_becomes_less(tmp_path: Path) -> None:
    """The number that is watched while a dump is written out grows by what disks have taken."""
    meminfo = "MemTotal: 900 kB\nDirty: {} kB\nWriteback: {} kB\nNFS_Unstable: {} kB\n"
    numbers = []
    for amounts in ((500, 0, 0), (100, 350, 0), (0, 0, 50), (0, 0, 0)):
        (tmp_path / "meminfo").write_text(meminfo.format(*amounts))
        numbers.append(int(shell("PROC=$PWD; written_out", tmp_path)))
    assert [number - numbers[0] for number in numbers] == [0, 50, 450, 500]


@pytest.mark.parametrize(("total", "first"), [(60, 45), (200, 150), (600, 540)])
def test_time_is_kept_for_the_end(tmp_path: Path, total: int, first: int) -> None:
    """A minute, and never so much that a short total leaves none for the dump."""
    assert shell(f"now() {{ echo 0; }}\nTOTAL_TIMEOUT={total}; left", tmp_path) == f"{first}\n"


@pytest.mark.parametrize(
    ("available_kib", "room_kib"), [(8 << 20, 64 << 10), (160 << 10, 20 << 10)]
)
def test_what_a_dead_disk_holds_does_not_count_for_the_next(
    tmp_path: Path, available_kib: int, room_kib: int
) -> None:
    """Half of the limit is above that by what a writer may need, and little memory allows."""
    (tmp_path / "meminfo").write_text(
        f"MemAvailable: {available_kib} kB\nDirty: 200000 kB\nWriteback: 50000 kB\n"
    )
    script = "say() { :; }; bounded() { return 137; }; PROC=$PWD VM=$PWD; asked 9 true || cat dirty_bytes"
    assert int(shell(script, tmp_path)) == 2 * 1024 * (250000 + room_kib)


def test_what_no_signal_ends_is_left_behind(tmp_path: Path) -> None:
    """A process that waits for a dead disk does not die; nothing waits for it for ever."""
    script = CLOCK + "ended() { false; }\nsleep 9 & await $! 60; echo $?; kill $!"
    assert shell(script, tmp_path) == "124\n"


@pytest.mark.parametrize("by", SHELLS)
def test_a_command_that_takes_too_long_is_ended(tmp_path: Path, by: tuple[str, ...]) -> None:
    """Bounded passes status, output and input on, and ends what exceeds its bound."""
    script = """
    echo in | bounded 9 cat
    bounded 9 sh -c 'exit 3'; echo $?
    bounded 1 sleep 50; echo $?
    """
    script = "command -v usleep >/dev/null || usleep() { sleep 0.1; }\n" + script
    assert shell(script, tmp_path, by).split() == ["in", "3", "137"]


@pytest.mark.parametrize("by", SHELLS)
def test_init_begins_without_a_console(tmp_path: Path, by: tuple[str, ...]) -> None:
    """The kernel opens no descriptors where console= names none that is there; all runs anyway."""
    script = """
    defaults() { :; }
    mount_kernel_file_systems() { :; }
    dead_man() { :; }
    sample_memory() { :; }
    write_early() { :; }
    say() { :; }
    leave() { :; }
    usleep() { sleep 0.01; }
    capture() { echo fed | bounded 9 cat >saved; bounded 9 cp saved copied; }
    (main) <&- >&- 2>&-
    cat saved copied
    """
    assert shell(script, tmp_path, by) == "fed\nfed\n"


def test_a_zombie_has_ended(tmp_path: Path) -> None:
    """A child that nobody has waited for yet is still in /proc."""
    script = "true & pid=$!; until ended $pid; do :; done; ended $pid; echo $?; ended $$; echo $?"
    assert shell(script, tmp_path).split() == ["0", "1"]


def test_the_dead_man_leaves_by_force(tmp_path: Path) -> None:
    """After the total, and not before; pstore's built-in backend may keep the log's end."""
    script = CLOCK + "TOTAL_TIMEOUT=100\nsleep() { :; }\n"
    script += 'echo() { command echo "$@"; }\ndead_man() {\n'
    # the same loop, with its end made visible
    script += (
        'while [ "$(now)" -lt "$(deadline)" ]; do usleep 1000000; done; cat clock; }\ndead_man'
    )
    assert shell(script, tmp_path) == "11000\n"


def test_watchdogs_are_fed_until_the_dead_man_has_failed(tmp_path: Path) -> None:
    """Each is set to its time, then fed once a look, a minute longer than the dead-man takes."""
    (tmp_path / "watchdog0").touch()
    script = (
        CLOCK + 'timeout() { command echo "$*" >>set; }\nTOTAL_TIMEOUT=100 WATCHDOG_TIMEOUT=45\n'
    )
    script += "feed $PWD/watchdog0"
    shell(script, tmp_path)
    assert (tmp_path / "watchdog0").read_text() == "." * 16  # (100 + 60) / 10
    assert (tmp_path / "set").read_text() == (
        f"-s KILL 1 busybox watchdog -F -T 45 -t 1 {tmp_path}/watchdog0\n"
    )
    assert "feeding watchdog0" in (tmp_path / "said").read_text()


def test_a_machine_that_halts_lets_its_watchdogs_stop(tmp_path: Path) -> None:
    """What feeds them is ended first; then one write of a V, for another byte would take it back."""
    (tmp_path / "watchdog0").touch()
    script = """
    say() { :; }
    DEV=$PWD
    feed() { exec sleep 99; }
    feed_watchdogs
    release_watchdogs
    for pid in $FEEDERS; do until ended $pid; do :; done; done
    cat watchdog0
    """
    assert shell(script, tmp_path) == "V"


def test_a_watchdog_without_a_number_is_fed(tmp_path: Path) -> None:
    """ipmi_watchdog has no other; where there is one with a number, it is the same device."""
    script = "DEV=$PWD; watchdogs; : >watchdog; watchdogs; : >watchdog0; : >watchdog1; watchdogs"
    assert shell(script, tmp_path).split() == [
        f"{tmp_path}/{name}" for name in ("watchdog", "watchdog0", "watchdog1")
    ]


def test_watchdogs_are_left_alone_when_asked_to(tmp_path: Path) -> None:
    """0 loads no driver and opens no device."""
    (tmp_path / "watchdogs").write_text("/lib/modules/x.ko\n")
    script = CLOCK + "WATCHDOG_TIMEOUT=0\ninsert() { echo no; }\nfeed() { echo no; }\nDEV=$PWD\n"
    assert shell(f"{script}: >watchdog0; arm_watchdogs; wait", tmp_path) == ""
    on = script.replace("WATCHDOG_TIMEOUT=0", "WATCHDOG_TIMEOUT=1")
    assert shell(f"{on}arm_watchdogs; wait", tmp_path) == "no\nno\n"


def test_hooks_get_the_documented_environment(tmp_path: Path) -> None:
    """docs/hooks.md lists exactly these."""
    executable(tmp_path / "hooks/post.d/10-env", "env | grep ^CRASHLEND_ | sort >env\n")
    executable(tmp_path / "hooks/post.d/20-fails", "exit 3\n")
    executable(tmp_path / "hooks/post.d/30-last", "echo done\n")
    (tmp_path / "hooks/post.d/40-not-executable").write_text("exit 1\n")
    (tmp_path / "dmesg.txt").write_text("log\n")
    script = 'say() { echo "$*" >>said; }\nwatch_again() { :; }\nDIR=/d TARGET_SPEC=disk\n'
    shell(
        script + "VMCORE=/v REASON='a b' CAPTURE_JSON=/j PANIC=p; run_hooks post failed", tmp_path
    )
    assert (tmp_path / "env").read_text().splitlines() == [
        "CRASHLEND_CAPTURE_JSON=/j",
        "CRASHLEND_DIR=/d",
        f"CRASHLEND_DMESG={tmp_path}/dmesg.txt",
        "CRASHLEND_PANIC=p",
        "CRASHLEND_REASON=a b",
        "CRASHLEND_STAGE=post",
        "CRASHLEND_STATUS=failed",
        "CRASHLEND_TARGET=disk",
        "CRASHLEND_TARGET_MOUNT=",
        "CRASHLEND_VMCORE=/v",
    ]
    assert "20-fails ended with 3" in (tmp_path / "said").read_text()
    assert (tmp_path / "log").read_text() == "done\n"


@pytest.mark.parametrize(
    ("stage", "left", "times"),
    [
        ("pre", 400, ["60", "40"]),  # a quarter of it for all of them: the dump is still to come
        ("post", 400, ["60", "60", "60", "60"]),
        ("post", -9, ["10"]),  # the report is written: it may cost what is kept for the end
    ],
)
def test_hooks_that_hang_have_a_bound_together(
    tmp_path: Path, stage: str, left: int, times: list[str]
) -> None:
    """However many there are; those that come too late are named."""
    for number in range(4):
        executable(tmp_path / f"hooks/{stage}.d/{number}", "")
    script = f"""
    say() {{ echo "$*" >>said; }}
    clock() {{ read -r NOW <clock; }}
    left() {{ echo {left}; }}
    watch_again() {{ :; }}
    run_hook() {{ echo "$2"; clock; echo $((NOW + $2 * 100)) >clock; return 137; }}
    echo 0 >clock
    run_hooks {stage}
    """
    assert shell(script, tmp_path).split() == times
    said = (tmp_path / "said").read_text()
    assert said.count("there is no time for it") == 4 - len(times)
    assert said.count(f"{stage} hook 3") >= 1


def test_a_hook_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    """Its children would go on to take memory and CPU; one that ends by itself may leave some."""
    executable(tmp_path / "hooks/pre.d/10-hangs", "sleep 600 & echo $! >hung\nsleep 601\n")
    executable(tmp_path / "hooks/pre.d/20-leaves", "sleep 60 & echo $! >left\n")
    script = """
    say() { echo "$*" >>said; }
    watch_again() { :; }
    HOOK_TIMEOUT=1 STARTED=$(now)
    run_hooks pre
    read -r hung <hung; read -r left <left
    until ended "$hung"; do usleep 1000; done
    ended "$left" || echo there
    kill "$left"
    """
    assert shell(script, tmp_path) == "there\n"
    assert "10-hangs ended with 137" in (tmp_path / "said").read_text()


def test_what_a_hook_ends_is_started_again(tmp_path: Path) -> None:
    """A hook that kills everything costs neither the dead-man nor the watchdogs."""
    script = """
    say() { :; }
    dead_man() { exec sleep 99; }
    sample_memory() { exec sleep 98; }
    feed() { exec sleep 97; }
    DEV=$PWD
    : >watchdog0; : >watchdog1
    dead_man & DEAD_MAN=$!
    sample_memory & LEAST_PID=$!
    feed_watchdogs
    before="$DEAD_MAN $LEAST_PID $FEEDERS"
    watch_again pre
    [ "$before" = "$DEAD_MAN $LEAST_PID $FEEDERS" ] && echo same
    kill -9 $before
    for pid in $before; do until ended $pid; do :; done; done
    watch_again pre
    for pid in $DEAD_MAN $LEAST_PID $FEEDERS; do ended $pid || echo alive; done
    kill -9 $DEAD_MAN $LEAST_PID $FEEDERS
    """
    assert shell(script, tmp_path).split() == ["same", *["alive"] * 4]


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("erst", "pstore (erst) keeps the end of this log"),
        ("(null)", "pstore has no backend here"),
        (None, "pstore has no backend here"),
    ],
)
def test_pstore_is_asked_what_it_has(tmp_path: Path, backend: str | None, said: str) -> None:
    """Nothing is promised where no backend has registered; else every end of the kernel is kept."""
    flag = tmp_path / "sys/module/printk/parameters/always_kmsg_dump"
    flag.parent.mkdir(parents=True)
    flag.write_text("N\n")
    if backend is not None:
        (tmp_path / "sys/module/pstore/parameters").mkdir(parents=True)
        (tmp_path / "sys/module/pstore/parameters/backend").write_text(backend + "\n")
    (tmp_path / "pstore").write_text("/lib/modules/ramoops.ko mem_size=1 max_reason=4\n")
    script = CLOCK + 'insert() { echo "insmod $*"; }\nSYS=$PWD/sys\npstore_keep'
    out = shell(script + " || :", tmp_path)
    assert out == "insmod /lib/modules/ramoops.ko mem_size=1 max_reason=4\n"
    assert said in (tmp_path / "said").read_text()
    assert flag.read_text() == ("1\n" if backend == "erst" else "N\n")


def test_the_last_words_are_the_end_of_the_log(tmp_path: Path) -> None:
    """For the console and for pstore: the last lines, printable, then why there is no dump."""
    lines = [f"[{n}.0] line {n} \x1b[31m of the log" for n in range(200)]
    (tmp_path / "dmesg.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "kmsg").touch()
    script = CLOCK + "DEV=$PWD\nPANIC=gone REASON=full\nlast_words"
    # each line is one write to /dev/kmsg; into a file the last one stays
    shell(script, tmp_path)
    assert (tmp_path / "kmsg").read_text() == "<3>| [199.0] line 199 [31m of the log\n"
    said = (tmp_path / "said").read_text().splitlines()
    assert said[-2:] == ["crashed: gone", "no dump was saved: full"]


def test_the_page_on_hooks_lists_what_they_get() -> None:
    """docs/hooks.md has a row for each variable that hooks.sh exports, and no other."""
    exported = set(re.findall(r"CRASHLEND_[A-Z_]+(?==)", (INIT / "hooks.sh").read_text()))
    documented = re.findall(r"^\| `(CRASHLEND_[A-Z_]+)` \|", HOOKS_PAGE.read_text(), re.MULTILINE)
    assert sorted(exported) == sorted(documented)
