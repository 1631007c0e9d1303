# SPDX-License-Identifier: LGPL-2.1-or-later
# What is told of the capture: capture.json and where its figures come from.

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

# crashed_release DMESG: the crashed kernel's version; its first line may be gone, the panic tells it, too.
crashed_release() {
  found=$(sed -n '/Linux version /{s/^.*Linux version \([^ ]*\).*$/\1/p;q;}' "$1" 2>/dev/null)
  [ -n "$found" ] ||
    found=$(sed -n 's/^.*CPU: .* PID: .*ainted.* \([0-9][^ ]*\.[^ ]*\) #[0-9].*$/\1/p' "$1" 2>/dev/null | tail -n 1)
  printf %s "$found"
}

# used_level: the level of the last run of makedumpfile, before that the one that is wished for.
used_level() {
  level=$DUMP_LEVEL previous=''
  for word in $DUMP_ARGS; do
    [ "$previous" = -d ] && level=$word
    previous=$word
  done
  json_number "$level"
}

# left_out LEVEL: what makedumpfile -d leaves out, as an array; makedumpfile(8) has the bits.
left_out() {
  words='' bit=1
  for kind in zero-pages page-cache private-page-cache user-data free-pages; do
    [ $(($1 & bit)) -eq 0 ] || words="$words $kind"
    bit=$((bit * 2))
  done
  json_words "$words"
}

# lent_parts: an object for each lender, from "LENDER=START-END,... LENDER=...".
lent_parts() {
  separator=''
  printf '['
  for part in $LENT_PARTS; do
    printf '%s{"why": "lent", "lender": %s, "ranges": %s}' "$separator" \
      "$(json_string "${part%%=*}")" "$(json_ranges "${part#*=}")"
    separator=', '
  done
  printf ']'
}

# holes_json: which physical memory of the crashed kernel no dump can have, and why; then which
# kinds of pages makedumpfile leaves out of the rest.
holes_json() (
  lent=$(lent_parts)
  lent=${lent#[}
  lent=${lent%]}
  level=$(used_level)
  unasked=''
  [ -z "$UNASKED_RANGES" ] ||
    unasked="{\"why\": \"kernel-ranges\", \"lender\": null, \"ranges\": $(json_ranges "$UNASKED_RANGES")}"
  cat <<END
{
  "schema": 1,
  "lender": $(json_string "$LENDER"),
  "lent": {"bytes": $(json_number "$LENT_BYTES"), "ranges": $(json_ranges "$LENT_RANGES")},
  "holes": [
    $lent${lent:+,
    }$unasked${unasked:+,
    }{"why": "reservation", "lender": null, "ranges": $(json_ranges "$RESERVATION")},
    {"why": "first-mib", "lender": null, "ranges": [[0, 1048576]]}
  ],
  "dump_level": $level,
  "left_out": $(left_out "$level")
}
END
)

# put_holes: holes.json to the current target. Not fatal: capture.json tells of lent memory, too.
put_holes() {
  holes_json >"$TMP/holes.json"
  "${TARGET_KIND}_put" "$TMP/holes.json" holes.json || say "cannot save holes.json"
  HOLES_LEVEL=$(used_level)
}

# step NAME OK REASON CENTISECONDS [LEVEL]: one rung of the ladder, on the current target.
step() {
  LADDER="$LADDER${LADDER:+, }{\"step\": $(json_string "$1"), \"target\": $(json_string "$TARGET_SPEC"), \
\"ok\": $(json_bool "$2"), \"reason\": $(json_string "$3"), \"seconds\": $(json_seconds "$4")${5:+, \"level\": $(json_number "$5")}}"
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
  "host": $(json_string "$HOST"),
  "time": $(json_string "$(date -u +%Y-%m-%dT%H:%M:%SZ)"),
  "crashed_release": $(json_string "$(crashed_release "$TMP/dmesg.txt")"),
  "release": $(json_string "$(uname -r)"),
  "dump_level": $(used_level),
  "allow_missing_user_data": $(json_bool "$ALLOW_MISSING_USER_DATA"),
  "lender": $(json_string "$LENDER"),
  "lent": {"bytes": $(json_number "$LENT_BYTES"), "ranges": $(json_ranges "$LENT_RANGES")},
  "layout": {"reservation": $(json_ranges "$RESERVATION"), "lent": $(lent_parts)},
  "crash_kernel": {
    "mem_total_bytes": $((total * 1024)),
    "peak_used_bytes": $(((total - least) * 1024)),
    "cpus": $(json_number "$(grep -c '^processor' /proc/cpuinfo)"),
    "ram_ranges": $(json_ranges "$(ram_ranges /sys/firmware/memmap /proc/iomem /proc/cmdline)")
  },
  "vmcore": {"path": $(json_string "$vmcore"), "bytes": $VMCORE_BYTES},
  "dmesg": {"path": "dmesg.txt", "bytes": $DMESG_BYTES},
  "ladder": [$LADDER],
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

# The last report, at the target or where failure hooks find it.
write_report() {
  kill "$LEAST_PID" 2>/dev/null && wait "$LEAST_PID" 2>/dev/null
  capture_json "$REASON" >"$TMP/capture.json"
  CAPTURE_JSON=$TMP/capture.json
  [ -n "$NAME" ] || return 0
  if ! "${TARGET_KIND}_put" "$TMP/capture.json" capture.json; then
    fail "cannot write capture.json"
    capture_json "$REASON" >"$TMP/capture.json"
  elif [ -n "$DIR" ]; then
    CAPTURE_JSON=$DIR/capture.json
  fi
  [ "$(used_level)" = "$HOLES_LEVEL" ] || put_holes
  "${TARGET_KIND}_put" "$LOG" capture.log
}
