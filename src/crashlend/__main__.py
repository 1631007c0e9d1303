# SPDX-License-Identifier: LGPL-2.1-or-later
"""``python3 -m crashlend``: the same as the command ``crashlend``."""

from crashlend.cli.main import run

run()
