# SPDX-License-Identifier: LGPL-2.1-or-later
# A web server or object store that takes PUT. Variables: TARGET_URL (with {file} and {name}, or for
# the dump alone; it may be signed, and is a secret), TARGET_HTTP_PORT, _CONFIG (curl's: header, CA),
# and the network's.

HTTP_NAME='' SERVER=''

# http_url FILE: the address for a file; TARGET_URL may hold a signature, so that it is told to curl
# in a file.
http_url() {
  url=$TARGET_URL
  case $url in *'{name}'*) url=${url%%'{name}'*}$HTTP_NAME${url#*'{name}'} ;; esac
  case $url in *'{file}'*) url=${url%%'{file}'*}$1${url#*'{file}'} ;; esac
  printf %s "$url"
}

# http_words FILE: into $TMP/curl.conf what curl needs for it.
http_words() {
  case $SERVER in *:*) server="[$SERVER]" ;; *) server=$SERVER ;; esac
  # an address needs no resolving, and curl takes none of IPv6 there
  known="resolve = \"$TARGET_HOST:$TARGET_HTTP_PORT:$server\""
  [ "$TARGET_HOST" != "$TARGET_ADDRESS" ] || known=''
  (
    umask 077
    cat "$TARGET_HTTP_CONFIG" - >"$TMP/curl.conf" <<END
url = "$(http_url "$1")"
$known
connect-timeout = $TARGET_TIMEOUT
speed-limit = 1
speed-time = $STALL_TIMEOUT
output = "$TMP/answer"
write-out = "%{http_code}"
globoff
silent
show-error
END
  )
}

# The line of curl's complaints that says what is wrong; advice follows it.
http_why() {
  line=$(grep '^curl: ' "$1" | sed q)
  if [ -n "$line" ]; then
    printf %s "$line${NET_NOTE:+ ($NET_NOTE)}"
  else
    network_why "$1"
  fi
}

# http_verdict EXIT CODE LOG: whether the server has taken it; else WHY.
http_verdict() {
  case $1/$2 in
    0/2??) return 0 ;;
    0/*)
      said=$(tr -cd '\040-\176\n' <"$TMP/answer" 2>/dev/null |
        sed -e 's/<[^>]*>/ /g' -e 's/^ *//' -e 's/ *$//' -e '/^$/d' -e q)
      WHY="$TARGET_SPEC: HTTP status $2${said:+: $said}${NET_NOTE:+ ($NET_NOTE)}"
      ;;
    137/*) WHY="$TARGET_SPEC: no end in time${NET_NOTE:+ ($NET_NOTE)}" ;;
    *) WHY="$TARGET_SPEC: $(http_why "$3")" ;;
  esac
  return 1
}

# Any answer will do: what may be put may well not be read.
http_open() {
  PIPE_LOST=''
  network_up || return 1
  SERVER=$(network_address)
  HTTP_NAME=$HOST
  http_words capture.json
  # curl says what it waited for, if it is the one to end it. A network that has just come up may
  # lose what is sent first: after a third of the time it is begun anew
  for seconds in $((TARGET_TIMEOUT / 3 + 1)) $((TARGET_TIMEOUT * 2 / 3)); do
    bounded $((seconds + 5)) curl -q -K "$TMP/curl.conf" --max-time "$seconds" --head </dev/null \
      >/dev/null 2>"$TMP/http.log" && return 0
    grep -q '^curl: (28)' "$TMP/http.log" || break
    say "$(http_why "$TMP/http.log")"
  done
  fail "$TARGET_SPEC: $(http_why "$TMP/http.log")"
  return 1
}

http_room() { :; }

http_begin() {
  HTTP_NAME=$1
}

# http_put FILE AS: servers show a file once all of it has come.
http_put() {
  [ -z "$PIPE_LOST" ] || return 1
  case $TARGET_URL in
    *'{file}'*) ;;
    *)
      say "$TARGET_SPEC takes the dump alone: $2 is not sent"
      return 0
      ;;
  esac
  http_send "$1" "$2" 120 && return 0
  fail "$WHY"
  return 1
}

# http_send FILE AS SECONDS
http_send() {
  http_words "$2"
  code=$(bounded "$3" curl -q -K "$TMP/curl.conf" --upload-file "$1" </dev/null 2>"$TMP/http.log")
  http_verdict $? "$code" "$TMP/http.log"
}

http_sink() {
  exec curl -q -K "$TMP/curl.conf" --upload-file -
}

http_spool_sink() {
  exec cat >"$TMP/spool/vmcore.flat"
}

# Object stores want to know the length beforehand: a dump that fits into half of the free memory is
# put there first.
http_dump() {
  DUMP_EXIT=null
  if http_spool "$@"; then
    VMCORE_BYTES=$(size_of "$TMP/spool/vmcore.flat")
    say "sending $VMCORE_BYTES bytes"
    # curl ends itself when nothing moves; the dead-man must know that something does
    http_pulse >/dev/null 2>&1 &
    pulse=$!
    http_send "$TMP/spool/vmcore.flat" vmcore.flat 86400
    sent=$?
    [ "$sent" -eq 0 ] || pipe_blames_sink "$WHY"
    kill "$pulse" 2>/dev/null
    http_unspool
  elif [ "$DUMP_EXIT" != null ] && [ "$DUMP_EXIT" != 0 ] && [ "$DUMP_EXIT" != 141 ]; then
    return 1 # makedumpfile's own failure, which would come again
  else
    http_words vmcore.flat
    pipe_dump http_sink "$@"
    sent=$?
    # what the server says is better than what curl makes of it
    if ! http_verdict "${sink_exit:-0}" "$(cat "$TMP/sink.out")" "$TMP/sink.log" &&
      [ "${sink_exit:-0}" -ne 137 ]; then
      pipe_blames_sink "$WHY"
      sent=1
    fi
    VMCORE_BYTES=0
  fi
  if [ "$sent" -ne 0 ]; then
    say "failed: $WHY"
    VMCORE_BYTES=0
    return 1
  fi
  VMCORE=$(http_url vmcore.flat)
  VMCORE=${VMCORE%%\?*}
}

http_spool() {
  available=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo)
  mkdir -p "$TMP/spool"
  mount -t tmpfs -o "mode=0700,size=$((${available:-0} / 2))k" tmpfs "$TMP/spool" || return 1
  pipe_dump http_spool_sink "$@" && return 0
  http_unspool
  return 1
}

http_unspool() {
  bounded 60 umount "$TMP/spool"
}

http_pulse() {
  while :; do
    now >"$TMP/grown.new" && mv "$TMP/grown.new" "$TMP/grown"
    sleep 5
  done
}

http_close() {
  rm -f "$TMP/curl.conf" "$TMP/answer"
}
