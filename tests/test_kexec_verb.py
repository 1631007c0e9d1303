# SPDX-License-Identifier: LGPL-2.1-or-later
"""``crashlend kexec``: the command lines of kdump-tools and kdump-utils, taken as kexec takes them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build import GIB, MIB, bz_image, facts, payload
from crashlend import config, kexec_words
from crashlend.capture.initramfs import load_archive
from crashlend.cli import kexec_verb
from crashlend.config import Settings
from crashlend.errors import RefusedError, UsageError
from crashlend.facts.others import Wanted, level_of, of_kdump_tools, of_kdump_utils, wanted_levels
from crashlend.formats.cmdline import crash_base, split
from crashlend.hostfiles import TreeFiles
from crashlend.payload import read_files
from crashlend.plan import make_plan
from crashlend.system import kexec, shrinking
from crashlend.system.callers import reload_follows
from crashlend.system.image import build_image
from test_cli import FakeHost, fake, run, untouched

__all__ = ["fake"]  # a fixture

# what kdump-tools 1:1.8.1 makes of /proc/cmdline: kdump_load() in /usr/sbin/kdump-config
TOOLS_LINE = (
    "BOOT_IMAGE=/boot/vmlinuz-6.1.0-56-amd64 root=UUID=8b6f0a4e ro quiet  "
    "reset_devices systemd.unit=kdump-tools-dump.service nr_cpus=1 irqpoll usbcore.nousb"
)
TOOLS_FILES = ["--initrd=/var/lib/kdump/initrd.img", "/var/lib/kdump/vmlinuz"]
# kdump-utils 1.0.60: gen-kdump-sysconfig.sh x86_64, prepare_cmdline() in kdump-lib.sh
UTILS_LINE = (
    "BOOT_IMAGE=(hd0,gpt2)/vmlinuz-6.12.0 ro irqpoll nr_cpus=1 reset_devices cgroup_disable=memory "
    "mce=off numa=off udev.children-max=2 panic=10 acpi_no_memhotplug transparent_hugepage=never "
    "nokaslr hest_disable novmcoredd cma=0 hugetlb_cma=0 pcie_ports=compat disable_cpu_apicid=0 "
    "iTCO_wdt.pretimeout=0 "
)
UTILS_FILES = ["--initrd=/boot/initramfs-6.12.0kdump.img", "/boot/vmlinuz-6.12.0"]

# who issues it, the words, and what it asks for: (action, syscall, line)
ISSUED = {
    "kdump-tools 1.8.1 to 1.10.9, kdump_load": (
        ["-p", f"--command-line={TOOLS_LINE}", *TOOLS_FILES],
        ("load", "", TOOLS_LINE),
    ),
    "kdump-tools, Secure Boot": (
        ["-p", "-s", f"--command-line={TOOLS_LINE}", *TOOLS_FILES],
        ("load", "file", TOOLS_LINE),
    ),
    "kdump-tools, a kernel that `file` calls ELF": (
        ["-p", "--args-linux", f"--command-line={TOOLS_LINE}", *TOOLS_FILES],
        ("load", "", TOOLS_LINE),
    ),
    "kdump-tools.conf's example of KDUMP_KEXEC_ARGS": (
        ["-p", "--elf64-core-headers", f"--command-line={TOOLS_LINE}", *TOOLS_FILES],
        ("load", "", TOOLS_LINE),
    ),
    "kdump-tools, kdump_unload": (["-p", "-u"], ("unload", "", None)),
    "kdump-tools, kdump_unload, Secure Boot": (["-s", "-p", "-u"], ("unload", "file", None)),
    "kdump-utils, load_kdump, x86_64": (
        ["-s", "-p", f"--command-line={UTILS_LINE}", *UTILS_FILES],
        ("load", "file", UTILS_LINE),
    ),
    "kdump-utils, load_kdump, KEXEC_ARGS empty, Secure Boot adds -s": (
        ["-s", "-s", "-p", f"--command-line={UTILS_LINE}", *UTILS_FILES],
        ("load", "file", UTILS_LINE),
    ),
    "kdump-utils, gen-kdump-sysconfig.sh's example of KEXEC_ARGS": (
        ["--elf32-core-headers", "-p", f"--command-line={UTILS_LINE}", *UTILS_FILES],
        ("load", "", UTILS_LINE),
    ),
    "kdump-utils, KEXEC_ARGS with a -d of somebody's own": (
        ["-s", "-d", "-p", f"--command-line={UTILS_LINE}", *UTILS_FILES],
        ("load", "file", UTILS_LINE),
    ),
    "kdump-utils, stop_kdump": (["-p", "-u"], ("unload", "", None)),
    "kdump-utils, stop_kdump, Secure Boot": (["-s", "-p", "-u"], ("unload", "file", None)),
}


@pytest.mark.parametrize("who", ISSUED)
def test_what_the_two_issue_is_understood(who: str) -> None:
    """Every literal command line of their scripts: what it does, by which call, with which line."""
    words, (action, syscall, line) = ISSUED[who]
    request = kexec_words.parse(words)
    assert (request.action, request.syscall) == (action, syscall)
    assert (request.line.text if request.line else None) == line
    if action == "load":
        assert f"--initrd={request.initrd}" in words
        assert request.kernel == words[-1]


FORMS = [
    ["-p", "--initrd=i", "--command-line=a b", "k"],
    ["-p", "--initrd", "i", "--command-line", "a b", "k"],
    ["k", "-p", "--initrd", "i", "--append=a b"],
    ["--load-panic", "--ramdisk=i", "--append", "a b", "k"],
    ["-dp", "--initrd=i", "--command-line=a b", "--", "k"],
    ["--load-pa", "--ini=i", "--comm=a b", "k"],
    ["-p", "--initrd=x", "--initrd=i", "--append=first", "--command-line=a b", "k"],
    ["-pt", "bzImage", "--initrd=i", "--command-line=a b", "k"],
    ["-ptbzImage64", "--initrd=i", "--command-line=a b", "k"],
    ["-pixy", "--initrd=i", "--command-line=a b", "k"],
]


@pytest.mark.parametrize("words", FORMS, ids=" ".join)
def test_the_forms_of_getopt_long_mean_the_same(words: list[str]) -> None:
    """Bundles, --opt x, --opt=x, shortened options, options behind the kernel; the last one counts."""
    request = kexec_words.parse(words)
    assert (request.action, request.kernel, request.initrd) == ("load", "k", "i")
    assert request.line == (False, "a b")


@pytest.mark.parametrize(
    ("words", "action"),
    [
        (["-pu"], "unload"),
        (["-up"], "unload"),
        (["--load-panic", "--unload"], "unload"),
        (["-spu"], "unload"),
        (["-S"], "status"),
        (["-pS"], "status"),
        (["--status"], "status"),
        (["-pu", "--initrd=i", "--command-line=a", "k"], "load"),
        (["--print-ckr-size"], "print-size"),
        (["-h"], "help"),
        (["-p", "--version"], "version"),
    ],
    ids=str,
)
def test_what_is_done(words: list[str], action: str) -> None:
    """-u alone unloads; with a kernel the new one replaces the old; -S supersedes what else there is."""
    assert kexec_words.parse(words).action == action


@pytest.mark.parametrize(
    ("word", "syscall"),
    [
        ("-s", "file"),
        ("-c", "load"),
        ("-a", "auto"),
        ("--kexec-file-syscall", "file"),
        ("--kexec-syscall", "load"),
        ("--kexec-syscall-auto", "auto"),
    ],
)
def test_which_system_call(word: str, syscall: str) -> None:
    """-s, -c, -a and their long names; the last one counts; what is not said is the setting's."""
    words = ["-s", "-c", "-p", word, "--initrd=i", "--command-line=a", "k"]
    request = kexec_words.parse(words)
    assert request.syscall == syscall
    silent = kexec_words.parse(words[2:3] + words[4:])
    made = kexec_words.settings_of(silent, Settings(syscall="file"), b"")
    assert made.syscall == "file"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["-l", "k"], "for crash kernels alone: --load is for a planned reboot"),
        (["-e"], "--exec is for a planned reboot"),
        (["-f", "k"], "--force is for a planned reboot"),
        (["-p", "--load-preserve-context", "k"], "--load-preserve-context is for"),
        (["-p", "--entry=0", "k"], "--entry is for"),
        (["-l", "-S"], "--load is for a planned reboot"),
        (["-u"], "there is no -p"),
        (["k", "--initrd=i", "--command-line=a"], "there is no -p"),
        ([], "there is no -p"),
        (["-p", "--mem-min=0", "k"], "--mem-min would change"),
        (["-p", "--real-mode", "k"], "--real-mode would change"),
        (["-p", "--initrd=i", "--command-line=a"], "no kernel was named"),
        (["-p", "--initrd=i", "--command-line=a", ""], "no kernel was named"),
        (["-p", "--initrd=i", "--command-line=a", "k", "l"], "2 kernels were named"),
        (["-p", "--command-line=a", "k"], "no initramfs was given"),
        (["-p", "--initrd=", "--command-line=a", "k"], "no initramfs was given"),
        (["-p", "--initrd=i", "k"], "no command line was given"),
        (["-p", "-t", "elf-x86_64", "--initrd=i", "--command-line=a", "k"], "--type=elf-x86_64"),
        (["-p", "--nonsense"], "--nonsense not recognized"),
        (["-p", "--args"], "--args not a unique prefix"),
        (["-p", "--initrd"], "requires argument"),
        (["-p", "-q"], "-q not recognized"),
    ],
    ids=str,
)
def test_what_is_refused(words: list[str], what: str) -> None:
    """What kexec would not take, what is no crash kernel's, and what would move it: exit 2 and a hint."""
    run("kexec", *words).assert_error(2, what)


def test_every_option_of_kexec_is_in_one_table() -> None:
    """No option is in two of the tables, and each short one has its long name there."""
    names = [n.rstrip("=") for n in kexec_words.LONG]
    assert len(set(names)) == len(names)
    assert {f"-{c}" for c in kexec_words.SHORT if c != ":"} == set(kexec_words.LONG_NAMES)
    assert set(kexec_words.LONG_NAMES.values()) <= set(names)


@given(
    st.lists(st.one_of(st.sampled_from([*FORMS[0], "-u", "-S", "--", "-x"]), st.text(max_size=9)))
)
def test_any_words_are_a_request_or_a_usage_error(words: list[str]) -> None:
    """Nothing that a script may pass ends in anything else; a load always has all three."""
    try:
        request = kexec_words.parse(words)
    except UsageError:
        return
    if request.action == "load":
        assert all((request.kernel, request.initrd, request.line))


# --- the command line ----------------------------------------------------------------------------


def settings_for(line: str, *words: str, production: bytes = b"", **own: object) -> Settings:
    request = kexec_words.parse(["-p", *words, f"--command-line={line}", *TOOLS_FILES])
    return kexec_words.settings_of(request, Settings(**own), production)  # type: ignore[arg-type]


def test_the_line_that_was_given_is_used_and_made_safe() -> None:
    """Their words stay in their order; only what would change memory goes, what is needed comes."""
    given = f"{TOOLS_LINE} memmap=1G!4G mem=2G crashkernel=128M hugepages=4 panic=30"
    made = settings_for(given)
    plan = make_plan(facts(), made, payload())
    assert plan.cmdline is not None
    words = plan.cmdline.line.split()
    assert [w for w, _ in plan.cmdline.dropped] == ["memmap=1G!4G", "mem=2G", "crashkernel=128M"]
    assert words[: len(TOOLS_LINE.split())] == TOOLS_LINE.split()
    assert "hugepages=4" in words
    added = [w for w, _ in plan.cmdline.added]
    assert added[:2] == ["nokaslr", "acpi_no_memhotplug"]
    assert "panic=10" not in words
    assert "numa=off" not in words
    assert any(w.startswith("elfcorehdr=") for w in added)


@pytest.mark.parametrize("syscall", ["-c", "-s"])
def test_their_root_and_unit_survive_both_calls(syscall: str) -> None:
    """root= and systemd.unit=, by which kdump-tools' initramfs boots its dump, are on either line."""
    plan = make_plan(facts(), settings_for(TOOLS_LINE, syscall), payload())
    assert plan.cmdline is not None
    for word in ("root=UUID=8b6f0a4e", "systemd.unit=kdump-tools-dump.service", "nokaslr"):
        assert word in plan.cmdline.line.split()
    assert bool(plan.by_word) is (syscall == "-s")


def test_reuse_cmdline_is_productions_line_cleaned_with_its_root() -> None:
    """What load drops is dropped, but not what tells another's initramfs where the root is."""
    production = (
        b"BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro rootwait crashkernel=1G,cma crashkernel=100M "
        b"hugepages=64 mem=8G console=ttyS0 quiet splash nr_cpus=8 panic=1 -- init words"
    )
    request = kexec_words.parse(
        ["-p", "--reuse-cmdline", "--append=nr_cpus=1 irqpoll quiet", "--initrd=i", "k"]
    )
    made = kexec_words.settings_of(request, Settings(), production)
    assert made.cmdline == "root=/dev/vda1 ro rootwait console=ttyS0 splash nr_cpus=1 irqpoll quiet"
    assert crash_base(production) == "root=/dev/vda1 ro rootwait console=ttyS0 quiet splash"


@given(st.binary(max_size=200))
def test_what_is_kept_of_any_line_was_on_it(production: bytes) -> None:
    """crash_base() takes words away and makes none; none of them is about memory."""
    kept = split(crash_base(production))
    words = split(production.decode("utf-8", "surrogateescape"))
    rest = iter(words)
    assert all(word in rest for word in kept)  # in their order
    assert not [w for w in kept if "crashkernel=" in w or w.startswith(("mem=", "memmap="))]


@pytest.mark.parametrize(
    ("line", "setting", "count"),
    [("a nr_cpus=4", 1, 4), ("nr-cpus=3 nr_cpus=2", 1, 2), ("a", 6, 6), ("nr_cpus=x", 1, 1)],
)
def test_the_lines_cpus_become_the_setting(line: str, setting: int, count: int) -> None:
    """Several CPUs by their line: the one that firmware booted is spared, as with the setting."""
    made = settings_for(line, nr_cpus=setting)
    assert made.nr_cpus == count
    plan = make_plan(facts(cpus=4), made, payload())
    assert plan.cmdline is not None
    spared = [w for w in plan.cmdline.line.split() if w.startswith("disable_cpu_apicid=")]
    assert bool(spared) is False  # /proc/cpuinfo of these facts does not say which one it is
    if count > 1:
        assert plan.cmdline.line.split().count("nr_cpus=1") == 1
        assert f"nr_cpus={count}" not in plan.cmdline.line.split()


def test_a_line_with_letters_of_no_word_or_none_is_refused() -> None:
    """The line goes into the record of the load, where it must be one of printable text."""
    with pytest.raises(UsageError, match="no word"):
        settings_for("a\tb")
    with pytest.raises(UsageError, match="it is empty"):
        settings_for("  ")


def test_the_settings_of_the_load_survive_their_record() -> None:
    """A reload after an event takes the settings from the record: the given line is among them."""
    made = settings_for(TOOLS_LINE, "-s")
    assert config.from_text(config.to_text(made)) == made


def test_the_initramfs_is_stored_as_it_is(tmp_path: Path) -> None:
    """Nothing is appended to another's initramfs; crashlend's own gets its load.conf."""
    (tmp_path / "k").write_bytes(bz_image())
    (tmp_path / "i").write_bytes(b"070701" + bytes(4090))
    files = read_files(tmp_path / "k", tmp_path / "i")
    theirs = make_plan(facts(), settings_for(TOOLS_LINE), files.payload)
    own = make_plan(facts(), Settings(), files.payload)
    image = build_image(theirs, facts(), files)
    assert image.segments["initramfs"] == files.initramfs
    assert build_image(own, facts(), files).segments["initramfs"] != files.initramfs
    assert theirs.load_variables == {}
    assert load_archive({}) == b""


# --- what they leave out of the dump -------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "level"),
    [
        ("-F -c -d 31", 31),
        ("-c -d31", 31),
        ("-cd 17", 17),
        ("-l --message-level 7 -d 31", 31),
        ("--message-level=1 -z --num-threads 4 -d 31,17", 17),
        ("-d 1 -d 31", 31),
        ("-c", 0),
        ("-x vmlinux -g info", 0),
        ("-d many", None),
        ("--unknown -d 31", None),
    ],
)
def test_the_level_in_makedumpfiles_arguments(arguments: str, level: int | None) -> None:
    """-d in all forms that makedumpfile takes; without it everything is copied."""
    assert level_of(arguments)[0] == level


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ('#MAKEDUMP_ARGS="-c -d 1"\n', 31),
        ('MAKEDUMP_ARGS="-c -d 1"\n', 1),
        ("MAKEDUMP_ARGS='-c -d 1'\nMAKEDUMP_ARGS='-l -d 31' # why\n", 31),
        ("export MAKEDUMP_ARGS=-d31\n", 31),
        ('MAKEDUMP_ARGS=""\n', 31),
        ('MAKEDUMP_ARGS="$MAKEDUMP_ARGS -d 1"\n', None),
        ('USE_KDUMP=1; MAKEDUMP_ARGS="-d 1"\n', None),
        ('MAKEDUMP_ARGS="-d 31" USE_KDUMP=1\n', None),
        ('MAKEDUMP_ARGS="-d 31\n', None),
    ],
)
def test_the_level_of_kdump_tools(text: str, level: int | None) -> None:
    """The last assignment counts; what only a shell could tell is not guessed."""
    assert of_kdump_tools(text)[0] == level


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("path /var/crash\n", 31),
        ("core_collector makedumpfile -l --message-level 7 -d 31\n", 31),
        ("#core_collector scp\n  core_collector makedumpfile -d 1 # all\n", 1),
        ("core_collector scp\n", 0),
        ("core_collector /usr/sbin/makedumpfile -F -d 17\n", 17),
        ("core_collector\tmakedumpfile -l -d 1\n", 1),
        ("\tcore_collector \t makedumpfile\t-l\t-d\t1\t# all\n", 1),
        ("core_collector\tscp\n", 0),
        ("core_collector makedumpfile\n", 0),
        ("core_collector\t# none\n", 31),
    ],
)
def test_the_level_of_kdump_utils(text: str, level: int | None) -> None:
    """core_collector's -d; any other program copies everything; nothing said is -d 31."""
    assert of_kdump_utils(text)[0] == level


def test_the_levels_of_a_host(tmp_path: Path) -> None:
    """Both files are looked for; of two levels what both leave out counts; none is said so."""
    files = TreeFiles(tmp_path)
    assert wanted_levels(files) == ()
    made, notes = kexec_verb.with_level(Settings(dump_level=17), ())
    assert made.dump_level == 17
    assert "setting dump_level: 17" in notes[0]
    for name, text in (("default/kdump-tools", "MAKEDUMP_ARGS='-d 23'"), ("kdump.conf", "a b\n")):
        (tmp_path / "etc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "etc" / name).write_text(text)
    found = wanted_levels(files)
    assert [one.level for one in found] == [23, 31]
    assert kexec_verb.with_level(Settings(dump_level=1), found)[0].dump_level == 23


def test_a_level_that_cannot_be_told_counts_as_all_memory() -> None:
    """Not knowing is no excuse where memory is lent; where none is, it does not matter."""
    unknown = (Wanted("/etc/default/kdump-tools", None, "'$A' can't be read"),)
    made, notes = kexec_verb.with_level(settings_for(TOOLS_LINE), unknown)
    assert made.dump_level == 0
    assert "'$A' can't be read: taken for a dump of all memory" in notes[0]
    with pytest.raises(RefusedError, match="dump level 0 wants user data"):
        make_plan(facts(), made, payload())
    for harmless in (replace(made, lend=0), replace(made, allow_missing_user_data=True)):
        assert make_plan(facts(), harmless, payload()).dump_level == 0


# --- on a host -----------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A whole load as kdump-tools issues it, with good files."""
    (tmp_path / "vmlinuz").write_bytes(bz_image())
    (tmp_path / "initrd").write_bytes(bytes(2 * MIB))
    line = f"--command-line={TOOLS_LINE}"
    return ["kexec", "-p", line, f"--initrd={tmp_path}/initrd", f"{tmp_path}/vmlinuz"]


@pytest.fixture
def adopted(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """The fake host, with kdump-tools on it as it is installed."""
    (fake.root / "etc/default").mkdir(parents=True, exist_ok=True)
    (fake.root / "etc/default/kdump-tools").write_text('USE_KDUMP=1\n#MAKEDUMP_ARGS="-c -d 31"\n')
    monkeypatch.setattr(kexec_verb, "TreeFiles", lambda _root: TreeFiles(fake.root))
    return fake


def test_kdump_tools_load_lends(adopted: FakeHost, words: list[str]) -> None:
    """Exit 0, nothing on stdout as with kexec; memory is lent, their line and level are on record."""
    answer = run(*words)
    assert (answer.code, answer.out) == (0, "")
    assert "1024 MiB lent" in answer.err
    assert adopted.loaded
    assert len(adopted.machine.movable_blocks()) * 128 * MIB == GIB
    record = adopted.state.loaded
    assert record is not None
    assert record["settings"]["cmdline"] == TOOLS_LINE
    assert record["dump_level"] == 31
    assert run(*words).code == 0  # again: it is there
    assert adopted.loads == 1


def test_relative_files_are_absolute_in_the_record(
    adopted: FakeHost, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload after an event runs elsewhere: it must find the same files."""
    monkeypatch.chdir(tmp_path)
    assert run(*words[:3], "--initrd=initrd", "./vmlinuz").code == 0
    record = adopted.state.loaded
    assert record is not None
    assert record["settings"]["kernel"] == f"{tmp_path}/vmlinuz"
    assert record["settings"]["initramfs"] == f"{tmp_path}/initrd"


def test_unload_gives_everything_back(adopted: FakeHost, words: list[str]) -> None:
    """Kexec -p -u: exit 0, no image, no lent block."""
    run(*words)
    answer = run("kexec", "-p", "-u")
    assert (answer.code, answer.out) == (0, "")
    assert not adopted.loaded
    assert adopted.machine.movable_blocks() == []


def test_the_unload_of_a_reload_leaves_all_as_it_is(
    adopted: FakeHost, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else lending's own events would make kdump-config try-reload without end."""
    run(*words)
    log = [*adopted.machine.log]
    monkeypatch.setattr(kexec_verb, "reload_follows", lambda *_: "kdump-config try-reload")
    answer = run("kexec", "-p", "-u")
    assert answer.code == 0
    assert "stays until it is loaded anew" in answer.err
    assert adopted.loaded
    assert run(*words).code == 0
    assert adopted.machine.log == log


def test_status_exits_as_kexecs(adopted: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """-S: 1 loaded, 0 not loaded, 255 where the kernel does not tell; never a wrong 1."""
    assert run("kexec", "-S").code == 0
    adopted.loaded = True
    assert run("kexec", "-pS").code == 1

    def missing() -> bool:
        raise FileNotFoundError(2, "No such file or directory", "/sys/kernel/kexec_crash_loaded")

    monkeypatch.setattr(kexec, "crash_loaded", missing)
    assert run("kexec", "-S").code == 255


LEVELS = ["MAKEDUMP_ARGS='-c -d 1'\n", "MAKEDUMP_ARGS=$X\n"]
SMALL_AND_SHRINKING = Settings(lend_min=512 * MIB, shrink_on_load=True)


@pytest.mark.parametrize("text", LEVELS)
def test_where_user_data_is_wanted_nothing_is_lent(
    adopted: FakeHost, words: list[str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their level wants user data, or can't be told: as kexec would, the reservation alone is loaded into.

    Loudly, with neither lend_min nor shrink_on_load in the way; what was lent before goes back.
    """
    run(*words)
    assert adopted.machine.movable_blocks()
    run("kexec", "-p", "-u")
    (adopted.root / "etc/default/kdump-tools").write_text(text)
    monkeypatch.setattr(kexec_verb, "settings_from", lambda _: SMALL_AND_SHRINKING)
    monkeypatch.setattr(shrinking, "shrink", lambda *_, **__: pytest.fail("it shrinks"))
    answer = run(*words)
    assert answer.code == 0
    assert "WARNING: the dump is to have user data" in answer.err
    assert "asked for" not in answer.err
    assert adopted.loaded
    assert adopted.machine.movable_blocks() == []


@pytest.mark.parametrize("text", LEVELS)
def test_user_data_where_only_lending_would_do_is_refused(
    adopted: FakeHost, words: list[str], tmp_path: Path, text: str
) -> None:
    """The image does not fit the reservation alone: exit 11 before anything is touched."""
    (adopted.root / "etc/default/kdump-tools").write_text(text)
    (tmp_path / "initrd").write_bytes(bytes(300 * MIB))
    answer = run(*words)
    assert answer.code == 11
    assert "hint: " in answer.err
    assert untouched(adopted)


def test_the_reservations_size_is_printed(adopted: FakeHost) -> None:
    """--print-ckr-size: bytes, as kexec prints them."""
    answer = run("kexec", "--print-ckr-size")
    assert answer.code == 0
    assert int(answer.out) > 0


def test_another_crashlend_at_work_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """kdump-config has no second try: the load waits, and in the end it does not wait for ever."""
    from crashlend.system.state import BusyError

    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    tries = [BusyError("busy", "") for _ in range(3)]

    def act() -> str:
        if tries:
            raise tries.pop()
        return "done"

    assert kexec_verb.when_free(act) == "done"

    def never() -> str:
        raise BusyError("another crashlend is at work", "it holds the lock")

    with pytest.raises(Exception, match="at work"):
        kexec_verb.when_free(never)
    assert now[0] >= kexec_verb.BUSY_SECONDS


# --- who calls -----------------------------------------------------------------------------------


def process(root: Path, pid: int, parent: int, *words: str) -> None:
    directory = root / f"proc/{pid}"
    directory.mkdir(parents=True)
    (directory / "stat").write_text(f"{pid} (a) b (c) S {parent} 1 1 0 -1")
    (directory / "cmdline").write_bytes(b"".join(w.encode() + b"\0" for w in words))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["/bin/sh", "/usr/sbin/kdump-config", "try-reload"], "kdump-config try-reload"),
        (["/bin/sh", "/usr/sbin/kdump-config", "reload"], "kdump-config reload"),
        (["/bin/bash", "/bin/kdumpctl", "reload"], "kdumpctl reload"),
        # it is stop and start, and start loads nothing where a crash kernel is loaded
        (["/bin/bash", "/usr/bin/kdumpctl", "restart"], ""),
        (["/bin/sh", "/usr/sbin/kdump-config", "unload"], ""),
        (["/bin/bash", "/usr/bin/kdumpctl", "stop"], ""),
        (["systemctl", "reload", "kdump"], ""),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_reload_is_known_by_who_calls(words: list[str], found: str, tmp_path: Path) -> None:
    """The script stands among the parents, behind a subshell or two; a plain unload is none."""
    process(tmp_path, 1, 0, "/sbin/init")
    process(tmp_path, 10, 1, *words)
    process(tmp_path, 20, 10, *words)
    process(tmp_path, 30, 20, "sudo", "-i")
    process(tmp_path, 40, 30, "/usr/bin/python3", "/usr/sbin/crashlend", "kexec", "-p", "-u")
    assert reload_follows(TreeFiles(tmp_path), 40) == found


def test_a_process_without_parents_is_no_reload(tmp_path: Path) -> None:
    """/proc of another user, or none: an unload is an unload."""
    assert reload_follows(TreeFiles(tmp_path), 4) == ""


# --- the lines of configuration ------------------------------------------------------------------

DOCS = Path(__file__).parent.parent / "docs/adoption.md"


def documented(variable: str) -> str:
    """The line of docs/adoption.md that assigns the variable."""
    found = re.findall(rf"^ *({variable}=.*)$", DOCS.read_text(), re.MULTILINE)
    assert found, f"{DOCS.name} has no {variable}="
    return str(found[0])


def recorder(path: Path) -> Path:
    """A program that writes its words, one JSON list a call, into PATH.calls."""
    path.write_text(
        "#!/usr/bin/env python3\nimport json, sys\n"
        f"open({str(path) + '.calls'!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
    )
    path.chmod(0o755)
    return path


def calls(path: Path) -> list[list[str]]:
    file = Path(f"{path}.calls")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_the_line_for_kdump_tools_makes_its_eval_call_crashlend(tmp_path: Path) -> None:
    """kdump-config evaluates "kexec -p $KDUMP_KEXEC_ARGS --command-line=… --initrd=… KERNEL".

    With the documented line its own kexec only tells its version, and crashlend is given all the rest;
    when crashlend fails, the whole does.
    """
    kexec_program = recorder(tmp_path / "kexec")
    crashlend = recorder(tmp_path / "crashlend")
    line = documented("KDUMP_KEXEC_ARGS").replace("/usr/sbin/crashlend", str(crashlend))
    script = (
        f"{line}\n"
        f'command="{kexec_program} -p $KDUMP_KEXEC_ARGS'
        f' --command-line=\\"{TOOLS_LINE}\\" {" ".join(TOOLS_FILES)}"\n'
        "eval $command\n"
    )
    subprocess.run(["sh", "-c", script], check=True)
    assert calls(kexec_program) == [["-p", "--version"]]
    (given,) = calls(crashlend)
    assert given[0] == "kexec"
    request = kexec_words.parse(given[1:])
    assert request.line is not None
    assert (request.action, request.line.text.split()) == ("load", TOOLS_LINE.split())
    crashlend.write_text("#!/bin/sh\nexit 11\n")
    assert subprocess.run(["sh", "-c", script], check=False).returncode == 11
    # systemd reads the same file as an EnvironmentFile: it must be an assignment
    assert shlex.split(line)[0].startswith("KDUMP_KEXEC_ARGS=")


def test_the_line_for_kdump_utils_makes_it_call_crashlend(tmp_path: Path) -> None:
    """Kdumpctl runs $KEXEC, unquoted, with its array of words."""
    crashlend = recorder(tmp_path / "crashlend")
    line = documented("KEXEC").replace("/usr/sbin/crashlend", str(crashlend))
    script = f'{line}\nargs=(-s -p "--command-line={UTILS_LINE}" {" ".join(UTILS_FILES)})\n'
    script += '$KEXEC "${args[@]}"\n$KEXEC -s -p -u\n'
    subprocess.run(["bash", "-c", script], check=True, env={**os.environ, "LC_ALL": "C"})
    load, unload = calls(crashlend)
    assert kexec_words.parse(load[1:]).action == "load"
    assert kexec_words.parse(unload[1:]).action == "unload"
