# SPDX-License-Identifier: LGPL-2.1-or-later
# The drivers on the way to the targets.

load_modules() {
  began=$(now)
  while read -r module <&3; do
    # not fatal: soft dependencies may not fit this CPU, the target says what is missing
    bounded 30 insmod "$module" || say "cannot load ${module##*/}"
  done 3<"$ETC/modules"
  TOOK_MODULES=$(($(now) - began))
}
