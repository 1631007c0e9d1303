# SPDX-License-Identifier: LGPL-2.1-or-later
# Hooks (/etc/crashlend/hooks/{pre,post,failure}.d, in the order of their names) find:
#   CRASHLEND_STATUS         ok or failed ("" in pre hooks: nothing is known yet)
#   CRASHLEND_REASON         why it failed, else ""
#   CRASHLEND_TARGET_MOUNT   where the target's file system is mounted, "" when it is not
#   CRASHLEND_DIR            the new directory for this dump, "" when there is none
#   CRASHLEND_VMCORE         the saved dump, "" when there is none
#   CRASHLEND_CAPTURE_JSON   the report of this capture ("" in pre hooks)

# run_hooks pre|post|failure: their failures are said and cost nothing.
run_hooks() {
  # exported, not set for one call: older busyboxes do not pass that through a function
  export CRASHLEND_STATUS="${2:-}" CRASHLEND_REASON="$REASON" CRASHLEND_DIR="$DIR" \
    CRASHLEND_TARGET_MOUNT="$TARGET_MOUNTED" CRASHLEND_VMCORE="$VMCORE" \
    CRASHLEND_CAPTURE_JSON="$CAPTURE_JSON"
  for hook in "$ETC/hooks/$1.d"/*; do
    [ -x "$hook" ] || continue
    say "$1 hook ${hook##*/}"
    bounded "$HOOK_TIMEOUT" "$hook" </dev/null >>"$LOG" 2>&1 ||
      say "$1 hook ${hook##*/} ended with $?"
  done
}
