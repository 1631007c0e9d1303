# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# times are for benchmarks: this machine may be busy with a guest that crashes
settings.register_profile("project", deadline=None)
settings.load_profile("project")
