# SPDX-License-Identifier: LGPL-2.1-or-later
# Block devices by what their superblocks or partition tables say.

# part_of DEVICE OFFSET COUNT: these bytes. A device that does not answer is not asked again; nor may
# what waits for it keep a pipe open, or write into what another has read.
part_of() {
  part=$TMP/part.${1##*/}
  [ ! -e "$part.deaf" ] || return
  bounded 10 dd if="$1" of="$part" bs=1 skip="$2" count="$3" >/dev/null 2>&1
  case $? in
    0) cat "$part" ;;
    124 | 137)
      true >"$part.deaf"
      say "$1 does not answer"
      ;;
  esac
}

# bytes_at DEVICE OFFSET COUNT: as lower-case hexadecimal digits.
bytes_at() {
  part_of "$@" | od -A n -v -t x1 | tr -d ' \n'
}

# text_at DEVICE OFFSET COUNT: up to the NULs that fill it.
text_at() {
  part_of "$@" | tr -d '\000'
}

# find_device SPEC TYPE DEVICE...: print the device that says so. SPEC is UUID=…, LABEL=… or
# PARTUUID=…, TYPE ext4, xfs, btrfs or luks. Busybox has findfs and blkid too, but Debian 11's has
# neither. Offsets as in superblocks.py and luks.py.
find_device() {
  spec=$1
  uuid_at=1128 label_at=1144 label_bytes=16 # ext4
  case $2 in
    xfs) uuid_at=32 label_at=108 label_bytes=12 ;;
    btrfs) uuid_at=65568 label_at=65835 label_bytes=256 ;;
    luks) uuid_at='' ;;
  esac
  shift 2
  wanted=$(echo "${spec#*=}" | tr A-F a-f)
  for device in "$@"; do
    case $spec in
      PARTUUID=*) found=$(partition_uuid "$device") ;;
      UUID=*)
        if [ -z "$uuid_at" ]; then
          found=''
          [ "$(bytes_at "$device" 0 6)" != 4c554b53babe ] || found=$(text_at "$device" 168 40)
        else
          found=$(bytes_at "$device" "$uuid_at" 16)
          wanted=$(echo "$wanted" | tr -d -)
        fi
        ;;
      *)
        wanted=${spec#LABEL=}
        found=$(text_at "$device" "$label_at" "$label_bytes")
        ;;
    esac
    [ "$found" = "$wanted" ] || continue
    echo "$device"
    return
  done
}

# swapped HEX: the same bytes the other way round, as GUIDs begin.
swapped() {
  printf %s "$1" | sed 's/../& /g' | {
    read -r a b c d
    printf %s "$d$c$b$a" | tr -d ' '
  }
}

# little_endian HEX: the number that these bytes are.
little_endian() {
  digits=$1 number=''
  while [ -n "$digits" ]; do
    rest=${digits#??}
    number=${digits%"$rest"}$number
    digits=$rest
  done
  echo $((0x${number:-0}))
}

# partition_uuid DEVICE: the PARTUUID of a partition, from GPT (UEFI, 5.3) or the number that an MBR
# has at 0x1b8; the kernel tells it in sysfs only since 6.15.
partition_uuid() {
  block=/sys/class/block/${1##*/}
  read -r number 2>/dev/null <"$block/partition" || return 0
  disk=$(cd -P "$block/.." && pwd)
  disk=/dev/${disk##*/}
  sector=512
  read -r sector 2>/dev/null <"/sys/class/block/${disk##*/}/queue/logical_block_size"
  if [ "$(text_at "$disk" "$sector" 8)" != 'EFI PART' ]; then
    mbr=$(bytes_at "$disk" 440 4)
    printf '%s-%02x' "$(swapped "$mbr")" "$number"
    return
  fi
  entries=$(little_endian "$(bytes_at "$disk" $((sector + 72)) 8)")
  entry_bytes=$(little_endian "$(bytes_at "$disk" $((sector + 84)) 4)")
  guid=$(bytes_at "$disk" $((entries * sector + (number - 1) * entry_bytes + 16)) 16)
  first=${guid%????????????????????????} rest=${guid#????????}
  second=${rest%????????????????????} rest=${rest#????}
  third=${rest%????????????????} rest=${rest#????}
  fourth=${rest%????????????}
  printf '%s-%s-%s-%s-%s' "$(swapped "$first")" "$(swapped "$second")" "$(swapped "$third")" \
    "$fourth" "${rest#????}"
}

# block_devices plain|stacked|any: print the devices there are. A file system on RAID1 may be seen on
# the members, too: what is to be found on a stack is looked for on stacked devices alone.
block_devices() {
  for block in /sys/class/block/*; do
    [ -b "/dev/${block##*/}" ] || continue
    kind=plain
    if [ -d "$block/dm" ] || [ -d "$block/md" ] || [ -d "$block/../md" ]; then
      kind=stacked
    fi
    case $1 in any | "$kind") echo "/dev/${block##*/}" ;; esac
  done
}

# wait_for_device: the target's into the variable device. Its time begins when the last driver is there.
wait_for_device() {
  began=$(now)
  until device=$(find_target_device) && [ -n "$device" ]; do
    ! loading || began=$(now)
    if [ $(($(now) - began)) -ge $((TARGET_TIMEOUT * 100)) ] || [ "$(left)" -le 0 ]; then
      fail "the dump target $TARGET_SPEC did not appear within $TARGET_TIMEOUT s"
      return 1
    fi
    usleep 200000
  done
}

# Print the target's device once it is there.
find_target_device() {
  case $TARGET_DEVICE in
    *UUID=* | LABEL=*)
      where=plain
      [ -z "$TARGET_STACK" ] || where=stacked
      # shellcheck disable=SC2046  # names of devices have no blanks
      find_device "$TARGET_DEVICE" "$TARGET_FSTYPE" $(block_devices $where)
      ;;
    *) [ -b "$TARGET_DEVICE" ] && echo "$TARGET_DEVICE" ;;
  esac
}
