# SPDX-License-Identifier: LGPL-2.1-or-later
# A directory of an NFS server. Variables: TARGET_NFS_EXPORT, _VERSIONS (in order), _OPTIONS,
# TARGET_PATH, and the network's. The kernel takes its options as text: no mount.nfs is needed.

# Set when the server has gone: there is no use in waiting for it again.
NFS_LOST=''

nfs_open() {
  NFS_LOST=''
  network_up || return 1
  server=$(network_address)
  for version in $TARGET_NFS_VERSIONS; do
    began=$(now)
    if nfs_mount "$version"; then
      TARGET_MOUNTED=$MOUNTPOINT
      say "target $TARGET_SPEC is mounted, NFS version $version"
      return 0
    fi
    # a server that does not answer will not answer another version
    [ $(($(now) - began)) -lt $((TARGET_TIMEOUT * 100 / 2)) ] || break
  done
  fail "cannot mount $TARGET_SPEC (NFS version $version): $(network_why "$TMP/nfs.log")"
  return 1
}

# nfs_mount VERSION. soft: a server that goes away is an error, in time, and nothing that hangs.
nfs_mount() {
  tenths=$((STALL_TIMEOUT * 10 / 3))
  [ "$tenths" -le 600 ] || tenths=600
  options="vers=$1,addr=$server,soft,timeo=$tenths,retrans=2"
  where=$server type=nfs4
  case $server in
    *:*) options="$options,proto=tcp6" where="[$server]" ;;
    *) options="$options,proto=tcp" ;;
  esac
  case $1 in
    3*) options="$options,nolock,mountvers=3,mountproto=${options##*proto=}" type=nfs ;;
    *) options="$options,clientaddr=$(nfs_own_address)" ;;
  esac
  # a busybox that would not leave the options to the kernel has another program beside it
  mounter=mount
  [ ! -x /bin/mount-nfs ] || mounter='mount-nfs -i'
  # shellcheck disable=SC2086  # two words
  bounded "$TARGET_TIMEOUT" $mounter -t "$type" -o "$options${TARGET_NFS_OPTIONS:+,$TARGET_NFS_OPTIONS}" \
    "$where:$TARGET_NFS_EXPORT" "$MOUNTPOINT" 2>"$TMP/nfs.log" && return 0
  cat "$TMP/nfs.log" >>"$LOG"
  return 1
}

nfs_own_address() {
  case $server in *:*) family=inet6 ;; *) family=inet ;; esac
  own=$(bounded 10 ip addr show dev "$NET_DEVICE" |
    sed -n "s|^ *$family \([^/ ]*\)/.* scope global.*|\1|p;" | sed q)
  echo "${own:-0.0.0.0}"
}

nfs_room() { directory_room; }
nfs_begin() { directory_begin "$@"; }
nfs_put() { [ -z "$NFS_LOST" ] && directory_put "$@"; }

# A server that is gone is as good as a stall: another target.
nfs_dump() {
  directory_dump "$@" && return 0
  # what only took too long may do at another level
  if [ "$(dump_fault)" = stall ] || nfs_is_lost; then
    NFS_LOST=1
    [ -s "$TMP/stalled" ] || echo "$WHY" >"$TMP/stalled"
  fi
  return 1
}

nfs_is_lost() {
  grep -q -i -E 'input/output error|stale file|timed out' "$TMP/makedumpfile.log" ||
    ! bounded 20 stat -f "$MOUNTPOINT" >/dev/null
}

# A server that is gone must not keep this kernel: -f ends what waits for it.
nfs_close() {
  [ -n "$TARGET_MOUNTED" ] || return 0
  if [ -z "$NFS_LOST" ]; then
    directory_release
    bounded 60 umount "$MOUNTPOINT" && return 0
  fi
  bounded 20 umount -f "$MOUNTPOINT" || bounded 20 umount -l "$MOUNTPOINT"
}
