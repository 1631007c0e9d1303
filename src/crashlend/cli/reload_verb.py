# SPDX-License-Identifier: LGPL-2.1-or-later
"""Load the crash kernel again, as this host and the settings are now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend.cli import load_verb

if TYPE_CHECKING:
    import argparse

add_arguments = load_verb.add_arguments


def run(args: argparse.Namespace) -> int:
    return load_verb.run(args, again=True)
