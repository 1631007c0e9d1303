# SPDX-License-Identifier: LGPL-2.1-or-later
"""Twins: QEMU guests that resemble a host, crashed in its stead (docs/decisions/0024-…)."""
