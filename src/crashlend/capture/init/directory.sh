# SPDX-License-Identifier: LGPL-2.1-or-later
# What targets have in common that are mounted at $MOUNTPOINT.

# KiB that a dump may have there: what is free, and what a run that failed has left.
directory_room() {
  free=$(directory_free)
  [ -z "$free" ] || echo $((free + $(size_of "$DIR/vmcore.incomplete") / 1024))
}

# KiB that are free there.
directory_free() {
  bounded 20 stat -f -c '%a %S' "$MOUNTPOINT" 2>/dev/null | {
    read -r blocks size && echo $((blocks * (size / 512) / 2))
  }
}

# directory_begin NAME: a new directory <path>/NAME, for root's eyes only.
directory_begin() {
  base="$MOUNTPOINT$TARGET_PATH/$1"
  bounded 60 mkdir -p "$MOUNTPOINT$TARGET_PATH"
  suffix=''
  until bounded 60 mkdir "$base$suffix"; do
    suffix=$((${suffix:-0} - 1)) # "-1", "-2", …
    if [ "$suffix" -lt -99 ] || [ ! -d "$base" ]; then
      fail "cannot make the directory $base"
      return 1
    fi
  done
  DIR=$base$suffix
  # room for the last words, should the dump fill the disk
  bounded 60 dd if=/dev/zero of="$DIR/reserve" bs=65536 count=16 2>/dev/null
  return 0
}

# directory_put FILE AS: AS is there whole, or only as AS.incomplete. Where there is no room for it, the
# reserve is for such files.
directory_put() {
  WHY="cannot write $2"
  [ -n "$DIR" ] || return 1
  directory_write "$1" "$2" && return 0
  [ -e "$DIR/reserve" ] && bounded 60 rm -f "$DIR/reserve" && directory_write "$1" "$2"
}

# One bounded command, because each costs processes before the dump.
directory_write() {
  # shellcheck disable=SC2016  # its own arguments
  bounded 120 sh -c 'cp "$1" "$2.incomplete" &&
    dd if=/dev/null conv=fsync 2>/dev/null >>"$2.incomplete" &&
    mv "$2.incomplete" "$2"' put "$1" "$DIR/$2"
}

# directory_dump WORDS...: makedumpfile with these words into vmcore; what fails stays incomplete.
directory_dump() {
  keep_incomplete
  run_makedumpfile "$DIR/vmcore.incomplete" "$@" || return 1
  if ! flush "$DIR/vmcore.incomplete" || [ ! -s "$DIR/vmcore.incomplete" ] ||
    ! bounded 60 mv "$DIR/vmcore.incomplete" "$DIR/vmcore"; then
    why='is the disk full or failing?'
    [ ! -s "$TMP/stalled" ] || read -r why <"$TMP/stalled"
    fail "cannot write the dump out: $why"
    return 1
  fi
  VMCORE=$DIR/vmcore
  VMCORE_BYTES=$(size_of "$VMCORE")
  bounded 60 rm -f "$DIR/vmcore.earlier.incomplete"
}

# What an earlier run has left is better than nothing, but must not take the room of the next one.
keep_incomplete() {
  size=$(($(size_of "$DIR/vmcore.incomplete") / 1024)) room=$(directory_free)
  if [ "$DUMP_FAULT" != space ] && [ "$size" -gt 0 ] && [ "${room:-0}" -gt $((size * 4)) ]; then
    bounded 60 mv "$DIR/vmcore.incomplete" "$DIR/vmcore.earlier.incomplete"
  else
    bounded 60 rm -f "$DIR/vmcore.incomplete" "$DIR/vmcore.earlier.incomplete"
  fi
}

# Of two incomplete dumps the larger one stays. Give the reserve back: what is written now is small.
directory_release() {
  [ -n "$DIR" ] || return 0
  bounded 60 rm -f "$DIR/reserve"
  [ -e "$DIR/vmcore.earlier.incomplete" ] || return 0
  if [ "$(size_of "$DIR/vmcore.earlier.incomplete")" -gt "$(size_of "$DIR/vmcore.incomplete")" ]; then
    bounded 60 mv "$DIR/vmcore.earlier.incomplete" "$DIR/vmcore.incomplete"
  else
    bounded 60 rm -f "$DIR/vmcore.earlier.incomplete"
  fi
}

directory_close() {
  directory_release
  bounded 120 sync
  [ -n "$TARGET_MOUNTED" ] || return 0
  bounded 120 umount "$MOUNTPOINT" || bounded 60 mount -o remount,ro "$MOUNTPOINT"
}
