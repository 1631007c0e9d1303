# SPDX-License-Identifier: LGPL-2.1-or-later
"""The conformance report of a kernel in Markdown. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from crashlend.lab.markdown import table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HEAD = """# Conformance of Linux {release}

`crashlend lab conform --kernel {kernel}` booted this kernel in {boots} guests (QEMU, x86_64, busybox
alone) and looked whether `crashkernel=SIZE,cma` does what upstream's documents and code promise.
{package}It {feature}.

{summary}

"defect A", "B" and "C" are upstream's own, open as of 7.3: several `,cma` areas share one name in
sysfs; a range over a zone's border stays listed though its pages are in ordinary use; a bad word is
warned of and carried out all the same. The last column is what crashlend answers there.

Not among the checks: whoever asks for far more than there is may get no boot at all. With memory in
one stretch the halves add up to nearly all of it; `crashkernel=16G,cma crashkernel=128M` makes
Linux 7.3 panic in production's own boot on 2 GiB (mm/cma.c: cma_init_reserved_areas()). The guest of
"partial" has holes in its memory, so that enough is left.

"""
GOOD = "Nothing deviates otherwise."
BAD = "**Something deviates or was not tried: see the table.**"
ALL_ALIVE = "No guest had to be booted twice."
REPEATED = "Guests that died and were booted again, {}: {}."


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
        summary=f"{counted}. {GOOD if data['good'] else BAD}{_repeated(data.get('repeats'))}",
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


def _repeated(repeats: Sequence[Mapping[str, str]] | None) -> str:
    """What follows on the guests that died once; nothing where a result of before did not count them."""
    if not repeats:
        return "" if repeats is None else f"\n{ALL_ALIVE}"
    each = "; ".join(f"`{one['words']}` ({one['why']})" for one in repeats)
    return f"\n\n{REPEATED.format(len(repeats), each)}"
