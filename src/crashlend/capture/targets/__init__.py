# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where dumps go, one module per kind of target, and what it takes to reach it."""
