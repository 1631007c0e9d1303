# SPDX-License-Identifier: LGPL-2.1-or-later
# The drivers on the way to the targets.

# For how many seconds a driver may still be coming up, before it counts as hung.
LOAD_TIMEOUT=180

# insert MODULE WORDS...: waited for as long as drivers usually take. Some wait for their card's firmware
# for minutes after a crash, in insmod; one that is killed there fails for good, so that it is left behind.
insert() {
  (
    echo 0 >/proc/self/oom_score_adj
    exec insmod "$@"
  ) &
  inserting=$!
  await "$inserting" 30
  case $? in
    0) ;;
    124)
      say "still loading ${1##*/}: going on without"
      LOADING="$LOADING $inserting"
      ;;
    # not fatal: soft dependencies may not fit this CPU, the target says what is missing
    *) say "cannot load ${1##*/}" ;;
  esac
}

load_modules() {
  LOAD_BEGAN=$(now)
  while read -r module <&3; do
    insert "$module"
  done 3<"$ETC/modules"
  TOOK_MODULES=$(($(now) - LOAD_BEGAN))
}

# Whether a driver is still coming up.
loading() {
  [ $(($(now) - LOAD_BEGAN)) -lt $((LOAD_TIMEOUT * 100)) ] || return 1
  for pid in $LOADING; do
    ended "$pid" || return 0
  done
  return 1
}
