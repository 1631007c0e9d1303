# SPDX-License-Identifier: LGPL-2.1-or-later
"""The project's own trials as tables: what each proves, what it is told, what must come out."""
