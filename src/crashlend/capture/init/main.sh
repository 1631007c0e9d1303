# SPDX-License-Identifier: LGPL-2.1-or-later
# The init of the crash kernel: save what is left of the production kernel, then leave.
#
# Written so that nothing makes it hang: a dead-man timer runs from the first moment, every step
# has its own limit, and a failing step costs no more than what depends on it. Needs busybox and
# makedumpfile, and no more of busybox than the table APPLETS in initramfs.py.
# Sourced by any other process than PID 1 this file only defines functions (the tests do that).

mount_kernel_file_systems() {
  mount -t proc proc /proc # the clock and the way out are there
  mount -t sysfs sysfs /sys
  mount -t devtmpfs devtmpfs /dev
  mount -t tmpfs -o mode=0755 tmpfs /run
  mount -t tmpfs -o mode=1777 tmpfs /tmp
}

# Where production's console= names none that this kernel has, init begins without descriptors 0 to 2
# (console_on_rootfs() in init/main.c), and whatever takes over standard input fails.
open_descriptors() {
  [ -e /proc/self/fd/0 ] || exec 0</dev/null
  [ -e /proc/self/fd/1 ] || exec 1>/dev/null
  # a failing redirection of exec would end the shell
  ! true 2>/dev/null >>"$LOG" || exec 2>>"$LOG"
}

# write_early DIRECTORY: what is written goes to the disk from the first megabytes on. The kernel would
# begin at a tenth of memory: with gigabytes of it the disk idles while makedumpfile compresses, and
# makedumpfile while the disk writes. And a fifth of memory may wait for the disk: of gigabytes too
# much is left for the end, of less the kernel's own bound is the smaller one.
write_early() {
  echo 8388608 2>/dev/null >"$1/dirty_background_bytes" || say "cannot write to $1"
  read -r _ total _ <"${PROC:-/proc}/meminfo"
  [ "$total" -lt 1310720 ] || echo 268435456 2>/dev/null >"$1/dirty_bytes"
}

leave() {
  say "done, ${REASON:-ok}: $FINAL_ACTION"
  # what hooks may have written; a target that does not answer would let it take all of its time
  if [ -n "$LOST" ]; then bounded 5 sync; else bounded 120 sync; fi
  case $FINAL_ACTION in
    poweroff) poweroff -f -n ;;
    halt)
      release_watchdogs
      halt -f -n
      ;;
    shell)
      # nobody hurries a person: the watchdogs are fed on
      moved 9999999999999
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
  open_descriptors
  # shellcheck source=/dev/null
  [ -r "$ETC/capture.conf" ] && . "$ETC/capture.conf"
  # shellcheck source=/dev/null
  [ -r "$ETC/load.conf" ] && . "$ETC/load.conf"
  # an empty directory name would mean the current one
  [ -z "${LIBRARY_PATH:-}" ] || export LD_LIBRARY_PATH="$LIBRARY_PATH"
  # the shells must survive to the end: everything else goes first when memory runs out
  echo -1000 >/proc/self/oom_score_adj
  AT_BOOT=$(now)
  STARTED=$AT_BOOT
  dead_man &
  DEAD_MAN=$!
  sample_memory &
  LEAST_PID=$!
  VM=/proc/sys/vm
  write_early "$VM"
  say "crash kernel $(uname -r) is up"
  capture
  leave
}

if [ $$ -eq 1 ]; then
  main
fi
