# SPDX-License-Identifier: LGPL-2.1-or-later
# The order of things: what is saved first, and what is tried when it cannot be saved.

save_dmesg() {
  began=$(now)
  makedumpfile_look
  if [ ! -e /proc/vmcore ]; then
    fail "no /proc/vmcore: this kernel was not started by a crash, or got no ELF core header"
    return
  fi
  # not fatal: a makedumpfile that is too old for the log may still save the memory
  bounded 60 makedumpfile --dump-dmesg /proc/vmcore "$TMP/dmesg.txt" >>"$LOG" 2>&1 ||
    say "cannot read the log of the crashed kernel"
  DMESG_BYTES=$(size_of "$TMP/dmesg.txt")
  PANIC=$(panic_line "$TMP/dmesg.txt")
  [ -n "$PANIC" ] && say "crashed: $PANIC"
  TOOK_DMESG=$(($(now) - began))
}

# use_target N: the variables of the Nth target.
use_target() {
  no_target
  # shellcheck source=/dev/null
  . "$ETC/targets/$1.conf"
}

# The small files, before the dump: should the machine have to leave by force, they are there.
put_first() {
  capture_json "${REASON:-the capture did not finish}" >"$TMP/report"
  "${TARGET_KIND}_put" "$TMP/report" capture.json || return 1
  put_holes
  [ -s "$TMP/dmesg.txt" ] || return 0
  "${TARGET_KIND}_put" "$TMP/dmesg.txt" dmesg.txt || say "cannot save dmesg.txt"
}

# The dump on the current target, with the words that suit this makedumpfile, CPUs and memory.
dump() {
  began=$(now)
  # shellcheck disable=SC2046  # words
  until "${TARGET_KIND}_dump" $(makedumpfile_words "$DUMP_LEVEL"); do
    makedumpfile_other_words || break
  done
  TOOK_DUMP=$(($(now) - began))
  if [ -z "$VMCORE" ]; then
    fail "$WHY"
    return 1
  fi
  say "saved $VMCORE_BYTES bytes"
}

# One target, from reaching it to the dump; non-zero when the dump is not saved there.
try_target() {
  at=$(now)
  if ! "${TARGET_KIND}_open"; then
    step open no "$WHY" $(($(now) - at))
    return 1
  fi
  TOOK_MOUNT=$(($(now) - at))
  step open yes '' "$TOOK_MOUNT"
  NAME=$HOST-$(date -u +%Y-%m-%d-%H%M%S)
  if ! "${TARGET_KIND}_begin" "$NAME" || ! put_first; then
    step begin no "$WHY" $(($(now) - at))
    return 1
  fi
  [ -e /proc/vmcore ] || return 1
  at=$(now)
  if ! dump; then
    step dump no "$WHY" $(($(now) - at))
    return 1
  fi
  step dump yes '' $(($(now) - at))
}

capture() {
  run_hooks pre
  save_dmesg
  load_modules
  for target in $TARGETS; do
    use_target "$target"
    try_target && break
  done
  write_report
  if [ -z "$REASON" ]; then
    run_hooks post ok
  else
    run_hooks post failed
    run_hooks failure failed
  fi
  [ -z "$TARGET_KIND" ] || "${TARGET_KIND}_close"
}
