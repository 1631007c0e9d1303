# SPDX-License-Identifier: LGPL-2.1-or-later
# What runs beside the capture: nothing may hang, and memory is sampled.

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
