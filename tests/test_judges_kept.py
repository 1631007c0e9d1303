# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the judges read last time, judged again by today's comparison and table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from crashlend.cli.main import main
from crashlend.errors import EXIT_DONE, EXIT_FAILED
from crashlend.lab.judges.guests import CASES, KERNEL, LENDING, TOOLS, Reading
from crashlend.lab.judges.image import Entry
from crashlend.lab.judges.known import KNOWN
from crashlend.lab.judges.report import json_text, machine_in, markdown, readings_from, verdicts

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20


def kept() -> list[Reading]:
    return readings_from((ROOT / "docs/results/judges.json").read_text())


def test_kept_readings_are_judged_as_the_table_says() -> None:
    """Every guest was read, nothing differs without a reason, no reason is without a difference."""
    assert [reading.name for reading in kept()] == [case.name for case in CASES]
    assert [c for v in verdicts(kept()) for c in v.complaints()] == []


def test_each_known_difference_is_in_some_kept_reading() -> None:
    """A row that names no guest excuses nothing and is not looked for."""
    seen = {id(row) for verdict in verdicts(kept()) for _, row in verdict.known}
    assert [row.subject for row in KNOWN if id(row) not in seen] == []


def test_the_page_is_what_the_kept_readings_give() -> None:
    """docs/judges.md is what `make judges` writes, and so is the file of readings."""
    assert (ROOT / "docs/judges.md").read_text() == markdown(kept())
    text = (ROOT / "docs/results/judges.json").read_text()
    assert json_text(kept(), json.loads(text)["machine"]) == text


def test_a_loader_that_prints_no_map_fails_where_it_must() -> None:
    """The third witness can't vanish: kexec-tools print everywhere, the kernel does since 6.7."""
    for reading in kept():
        for judge in (KERNEL, TOOLS):
            load = reading.loads[judge]
            must = not (judge == KERNEL and reading.release.startswith("6.1."))
            assert (load.printed is not None) == must
            mute = replace(reading, loads={**reading.loads, judge: replace(load, printed=None)})
            assert all(v.passed for v in verdicts([mute])) == (not must)


def test_a_replay_keeps_the_machine_that_was_read_on(tmp_path: Path) -> None:
    """Readings that are written again still name their own emulator."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text(json_text(kept(), {"qemu": "QEMU 99"}))
    assert main(["lab", "judges", "--replay", str(old), "--data", str(new)]) == EXIT_DONE
    assert machine_in(new.read_text()) == {"qemu": "QEMU 99"}


def test_a_changed_reading_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command judges kept readings, too; RAM that only one side has is an exit code 1."""
    readings = kept()
    load = readings[0].loads[LENDING]
    entry = Entry(1 << 40, (1 << 40) + MIB, "RAM")
    changed = replace(load.image, memory_map=(*load.image.memory_map, entry))
    readings[0].loads[LENDING] = replace(load, image=changed)
    file = tmp_path / "judges.json"
    file.write_text(json_text(readings, {}))
    words = ["lab", "judges", "--replay", str(file), "--guest", readings[0].name]
    assert main(words) == EXIT_FAILED
    assert "memory map: RAM: kernel has also nothing; crashlend also 0x10000000000" in (
        capsys.readouterr().out
    )
