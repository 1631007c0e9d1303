# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks that trials dump to, beside the lab's own."""
