# SPDX-License-Identifier: LGPL-2.1-or-later
"""The settings: one table that makes the file's keys, the flags, the defaults, the help and docs."""

from crashlend.config.read import (
    add_flags,
    from_text,
    load_settings,
    load_settings_and_sources,
    settings_markdown,
    show_value,
    to_text,
)
from crashlend.config.settings import Row, Settings, table

__all__ = [
    "Row",
    "Settings",
    "add_flags",
    "from_text",
    "load_settings",
    "load_settings_and_sources",
    "settings_markdown",
    "show_value",
    "table",
    "to_text",
]
