# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sizes are read strictly and shown in MiB."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashlend.errors import UsageError
from crashlend.sizes import GIB, KIB, MIB, format_size, mib, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4K", 4 * KIB),
        ("512M", 512 * MIB),
        ("1g", GIB),
        ("1GiB", GIB),
        ("2Tib", 2048 * GIB),
        ("010M", 10 * MIB),
    ],
)
def test_parse(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "1.5G", "-1", "+1", "1 G", " 1", "1GB", "1B", "0x10", "1_0", "١G", "9" * 5000]
)
def test_what_is_no_size_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError, match="--lend: ") as caught:
        parse_size(text, "--lend")
    assert "1G" in caught.value.hint


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 MiB"),
        (12582912, "12 MiB"),
        (12582913, "12.0 MiB"),
        (GIB, "1024 MiB"),
        (MIB + MIB // 2, "1.5 MiB"),
        (MIB + 52429, "1.1 MiB"),
        (MIB + 52428, "1.0 MiB"),
        (2 * MIB - 1, "2.0 MiB"),
        (4096, "0.004 MiB"),
        (1, "0.000 MiB"),
        (MIB // 10 + 1, "0.1 MiB"),
        (-12582912, "-12 MiB"),
    ],
)
def test_mib(size: int, text: str) -> None:
    assert mib(size) == text


@given(st.integers(0, 1 << 62))
def test_what_is_written_is_read_back(size: int) -> None:
    assert parse_size(format_size(size)) == size
