# SPDX-License-Identifier: LGPL-2.1-or-later
"""crashlend gives a kdump crash kernel gigabytes and takes only a few MiB from production."""

from __future__ import annotations

__version__ = "0.1.0"
