# SPDX-License-Identifier: LGPL-2.1-or-later
"""The code that runs between the two kernels, and what is built from it."""
