# SPDX-License-Identifier: LGPL-2.1-or-later
# What targets have in common that take the dump as a stream: makedumpfile's flattened format.

# stream_dump SINK WORDS...: makedumpfile with these words into the function SINK, which reads its
# standard input to the end and fails when not all of it is saved.
stream_dump() {
  sink=$1
  shift
  DUMP_ARGS="$* -F"
  say "makedumpfile $DUMP_ARGS"
  # a sink that an earlier run had to leave behind may still end: its word is not for this one
  RUN=$((RUN + 1))
  sunk=$TMP/sunk.$RUN
  rm -f "$TMP/stalled" "$TMP/exit"
  # not ":", whose failing redirection ends a POSIX shell
  true >"$TMP/sink.log"
  { stream_source "$@" | { "$sink" 2>"$TMP/sink.log" && : >"$sunk"; }; } &
  pipe=$!
  until ended "$pipe"; do
    # a sink that stands still does not end with its stream
    if [ -e "$TMP/stalled" ]; then
      await "$pipe" 20 || [ $? -ne 124 ] || stream_lost
      break
    fi
    # the end of the stream is still to be written out
    if [ -e "$TMP/exit" ]; then
      guarded "$pipe" 0 written_out
      break
    fi
    usleep 200000
  done
  DUMP_EXIT=124
  [ ! -s "$TMP/exit" ] || read -r DUMP_EXIT <"$TMP/exit"
  # without dd's statistics
  [ -e "$sunk" ] || grep -v ' records ' "$TMP/sink.log" >>"$TMP/makedumpfile.log"
  cat "$TMP/makedumpfile.log" >>"$LOG"
  if [ "$DUMP_EXIT" -ne 0 ]; then
    makedumpfile_failed
    return 1
  fi
  if [ ! -e "$sunk" ]; then
    fail "cannot write the dump out: $(tail -n 1 "$TMP/makedumpfile.log")"
    return 1
  fi
}

# What was written before still keeps the sink: nothing else may go there beside it.
stream_lost() {
  echo "$TARGET_SPEC does not take what was written" >"$TMP/stalled"
  lost
}

# stream_source WORDS...: the stream, with its exit status in $TMP/exit.
stream_source() {
  (
    echo 500 >/proc/self/oom_score_adj
    ready_for_threads "$@"
    exec makedumpfile --message-level 6 "$@" -F "$CORE"
  ) 2>"$TMP/makedumpfile.log" &
  guarded $! "$DUMP_TIMEOUT" pulse $! /dev/null
  echo $? >"$TMP/exit.new"
  mv "$TMP/exit.new" "$TMP/exit"
}
