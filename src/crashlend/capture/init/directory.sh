# SPDX-License-Identifier: LGPL-2.1-or-later
# What targets have in common that are mounted at $MOUNTPOINT.

# KiB that a dump may have there: what is free, and what a run that failed has left.
directory_room() {
  free=$(directory_free)
  [ -z "$free" ] || echo $((free + $(directory_size vmcore.incomplete) / 1024))
}

# KiB that are free there. By a file: what hangs would keep a pipe open.
directory_free() {
  asked 20 stat -f -c '%a %S' "$MOUNTPOINT" >"$TMP/free" 2>/dev/null &&
    read -r blocks size <"$TMP/free" && echo $((blocks * (size / 512) / 2))
}

# directory_size NAME: bytes of that file of this dump.
directory_size() {
  bytes=0
  asked 20 stat -c %s "$DIR/$1" >"$TMP/bytes" 2>/dev/null && read -r bytes <"$TMP/bytes"
  echo "$bytes"
}

# directory_begin NAME: a new directory <path>/NAME, or NAME-1, for root's eyes only. With room for the last words,
# should the dump fill the disk.
directory_begin() {
  base="$MOUNTPOINT$TARGET_PATH/$1"
  # shellcheck disable=SC2016  # its own variables
  if ! asked 120 sh -c 'mkdir -p "$1"
    until mkdir "$2$n"; do
      n=$((${n:-0} - 1))
      [ "$n" -ge -99 ] && [ -d "$2" ] || exit 1
    done
    echo "$2$n" >"$3"
    dd if=/dev/zero of="$2$n/reserve" bs=65536 count=16 2>/dev/null || :' \
    begin "$MOUNTPOINT$TARGET_PATH" "$base" "$TMP/place"; then
    fail "cannot make the directory $base"
    return 1
  fi
  read -r DIR <"$TMP/place"
}

# directory_put FILE AS: AS is there whole, or only as AS.incomplete. Where there is no room for it, the
# reserve is for such files.
directory_put() {
  WHY="cannot write $2"
  [ -n "$DIR" ] || return 1
  directory_write "$1" "$2" && return 0
  asked 60 rm "$DIR/reserve" 2>/dev/null && directory_write "$1" "$2"
}

# One bounded command, because each costs processes before the dump.
directory_write() {
  # shellcheck disable=SC2016  # its own arguments
  asked 120 sh -c 'cp "$1" "$2.incomplete" &&
    dd if=/dev/null conv=fsync 2>/dev/null >>"$2.incomplete" &&
    mv "$2.incomplete" "$2"' put "$1" "$DIR/$2"
}

# directory_dump WORDS...: makedumpfile with these words into vmcore; what fails stays incomplete.
directory_dump() {
  keep_incomplete
  run_makedumpfile "$DIR/vmcore.incomplete" "$@" || return 1
  # shellcheck disable=SC2016
  if ! flush "$DIR/vmcore.incomplete" ||
    ! asked 60 sh -c '[ -s "$1.incomplete" ] && mv "$1.incomplete" "$1"' name "$DIR/vmcore"; then
    why='is the disk full or failing?'
    [ ! -s "$TMP/stalled" ] || read -r why <"$TMP/stalled"
    fail "cannot write the dump out: $why"
    return 1
  fi
  VMCORE=$DIR/vmcore
  VMCORE_BYTES=$(directory_size vmcore)
  asked 60 rm -f "$DIR/vmcore.earlier.incomplete"
}

# What an earlier run has left is better than nothing, but must not take the room of the next one.
keep_incomplete() {
  size=$(($(directory_size vmcore.incomplete) / 1024)) room=$(directory_free)
  if [ "$DUMP_FAULT" != space ] && [ "$size" -gt 0 ] && [ "${room:-0}" -gt $((size * 4)) ]; then
    asked 60 mv "$DIR/vmcore.incomplete" "$DIR/vmcore.earlier.incomplete"
  else
    asked 60 rm -f "$DIR/vmcore.incomplete" "$DIR/vmcore.earlier.incomplete"
  fi
}

# Of two incomplete dumps the larger one stays. Give the reserve back: what is written now is small.
directory_release() {
  [ -n "$DIR" ] || return 0
  asked 60 rm -f "$DIR/reserve"
  earlier=$(directory_size vmcore.earlier.incomplete)
  [ "$earlier" -gt 0 ] || return 0
  if [ "$earlier" -gt "$(directory_size vmcore.incomplete)" ]; then
    asked 60 mv "$DIR/vmcore.earlier.incomplete" "$DIR/vmcore.incomplete"
  else
    asked 60 rm -f "$DIR/vmcore.earlier.incomplete"
  fi
}

# To unmount writes all of it out; sync would wait for the other disks, too. What cannot be unmounted
# any more is only taken out of the way.
directory_close() {
  directory_release
  [ -n "$TARGET_MOUNTED" ] || return 0
  asked 120 umount "$MOUNTPOINT" || asked 60 mount -o remount,ro "$MOUNTPOINT" ||
    bounded 5 umount -l "$MOUNTPOINT"
}
