# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in the production guest after a load: how small a reservation its kernel would take.

The image that was planned for this host is loaded again and again with all of the reservation's
hole filled but its first N pages, until the kernel refuses. Python 3.9.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from crashlend.arch import Segment
from crashlend.cli import load_verb
from crashlend.cli.hosts import files_getter, settings_from
from crashlend.facts import read_facts
from crashlend.hostfiles import TreeFiles
from crashlend.plan import make_plan
from crashlend.system.image import build_image
from crashlend.system.kexec import NoRoomError

PAGE = 4096
MOST = 200


def main() -> None:
    """Print one JSON event on the second serial port; ``argv`` are the words of the load."""
    parser = argparse.ArgumentParser()
    load_verb.add_arguments(parser)
    settings = settings_from(parser.parse_args(sys.argv[2:]))
    facts = read_facts(TreeFiles(Path("/")))
    files = files_getter(settings, lambda message: None)(facts.release)
    plan = make_plan(facts, settings, files.payload, held_only=True)
    layout = plan.layout
    if layout is None:
        raise SystemExit(f"no layout: {plan.incomplete}")
    image = build_image(plan, facts, files)
    reservation = plan.reservation[-1]
    lowest = layout.segments[0].start
    seconds: list[float] = []

    def fits(pages: int) -> bool:
        began = time.monotonic()
        try:
            begin = reservation.start + pages * PAGE
            image.load([Segment("hole", begin, 0, lowest - begin)])
        except NoRoomError:
            return False
        finally:
            seconds.append(time.monotonic() - began)
        return True

    pages = layout.control_pages
    if fits(pages):
        while pages and fits(pages - 1):
            pages -= 1
    else:
        while pages < MOST and not fits(pages):
            pages += 1
    image.load()
    event = {
        "event": "probed",
        "placement": layout.placement,
        "control_pages": layout.control_pages,
        "kernel_control_pages": pages,
        "required_bytes": layout.required_bytes,
        "kernel_required_bytes": layout.required_bytes + (pages - layout.control_pages) * PAGE,
        "loads": len(seconds),
        "seconds": round(sum(seconds), 3),
    }
    with open("/dev/ttyS1", "w", encoding="ascii") as port:
        port.write("\n" + json.dumps(event) + "\n")


main()
