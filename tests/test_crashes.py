# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kinds of crashes: their names, their triggers, and the module that some of them take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crashlend.errors import CrashlendError, UsageError
from crashlend.lab import triggers
from crashlend.lab.crashes import KINDS, find_crash
from crashlend.lab.kernels import Kernel
from crashlend.lab.triggers import build_trigger, first_error, header_parts, unpack_headers
from crashlend.lab.watch import crash_kernel_lines

if TYPE_CHECKING:
    from crashlend.lab.crashes import Kind

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src/crashlend/lab/guestfiles/trigger" / triggers.SOURCE


@pytest.mark.parametrize(
    ("text", "kind", "cpu"),
    [
        ("sysrq", "sysrq", None),
        ("sysrq-cpu3", "sysrq", 3),
        ("nmi", "nmi", None),
        ("nmi-handler-cpu12", "nmi-handler", 12),
        ("in-load", "in-load", None),
    ],
)
def test_a_crash_is_a_kind_and_perhaps_a_cpu(text: str, kind: str, cpu: int | None) -> None:
    """-cpuN follows the name of a kind that can be had on any CPU."""
    crash = find_crash(text)
    assert crash is not None
    assert (crash.kind.name, crash.cpu) == (kind, cpu)


def test_none_is_no_crash() -> None:
    """``none`` only loads."""
    assert find_crash("none") is None


@pytest.mark.parametrize("text", ["", "sysrq-cpu", "sysrq-cpux", "sysrq-cpu-1", "nmi-cpu1", "Oops"])
def test_what_is_no_kind_is_told_all_kinds(text: str) -> None:
    """Exit 2, and the hint lists every kind by name."""
    with pytest.raises(UsageError, match="does not know this kind") as caught:
        find_crash(text)
    assert [kind.name for kind in KINDS if kind.name not in caught.value.hint] == []


def test_the_agent_is_told_how() -> None:
    """The CPU and crashlend's words are in the script; sysrq has none, the agent writes it."""
    irq, sysrq, load = find_crash("irq-cpu2"), find_crash("sysrq-cpu1"), find_crash("in-load")
    assert irq is not None
    assert sysrq is not None
    assert load is not None
    told = irq.job(())
    assert told["cpu"] == 2
    assert str(told["script"]).endswith("context=irq crash=panic cpu=2")
    assert sysrq.job(()) == {"cpu": 1, "script": "", "host": []}
    words = ("reload", "--path", "/a b")
    assert str(load.job(words)["script"]).endswith("in-load reload --path '/a b'")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.name))
def test_each_kind_is_sound(kind: Kind) -> None:
    """It has a trigger, words to know it by; a CPU can be chosen exactly where the trigger takes one."""
    assert kind.what
    assert kind.words
    assert kind.script or kind.host or kind.name == "sysrq"
    assert ("{cpu}" in kind.script or kind.name == "sysrq") == kind.on_any_cpu
    assert (triggers.MODULE in kind.script) == kind.module
    re.compile(kind.seen)


def test_kinds_have_names_of_their_own() -> None:
    """No kind hides another, and none ends as a CPU does."""
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names)
    assert not [name for name in names if re.search(r"-cpu\d*$", name) or name == "none"]


def test_the_module_knows_what_it_is_asked_for() -> None:
    """Each context and crash of the table is a word in the module's source."""
    text = SOURCE.read_text()
    asked = {
        word
        for kind in KINDS
        for word in re.findall(r"(?:context|crash)=(\w+)", kind.script)
        if word != "panic"  # what is left when it is none of the others
    }
    assert asked == {"process", "irq", "softirq", "nmi", "null", "overflow", "spin", "hang"}
    assert [word for word in asked if f'"{word}"' not in text] == []


def test_the_module_is_under_the_kernels_licence() -> None:
    """It uses symbols for GPL modules; the licence's text is in LICENSES."""
    text = SOURCE.read_text()
    assert text.startswith("// SPDX-License-Identifier: GPL-2.0-only\n")
    assert 'MODULE_LICENSE("GPL")' in text
    assert "Version 2, June 1991" in (ROOT / "LICENSES/GPL-2.0-only.txt").read_text()


def test_the_console_is_cut_at_the_crash_that_was_asked_for() -> None:
    """What follows production's own end is the crash kernel's; another kind's words are not it."""
    kind = next(kind for kind in KINDS if kind.name == "oops")
    console = f"[ 1.0] {kind.words}, address: 0\r\n[ 0.1] Linux\r\n"
    assert crash_kernel_lines(console, kind.words) == [", address: 0", "Linux"]
    assert crash_kernel_lines(console) is None


def test_headers_are_three_packages() -> None:
    """The kernel's own headers, the common ones, the build's programs; never a compiler."""
    depends = ("linux-compiler-gcc-12-x86", "linux-headers-6.1.0-56-common", "linux-kbuild-6.1")
    assert header_parts("6.1.0-56-amd64", depends) == [
        "linux-headers-6.1.0-56-amd64",
        "linux-headers-6.1.0-56-common",
        "linux-kbuild-6.1",
    ]


def test_headers_are_told_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Makefile includes another by its path below /usr/src, which is not where it is here."""

    def unpack(_deb: Path, into: Path, *, without: tuple[str, ...]) -> None:
        assert without == ("./usr/share",)
        where = into / "usr/src/linux-headers-6.1"
        where.mkdir(parents=True)
        (where / "Makefile").write_text("include /usr/src/linux-headers-6.1-common/Makefile\n")

    monkeypatch.setattr(triggers, "unpack", unpack)
    root = tmp_path / "headers"
    headers = unpack_headers("6.1", [Path("a.deb")], root)
    assert headers == root / "usr/src/linux-headers-6.1"
    made = (headers / "Makefile").read_text()
    assert made == f"include {root}/usr/src/linux-headers-6.1-common/Makefile\n"


def test_the_reason_is_the_first_error() -> None:
    """Warnings come before it, make's own words after it; the C library's complaint is one, too."""
    said = "warning: pahole differs\na.c:3:5: error: x\nmake[1]: *** [Makefile:9: a.o] Error 1\n"
    assert first_error(said) == "a.c:3:5: error: x"
    library = "warning: x\nscripts/basic/fixdep: libc.so.6: version `GLIBC_2.38' not found\n"
    assert "GLIBC_2.38" in first_error(library)
    assert first_error("make: stopped\n") == "make: stopped"
    assert first_error("") == ""


def test_a_kernel_that_is_no_package_has_no_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, with the kinds that need no module as the way out."""
    monkeypatch.setenv("CRASHLEND_LAB_CACHE", str(tmp_path))
    own = Kernel("own", "6.1.0", "bookworm", Path("vmlinuz"), Path("modules"), None)
    with pytest.raises(CrashlendError, match="no Debian package") as caught:
        build_trigger(own)
    assert "nmi" in caught.value.hint


def test_a_stack_that_ran_over_is_known_by_where_it_did() -> None:
    """What 6.1 logs then (the guard page is hit, but the double fault is not named)."""
    kind = next(kind for kind in KINDS if kind.name == "overflow")
    log = (
        "[62.51] BUG: TASK stack guard page was hit at 0000000083cabab1 (stack is 0..0)\n"
        "[62.51] stack guard page: 0000 [#1] PREEMPT SMP NOPTI\n"
        "[62.51] RIP: 0010:overflow+0x37/0x80 [crashlend_trigger]\n"
    )
    assert kind.words in log
    assert re.search(kind.seen, log)
    assert not re.search(kind.seen, log.replace("overflow+", "other+"))
