# SPDX-License-Identifier: LGPL-2.1-or-later
# What is left when no target took anything: the console, and the firmware's memory (pstore).

# Have pstore keep what the kernel's log ends with, at whatever ends this kernel. Production finds it
# in /sys/fs/pstore. The driver comes only now: it calls firmware, which has had a crash.
pstore_keep() {
  if [ -r "$ETC/pstore" ]; then
    while read -r module words <&3; do
      # shellcheck disable=SC2086  # parameters
      insert "$module" $words
    done 3<"$ETC/pstore"
  fi
  backend=''
  read -r backend 2>/dev/null <"${SYS:-/sys}/module/pstore/parameters/backend"
  case $backend in
    '' | '(null)')
      say 'pstore has no backend here'
      return 1
      ;;
  esac
  # without this, pstore keeps panics alone (kmsg_dump() in kernel/printk/printk.c)
  echo 1 2>/dev/null >"${SYS:-/sys}/module/printk/parameters/always_kmsg_dump" || return 1
  say "pstore ($backend) keeps the end of this log"
}

# The end of the crashed kernel's log and why nothing more was saved, for the console and for pstore,
# which takes the last 10 KiB (pstore.kmsg_bytes). Slowly: a BMC's buffer is small.
last_words() {
  say 'the crashed kernel said at its end:'
  if [ -s "$TMP/dmesg.txt" ]; then
    tail -n 80 "$TMP/dmesg.txt" | tail -c 7000 | tr -cd '\011\012\040-\176' |
      while read -r line; do
        echo "<3>| $line" 2>/dev/null >"${DEV:-/dev}/kmsg"
        usleep 50000
      done
  fi
  [ -z "$PANIC" ] || say "crashed: $PANIC"
  say "no dump was saved: $REASON"
}
