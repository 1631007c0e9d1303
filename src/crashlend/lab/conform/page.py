# SPDX-License-Identifier: LGPL-2.1-or-later
"""The conformance report of a kernel in Markdown. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from crashlend.lab.markdown import table

if TYPE_CHECKING:
    from collections.abc import Mapping

HEAD = """# Conformance of Linux {release}

`crashlend lab conform --kernel {kernel}` booted this kernel in {boots} guests (QEMU, x86_64, busybox
alone) and looked whether `crashkernel=SIZE,cma` does what upstream's documents and code promise.
{package}It {feature}.

{summary}

"defect A", "B" and "C" are upstream's own, open as of 7.3: several `,cma` areas share one name in
sysfs; a range over a zone's border stays listed though its pages are in ordinary use; a bad word is
warned of and carried out all the same. The last column is what crashlend answers there.

"""
GOOD = "Nothing deviates otherwise."
BAD = "**Something deviates: see the table.**"


def markdown(data: Mapping[str, Any]) -> str:
    """The whole page; the same data give the same page."""
    counts = Counter(check["verdict"] for check in data["checks"])
    counted = ", ".join(f"{verdict}: {counts[verdict]}" for verdict in sorted(counts))
    head = HEAD.format(
        release=data["release"],
        kernel=data["kernel"],
        boots=data["boots"],
        package=f"Package version {data['version']}. " if data["version"] else "",
        feature=data["feature"],
        summary=f"{counted}. {GOOD if data['good'] else BAD}",
    )
    rows = [
        [
            check["check"],
            f"{check['promise']} ({check['source']})",
            "<br>".join(f"`{words}`" for words in check["tried"]),
            check["seen"],
            f"**{check['verdict']}**" if not check["good"] else check["verdict"],
            check["copes"],
        ]
        for check in data["checks"]
    ]
    return head + table(("check", "promised", "tried", "seen", "verdict", "crashlend"), rows)
