# SPDX-License-Identifier: LGPL-2.1-or-later
# The order of things: what is saved first, and what is tried when it cannot be saved. docs/ladder.md
# has the rungs and their budgets.

# The log of the crashed kernel: before all that may go wrong.
save_dmesg() {
  began=$(now)
  if [ ! -e "$CORE" ]; then
    fail "no /proc/vmcore: this kernel was not started by a crash, or got no ELF core header"
    step dmesg no "$WHY" 0
    return
  fi
  # not fatal: a makedumpfile that is too old for the log may still save the memory
  WHY=''
  bounded 60 makedumpfile --dump-dmesg "$CORE" "$TMP/dmesg.txt" >>"$LOG" 2>&1 ||
    WHY='cannot read the log of the crashed kernel'
  DMESG_BYTES=$(size_of "$TMP/dmesg.txt")
  PANIC=$(panic_line "$TMP/dmesg.txt")
  [ -z "$PANIC" ] || say "crashed: $PANIC"
  [ -z "$WHY" ] || say "$WHY"
  TOOK_DMESG=$(($(now) - began))
  if [ -n "$WHY" ]; then step dmesg no "$WHY" "$TOOK_DMESG"; else step dmesg yes '' "$TOOK_DMESG"; fi
  makedumpfile_look
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

# The levels to try: the wished one, then such that leave out more: free and zero pages, and all that
# makedumpfile can leave out. None wants more than was asked for.
levels() {
  previous=''
  for level in "$DUMP_LEVEL" $((DUMP_LEVEL | 17)) 31; do
    [ "$level" = "$previous" ] || echo "$level"
    previous=$level
  done
}

# What the last run failed for, which says what may help: more room (space), more time (time), another
# target (stall), less memory (memory), other words (crash, other).
dump_fault() {
  if [ -s "$TMP/stalled" ]; then
    grep -q 'took longer' "$TMP/stalled" && echo time && return
    echo stall
  elif grep -q -i -E 'no space|disk full|disc quota|quota exceeded|file too large' "$TMP/makedumpfile.log"; then
    echo space
  elif grep -q -i -E 'input/output error|read-only file system|stale file' "$TMP/makedumpfile.log"; then
    echo stall
  elif [ "$DUMP_EXIT" = 137 ]; then
    echo memory
  elif [ "$DUMP_EXIT" = null ] || [ "$DUMP_EXIT" -eq 0 ]; then
    echo space # the dump was complete, but did not reach the disk
  elif [ "$DUMP_EXIT" -gt 128 ]; then
    echo crash
  else
    echo other
  fi
}

# dump_once LEVEL [WORDS...]: one rung, with the best words that makedumpfile knows.
dump_once() {
  at=$(now) level=$1
  shift
  while :; do
    words=$(makedumpfile_words "$level")
    # shellcheck disable=SC2086  # several words
    "${TARGET_KIND}_dump" $words "$@"
    [ -z "$VMCORE" ] || break
    DUMP_FAULT=$(dump_fault)
    [ "$DUMP_FAULT" != stall ] || TARGET_PATIENCE=${TARGET_PATIENCE:-10}
    if [ "$DUMP_FAULT" = stall ] || ! makedumpfile_other_words; then
      break
    fi
  done
  TOOK_DUMP=$(($(now) - at))
  if [ -z "$VMCORE" ]; then
    # who failed has told the console
    [ -n "$REASON" ] || REASON=$WHY
    step dump no "$WHY" "$TOOK_DUMP" "$level"
    return 1
  fi
  step dump yes '' "$TOOK_DUMP" "$level"
  DUMP_LEVEL=$level
  say "saved $VMCORE_BYTES bytes"
}

# too_big LEVEL: whether a dump at that level surely does not fit. makedumpfile counts without writing
# (--dry-run, 1.7.0), which is quicker than the dump, but not quick: so only where room is short
# and a level is left that leaves out more. Compression rarely makes less than a sixth of it.
too_big() {
  [ "$1" -ne 31 ] || return 1
  room=$("${TARGET_KIND}_room")
  [ -n "$room" ] && [ "$room" -lt $(($(size_of "$CORE") / 8192)) ] || return 1
  limit=$(least "$STALL_TIMEOUT" $(($(left) / 4)))
  bounded "$limit" makedumpfile --dry-run --show-stats -d "$1" "$CORE" "$TMP/dry" >"$TMP/dry.log" 2>&1 ||
    return 1
  bytes=$(sed -n 's/^Write bytes *: *\([0-9][0-9]*\).*/\1/p' "$TMP/dry.log")
  [ -n "$bytes" ] && [ $((bytes / 6144)) -gt "$room" ] || return 1
  WHY="it has $bytes bytes before compression, and $room KiB are free"
}

# The dump on the current target, at one level after the other.
dump() {
  DUMP_FAULT='' lean=''
  for rung in $(levels); do
    if [ "$(left)" -le 0 ]; then
      WHY='no time was left'
      step dump no "$WHY" 0 "$rung"
      return 1
    fi
    if too_big "$rung"; then
      fail "$WHY"
      step dump no "$WHY" 0 "$rung"
      continue
    fi
    # shellcheck disable=SC2086  # several words
    dump_once "$rung" $lean && return 0
    case $DUMP_FAULT in
      stall) return 1 ;;
      memory)
        # the bitmaps of so many pages at a time: 1 MiB is enough for 32 GiB
        lean='--cyclic-buffer 1024'
        # shellcheck disable=SC2086
        dump_once "$rung" $lean && return 0
        [ "$DUMP_FAULT" != stall ] || return 1
        ;;
    esac
  done
  return 1
}

# One target, from reaching it to the dump; non-zero when the dump is not saved there.
try_target() {
  at=$(now)
  if [ "$(left)" -le 0 ]; then
    fail 'no time was left for this target'
    step open no "$WHY" 0
    no_target
    return 1
  fi
  WHY="cannot reach $TARGET_SPEC"
  if ! "${TARGET_KIND}_open"; then
    # what fails in a subshell leaves no reason here
    [ -n "$REASON" ] || REASON=$WHY
    step open no "$WHY" $(($(now) - at))
    return 1
  fi
  TOOK_MOUNT=$(($(now) - at))
  step open yes '' "$TOOK_MOUNT"
  at=$(now) WHY="cannot write to $TARGET_SPEC"
  name=$HOST-$(date -u +%Y-%m-%d-%H%M%S)
  "${TARGET_KIND}_begin" "$name" && NAME=$name
  if [ -z "$NAME" ] || ! put_first; then
    fail "$WHY"
    step begin no "$WHY" $(($(now) - at))
    return 1
  fi
  step begin yes '' $(($(now) - at))
  [ -e "$CORE" ] || return 1
  dump
}

# One target after the other until one has the dump. The last one stays open, for the report and the
# hooks; each of the others keeps a report of how far it came.
save_dump() {
  wished=$TARGET_TIMEOUT
  # shellcheck disable=SC2086  # their numbers
  set -- $TARGETS
  while [ $# -gt 0 ]; do
    use_target "$1"
    shift
    TARGET_TIMEOUT=$(least "$wished" "$(left)")
    if try_target; then
      # what went wrong before is in the ladder
      REASON=''
      return
    fi
    [ $# -gt 0 ] || break
    [ -z "$NAME" ] || put_so_far
    "${TARGET_KIND:-no}_close"
    NAME=''
  done
}

no_close() { :; }

# For a target that is given up: how far it came.
put_so_far() {
  capture_json "$REASON" >"$TMP/report"
  "${TARGET_KIND}_put" "$TMP/report" capture.json
}

capture() {
  save_dmesg
  arm_watchdogs
  run_hooks pre
  load_modules
  save_dump
  [ -n "$VMCORE" ] || [ -n "$REASON" ] || fail 'there is no dump target'
  write_report
  if [ -n "$VMCORE" ]; then
    run_hooks post ok
  else
    run_hooks post failed
    run_hooks failure failed
  fi
  "${TARGET_KIND:-no}_close"
  case $PSTORE in
    always) pstore_keep ;;
    auto) [ -n "$VMCORE" ] || pstore_keep ;;
  esac
  [ -n "$VMCORE" ] || last_words
}
