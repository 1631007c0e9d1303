# SPDX-License-Identifier: LGPL-2.1-or-later
# A local file system as target. Its variables: TARGET_DEVICE, _FSTYPE, _OPTIONS, _PATH,
# _STACK (see stack.sh; empty for disks and partitions).

fs_open() {
  # only /init for a stack has that part
  if [ -n "${TARGET_STACK:-}" ]; then
    stack_up || return 1
  fi
  wait_for_device || return 1
  if ! asked "$TARGET_TIMEOUT" mount -t "$TARGET_FSTYPE" -o "rw${TARGET_OPTIONS:+,$TARGET_OPTIONS}" \
    "$device" "$MOUNTPOINT"; then
    fail "cannot mount $device ($TARGET_SPEC, $TARGET_FSTYPE)"
    return 1
  fi
  TARGET_MOUNTED=$MOUNTPOINT
  say "target $TARGET_SPEC is $device"
}

fs_room() { directory_room; }
fs_begin() { directory_begin "$@"; }
fs_put() { directory_put "$@"; }
fs_dump() { directory_dump "$@"; }
fs_close() {
  directory_close
  [ -z "${TARGET_STACK:-}" ] || [ "$TARGET_PATIENCE" = 0 ] || stack_down
}
