# SPDX-License-Identifier: LGPL-2.1-or-later
"""The udev rule and the units: they parse, and say what crashlend/system/hotplug.py relies on."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from crashlend.cli.main import make_parser
from crashlend.system import hotplug

PACKAGING = Path(__file__).parent.parent / "packaging"
RULES = PACKAGING / "udev/90-crashlend.rules"
UNITS = PACKAGING / "systemd"


def unit(name: str) -> ConfigParser:
    parser = ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((UNITS / name).read_text())
    return parser


def test_udev_takes_the_rule() -> None:
    """``udevadm verify`` (systemd 254) finds no fault."""
    udevadm = shutil.which("udevadm")
    if not udevadm or subprocess.run([udevadm, "verify", "--help"], capture_output=True).returncode:
        pytest.skip("no udevadm that verifies")
    done = subprocess.run([udevadm, "verify", RULES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rule_leaves_notes_where_they_are_looked_for() -> None:
    """In the directory that the path unit makes and watches; named as the handler names its own."""
    text = RULES.read_text()
    (program,) = re.findall(r'RUN\+="([^"]*)"', text)
    touch, note = program.split()
    assert touch == "/usr/bin/touch"
    made = note.replace("$env{ACTION}", "offline").replace("%k", "memory33")
    assert made == str(hotplug.EVENTS / "offline:memory33")
    assert f'TEST!="{hotplug.EVENTS}"' in text
    path = unit("crashlend-reload.path")["Path"]
    assert (path["DirectoryNotEmpty"], path["MakeDirectory"]) == (str(hotplug.EVENTS), "yes")


def test_every_label_of_the_rule_is_there() -> None:
    """A GOTO without its LABEL would let every device of the host through."""
    text = RULES.read_text()
    assert set(re.findall(r'GOTO="(\w+)"', text)) == set(re.findall(r'LABEL="(\w+)"', text))


def test_the_service_runs_a_command_that_exists_and_is_not_cut_short() -> None:
    """One that systemd ends half way, or does not start often enough, would leave the host stale."""
    parser = unit("crashlend-reload.service")
    program, *words = parser["Service"]["ExecStart"].split()
    assert program == "/usr/bin/crashlend"
    assert make_parser(words[0]).parse_args(words).event == ""
    assert parser["Service"]["TimeoutStartSec"] == "infinity"
    assert parser["Unit"]["StartLimitIntervalSec"] == "0"


@pytest.mark.parametrize(("result", "slept"), [("success", ""), ("exit-code", "10\n")])
def test_a_service_that_fails_is_not_started_again_at_once(
    result: str, slept: str, tmp_path: Path
) -> None:
    """The path unit starts it while there are events; a broken interpreter takes none off."""
    (tmp_path / "sleep").write_text("#!/bin/sh\necho $1\n")
    (tmp_path / "sleep").chmod(0o755)
    words = shlex.split(unit("crashlend-reload.service")["Service"]["ExecStopPost"])
    env = {"SERVICE_RESULT": result, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == slept


@pytest.mark.parametrize("name", ["crashlend-reload.path", "crashlend-reload.service"])
def test_systemd_takes_the_units(name: str) -> None:
    """``systemd-analyze verify`` finds no fault but that the program is not installed here."""
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("no systemd-analyze")
    words = [analyze, "verify", "--man=no", *map(str, sorted(UNITS.iterdir()))]
    done = subprocess.run(words, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if name in line]
    assert [line for line in said if "crashlend is not executable" not in line] == []
