# SPDX-License-Identifier: LGPL-2.1-or-later
# A directory on another host, by SSH. Variables: TARGET_SSH_CONFIG (key, known host, user, port),
# TARGET_PATH, and the network's. There it takes a plain sh with cat, mkdir, mv, sync and wc.

SSH_PLACE='' SERVER=''

# ssh_sh SECONDS SCRIPT: run it there, at most that long; stdin and stdout are its own.
ssh_sh() {
  limit=$1
  shift
  bounded "$limit" ssh -F "$TARGET_SSH_CONFIG" -o "HostName=$SERVER" \
    -o "ConnectTimeout=$TARGET_TIMEOUT" -o "ServerAliveInterval=$((STALL_TIMEOUT / 4 + 1))" \
    target "sh -c $(ssh_quote "$1")" 2>"$TMP/ssh.log"
}

# A word for a shell.
ssh_quote() {
  printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")"
}

ssh_open() {
  PIPE_LOST=''
  network_up || return 1
  SERVER=$(network_address)
  place=$(ssh_quote "$TARGET_PATH")
  # ssh says what it waited for, if it is the one to end it
  ssh_sh $((TARGET_TIMEOUT + 5)) "umask 077; mkdir -p $place && [ -w $place ] || {
    echo cannot write to $place >&2; exit 1; }" </dev/null && return 0
  fail "$TARGET_SPEC: $(network_why "$TMP/ssh.log")"
  return 1
}

# KiB that are free there; nothing where the other side does not say so.
ssh_room() {
  ssh_sh 60 "df -P -k $(ssh_quote "$TARGET_PATH")" </dev/null | tail -n 1 | {
    read -r _ _ _ free _
    case $free in '' | *[!0-9]*) ;; *) echo "$free" ;; esac
  }
}

ssh_begin() {
  # shellcheck disable=SC2016  # for the shell on the other side
  SSH_PLACE=$(ssh_sh 60 "umask 077; base=$(ssh_quote "$TARGET_PATH/$1")"'
    until mkdir "$base$n"; do
      n=$((${n:-0} - 1))
      [ "$n" -ge -99 ] && [ -d "$base" ] || exit 1
    done 2>/dev/null
    echo "$base$n"' </dev/null) || {
    fail "$TARGET_SPEC: cannot make a directory $1: $(network_why "$TMP/ssh.log")"
    return 1
  }
  # a start-up file of the other side may have spoken, too
  SSH_PLACE=$(echo "$SSH_PLACE" | tail -n 1)
}

# ssh_put FILE AS: renamed there only when all of it has come.
ssh_put() {
  [ -z "$PIPE_LOST" ] || return 1
  size=$(size_of "$1")
  # shellcheck disable=SC2016  # for the shell on the other side
  ssh_sh 120 "umask 077; file=$(ssh_quote "$SSH_PLACE/$2") size=$size"'
    cat >"$file.incomplete" && { sync "$file.incomplete" || sync; } 2>/dev/null &&
      [ "$(wc -c <"$file.incomplete")" -eq "$size" ] && mv "$file.incomplete" "$file"' <"$1" && return 0
  fail "$TARGET_SPEC: cannot save $2: $(network_why "$TMP/ssh.log")"
  return 1
}

ssh_sink() {
  # shellcheck disable=SC2016  # for the shell on the other side
  exec ssh -F "$TARGET_SSH_CONFIG" -o "HostName=$SERVER" -o "ConnectTimeout=$TARGET_TIMEOUT" \
    -o "ServerAliveInterval=$((STALL_TIMEOUT / 4 + 1))" target \
    "sh -c $(ssh_quote "umask 077; file=$(ssh_quote "$SSH_PLACE/vmcore.flat")"'
      # what an earlier level has left there may still be written to
      rm -f "$file.incomplete"
      cat >"$file.incomplete" && { sync "$file.incomplete" || sync; } 2>/dev/null &&
        wc -c <"$file.incomplete"')"
}

# A connection that breaks ends the stream for the other side as if it were whole: the name is
# changed by a second command, when this side knows that it is.
ssh_dump() {
  pipe_dump ssh_sink "$@" || return 1
  bytes=$(tail -n 1 "$TMP/sink.out" | tr -cd 0-9)
  # shellcheck disable=SC2016  # for the shell on the other side
  if ! ssh_sh 120 "file=$(ssh_quote "$SSH_PLACE/vmcore.flat")"'
    mv "$file.incomplete" "$file" && sync' </dev/null; then
    WHY="$TARGET_SPEC: cannot rename the dump: $(network_why "$TMP/ssh.log")"
    say "failed: $WHY"
    return 1
  fi
  VMCORE=$TARGET_HOST:$SSH_PLACE/vmcore.flat
  VMCORE_BYTES=${bytes:-0}
}

ssh_close() {
  SSH_PLACE=''
}
