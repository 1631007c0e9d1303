# SPDX-License-Identifier: LGPL-2.1-or-later
"""Settings come from files and flags by one table, and errors name the place."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import pytest

from crashlend.config import (
    Settings,
    add_flags,
    load_settings,
    load_settings_and_sources,
    settings_markdown,
    show_value,
    table,
)
from crashlend.errors import CrashlendError, UsageError

NAMES = [one.name for one in fields(Settings)]


def write(root: Path, path: str, text: str) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def main(root: Path, *lines: str) -> Path:
    return write(root, "etc/crashlend.conf", "\n".join(["[crashlend]", *lines, ""]))


def flags(*words: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_flags(parser, NAMES)
    return vars(parser.parse_args(words))


def test_defaults(tmp_path: Path) -> None:
    got, sources = load_settings_and_sources(tmp_path, flags())
    assert got == Settings()
    assert not sources
    assert got.lend is None
    assert (got.lender, got.dump_level, got.path, got.dma_quiesce) == (
        "auto",
        31,
        "/var/crash",
        "wait=10",
    )


def test_a_default_that_is_given_is_told_apart(tmp_path: Path) -> None:
    file = main(tmp_path, "dump_level = 31", "lend=0")
    got, sources = load_settings_and_sources(tmp_path, {})
    assert got.lend == 0
    assert sources == {"dump_level": str(file), "lend": str(file)}


def test_every_kind_of_value(tmp_path: Path) -> None:
    main(
        tmp_path,
        "# a comment",
        "lend = 1G",
        "lender = movable",
        "block_deadline = 2.5",
        "kernel = /boot/vmlinuz-100%",
        "allow_missing_user_data = Yes",
        "append = console=ttyS0 # kept",
        "  debug",
        "target = nfs:server:/dumps",
    )
    got = load_settings(tmp_path, {})
    assert got == Settings(
        lend=1 << 30,
        lender="movable",
        block_deadline=2.5,
        kernel="/boot/vmlinuz-100%",
        allow_missing_user_data=True,
        append="console=ttyS0 # kept debug",
        target="nfs:server:/dumps",
    )


def test_precedence_is_systemds(tmp_path: Path) -> None:
    main(tmp_path, "lend = 1M", "lend_min = 1M", "lend_share = 1", "dump_level = 1")
    vendor = "usr/lib/crashlend.conf.d"
    admin = "etc/crashlend.conf.d"
    write(tmp_path, f"{vendor}/50-a.conf", "[crashlend]\nlend_min = 2M\nlend_share = 2\n")
    write(tmp_path, f"{vendor}/90-z.conf", "[crashlend]\ndump_level = 2\n")
    write(tmp_path, f"{vendor}/60-hidden.conf", "[crashlend]\nlend = 9M\n")
    write(tmp_path, f"{vendor}/70-masked.conf", "[crashlend]\nlend = 9M\n")
    write(tmp_path, f"{admin}/60-hidden.conf", "")
    write(tmp_path, f"{admin}/80-b.conf", "[crashlend]\nlend_share = 3\ndump_level = 3\n")
    write(tmp_path, f"{admin}/99-no", "[crashlend]\nlend = 9M\n")
    (tmp_path / admin / "70-masked.conf").symlink_to("/dev/null")
    got, sources = load_settings_and_sources(tmp_path, flags("--lend=5M"))
    assert (got.lend, got.lend_min, got.lend_share, got.dump_level) == (5 << 20, 2 << 20, 3, 2)
    assert sources["lend"] == "--lend"
    assert sources["lend_min"].endswith("50-a.conf")
    assert sources["lend_share"].endswith("80-b.conf")


def test_an_empty_value_is_the_default_again(tmp_path: Path) -> None:
    main(tmp_path, "lend = 1G", "append = quiet", "lender =")
    got, sources = load_settings_and_sources(tmp_path, flags("--lend", "", "--append="))
    assert got == Settings()
    assert not sources


def test_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(tmp_path, "allow_missing_user_data = yes")
    monkeypatch.chdir(tmp_path)
    given = flags("--no-allow-missing-user-data", "--dump-level", "1", "--kernel", "vmlinuz")
    got = load_settings(tmp_path, {**given, "verb": "plan", "json": True})
    assert got.allow_missing_user_data is False
    assert got.dump_level == 1
    assert got.kernel == str(tmp_path / "vmlinuz")
    assert load_settings(tmp_path, flags("--allow-missing-user-data")).allow_missing_user_data


@pytest.mark.parametrize(
    "text", ["auto", "none", "cma", "cma, movable", "movable,movable-zone,cma"]
)
def test_lenders_are_words_by_comma(tmp_path: Path, text: str) -> None:
    """In their order, spaces or not; the settings have them without."""
    main(tmp_path, f"lender = {text}")
    assert load_settings(tmp_path, {}).lender == text.replace(" ", "")


@pytest.mark.parametrize("text", ["cma,auto", "none,none", "cma,cma", "cma,,movable", ",", "zone"])
def test_lenders_that_make_no_sense_together_are_refused(tmp_path: Path, text: str) -> None:
    """Auto and none stand alone, nothing twice, nothing unknown or empty."""
    with pytest.raises(UsageError, match="not allowed"):
        load_settings(tmp_path, {"lender": text})


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("lend = 1.5G", "a size such as"),
        ("lender = cmaa", "auto, none, or some of cma, movable-zone, movable"),
        ("lend_share = 101", "from 0 to 100"),
        ("dump_level = -1", "from 0 to 31"),
        ("dump_level = 0x1f", "from 0 to 31"),
        ("dma_quiesce = wait=nan", "wait=SECONDS"),
        ("allow_missing_user_data = maybe", "yes or no"),
        ("kernel = vmlinuz", "absolute path"),
        ("append = a\x01b", "printable"),
    ],
)
def test_a_bad_value_is_named_with_place_and_what_is_allowed(
    tmp_path: Path, line: str, allowed: str
) -> None:
    file = main(tmp_path, line)
    key, _, value = line.partition(" = ")
    with pytest.raises(UsageError) as caught:
        load_settings(tmp_path, {})
    assert str(caught.value) == f"{file}: {key}: {value!r} is not allowed"
    assert allowed in caught.value.hint


def test_a_bad_flag_is_named_as_a_flag(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--final-action: 'reset' is not allowed") as caught:
        load_settings(tmp_path, flags("--final-action", "reset"))
    assert "poweroff" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "why", "hint"),
    [
        ("[crashlend]\nlend-min = 1\n", "unknown setting 'lend-min'", "did you mean lend_min?"),
        ("[crashlend]\nDump_Level = 1\n", "unknown setting", "did you mean dump_level?"),
        ("[crashlend]\nzzz = 1\n", "unknown setting", "the settings are lend, "),
        ("[crash]\nlend = 1\n", "unknown section [crash]", "[crashlend]"),
        ("[DEFAULT]\nlend = 1\n", "unknown section [DEFAULT]", "[crashlend]"),
        ("lend = 1\n", "no section headers", "[crashlend]"),
        ("[crashlend]\nlend\n", "parsing errors", "KEY = VALUE"),
        ("[crashlend]\nlend = 1\nlend = 2\n", "already exists", "KEY = VALUE"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, why: str, hint: str) -> None:
    file = write(tmp_path, "etc/crashlend.conf.d/10.conf", text)
    with pytest.raises(UsageError) as caught:
        load_settings(tmp_path, {})
    assert str(file) in str(caught.value)
    assert why in str(caught.value)
    assert hint in caught.value.hint


def test_what_cannot_be_read_is_an_error_not_a_default(tmp_path: Path) -> None:
    (tmp_path / "etc/crashlend.conf").mkdir(parents=True)
    with pytest.raises(CrashlendError, match="cannot read"):
        load_settings(tmp_path, {})
    (tmp_path / "etc/crashlend.conf").rmdir()
    (tmp_path / "etc/crashlend.conf").write_bytes(b"[crashlend]\nappend=\xff\n")
    with pytest.raises(UsageError, match="UTF-8"):
        load_settings(tmp_path, {})


def test_the_table_agrees_with_itself() -> None:
    """Every default is valid, survives writing and reading, and appears in help and docs."""
    parser = argparse.ArgumentParser()
    add_flags(parser, NAMES)
    help_text = parser.format_help()
    docs = settings_markdown()
    for name, row in table().items():
        shown = show_value(name, row.default)
        assert shown or row.unset
        if shown:
            assert row.kind.parse(shown) == row.default
        assert row.flag in help_text
        assert f"| `{name}` | `{row.flag}` |" in docs
    assert len(docs.splitlines()) == len(NAMES) + 2
    assert show_value("lend", 3 << 29) == "1536M"
    assert show_value("dma_quiesce", "wait=0.5") == "wait=0.5"
