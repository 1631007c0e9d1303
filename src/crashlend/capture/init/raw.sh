# SPDX-License-Identifier: LGPL-2.1-or-later
# A partition without a file system as target. Its variables: TARGET_DEVICE, TARGET_SECTORS (its size
# in sectors of 512 bytes). The table at its beginning is described in capture/rawdump.py.

RAW_MAGIC='crashlend raw dump 1'
# For small files behind the dump's beginning, so that a dump that fills the device costs no report.
RAW_SPARE=1048576

raw_open() {
  wait_for_device || return 1
  RAW_DEVICE=$device
  # devices may have changed their order: nothing but what was looked at when this was built is
  # written to
  RAW_SECTORS=0
  read -r RAW_SECTORS 2>/dev/null <"${SYS:-/sys}/class/block/${RAW_DEVICE##*/}/size"
  if [ "$RAW_SECTORS" != "$TARGET_SECTORS" ] || ! raw_is_ours "$RAW_DEVICE"; then
    fail "$RAW_DEVICE ($TARGET_SPEC) is neither blank nor marked as crashlend's"
    return 1
  fi
  RAW_BYTES=$((RAW_SECTORS * 512))
  say "target $TARGET_SPEC is $RAW_DEVICE"
}

# raw_is_ours DEVICE: it begins with a table of ours, or with 1 MiB of zero bytes.
raw_is_ours() {
  asked 20 dd if="$1" of="$TMP/raw.head" bs=65536 count=16 2>/dev/null || return 1
  [ "$(dd if="$TMP/raw.head" bs=20 count=1 2>/dev/null | tr -d '\000')" = "$RAW_MAGIC" ] ||
    [ -z "$(tr -d '\000' <"$TMP/raw.head" | dd bs=16 count=1 2>/dev/null | od -A n -t x1)" ]
  set -- $?
  rm -f "$TMP/raw.head"
  return "$1"
}

# KiB for the dump.
raw_room() {
  echo $(((RAW_BYTES - RAW_NEXT - RAW_SPARE) / 1024))
}

raw_begin() {
  RAW_NAME=$1 RAW_TABLE='' RAW_NEXT=4096 RAW_LIMIT=$RAW_BYTES
  raw_mark writing
}

# raw_mark STATE: the table, as things are; non-zero when it is not on the device.
raw_mark() {
  {
    printf '%s\nstate %s\nname %s\n%send\n' "$RAW_MAGIC" "$1" "$RAW_NAME" "$RAW_TABLE"
    dd if=/dev/zero bs=4096 count=1 2>/dev/null
  } | dd of="$TMP/raw.table" bs=4096 count=1 2>/dev/null
  if ! raw_write "$TMP/raw.table" 0; then
    WHY="cannot write to $RAW_DEVICE"
    return 1
  fi
}

# raw_write FILE OFFSET: the file to the device, and on it. A partial block at its end is fine.
raw_write() {
  asked 60 dd if="$1" of="$RAW_DEVICE" bs=4096 seek=$(($2 / 4096)) conv=notrunc,fsync 2>/dev/null
}

# raw_put FILE AS: beside what there is, never over it. The table makes it valid.
raw_put() {
  size=$(size_of "$1")
  if [ $((RAW_NEXT + size)) -gt "$RAW_LIMIT" ]; then
    WHY="no room for $2 on $RAW_DEVICE"
    return 1
  fi
  raw_write "$1" "$RAW_NEXT" || return 1
  raw_section "$2" "$RAW_NEXT" "$size"
  RAW_NEXT=$(((RAW_NEXT + size + 4095) / 4096 * 4096))
  raw_mark writing
}

# raw_section NAME OFFSET BYTES: a line of the table; the newer one takes the place of an older.
raw_section() {
  RAW_TABLE=$(printf '%s' "$RAW_TABLE" | grep -v "^section $1 ")
  RAW_TABLE="$RAW_TABLE${RAW_TABLE:+
}section $1 $2 $3
"
}

# raw_dump WORDS...: flattened, because a device cannot be written as makedumpfile writes a file.
raw_dump() {
  RAW_AT=$(((RAW_NEXT + RAW_SPARE + 65535) / 65536 * 65536))
  RAW_LIMIT=$RAW_AT
  raw_section vmcore.flat "$RAW_AT" 0
  raw_mark writing || return 1
  stream_dump raw_sink "$@" || return 1
  read -r end <"$TMP/raw.end.$RUN"
  VMCORE_BYTES=$((end - RAW_AT))
  raw_section vmcore.flat "$RAW_AT" "$VMCORE_BYTES"
  if ! raw_mark writing; then
    VMCORE_BYTES=0
    return 1
  fi
  VMCORE="$TARGET_SPEC/vmcore.flat"
}

# From standard input to the device. Where it ended is the position of a descriptor that is shared
# with dd: not every dd counts bytes.
raw_sink() {
  {
    dd ibs=65536 obs=65536 seek=$((RAW_AT / 65536)) conv=notrunc,fsync >&4 || return 1
    sed -n 's/^pos:[^0-9]*//p' /proc/self/fdinfo/4 >"$TMP/raw.end.$RUN"
  } 4<>"$RAW_DEVICE"
}

raw_close() {
  [ -z "$NAME" ] || raw_mark complete
}
