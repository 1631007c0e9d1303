# SPDX-License-Identifier: LGPL-2.1-or-later
# Words for the console, time, and commands that may not run for ever.

PATH=/bin
export PATH

# capture.conf (from the build) and load.conf (from the load) override these
defaults() {
  FINAL_ACTION=reboot DUMP_LEVEL=31 HOST=localhost TARGETS=''
  COMPRESSIONS='-l -c' THREADS=0 THREAD_LIBRARY=''
  TOTAL_TIMEOUT=600 TARGET_TIMEOUT=60 STALL_TIMEOUT=300 DUMP_TIMEOUT=0 HOOK_TIMEOUT=60
  WATCHDOG_TIMEOUT=60 PSTORE=auto STARTED=0
  ALLOW_MISSING_USER_DATA=0 LENDER=none LENT_BYTES=0 LENT_RANGES='' LENT_PARTS='' UNASKED_RANGES=''
  RESERVATION=''
  CORE=/proc/vmcore ETC=/etc/crashlend TMP=/tmp MOUNTPOINT=/target LOG=/tmp/capture.log
  REASON='' PANIC='' LEAST_PID='' NAME='' LADDER='' DUMP_VERSION='' CAPTURE_JSON=''
  VMCORE='' VMCORE_BYTES=0 DMESG_BYTES=0 DUMP_EXIT=null DUMP_ARGS='' HOLES_LEVEL='' DUMP_FAULT=''
  WHY='' DEAD_MAN='' FEEDERS='' LOST='' VM='' RUN=0 LOADING='' LOAD_BEGAN=0
  AT_BOOT=0 TOOK_MODULES=0 TOOK_DMESG=0 TOOK_MOUNT=0 TOOK_DUMP=0
  no_target
}

# What belongs to one target.
no_target() {
  # whatever the last one had: another kind would take it for its own
  for name in $(set | sed -n 's/^\(TARGET_[A-Z0-9_]*\)=.*/\1/p'); do
    [ "$name" = TARGET_TIMEOUT ] || unset "$name"
  done
  TARGET_KIND='' TARGET_SPEC='' TARGET_MOUNTED='' TARGET_PATIENCE='' DIR=''
}

# Tell the console. The kernel's log never blocks; <3> is shown even with "quiet".
say() {
  echo "<3>crashlend: $*" 2>/dev/null >/dev/kmsg || echo "crashlend: $*" >/dev/console
  echo "$*" >>"$LOG"
} 2>/dev/null

# Remember the first reason only: the others follow from it. WHY is the last one.
fail() {
  say "failed: $*"
  WHY=$*
  [ -n "$REASON" ] || REASON=$*
}

# Centiseconds since boot, in NOW: without a process of its own. A leading 1 keeps "08" from being
# octal.
clock() {
  read -r uptime _ </proc/uptime
  NOW=$((${uptime%.*} * 100 + 1${uptime#*.} - 100))
}

now() {
  clock
  echo "$NOW"
}

# ended PID: whether it is gone, or all but its exit status is.
ended() {
  stat=''
  read -r stat 2>/dev/null <"/proc/$1/stat" || return 0
  case ${stat##*) } in Z* | X*) return 0 ;; esac
  return 1
}

# await PID SECONDS: its exit status; 124 when it has not ended by then. Who waits for a dead disk is
# reached by no signal, and a plain "wait" for it would be the end of the capture.
await() {
  clock
  latest=$((NOW + $2 * 100)) nap=10000
  until ended "$1"; do
    clock
    [ "$NOW" -lt "$latest" ] || return 124
    usleep "$nap"
    [ "$nap" -ge 100000 ] || nap=$((nap * 3 / 2))
  done
  wait "$1"
}

# bounded SECONDS COMMAND...: at most that long, and killed before what matters when memory runs
# out. What not even SIGKILL ends is left behind.
bounded() {
  limit=$1
  shift
  (
    echo 0 >/proc/self/oom_score_adj
    exec timeout -s KILL "$limit" "$@" <&9 9<&-
  ) &
  await $! $((limit + 5))
} 9<&0

# asked SECONDS COMMAND...: bounded, for all that touches the target. After a stall it has 10 s to
# answer, and when it has not answered in time it is not asked again: each question to a dead disk
# would take all of its bound.
asked() {
  case $TARGET_PATIENCE in
    0) return 124 ;;
    ?*)
      shift
      set -- "$TARGET_PATIENCE" "$@"
      ;;
  esac
  bounded "$@"
  status=$?
  case $status in
    124 | 137)
      say "$TARGET_SPEC does not answer"
      lost
      ;;
  esac
  return "$status"
}

size_of() {
  stat -c %s "$1" 2>/dev/null || echo 0
}
