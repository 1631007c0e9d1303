# SPDX-License-Identifier: LGPL-2.1-or-later
# What runs beside the capture: nothing may hang, and memory is sampled.

# What is left, in seconds, for all that follows a dump that came to nothing: other targets, the
# report, pstore, the console.
GRACE=240

# When the machine leaves, in centiseconds since boot: TOTAL_TIMEOUT after the start, or later, for a
# dump that grows (see stall_guard) is never cut off.
deadline() {
  last=$((STARTED + TOTAL_TIMEOUT * 100))
  if [ -r "$TMP/grown" ]; then
    read -r grown <"$TMP/grown"
    # later than stall_guard: what is left to do should still be done
    later=$((grown + (STALL_TIMEOUT + GRACE) * 100))
    [ "$later" -le "$last" ] || last=$later
  fi
  echo "$last"
}

# Seconds until then, less what the last steps take: what stands still is ended (10), asked once more (15)
# and taken out of the way (10), then come the hooks that are still to run, pstore and the console.
left() {
  echo $((($(deadline) - $(now)) / 100 - $(least 60 $((TOTAL_TIMEOUT / 4)))))
}

# least A B: the smaller number.
least() {
  if [ "$1" -lt "$2" ]; then echo "$1"; else echo "$2"; fi
}

# moved AT: the dump has grown then. Renamed into place: nobody must read half a number.
moved() {
  echo "$1" >"$TMP/grown.new" && mv "$TMP/grown.new" "$TMP/grown"
}

# The last resort: whatever hangs, the machine leaves at its deadline. Touches nothing that could
# block.
dead_man() {
  while [ "$(now)" -lt "$(deadline)" ]; do
    usleep 1000000
  done
  say "nothing moved for too long: leaving by force"
  # where pstore's backend is built in, it keeps what the kernel's log ends with
  [ "$PSTORE" = never ] || echo 1 2>/dev/null >/sys/module/printk/parameters/always_kmsg_dump
  case $FINAL_ACTION in
    poweroff) echo o >/proc/sysrq-trigger && sleep 20 ;;
    halt) halt -f -n & sleep 20 ;;
  esac
  echo b >/proc/sysrq-trigger
}

# ---- hardware watchdogs: what resets a crash kernel that has hung itself

# Load their drivers and begin to feed. Production may have armed one: it has been counting since.
arm_watchdogs() {
  [ "$WATCHDOG_TIMEOUT" -gt 0 ] || return 0
  if [ -r "$ETC/watchdogs" ]; then
    while read -r module <&3; do
      insert "$module"
    done 3<"$ETC/watchdogs"
  fi
  feed_watchdogs
}

# The devices: of drivers that do not use the kernel's watchdog core (ipmi_watchdog) there is but
# one, without a number.
watchdogs() {
  set -- "${DEV:-/dev}"/watchdog[0-9]*
  [ -e "$1" ] || set -- "${DEV:-/dev}/watchdog"
  [ ! -e "$1" ] || echo "$@"
}

feed_watchdogs() {
  FEEDERS=''
  for device in $(watchdogs); do
    feed "$device" &
    FEEDERS="$FEEDERS $!"
  done
}

# feed DEVICE: as long as the dead-man has patience, and a minute for what it does then. The device is
# closed without the word that stops it, also when this process dies.
feed() {
  # only an ioctl sets the time; busybox has a program for that, which is ended before it goes on
  timeout -s KILL 1 busybox watchdog -F -T "$WATCHDOG_TIMEOUT" -t 1 "$1" >/dev/null 2>&1
  exec 3>"$1" || return
  say "feeding ${1##*/}"
  while [ "$(now)" -lt $(($(deadline) + 6000)) ]; do
    printf . >&3
    usleep 1000000
  done
}

# For a machine that halts: stop what feeds them, then them. "V" is what stops one that allows it, if it
# is all of the last write: a newline after it takes that back.
release_watchdogs() {
  for pid in $FEEDERS; do
    kill -9 "$pid"
  done
  for device in $(watchdogs); do
    # closed by the killed feeder only when that is gone
    usleep 200000
    # shellcheck disable=SC2016  # its own argument
    bounded 5 sh -c 'printf V >"$1"' stop "$device" || say "cannot stop ${device##*/}"
  done
}

# watch_again STAGE: whatever has ended of these (a hook may do anything) is started again.
watch_again() {
  if ended "$DEAD_MAN"; then
    dead_man &
    DEAD_MAN=$!
  fi
  if [ "$1" = pre ] && ended "$LEAST_PID"; then
    sample_memory &
    LEAST_PID=$!
  fi
  for pid in $FEEDERS; do
    ended "$pid" || continue
    for other in $FEEDERS; do
      kill -9 "$other" 2>/dev/null
    done
    feed_watchdogs
    break
  done
}

# ---- the dump

# pulse PID FILE: a number that grows as long as makedumpfile writes. The kernel's count, because a
# look at the file could hang where the target does.
pulse() {
  written=''
  while read -r key value; do
    [ "$key" = wchar: ] && written=$value && break
  done 2>/dev/null <"/proc/$1/io"
  [ -n "$written" ] || written=$(size_of "$2")
  echo "$written"
}

# written_out: a number that grows as long as disks take what was written before.
written_out() {
  waiting=0
  while read -r key value _; do
    case $key in Dirty: | Writeback: | NFS_Unstable:) waiting=$((waiting + value)) ;; esac
  done <"${PROC:-/proc}/meminfo"
  echo $((1000000000000 - waiting))
}

# The current target is given up for dead. What it has not taken stays in memory, up to the limit; beyond
# that the kernel holds up whoever writes, to the next target, too (balance_dirty_pages(): 32 KiB each
# 0.2 s). It lets them be below half of dirty_bytes, so that this is raised above what cannot go away.
lost() {
  TARGET_PATIENCE=0 LOST=1
  [ -n "$VM" ] || return 0
  room=0
  while read -r key value _; do
    [ "$key" = MemAvailable: ] && room=$((value / 8)) && break
  done <"${PROC:-/proc}/meminfo"
  room=$(least "$room" 65536)
  echo $((2048 * (1000000000000 - $(written_out) + room))) 2>/dev/null >"$VM/dirty_bytes" ||
    say "cannot write to $VM"
}

# stall_guard PID LIMIT COUNT...: end that process when the number that COUNT prints has not grown for
# STALL_TIMEOUT, or no time is left (a number that grows moves that), or after LIMIT seconds (0: as
# long as it grows). Why is in $TMP/stalled.
stall_guard() {
  watched=$1 limit=$2
  shift 2
  # to have a number is not to grow
  most=$("$@") began=$(now)
  last_moved=$began
  while ! ended "$watched"; do
    new=$("$@") at=$(now) why=''
    if [ "$new" -gt "$most" ]; then
      most=$new last_moved=$at
      moved "$at"
    elif [ $((at - last_moved)) -ge $((STALL_TIMEOUT * 100)) ]; then
      why="nothing was written for $STALL_TIMEOUT s"
    elif [ "$(left)" -le 0 ]; then
      why='nothing was written, and no time was left'
    fi
    if [ "$limit" -gt 0 ] && [ $((at - began)) -ge $((limit * 100)) ]; then
      why="the dump took longer than $limit s"
    fi
    if [ -n "$why" ]; then
      say "$why: ending it"
      echo "$why" >"$TMP/stalled"
      kill -9 "$watched"
      return
    fi
    sleep 2
  done
}

# outlive PID: its exit status, as long as stall_guard lets it run; 124 when even that does not end it.
outlive() {
  until ended "$1"; do
    if [ -e "$TMP/stalled" ]; then
      await "$1" 10
      return
    fi
    usleep 200000
  done
  wait "$1"
}

# guarded PID LIMIT COUNT...: its exit status, with a stall_guard beside it that holds no pipe open.
guarded() {
  (
    exec >/dev/null
    stall_guard "$@"
  ) &
  guard=$!
  outlive "$1"
  set -- $?
  kill "$guard" 2>/dev/null
  return "$1"
}

# Write a file out and ask whether that worked, for as long as the disk takes something. Appending
# nothing cannot truncate it.
flush() {
  rm -f "$TMP/stalled"
  (
    echo 0 >/proc/self/oom_score_adj
    exec dd if=/dev/null conv=fsync 2>/dev/null >>"$1"
  ) &
  guarded $! 0 written_out
}

# Keep the least MemAvailable (KiB) that was seen in a file. Not more often: a look starts a process,
# and the crash kernel may have a single CPU.
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
    usleep 500000 || sleep 1
  done
}
