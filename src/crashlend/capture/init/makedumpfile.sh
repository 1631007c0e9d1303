# SPDX-License-Identifier: LGPL-2.1-or-later
# makedumpfile: its words, its failures and its pulse.

# run_makedumpfile OUTPUT WORDS...: one run into the file OUTPUT, ended when it no longer grows.
run_makedumpfile() {
  output=$1
  shift
  DUMP_ARGS=$*
  say "makedumpfile $DUMP_ARGS"
  rm -f "$TMP/stalled"
  (
    echo 500 >/proc/self/oom_score_adj
    exec makedumpfile --message-level 6 "$@" /proc/vmcore "$output"
  ) >"$TMP/makedumpfile.log" 2>&1 &
  pid=$!
  stall_guard "$pid" "$output" &
  guard=$!
  wait "$pid"
  DUMP_EXIT=$?
  kill "$guard" 2>/dev/null
  cat "$TMP/makedumpfile.log" >>"$LOG"
  [ "$DUMP_EXIT" -eq 0 ] || makedumpfile_failed
}

# Say why the last run failed.
makedumpfile_failed() {
  last=$(grep -v -E '^ *$|^makedumpfile Failed|^This is an incomplete' "$TMP/makedumpfile.log" | tail -n 1)
  if [ "$DUMP_EXIT" -eq 137 ]; then
    last='killed, probably out of memory'
    [ -e "$TMP/stalled" ] && last="the dump had not grown for $STALL_TIMEOUT s"
  fi
  WHY="makedumpfile ended with $DUMP_EXIT${last:+: $last}"
  say "failed: $WHY"
  return 1
}

# Another compression helps only where this one is not built in.
compression_is_missing() {
  grep -q -i -E 'is disabled|invalid option|parameter is invalid' "$TMP/makedumpfile.log"
}
