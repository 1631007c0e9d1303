# SPDX-License-Identifier: LGPL-2.1-or-later
# makedumpfile: its words, its failures and its pulse.
#
# From the build (capture/makedumpfile.py): COMPRESSIONS, the flags of the compressions that it has,
# the best first; THREADS: 0 for none (its threads may corrupt the dump), a number, or auto;
# THREAD_LIBRARY: what its threads take besides, if anything.

# What of available memory one thread is given, in KiB: buffers of pages, the state of a compression
# (that of zstd is the largest), a stack. makedumpfile itself counts 200 KiB, which zstd exceeds.
THREAD_KIB=2048

# Look what it is: DUMP_VERSION, and no compression that it says it lacks. It would not fail with
# one: it says so, and writes the dump without any.
makedumpfile_look() {
  bounded 10 makedumpfile -v >"$TMP/makedumpfile.version" 2>&1
  DUMP_VERSION=$(sed -n 's/^makedumpfile: version \([^ ]*\).*/\1/p' "$TMP/makedumpfile.version")
  for lacking in zstd=-z lzo=-l snappy=-p; do
    grep -q "^${lacking%=*}.*disabled" "$TMP/makedumpfile.version" &&
      makedumpfile_without "${lacking#*=}"
  done
  return 0
}

# makedumpfile_words LEVEL: compression, threads and level for the next run, in one line.
makedumpfile_words() {
  threads=$(makedumpfile_threads /proc/cpuinfo /proc/meminfo)
  compression=$(makedumpfile_compression "$threads")
  [ "$threads" -gt 0 ] && threads="--num-threads $threads " || threads=''
  echo "${compression:+$compression }$threads-d $1"
}

# makedumpfile_compression THREADS: the best ratio where several CPUs compress or a network is in
# the way; else lzo, with which one CPU is quickest (docs/capture-speed.md).
makedumpfile_compression() {
  case " $COMPRESSIONS " in
    *' -l '*)
      case $1:$TARGET_KIND in
        0:fs | 0:raw) echo -l && return ;;
      esac
      ;;
  esac
  echo "${COMPRESSIONS%% *}"
}

# makedumpfile_threads CPUINFO MEMINFO: one for each CPU but one, which the main thread keeps busy,
# as many as a quarter of available memory carries, and none where that is a single one.
makedumpfile_threads() {
  case ${THREADS:-0} in
    auto) ;;
    *[!0-9]*) echo 0 && return ;;
    *) echo "${THREADS:-0}" && return ;;
  esac
  cpus=$(grep -c '^processor' "$1")
  available=$(sed -n 's/^MemAvailable: *\([0-9]*\) .*/\1/p' "$2")
  most=$((${available:-0} / 4 / THREAD_KIB))
  [ "$most" -lt "${cpus:-1}" ] || most=$((cpus - 1))
  [ "$most" -gt 1 ] || most=0
  echo "$most"
}

# After a run that failed: take away from the words what is to blame for it. Non-zero when nothing
# of them is: others would not help.
makedumpfile_other_words() {
  case $DUMP_ARGS in
    '-z '* | '-l '* | '-p '* | '-c '*)
      if compression_is_missing; then
        makedumpfile_without "${DUMP_ARGS%% *}"
        return 0
      fi
      ;;
  esac
  case $DUMP_ARGS in *--num-threads*) ;; *) return 1 ;; esac
  # 141: whoever read the pipe has gone
  [ "$DUMP_EXIT" -ne 141 ] || return 1
  # killed or short of memory: the one that writes needs less and can do it alone
  [ "$DUMP_EXIT" -gt 128 ] || grep -q -i -E 'thread|memory|allocate' "$TMP/makedumpfile.log" ||
    return 1
  [ ! -e "$TMP/stalled" ] || return 1
  THREADS=0
}

# makedumpfile_without FLAG: take it out of COMPRESSIONS.
makedumpfile_without() {
  left=''
  for flag in $COMPRESSIONS; do
    [ "$flag" = "$1" ] || left="$left${left:+ }$flag"
  done
  COMPRESSIONS=$left
}

# ready_for_threads WORDS...: where these ask for threads, the library that glibc opens when one ends is
# there before any begins. Opened then, with all of them ending at once, it was not always found.
ready_for_threads() {
  case " $* " in
    *' --num-threads '*) [ -z "$THREAD_LIBRARY" ] || export LD_PRELOAD="$THREAD_LIBRARY" ;;
  esac
}

# run_makedumpfile OUTPUT WORDS...: one run into the file OUTPUT, ended when it no longer grows.
run_makedumpfile() {
  output=$1
  shift
  DUMP_ARGS=$*
  say "makedumpfile $DUMP_ARGS"
  rm -f "$TMP/stalled"
  (
    echo 500 >/proc/self/oom_score_adj
    ready_for_threads "$@"
    exec makedumpfile --message-level 6 "$@" "$CORE" "$output"
  ) >"$TMP/makedumpfile.log" 2>&1 &
  guarded $! "$DUMP_TIMEOUT" pulse $! "$output"
  DUMP_EXIT=$?
  cat "$TMP/makedumpfile.log" >>"$LOG"
  [ "$DUMP_EXIT" -eq 0 ] || makedumpfile_failed
}

# Say why the last run failed.
makedumpfile_failed() {
  last=$(grep -v -E '^ *$|^makedumpfile Failed|^This is an incomplete' "$TMP/makedumpfile.log" | tail -n 1)
  [ "$DUMP_EXIT" -ne 137 ] || last='killed, probably out of memory'
  [ ! -s "$TMP/stalled" ] || read -r last <"$TMP/stalled"
  WHY="makedumpfile ended with $DUMP_EXIT${last:+: $last}"
  say "failed: $WHY"
  return 1
}

# Another compression helps only where this one is not built in.
compression_is_missing() {
  grep -q -i -E 'is disabled|invalid option|parameter is invalid' "$TMP/makedumpfile.log"
}
