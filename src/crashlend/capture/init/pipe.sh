# SPDX-License-Identifier: LGPL-2.1-or-later
# What targets have in common that send the dump through a program: makedumpfile -F into a pipe.

# Set when the current target's server has gone: there is no use in asking it again.
PIPE_LOST=''

# pipe_dump SINK WORDS...: makedumpfile -F with these words; SINK is a function that reads it all
# and says nothing but, on stderr, why it could not. It ends with exec: its process is what is ended
# when nothing moves for STALL_TIMEOUT, or when makedumpfile fails: a stream that ends by itself is a
# whole one. So this shell keeps the pipe open (8) until it knows.
pipe_dump() {
  sink=$1
  shift
  DUMP_ARGS="$* -F"
  say "makedumpfile $DUMP_ARGS to $TARGET_SPEC"
  rm -f "$TMP/stalled" "$TMP/stream"
  # neither has run yet, so neither is to blame (http_dump)
  DUMP_EXIT=null sink_exit=137
  # without it (a hook may have filled $TMP) the exec below would be the end of PID 1
  if ! mkfifo "$TMP/stream"; then
    WHY="cannot make a pipe in $TMP"
    say "failed: $WHY"
    return 1
  fi
  # a pipe is opened for both without waiting for anybody
  exec 9<>"$TMP/stream"
  exec 8>"$TMP/stream" 9>&-
  # by exec: a function's own redirection would keep a copy of what it closes
  (
    exec 8>&-
    # when memory runs out it goes before the capture itself, and after makedumpfile
    echo 0 >/proc/self/oom_score_adj
    "$sink"
  ) <"$TMP/stream" >"$TMP/sink.out" 2>"$TMP/sink.log" &
  sink_pid=$!
  (
    exec 8>&-
    echo 500 >/proc/self/oom_score_adj
    ready_for_threads "$@"
    exec makedumpfile --message-level 6 "$@" -F "$CORE"
  ) >"$TMP/stream" 2>"$TMP/makedumpfile.log" &
  pid=$!
  (
    exec 8>&-
    pipe_guard "$pid" "$sink_pid"
  ) >/dev/null 2>&1 &
  guard=$!
  wait "$pid"
  DUMP_EXIT=$?
  # without a reader it gets SIGPIPE (141): then the other side has ended first, and has the reason
  [ "$DUMP_EXIT" -eq 0 ] || [ "$DUMP_EXIT" -eq 141 ] || kill -9 "$sink_pid" 2>/dev/null
  exec 8>&-
  wait "$sink_pid"
  sink_exit=$?
  kill "$guard" 2>/dev/null
  cat "$TMP/makedumpfile.log" >>"$LOG"
  rm -f "$TMP/stream"
  if [ -s "$TMP/stalled" ]; then
    read -r WHY <"$TMP/stalled"
    WHY="$TARGET_SPEC: $WHY"
    # what took too long may do at another level, and the report is still to be sent
    [ "$(dump_fault)" = time ] || PIPE_LOST=1
  elif [ "$DUMP_EXIT" -eq 141 ] || { [ "$DUMP_EXIT" -eq 0 ] && [ "$sink_exit" -ne 0 ]; }; then
    pipe_blames_sink "$TARGET_SPEC: $(network_why "$TMP/sink.log")"
  elif [ "$DUMP_EXIT" -ne 0 ]; then
    makedumpfile_failed
    return 1
  else
    return 0
  fi
  say "failed: $WHY"
  return 1
}

# pipe_blames_sink WHY: the other side is to blame. More filtering helps where it has no room; in all
# other cases only another target does, as after a stall.
pipe_blames_sink() {
  WHY=$1
  echo "$1" >>"$TMP/makedumpfile.log"
  echo "$1" | grep -q -i -E 'no space|disk full|quota|too large|insufficient' && return
  echo "$1" >"$TMP/stalled"
  PIPE_LOST=1
}

# Bytes that a process has written so far; nothing where the kernel does not count them.
pipe_written() {
  sed -n 's/^wchar: //p' "/proc/$1/io"
} 2>/dev/null

# pipe_guard PID SINK: end both when nothing has moved for STALL_TIMEOUT, or when it takes longer than
# DUMP_TIMEOUT (0: as long as it moves). Why is in $TMP/stalled.
pipe_guard() {
  began=$(now)
  # what fits into the pipe is taken by nobody: it moves nothing, least of all the deadline
  written=65536 moved=$began
  while :; do
    new=$(pipe_written "$1") at=$(now) why=''
    if [ -d "/proc/$1" ] && [ -z "$new" ]; then
      new=$((written + 1)) # not counted here (CONFIG_TASK_IO_ACCOUNTING): the sinks have own limits
    fi
    if [ "${new:-0}" -gt "$written" ]; then
      written=$new moved=$at
      echo "$at" >"$TMP/grown.new" && mv "$TMP/grown.new" "$TMP/grown"
    elif [ $((at - moved)) -ge $((STALL_TIMEOUT * 100)) ]; then
      why="nothing was taken for $STALL_TIMEOUT s"
    elif [ "$(left)" -le 0 ]; then
      why='nothing was taken, and no time was left'
    fi
    if [ "${DUMP_TIMEOUT:-0}" -gt 0 ] && [ $((at - began)) -ge $((DUMP_TIMEOUT * 100)) ]; then
      why="the dump took longer than $DUMP_TIMEOUT s"
    fi
    if [ -n "$why" ]; then
      say "$why: ending the dump"
      echo "$why" >"$TMP/stalled"
      kill -9 "$1" "$2" 2>/dev/null
      return
    fi
    sleep 2
  done
}
