# SPDX-License-Identifier: LGPL-2.1-or-later
"""The words that the capture gives makedumpfile: compression, threads, and what it falls back to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from capture_shell import STUBS, executable, needs_busybox, shell

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_busybox

CPU = "processor\t: {}\nmodel name\t: processor of the lab\n\n"


def world(cwd: Path, cpus: int, available_mib: int) -> None:
    (cwd / "cpuinfo").write_text("".join(CPU.format(number) for number in range(cpus)))
    (cwd / "meminfo").write_text(
        f"MemTotal: 9999999 kB\nMemFree: 1 kB\nMemAvailable:  {available_mib << 10} kB\n"
    )


@pytest.mark.parametrize(
    ("setting", "cpus", "available_mib", "threads"),
    [
        ("auto", 1, 4000, 0),
        ("auto", 2, 4000, 0),
        ("auto", 3, 4000, 2),
        ("auto", 8, 4000, 7),
        ("auto", 8, 32, 4),
        ("auto", 8, 15, 0),
        ("auto", 8, 0, 0),
        ("0", 8, 4000, 0),
        ("5", 2, 10, 5),
        ("", 8, 4000, 0),
        ("many", 8, 4000, 0),
    ],
)
def test_threads_by_cpus_and_memory(
    tmp_path: Path, setting: str, cpus: int, available_mib: int, threads: int
) -> None:
    """One for each CPU but one, 2 MiB each of a quarter of available memory, and never a single one."""
    world(tmp_path, cpus, available_mib)
    text = f"THREADS='{setting}'; makedumpfile_threads cpuinfo meminfo"
    assert shell(text, tmp_path) == f"{threads}\n"


@pytest.mark.parametrize(
    ("have", "threads", "kind", "flag"),
    [
        ("-z -l -c", 0, "fs", "-l"),
        ("-z -l -c", 0, "raw", "-l"),
        ("-z -l -c", 0, "ssh", "-z"),
        ("-z -l -c", 7, "fs", "-z"),
        ("-l -c", 7, "fs", "-l"),
        ("-z -c", 0, "fs", "-z"),
        ("-c", 0, "fs", "-c"),
        ("", 0, "fs", ""),
    ],
)
def test_compression_by_what_is_slow(
    tmp_path: Path, have: str, threads: int, kind: str, flag: str
) -> None:
    """Lzo where one CPU writes to a disk; the best ratio where several compress, or to a network."""
    text = f"COMPRESSIONS='{have}' TARGET_KIND={kind}; makedumpfile_compression {threads}"
    assert shell(text, tmp_path).strip() == flag


@pytest.mark.parametrize(
    ("have", "threads", "words"),
    [
        ("-l -c", "0", "-l -d 17"),
        ("-z -l -c", "3", "-z --num-threads 3 -d 17"),
        ("", "3", "--num-threads 3 -d 17"),
        ("", "0", "-d 17"),
    ],
)
def test_words_in_one_line(tmp_path: Path, have: str, threads: str, words: str) -> None:
    """Compression, threads, level; what there is none of is not there at all."""
    text = f"TARGET_KIND=fs COMPRESSIONS='{have}' THREADS={threads}; makedumpfile_words 17"
    assert shell(text, tmp_path) == words + "\n"


def test_what_it_lacks_is_not_asked_of_it(tmp_path: Path) -> None:
    """It would not fail, but write the dump without any: so what -v says is disabled is left out."""
    version = "makedumpfile: version 1.7.2 (released on 20 Oct 2022)\\nlzo\\tenabled\\n"
    executable(
        tmp_path / "bin/makedumpfile", f"printf '{version}snappy\\tdisabled\\nzstd\\tdisabled\\n'\n"
    )
    text = "COMPRESSIONS='-z -l -p -c'; makedumpfile_look; echo \"$DUMP_VERSION|$COMPRESSIONS\""
    assert shell(STUBS + text, tmp_path) == "1.7.2|-l -c\n"


def test_one_that_does_not_tell_keeps_them_all(tmp_path: Path) -> None:
    """An unknown one is not taken for one that lacks everything."""
    executable(tmp_path / "bin/makedumpfile", "exit 1\n")
    text = "COMPRESSIONS='-z -c'; makedumpfile_look; echo \"$DUMP_VERSION|$COMPRESSIONS\""
    assert shell(STUBS + text, tmp_path) == "|-z -c\n"


@pytest.mark.parametrize(
    ("args", "code", "log", "after"),
    [
        ("-z -d 31", 1, "makedumpfile: invalid option -- 'z'", "yes|-l -c|auto"),
        ("-d 31", 1, "Commandline parameter is invalid.", "no|-z -l -c|auto"),
        ("-z --num-threads 3 -d 31", 137, "", "yes|-z -l -c|0"),
        ("-z --num-threads 3 -d 31", 1, "Can't create thread 2. Cannot", "yes|-z -l -c|0"),
        ("-z --num-threads 3 -d 31", 1, "Can't write the dump file. No space", "no|-z -l -c|auto"),
        ("-z -d 31", 137, "", "no|-z -l -c|auto"),
        ("-z -d 31", 1, "Can't allocate memory", "no|-z -l -c|auto"),
    ],
)
def test_other_words_after_a_failure(
    tmp_path: Path, args: str, code: int, log: str, after: str
) -> None:
    """A compression that is not there is left out, then threads; a full disk is neither's fault."""
    (tmp_path / "makedumpfile.log").write_text(log + "\n")
    text = (
        f"COMPRESSIONS='-z -l -c' THREADS=auto DUMP_ARGS='{args}' DUMP_EXIT={code}; "
        'makedumpfile_other_words && echo "yes|$COMPRESSIONS|$THREADS" '
        '|| echo "no|$COMPRESSIONS|$THREADS"'
    )
    assert shell(text, tmp_path) == after + "\n"


def test_a_dump_that_stalled_is_not_repeated(tmp_path: Path) -> None:
    """Its file had not grown: the target hangs, and threads have no part in that."""
    (tmp_path / "makedumpfile.log").write_text("\n")
    (tmp_path / "stalled").write_text("")
    text = "DUMP_ARGS='-z --num-threads 3 -d 31' DUMP_EXIT=137; makedumpfile_other_words || echo no"
    assert shell(text, tmp_path) == "no\n"


DIES_OF_THREADS = """
case " $* " in *" --num-threads "*) kill -9 $$ ;; esac
case " $* " in *" -z "*) echo "makedumpfile: invalid option -- 'z'" >&2; exit 1 ;; esac
for last; do :; done
echo dump >"$last"
"""


def test_the_ladder_of_words(tmp_path: Path) -> None:
    """Without zstd, then killed with its threads, it saves the dump with lzo and one thread."""
    executable(tmp_path / "bin/makedumpfile", DIES_OF_THREADS)
    (tmp_path / "grown").write_text("0\n")
    text = (
        "COMPRESSIONS='-z -l -c' THREADS=3 STARTED=$(now); stall_guard() { :; }; "
        'dump; echo "$REASON|$VMCORE_BYTES|$DUMP_ARGS|$DUMP_EXIT"'
    )
    assert shell(STUBS + text, tmp_path).splitlines()[-1] == "|5|-l -d 31|0"


@pytest.mark.parametrize(("mem_kib", "bound"), [(8 << 20, "268435456"), (512 << 10, "")])
def test_what_is_written_goes_to_the_disk_early(tmp_path: Path, mem_kib: int, bound: str) -> None:
    """The kernel's own thresholds are shares of memory; where they can't be set, the dump goes on."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {mem_kib} kB\n")
    (tmp_path / "vm").mkdir()
    text = "PROC=$PWD; : >vm/dirty_bytes; write_early vm; cat vm/dirty_background_bytes vm/dirty_bytes\n"
    text += "write_early no/such || :; cat said"
    out = shell(STUBS + text, tmp_path).splitlines()
    assert out == ["8388608", *[bound] * bool(bound), "cannot write to no/such"]


@pytest.mark.parametrize(
    ("words", "library", "preloaded"),
    [
        ("-z --num-threads 3 -d 31", "/lib/libgcc_s.so.1", "/lib/libgcc_s.so.1"),
        ("-l -d 31", "/lib/libgcc_s.so.1", ""),
        ("-z --num-threads 3 -d 31", "", ""),
    ],
)
def test_threads_find_their_library_loaded(
    tmp_path: Path, words: str, library: str, preloaded: str
) -> None:
    """It is loaded before the first thread begins, and not where there are none or none is needed."""
    executable(tmp_path / "bin/makedumpfile", 'echo "<$LD_PRELOAD>" >>said\n')
    text = f"THREAD_LIBRARY='{library}'; stall_guard() {{ :; }}; run_makedumpfile out {words}; cat said"
    assert f"<{preloaded}>" in shell(STUBS + text, tmp_path).splitlines()
    stream = f"THREAD_LIBRARY='{library}'; stall_guard() {{ :; }}; stream_source {words}; cat said"
    assert f"<{preloaded}>" in shell(STUBS + "rm -f said\n" + stream, tmp_path).splitlines()
