# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs, one thin module each; only this package prints, prompts or exits."""
