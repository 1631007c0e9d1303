# SPDX-License-Identifier: LGPL-2.1-or-later
"""The only package that changes the host."""
