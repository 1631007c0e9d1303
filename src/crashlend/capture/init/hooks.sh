# SPDX-License-Identifier: LGPL-2.1-or-later
# Hooks (/etc/crashlend/hooks/{pre,post,failure}.d, in the order of their names). docs/hooks.md has
# what they find in their environment, and what they may do.

# run_hooks pre|post|failure [ok|failed]: their failures are said and cost nothing. All of a stage have
# what time is left, and those before the dump a quarter of it.
run_hooks() {
  # exported, not set for one call: older busyboxes do not pass that through a function
  export CRASHLEND_STAGE="$1" CRASHLEND_STATUS="${2:-}" CRASHLEND_REASON="$REASON" \
    CRASHLEND_PANIC="$PANIC" CRASHLEND_DMESG='' CRASHLEND_TARGET="$TARGET_SPEC" \
    CRASHLEND_TARGET_MOUNT="$TARGET_MOUNTED" CRASHLEND_DIR="$DIR" CRASHLEND_VMCORE="$VMCORE" \
    CRASHLEND_CAPTURE_JSON="$CAPTURE_JSON"
  [ ! -s "$TMP/dmesg.txt" ] || CRASHLEND_DMESG=$TMP/dmesg.txt
  hooks_time=$(left)
  # the dump is still to come
  [ "$1" != pre ] || hooks_time=$((hooks_time / 4))
  [ "$hooks_time" -ge 10 ] || hooks_time=10
  hooks_until=$(($(now) + hooks_time * 100))
  for hook in "$ETC/hooks/$1.d"/*; do
    [ -x "$hook" ] || continue
    say "$1 hook ${hook##*/}"
    hook_time=$(least "$HOOK_TIMEOUT" $(((hooks_until - $(now)) / 100)))
    if [ "$hook_time" -le 0 ]; then
      say 'there is no time for it'
      continue
    fi
    run_hook "$hook" "$hook_time" || say "$1 hook ${hook##*/} ended with $?"
    watch_again "$1"
  done
}

# run_hook PROGRAM SECONDS: at most that long, and the first to be killed when memory runs out. One that
# is ended takes along what it started; one that ends by itself may leave something running.
run_hook() {
  (
    echo 1000 >/proc/self/oom_score_adj
    exec setsid timeout -s KILL "$2" "$1"
  ) </dev/null >>"$LOG" 2>&1 &
  hook_pid=$!
  await "$hook_pid" $(($2 + 5))
  status=$?
  [ "$status" -lt 124 ] || kill -9 "-$hook_pid" 2>/dev/null
  return "$status"
}
