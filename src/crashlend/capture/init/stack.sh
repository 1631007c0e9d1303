# SPDX-License-Identifier: LGPL-2.1-or-later
# Devices that are made of others: RAID, LUKS, LVM. TARGET_STACK has one step per line, from the disks
# up (capture/targets/stack.py). There is no udev: the tools make the device nodes themselves.

STACK_ARRAY=100 # the first number of an array that production has hardly given

# stack_up: all steps; non-zero after fail. What is there already stays.
stack_up() {
  export DM_DISABLE_UDEV=1 MDADM_NO_UDEV=1 LVM_SUPPRESS_FD_WARNINGS=1
  mkdir -p /run/lock/lvm /run/lvm /run/cryptsetup /run/mdadm /dev/mapper 2>/dev/null
  # an array stays as it is until the first write, and is not resynchronised even then
  echo 1 2>/dev/null >/sys/module/md_mod/parameters/start_ro
  stack_began=$(now)
  while read -r layer one two three four <&4; do
    "stack_$layer" "$one" "$two" "$three" "$four" || return 1
  done 4<<END
$TARGET_STACK
END
}

# stack_over SECONDS: whether the stack has taken that long, from when the last driver is there.
stack_over() {
  ! loading || stack_began=$(now)
  [ $(($(now) - stack_began)) -ge $(($1 * 100)) ]
}

# stack_raid UUID WHERE: complete, or after a third of the time with what there is.
stack_raid() {
  stack_raid_there "$1" && return
  number=$STACK_ARRAY
  while [ -e "/sys/class/block/md$number" ]; do number=$((number + 1)); done
  # an array that is degraded already counts as complete; without a file mdadm takes no --no-degraded
  printf 'DEVICE partitions\nARRAY /dev/md%s UUID=%s\n' "$number" "$1" >"$TMP/mdadm.conf"
  how=--no-degraded
  until bounded 30 mdadm --assemble --scan --config="$TMP/mdadm.conf" $how >>"$LOG" 2>&1 &&
    stack_raid_runs "$number"; do
    # what is put together without running would keep its members from the next attempt
    [ ! -e "/sys/class/block/md$number" ] || bounded 10 mdadm --stop "/dev/md$number" >>"$LOG" 2>&1
    if stack_over "$TARGET_TIMEOUT"; then
      fail "cannot assemble the RAID $1 of the dump target"
      return 1
    fi
    if stack_over $((TARGET_TIMEOUT / 3)); then
      [ $how = --run ] || say "not all members of the RAID $1 have appeared: going on without"
      how=--run
    fi
    usleep 500000
  done
  # production does that later; here it would take the disks from the dump
  # shellcheck disable=SC2016  # its own argument
  bounded 10 sh -c 'echo frozen >"$1"' freeze "/sys/class/block/md$number/md/sync_action" 2>/dev/null
  echo "$1" >"$TMP/array.$number"
  say "RAID $1 is /dev/md$number"
}

# stack_raid_runs NUMBER: whether that array can be read. Where members are missing mdadm --no-degraded
# ends with 0 as well, and leaves the array inactive: a device without a byte.
stack_raid_runs() {
  [ -b "/dev/md$1" ] || return 1
  state=''
  read -r state 2>/dev/null <"/sys/class/block/md$1/md/array_state"
  case $state in '' | clear | inactive) return 1 ;; esac
}

# Whether an earlier target has assembled it.
stack_raid_there() {
  for array in "$TMP"/array.*; do
    [ -r "$array" ] && read -r uuid <"$array" && [ "$uuid" = "$1" ] && return
  done
  return 1
}

# stack_luks UUID NAME KEY WHERE
stack_luks() {
  [ ! -b "/dev/mapper/$2" ] || return 0
  # shellcheck disable=SC2046  # names of devices have no blanks
  until encrypted=$(find_device "UUID=$1" luks $(block_devices "$4")) && [ -n "$encrypted" ]; do
    if stack_over "$TARGET_TIMEOUT"; then
      fail "the LUKS device $1 of the dump target did not appear within $TARGET_TIMEOUT s"
      return 1
    fi
    usleep 500000
  done
  bounded "$TARGET_TIMEOUT" cryptsetup open --type luks --disable-locks --key-file "$3" \
    "$encrypted" "$2" >>"$LOG" 2>&1
  status=$?
  if [ "$status" -ne 0 ]; then
    case $status in
      3 | 137) fail "cannot open the LUKS device $1: out of memory, or it took longer than $TARGET_TIMEOUT s" ;;
      2) fail "cannot open the LUKS device $1: no key slot takes the key file" ;;
      *) fail "cannot open the LUKS device $1: cryptsetup ended with $status" ;;
    esac
    return 1
  fi
  say "LUKS device $1 is /dev/mapper/$2"
}

# stack_lvm GROUP VOLUME NAME WHERE
stack_lvm() {
  [ ! -b "/dev/mapper/$3" ] || return 0
  # RAID1 has its data on the members, too
  filter='"a|.*|"'
  [ "$4" = stacked ] && filter='"a|^/dev/(md|dm-|mapper/).*|","r|.*|"'
  until bounded 60 lvm lvchange --sysinit -K -y -a y --config "devices{filter=[$filter]}" "$1/$2" \
    >>"$LOG" 2>&1 && [ -b "/dev/mapper/$3" ]; do
    if stack_over "$TARGET_TIMEOUT"; then
      fail "cannot activate the volume $1/$2 of the dump target"
      return 1
    fi
    usleep 500000
  done
  say "volume $1/$2 is /dev/mapper/$3"
}

# stack_down: after the file system is unmounted, from the top. What fails costs nothing any more.
stack_down() {
  [ -n "${TARGET_STACK:-}" ] || return 0
  steps=''
  while read -r layer one two three _ <&4; do
    case $layer in
      lvm) steps="lvm:$one/$two $steps" ;;
      luks) steps="luks:$two $steps" ;;
      raid) steps="raid:$one $steps" ;;
    esac
  done 4<<END
$TARGET_STACK
END
  for step in $steps; do
    what=${step#*:}
    case $step in
      lvm:*) bounded 20 lvm lvchange --sysinit -a n "$what" ;;
      luks:*) bounded 20 cryptsetup close --disable-locks "$what" ;;
      raid:*)
        for array in "$TMP"/array.*; do
          [ -r "$array" ] && read -r uuid <"$array" && [ "$uuid" = "$what" ] || continue
          bounded 20 mdadm --stop "/dev/md${array##*.}" && rm -f "$array"
        done
        ;;
    esac >>"$LOG" 2>&1
  done
  return 0
}
