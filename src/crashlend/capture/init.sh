#!/bin/busybox sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# The init of the crash kernel: save what is left of the production kernel, then leave.
#
# Written so that nothing makes it hang: a dead-man timer runs from the first moment, every step
# has its own limit, and a failing step costs no more than what depends on it. Needs busybox and
# makedumpfile, and no more of busybox than the table APPLETS in initramfs.py.
#
# Hooks (/etc/crashlend/hooks/{pre,post,failure}.d, in the order of their names) find:
#   CRASHLEND_STATUS         ok or failed ("" in pre hooks: nothing is known yet)
#   CRASHLEND_REASON         why it failed, else ""
#   CRASHLEND_TARGET_MOUNT   where the target's file system is mounted, "" when it is not
#   CRASHLEND_DIR            the new directory for this dump, "" when there is none
#   CRASHLEND_VMCORE         the saved dump, "" when there is none
#   CRASHLEND_CAPTURE_JSON   the report of this capture ("" in pre hooks)
# Sourced by any other process than PID 1 this file only defines functions (the tests do that).

PATH=/bin
export PATH

# ---- defaults; capture.conf (from the build) and load.conf (from the load) override them

defaults() {
  FINAL_ACTION=reboot DUMP_LEVEL=31 HOST=localhost
  TARGET='' TARGET_FSTYPE='' TARGET_OPTIONS='' TARGET_PATH=/var/crash
  TOTAL_TIMEOUT=600 TARGET_TIMEOUT=60 STALL_TIMEOUT=300 HOOK_TIMEOUT=60
  ALLOW_MISSING_USER_DATA=0 LENDER=none LENT_BYTES=0 LENT_RANGES=''
  ETC=/etc/crashlend TMP=/tmp MOUNTPOINT=/target LOG=/tmp/capture.log
  REASON='' DIR='' VMCORE='' TARGET_MOUNTED='' PANIC='' LEAST_PID=''
  VMCORE_BYTES=0 DMESG_BYTES=0 DUMP_EXIT=null DUMP_ARGS='' DUMP_VERSION='' CAPTURE_JSON=''
  AT_BOOT=0 TOOK_MODULES=0 TOOK_DMESG=0 TOOK_MOUNT=0 TOOK_DUMP=0
}

# ---- small helpers

# Tell the console. The kernel's log never blocks; <3> is shown even with "quiet".
say() {
  echo "<3>crashlend: $*" 2>/dev/null >/dev/kmsg || echo "crashlend: $*" >/dev/console
  echo "$*" >>"$LOG"
} 2>/dev/null

# Remember the first reason only: the others follow from it.
fail() {
  say "failed: $*"
  [ -n "$REASON" ] || REASON=$*
}

# Centiseconds since boot. A leading 1 keeps "08" from being octal.
now() {
  read -r uptime _ </proc/uptime
  echo $((${uptime%.*} * 100 + 1${uptime#*.} - 100))
}

# bounded SECONDS COMMAND...: at most that long, and killed first when memory runs out.
bounded() {
  limit=$1
  shift
  (
    echo 0 >/proc/self/oom_score_adj
    exec timeout -s KILL "$limit" "$@"
  )
}

size_of() {
  stat -c %s "$1" 2>/dev/null || echo 0
}

# Write a file out and ask whether that worked. Appending nothing cannot truncate it.
flush() {
  bounded 120 dd if=/dev/null conv=fsync 2>/dev/null >>"$1"
}

# ---- the watchers

# The last resort: whatever hangs, the machine leaves after TOTAL_TIMEOUT. A dump that grows
# (see stall_guard) is never cut off. Touches nothing that could block.
dead_man() {
  deadline=$(($(now) + TOTAL_TIMEOUT * 100))
  while [ "$(now)" -lt "$deadline" ]; do
    usleep 1000000
    [ -r "$TMP/grown" ] || continue
    read -r grown <"$TMP/grown"
    # later than stall_guard by two minutes: what is left to do should still be done
    later=$((grown + STALL_TIMEOUT * 100 + 12000))
    [ "$later" -gt "$deadline" ] && deadline=$later
  done
  say "nothing moved for too long: leaving by force"
  case $FINAL_ACTION in
    poweroff) echo o >/proc/sysrq-trigger && sleep 20 ;;
    halt) halt -f -n & sleep 20 ;;
  esac
  echo b >/proc/sysrq-trigger
}

# stall_guard PID FILE: end the dump when its file has not grown for STALL_TIMEOUT.
stall_guard() {
  size=-1
  while :; do
    new=$(size_of "$2")
    if [ "$new" -gt "$size" ]; then
      size=$new
      moved=$(now)
      # renamed into place: the dead-man must never read half a number
      echo "$moved" >"$TMP/grown.new" && mv "$TMP/grown.new" "$TMP/grown"
    elif [ $(($(now) - moved)) -ge $((STALL_TIMEOUT * 100)) ]; then
      say "the dump has not grown for $STALL_TIMEOUT s: ending it"
      : >"$TMP/stalled"
      kill -9 "$1"
      return
    fi
    sleep 2
  done
}

# Keep the least MemAvailable (KiB) that was seen in a file.
sample_memory() {
  least=''
  while :; do
    available=''
    while read -r key value _; do
      case $key in
        MemFree:) available=$value ;;
        MemAvailable:) available=$value && break ;;
      esac
    done </proc/meminfo
    if [ -z "$least" ] || [ "$available" -lt "$least" ]; then
      least=$available
      echo "$least" >"$TMP/least"
    fi
    usleep 200000 || sleep 1
  done
}

# ---- JSON

# A string literal of the printable ASCII in $1.
json_string() {
  printf '"%s"' "$(printf %s "$1" | tr '\t\n' '  ' | tr -cd '\040-\176' | sed 's/[\\"]/\\&/g')"
}

json_bool() {
  case $1 in 1 | yes | true | on) printf true ;; *) printf false ;; esac
}

# An integer, or 0 for what is none.
json_number() {
  case $1 in '' | *[!0-9]*) printf 0 ;; *) printf %s "$1" ;; esac
}

# Words as an array of strings.
json_words() {
  comma=''
  printf '['
  for word in $1; do
    printf %s "$comma"
    json_string "$word"
    comma=', '
  done
  printf ']'
}

# "START-END,START-END" or with blanks, half-open, decimal or 0x, as an array of pairs.
json_ranges() {
  comma=''
  printf '['
  for range in $(printf %s "$1" | tr ',' ' '); do
    case $range in *[!0-9a-fA-Fx-]* | -* | *-) continue ;; *-*) ;; *) continue ;; esac
    printf '%s[%d, %d]' "$comma" $((${range%-*})) $((${range#*-}))
    comma=', '
  done
  printf ']'
}

# Centiseconds as seconds.
json_seconds() {
  printf '%d.%02d' $(($1 / 100)) $(($1 % 100))
}

# ram_ranges MEMMAP IOMEM CMDLINE: "START-END" per line, half-open, sorted: the memory map that the
# loader passed (/sys/firmware/memmap), or what the kernel made of it (/proc/iomem) where there is
# none or words of the command line (memmap=) have added to it.
ram_ranges() {
  if [ -r "$1/0/type" ] && ! grep -q -E '(^| )memmap=' "${3:-/dev/null}"; then
    for entry in "$1"/*; do
      read -r type <"$entry/type"
      [ "$type" = 'System RAM' ] || continue
      read -r start <"$entry/start"
      read -r end <"$entry/end"
      echo "$((start))-$((end + 1))"
    done
  else
    sed -n 's/^\([0-9a-f]*\)-\([0-9a-f]*\) : System RAM$/\1 \2/p' "$2" |
      while read -r start end; do
        echo "$((0x$start))-$((0x$end + 1))"
      done
  fi | sort -n
}

# purgatory_record NODES: what purgatory did between the kernels, the JSON object that it left in a
# setup_data node of its own type; null when there is none, or what is there is none.
purgatory_record() {
  value='([0-9]+|true|false)'
  step="\\{\"step\":\"[a-z-]+\"(,\"[a-z_]+\":$value)*\\}"
  head="\\{\"steps\":\\[($step(,$step)*)?\\]"
  tail="(,\"tsc_khz\":[0-9]+,\"clock\":\"[a-z]+\")?(,\"reset\":\"[a-zA-Z0-9_' -]*\")?\\}"
  record=''
  for node in "$1"/*; do
    type=''
    [ -r "$node/type" ] && read -r type <"$node/type"
    [ "$type" = 0x434c4e44 ] || continue
    record=$(tr -cd '\040-\176' <"$node/data" | sed 's/ *$//' | grep -x -E "$head$tail")
  done
  printf %s "${record:-null}"
}

# panic_line DMESG: the line that says why, without its time stamp.
panic_line() {
  for pattern in 'Kernel panic - not syncing' 'sysrq: Trigger a crash'; do
    line=$(sed -n "/$pattern/{s/^.*\($pattern\)/\1/p;q;}" "$1" 2>/dev/null)
    [ -n "$line" ] && break
  done
  # an oops that is fatal goes to the crash kernel without a panic (oops_end() in dumpstack.c); it
  # is the last one, there may have been others
  [ -n "$line" ] ||
    line=$(sed -n 's/^.*\(BUG: \|kernel BUG at \|general protection fault\)/\1/p' "$1" 2>/dev/null | tail -n 1)
  printf %s "$line"
}

# capture_json REASON: the report, ok when there is no reason. Paths are relative to the directory that holds it.
capture_json() {
  least='' total=0 ok=false vmcore=''
  [ -r "$TMP/least" ] && read -r least <"$TMP/least"
  while read -r key value _; do
    [ "$key" = MemTotal: ] && total=$value && break
  done </proc/meminfo
  [ -n "$least" ] || least=$total
  [ -z "$1" ] && ok=true
  [ -n "$VMCORE" ] && vmcore=${VMCORE##*/}
  cat <<END
{
  "schema": 1,
  "ok": $ok,
  "reason": $(json_string "$1"),
  "release": $(json_string "$(uname -r)"),
  "dump_level": $(json_number "$DUMP_LEVEL"),
  "allow_missing_user_data": $(json_bool "$ALLOW_MISSING_USER_DATA"),
  "lender": $(json_string "$LENDER"),
  "lent": {"bytes": $(json_number "$LENT_BYTES"), "ranges": $(json_ranges "$LENT_RANGES")},
  "crash_kernel": {
    "mem_total_bytes": $((total * 1024)),
    "peak_used_bytes": $(((total - least) * 1024)),
    "ram_ranges": $(json_ranges "$(ram_ranges /sys/firmware/memmap /proc/iomem /proc/cmdline)")
  },
  "vmcore": {"path": $(json_string "$vmcore"), "bytes": $VMCORE_BYTES},
  "dmesg": {"path": "dmesg.txt", "bytes": $DMESG_BYTES},
  "panic": $(json_string "$PANIC"),
  "purgatory": $(purgatory_record /sys/kernel/boot_params/setup_data),
  "seconds": {
    "boot": $(json_seconds "$AT_BOOT"),
    "modules": $(json_seconds "$TOOK_MODULES"),
    "dmesg": $(json_seconds "$TOOK_DMESG"),
    "mount": $(json_seconds "$TOOK_MOUNT"),
    "dump": $(json_seconds "$TOOK_DUMP"),
    "total": $(json_seconds "$(now)")
  },
  "makedumpfile": {
    "version": $(json_string "$DUMP_VERSION"),
    "exit": $DUMP_EXIT,
    "args": $(json_words "$DUMP_ARGS")
  }
}
END
}

# ---- the steps

mount_kernel_file_systems() {
  mount -t proc proc /proc # the clock and the way out are there
  mount -t sysfs sysfs /sys
  mount -t devtmpfs devtmpfs /dev
  mount -t tmpfs -o mode=0755 tmpfs /run
  mount -t tmpfs -o mode=1777 tmpfs /tmp
}

save_dmesg() {
  began=$(now)
  DUMP_VERSION=$(bounded 10 makedumpfile -v 2>&1 | sed -n 's/^makedumpfile: version \([^ ]*\).*/\1/p')
  if [ ! -e /proc/vmcore ]; then
    fail "no /proc/vmcore: this kernel was not started by a crash, or got no ELF core header"
    return
  fi
  # not fatal: a makedumpfile that is too old for the log may still save the memory
  bounded 60 makedumpfile --dump-dmesg /proc/vmcore "$TMP/dmesg.txt" >>"$LOG" 2>&1 ||
    say "cannot read the log of the crashed kernel"
  DMESG_BYTES=$(size_of "$TMP/dmesg.txt")
  PANIC=$(panic_line "$TMP/dmesg.txt")
  [ -n "$PANIC" ] && say "crashed: $PANIC"
  TOOK_DMESG=$(($(now) - began))
}

load_modules() {
  began=$(now)
  while read -r module <&3; do
    # not fatal: soft dependencies may not fit this CPU, the target says what is missing
    bounded 30 insmod "$module" || say "cannot load ${module##*/}"
  done 3<"$ETC/modules"
  TOOK_MODULES=$(($(now) - began))
}

# find_device UUID=…|LABEL=… FSTYPE DEVICE...: print the device whose superblock says so. Busybox
# has findfs and blkid too, but Debian 11's has neither. Offsets as in target.py.
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
find_target() {
  case $TARGET in
    UUID=* | LABEL=*)
      set --
      for device in /sys/class/block/*; do
        [ -b "/dev/${device##*/}" ] && set -- "$@" "/dev/${device##*/}"
      done
      find_device "$TARGET" "$TARGET_FSTYPE" "$@"
      ;;
    *) [ -b "$TARGET" ] && echo "$TARGET" ;;
  esac
}

mount_target() {
  began=$(now)
  until device=$(find_target) && [ -n "$device" ]; do
    if [ $(($(now) - began)) -ge $((TARGET_TIMEOUT * 100)) ]; then
      fail "the dump target $TARGET did not appear within $TARGET_TIMEOUT s"
      return
    fi
    usleep 200000
  done
  if ! bounded "$TARGET_TIMEOUT" mount -t "$TARGET_FSTYPE" -o "rw${TARGET_OPTIONS:+,$TARGET_OPTIONS}" \
    "$device" "$MOUNTPOINT"; then
    fail "cannot mount $device ($TARGET, $TARGET_FSTYPE)"
    return
  fi
  TARGET_MOUNTED=$MOUNTPOINT
  TOOK_MOUNT=$(($(now) - began))
  say "target $TARGET is $device"
}

# A new directory <path>/<host>-<UTC time>, for root's eyes only.
make_directory() {
  base="$MOUNTPOINT$TARGET_PATH/$HOST-$(date -u +%Y-%m-%d-%H%M%S)"
  bounded 60 mkdir -p "$MOUNTPOINT$TARGET_PATH"
  suffix=''
  until bounded 60 mkdir "$base$suffix"; do
    suffix=$((${suffix:-0} - 1)) # "-1", "-2", …
    if [ "$suffix" -lt -99 ] || [ ! -d "$base" ]; then
      fail "cannot make the directory $base"
      return
    fi
  done
  DIR=$base$suffix
  # room for the last words, should the dump fill the disk
  dd if=/dev/zero of="$DIR/reserve" bs=65536 count=16 2>/dev/null
  # and a first report, should the machine have to leave by force
  put_report "$DIR" "${REASON:-the capture did not finish}"
  [ -s "$TMP/dmesg.txt" ] || return
  if ! bounded 60 cp "$TMP/dmesg.txt" "$DIR/dmesg.txt" || ! flush "$DIR/dmesg.txt"; then
    say "cannot save dmesg.txt"
  fi
}

# dump_once ARGS: one run of makedumpfile into vmcore.incomplete; its exit status.
dump_once() {
  DUMP_ARGS="$1 -d $DUMP_LEVEL"
  rm -f "$DIR/vmcore.incomplete"
  (
    echo 500 >/proc/self/oom_score_adj
    # shellcheck disable=SC2086  # several words
    exec makedumpfile --message-level 6 $DUMP_ARGS /proc/vmcore "$DIR/vmcore.incomplete"
  ) >"$TMP/makedumpfile.log" 2>&1 &
  pid=$!
  stall_guard "$pid" "$DIR/vmcore.incomplete" &
  guard=$!
  wait "$pid"
  DUMP_EXIT=$?
  kill "$guard" 2>/dev/null
  cat "$TMP/makedumpfile.log" >>"$LOG"
  return "$DUMP_EXIT"
}

dump() {
  began=$(now)
  for compression in -l -c ''; do
    say "makedumpfile $compression -d $DUMP_LEVEL"
    dump_once "$compression" && break
    # another compression helps only where this one is not built in
    grep -q -i -E 'is disabled|invalid option|parameter is invalid' "$TMP/makedumpfile.log" || break
  done
  TOOK_DUMP=$(($(now) - began))
  if [ "$DUMP_EXIT" -ne 0 ]; then
    # what there is of the dump stays, under its honest name
    last=$(grep -v -E '^ *$|^makedumpfile Failed|^This is an incomplete' "$TMP/makedumpfile.log" | tail -n 1)
    if [ "$DUMP_EXIT" -eq 137 ]; then
      last='killed, probably out of memory'
      [ -e "$TMP/stalled" ] && last="the dump had not grown for $STALL_TIMEOUT s"
    fi
    fail "makedumpfile ended with $DUMP_EXIT${last:+: $last}"
    return
  fi
  if ! flush "$DIR/vmcore.incomplete" || [ ! -s "$DIR/vmcore.incomplete" ] ||
    ! bounded 60 mv "$DIR/vmcore.incomplete" "$DIR/vmcore"; then
    fail "cannot write the dump out: is the disk full or failing?"
    return
  fi
  TOOK_DUMP=$(($(now) - began))
  VMCORE=$DIR/vmcore
  VMCORE_BYTES=$(size_of "$VMCORE")
  say "saved $VMCORE_BYTES bytes"
}

# put_report DIRECTORY REASON: write capture.json there, whole or not at all.
put_report() {
  capture_json "$2" >"$TMP/report"
  bounded 60 cp "$TMP/report" "$1/capture.json.incomplete" &&
    flush "$1/capture.json.incomplete" &&
    bounded 60 mv "$1/capture.json.incomplete" "$1/capture.json"
}

# The last report, in the dump's directory or where failure hooks find it.
write_report() {
  kill "$LEAST_PID" 2>/dev/null && wait "$LEAST_PID" 2>/dev/null
  where=${DIR:-$TMP}
  CAPTURE_JSON=$where/capture.json
  [ -n "$DIR" ] && bounded 60 rm -f "$DIR/reserve"
  if ! put_report "$where" "$REASON"; then
    fail "cannot write capture.json"
    CAPTURE_JSON=$TMP/report
  fi
  [ -n "$DIR" ] && bounded 60 cp "$LOG" "$DIR/capture.log"
  bounded 120 sync
}

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

capture() {
  run_hooks pre
  save_dmesg
  load_modules
  mount_target
  [ -n "$TARGET_MOUNTED" ] && make_directory
  [ -n "$DIR" ] && [ -e /proc/vmcore ] && dump
  write_report
  if [ -z "$REASON" ]; then
    run_hooks post ok
  else
    run_hooks post failed
    run_hooks failure failed
  fi
  if [ -n "$TARGET_MOUNTED" ]; then
    bounded 120 umount "$MOUNTPOINT" || bounded 60 mount -o remount,ro "$MOUNTPOINT"
  fi
}

leave() {
  say "done, ${REASON:-ok}: $FINAL_ACTION"
  bounded 120 sync
  case $FINAL_ACTION in
    poweroff) poweroff -f -n ;;
    halt) halt -f -n ;;
    shell)
      kill -9 "$DEAD_MAN"
      setsid cttyhack sh
      ;;
  esac
  reboot -f -n
  echo b >/proc/sysrq-trigger
  # PID 1 must not end; the dead-man is still there
  while :; do sleep 10; done
}

# Whatever ends the shell too early (it must not, but a PID 1 that ends is a panic).
ended_early() {
  fail "init ended early"
  leave
}

main() {
  umask 077
  defaults
  trap ended_early EXIT
  mount_kernel_file_systems
  exec 2>>"$LOG"
  # shellcheck source=/dev/null
  [ -r "$ETC/capture.conf" ] && . "$ETC/capture.conf"
  # shellcheck source=/dev/null
  [ -r "$ETC/load.conf" ] && . "$ETC/load.conf"
  # an empty directory name would mean the current one
  [ -z "${LIBRARY_PATH:-}" ] || export LD_LIBRARY_PATH="$LIBRARY_PATH"
  # the shells must survive to the end: everything else goes first when memory runs out
  echo -1000 >/proc/self/oom_score_adj
  dead_man &
  DEAD_MAN=$!
  AT_BOOT=$(now)
  sample_memory &
  LEAST_PID=$!
  say "crash kernel $(uname -r) is up"
  capture
  leave
}

if [ $$ -eq 1 ]; then
  main
fi
