# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tables in Markdown, and parts of documents that a command renews. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table; a cell's "|" does not end it."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def number_first(text: str) -> list[tuple[int, int, str]]:
    """A key to sort by: 6.12 comes after 6.1, and cpu10 after cpu9."""
    words = "".join(c if c.isdecimal() else f" {c} " for c in text).split()
    return [(0, int(word), "") if word.isdecimal() else (1, 0, word) for word in words]


def renewed(document: str, who: str, parts: Mapping[str, str]) -> str:
    """The document with what stands between ``<!-- WHO: NAME -->`` and ``<!-- end -->`` renewed.

    KeyError for a NAME that is none of ``parts``.
    """

    def renew(match: re.Match[str]) -> str:
        return f"{match[1]}\n{parts[match[2]]}\n{match[3]}"

    pattern = rf"(<!-- {re.escape(who)}: (\w+) -->\n).*?(<!-- end -->)"
    return re.sub(pattern, renew, document, flags=re.DOTALL)
