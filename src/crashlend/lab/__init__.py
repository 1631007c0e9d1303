# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real crashes of real kernels in QEMU."""
