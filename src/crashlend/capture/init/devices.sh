# SPDX-License-Identifier: LGPL-2.1-or-later
# Block devices by what their superblocks say.

# find_device UUID=…|LABEL=… FSTYPE DEVICE...: print the device whose superblock says so. Busybox
# has findfs and blkid too, but Debian 11's has neither. Offsets as in superblocks.py.
find_device() {
  spec=$1
  uuid_at=1128 label_at=1144 label_bytes=16 # ext4
  [ "$2" = xfs ] && uuid_at=32 label_at=108 label_bytes=12
  shift 2
  wanted=$(echo "${spec#UUID=}" | tr -d - | tr A-F a-f)
  for device in "$@"; do
    case $spec in
      UUID=*)
        found=$(bounded 10 dd if="$device" bs=1 skip=$uuid_at count=16 2>/dev/null |
          od -A n -t x1 | tr -d ' \n')
        [ "$found" = "$wanted" ] || continue
        ;;
      *)
        found=$(bounded 10 dd if="$device" bs=1 skip=$label_at count=$label_bytes 2>/dev/null |
          tr -d '\000')
        [ "$found" = "${spec#LABEL=}" ] || continue
        ;;
    esac
    echo "$device"
    return
  done
}

# Print the target's device once it is there.
find_target_device() {
  case $TARGET_DEVICE in
    UUID=* | LABEL=*)
      set --
      for device in /sys/class/block/*; do
        [ -b "/dev/${device##*/}" ] && set -- "$@" "/dev/${device##*/}"
      done
      find_device "$TARGET_DEVICE" "$TARGET_FSTYPE" "$@"
      ;;
    *) [ -b "$TARGET_DEVICE" ] && echo "$TARGET_DEVICE" ;;
  esac
}
