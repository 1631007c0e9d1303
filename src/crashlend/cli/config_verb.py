# SPDX-License-Identifier: LGPL-2.1-or-later
"""Show the effective settings and where each comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crashlend import config
from crashlend.cli.main import add_root
from crashlend.cli.output import print_json, print_rows
from crashlend.jsonable import to_json

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_root(parser)
    parser.add_argument("--markdown", action="store_true", help="print the table of all settings")


def run(args: argparse.Namespace) -> int:
    if args.markdown:
        print(config.settings_markdown(), end="")
        return 0
    settings, sources = config.load_settings_and_sources(args.root, {})
    values = to_json(settings)
    if args.json:
        print_json(
            {"schema": 1, "settings": values, "sources": {k: str(v) for k, v in sources.items()}}
        )
        return 0
    print_rows(
        [
            (
                name,
                f"{config.show_value(name, value) or '(unset)'}  [{sources.get(name, 'default')}]",
            )
            for name, value in values.items()
        ]
    )
    return 0
