# SPDX-License-Identifier: LGPL-2.1-or-later
"""Load the crash kernel again, as this host and the settings are now.

With --event only where a CPU or memory has come or gone since the load that the crash kernel must know
of, and with the settings and the files of that load.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from crashlend import config
from crashlend.cli import load_verb
from crashlend.cli.hosts import files_getter, settings_from
from crashlend.cli.output import print_json, progress
from crashlend.errors import CrashlendError, UsageError
from crashlend.system import hotplug

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--event",
        nargs="?",
        const="",
        metavar="ACTION:NAME",
        help="something was plugged in or out (udev's words, such as offline:memory33; without any: "
        "what /run/crashlend/events holds); takes no other flags but --json and --dry-run",
    )
    load_verb.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.event is None:
        return load_verb.run(args, again=True)
    given = [
        row.flag for row in config.table().values() if getattr(args, row.name, None) is not None
    ]
    if given or args.shrink is not None:
        raise UsageError(
            "--event goes with no other settings",
            f"{(given or ['--shrink'])[0]} was given",
            hint="it takes those of the load that it renews; reload without --event takes flags",
        )
    if args.dry_run:
        look = hotplug.look_now()
        print_json({"schema": 1, "urgency": look.urgency, "why": look.why}) if args.json else print(
            f"{look.urgency}: {look.why}"
        )
        return 0
    settings = _settings(args)
    waiting = hotplug.Waiting(time.monotonic, time.sleep, settings.hotplug_quiet, settings)
    done = hotplug.handle(
        args.event, lambda settings: files_getter(settings, progress), waiting, say=progress
    )
    if not args.json:
        print(f"{done.action}: {done.why}")
        return 0
    answer = {"schema": 1, "action": done.action, "why": done.why}
    if done.loaded is not None:
        answer.update(load_verb.answer_json(done.loaded))
    print_json(answer)
    return 0


def _settings(args: argparse.Namespace) -> config.Settings:
    """The settings of this host, or the defaults where they can't be read.

    Of them hotplug_quiet counts; the load has the settings of the one that it renews. So files that
    are off are no reason to leave the host as it is, with the events that started this still there.
    """
    try:
        return settings_from(args)
    except CrashlendError as error:
        progress(f"{error}; the default of hotplug_quiet holds")
        return config.Settings()
