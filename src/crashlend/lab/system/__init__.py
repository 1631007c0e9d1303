# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real Debian system with systemd and kdump-tools, crashed in QEMU."""
