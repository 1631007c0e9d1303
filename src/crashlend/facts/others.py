# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the other programs that save dumps on this host are set to leave out of them.

kdump-tools (Debian, Ubuntu): MAKEDUMP_ARGS in /etc/default/kdump-tools, which sh reads.
kdump-utils (Fedora, RHEL): core_collector in /etc/kdump.conf. Both have makedumpfile's -d 31 where
nothing is said.
"""

from __future__ import annotations

import getopt
import re
import shlex
from typing import TYPE_CHECKING, NamedTuple, Optional

if TYPE_CHECKING:
    from crashlend.hostfiles import HostFiles

TOOLS_FILE = "/etc/default/kdump-tools"
UTILS_FILE = "/etc/kdump.conf"
USUAL_LEVEL = 31
# makedumpfile's own getopt_long(), of 1.7.2 [makedumpfile.c, makedumpfile.h]
_SHORT = "b:cDd:eEFfg:hi:lL:pRvXx:z"
_LONG = (
    *("split", "reassemble", "xen-syms=", "xen-vmcoreinfo=", "xen_phys_start=", "message-level="),
    *("vtop=", "dump-dmesg", "partial-dmesg", "config=", "help", "diskset=", "cyclic-buffer="),
    *("eppic=", "non-mmap", "mem-usage", "splitblock-size=", "work-dir=", "num-threads="),
    *("check-params", "dry-run", "show-stats"),
)


class Wanted(NamedTuple):
    """What one program will ask of makedumpfile.

    ``level`` is what its -d leaves out, of several the bits that all of them have; 0 where the whole
    memory is copied. None: it can't be told from the file, ``why`` says so.
    """

    file: str
    level: Optional[int]
    why: str = ""


def wanted_levels(files: HostFiles) -> tuple[Wanted, ...]:
    """What each such program on the host will leave out; empty where there is none."""
    found = []
    for path, read in ((TOOLS_FILE, of_kdump_tools), (UTILS_FILE, of_kdump_utils)):
        try:
            text = files.read(path).decode(errors="replace")
        except FileNotFoundError:
            continue
        except OSError as error:
            found.append(Wanted(path, None, error.strerror or str(error)))
            continue
        found.append(Wanted(path, *read(text)))
    return tuple(found)


def of_kdump_tools(text: str) -> tuple[Optional[int], str]:
    """The level in a file of shell assignments, and why it can't be told."""
    last = ""
    for line in text.splitlines():
        match = re.match(r"\s*(?:export\s+)?MAKEDUMP_ARGS=(.*)", line)
        if match:
            last = match[1]
        elif "MAKEDUMP_ARGS" in line.partition("#")[0]:
            return None, f"{line.strip()!r} can't be read without a shell"
    try:
        words = shlex.split(last, comments=True)
    except ValueError:
        return None, f"{last!r} has an open quote"
    value = words[0] if words else ""
    if len(words) > 1 or re.search(r"[$`\\;&|]", last):
        return None, f"{last!r} can't be read without a shell"
    if not value:
        return USUAL_LEVEL, ""
    return level_of(value)


def of_kdump_utils(text: str) -> tuple[Optional[int], str]:
    """The level in a file of ``option value`` lines, and why it can't be told."""
    collector = ""
    for line in text.splitlines():
        # as kdumpctl's `read -r opt val`: blanks or tabs
        name, value = [*line.partition("#")[0].split(None, 1), "", ""][:2]
        if name == "core_collector":
            collector = value.strip()
    if not collector:
        return USUAL_LEVEL, ""
    program, words = [*collector.split(None, 1), ""][:2]
    if program.rsplit("/", 1)[-1] != "makedumpfile":
        return 0, ""
    return level_of(words)


def level_of(arguments: str) -> tuple[Optional[int], str]:
    """What makedumpfile leaves out with these arguments, and why it can't be told.

    Of several levels (``-d 31,17``) it takes the next where the space does not do.
    """
    try:
        options, _ = getopt.gnu_getopt(arguments.split(), _SHORT, [*_LONG])
    except getopt.GetoptError as error:
        return None, f"{arguments!r}: {error}"
    text = dict(options).get("-d", "0")
    levels = text.split(",")
    if not all(re.fullmatch(r"[0-9]{1,2}", one) for one in levels):
        return None, f"-d {text}: no dump level"
    level = USUAL_LEVEL
    for one in levels:
        level &= int(one)
    return level, ""
