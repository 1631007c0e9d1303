# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crashlend.errors import CrashlendError
from crashlend.lab import packages
from crashlend.lab.packages import Archives, IndexTarget, Package

if TYPE_CHECKING:
    from pathlib import Path

TARGETS = """\
http://third.example/repo/|Third|Third|stable
http://mirror.example/debian-security/|Debian|Debian-Security|bookworm-security
http://mirror.example/debian/|Debian|Debian|bookworm
http://mirror.example/debian/|Debian|Debian|bookworm-updates
"""
SIMULATION = """\
NOTE: This is only a simulation!
Inst gcc-12-base (12.2.0-14+deb12u1 Debian:12.15/oldstable [amd64])
Inst makedumpfile (1:1.7.8-1 local-deb [amd64])
Inst python3-minimal [3.9] (3.11.2-1+b1 Debian:12.15/oldstable, Security [amd64]) []
Conf gcc-12-base (12.2.0-14+deb12u1 Debian:12.15/oldstable [amd64])
"""
SHOW = """\
Package: linux-image-9.9-amd64
Version: 9.9.1-1
Architecture: amd64
Pre-Depends: linux-base (>= 4.17~)
Depends: dracut | initramfs-tools (>= 0.120), linux-binary-9.9-amd64 (= 9.9.1-1), perl:any
Description: a kernel
 more: words

Package: tzdata
Version: 1:2026a-0
Architecture: all

"""


def test_the_debian_archive_is_told_from_others() -> None:
    """Third parties and the security archive are not taken for the main archive."""
    found = packages.choose_archives(packages.parse_indextargets(TARGETS))
    assert found == Archives(
        "http://mirror.example/debian/", "http://mirror.example/debian-security/"
    )


def test_before_the_first_update_the_address_says_what_it_is() -> None:
    """There apt leaves the names of fields in place where no Release file was fetched yet."""
    text = "http://mirror.example/debian/|$(ORIGIN)|$(LABEL)|bookworm\n"
    targets = packages.parse_indextargets(text)
    assert targets == [IndexTarget("http://mirror.example/debian/", "", "", "bookworm")]
    assert packages.choose_archives(targets) == Archives("http://mirror.example/debian/", None)


@pytest.mark.parametrize(
    "line",
    ["", "http://mirror.example/ubuntu/|Ubuntu|Ubuntu|noble", "cdrom:[x]/|Debian|Debian|bookworm"],
)
def test_no_debian_archive_is_none(line: str) -> None:
    assert packages.choose_archives(packages.parse_indextargets(line)) is None


def test_the_environment_names_a_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a Debian archive in its apt configuration can be given one."""
    monkeypatch.setenv("CRASHLEND_LAB_MIRROR", "http://a.example/debian http://a.example/sec")
    assert packages.machine_archives() == Archives(
        "http://a.example/debian", "http://a.example/sec"
    )


@pytest.mark.parametrize(
    ("suite", "lines"), [("bookworm", 2), ("trixie-backports", 1), ("sid", 1), ("experimental", 1)]
)
def test_only_releases_have_security_updates(suite: str, lines: int, tmp_path: Path) -> None:
    keyring = tmp_path / "keys.gpg"
    text = packages.sources_list(suite, Archives("http://m/debian", "http://m/sec"), keyring)
    assert len(text.splitlines()) == lines
    assert all(f"signed-by={keyring}" in line for line in text.splitlines())
    assert f"http://m/debian {suite} main" in text


def test_the_simulation_gives_exact_files() -> None:
    found = packages.parse_simulation(SIMULATION)
    assert [p.file_name for p in found] == [
        "gcc-12-base_12.2.0-14+deb12u1_amd64.deb",
        "makedumpfile_1%3a1.7.8-1_amd64.deb",
        "python3-minimal_3.11.2-1+b1_amd64.deb",
    ]


def test_show_gives_versions_and_the_first_of_alternatives() -> None:
    image, data = packages.parse_show(SHOW)
    depends = ("linux-base", "dracut", "linux-binary-9.9-amd64", "perl")
    assert image == Package("linux-image-9.9-amd64", "9.9.1-1", "amd64", depends)
    assert data == Package("tzdata", "1:2026a-0", "all")


def test_of_the_machine_s_settings_only_the_transport_is_kept() -> None:
    """Hooks must not run: docker-clean's would empty the system's cache."""
    dump = (
        'APT::Update::Post-Invoke:: "rm -f /var/cache/apt/archives/*.deb";\n'
        'Dir::Cache::pkgcache "";\n'
        'Acquire::http::Proxy "http://proxy.example:3128";\n'
        'Acquire::Languages "none";\n'
        'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "true";\n'
    )
    kept = packages.inherited_settings(dump)
    assert kept == 'Acquire::http::Proxy "http://proxy.example:3128";\n'


def test_a_missing_key_says_what_to_upgrade() -> None:
    stderr = (
        "W: GPG error: http://m sid InRelease: The following signatures couldn't be verified "
        "because the public key is not available: NO_PUBKEY 0123456789ABCDEF\n"
        "E: The repository 'http://m sid InRelease' is not signed.\n"
    )
    why, hint = packages.explain_apt(stderr)
    assert why.startswith("GPG error")
    assert "debian-archive-keyring" in hint


def test_a_suite_that_is_gone_says_where_to_turn() -> None:
    why, hint = packages.explain_apt("E: The repository 'x' does not have a Release file.\n")
    assert "Release file" in why
    assert "CRASHLEND_LAB_MIRROR" in hint


def test_the_cache_directory_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CRASHLEND_LAB_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert packages.cache_directory() == tmp_path / "crashlend" / "lab"
    monkeypatch.setenv("CRASHLEND_LAB_CACHE", str(tmp_path / "own"))
    assert packages.cache_directory() == tmp_path / "own"


def test_a_missing_tool_says_what_to_install() -> None:
    with pytest.raises(CrashlendError, match="cannot run no-such-tool") as caught:
        packages.find_tool("no-such-tool", "install the package x")
    assert caught.value.hint == "install the package x"


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    packages.write_atomically(tmp_path / "file", b"data")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"data"
