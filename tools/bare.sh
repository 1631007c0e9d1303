#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the README's commands need nothing of this machine: runs `make check` and `make test`
# on the committed tree in a fresh minimal Debian 12 (debootstrap, variant minbase). Needs root and
# debootstrap; the archive's address comes from this machine's own apt. The root's log and the
# trials' results stay in build/bare.
set -eu

[ "$(id -u)" = 0 ] || {
  echo "bare.sh: it makes a chroot: run it as root" >&2
  exit 1
}
command -v debootstrap >/dev/null || {
  echo "bare.sh: debootstrap is not installed (apt install debootstrap)" >&2
  exit 1
}
here=$(cd "$(dirname "$0")/.." && pwd)
root=${CRASHLEND_BARE:-$(mktemp -d /var/tmp/crashlend-bare.XXXXXX)}
results=$here/build/bare
suite=bookworm

# address and code name of every Debian repository in this machine's apt, one a line
# shellcheck disable=SC2016  # apt's own variables
archives=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
  sort -u | grep ' main$' | grep "$suite")
mirror=$(echo "$archives" | awk -v s="$suite" '$2 == s {print $1; exit}')
[ -n "$mirror" ] || {
  echo "bare.sh: this machine's apt knows no archive of $suite" >&2
  exit 1
}

cleanup() {
  for name in dev/shm dev/pts dev proc sys; do
    umount "$root/$name" 2>/dev/null || true
  done
  [ -n "${CRASHLEND_BARE:-}" ] || rm -rf --one-file-system "$root"
}
trap cleanup EXIT

debootstrap --variant=minbase "$suite" "$root" "$mirror"
echo "$archives" | awk '{print "deb", $1, $2, "main"}' >"$root/etc/apt/sources.list"
# how this machine reaches the network is not part of the proof: certificates, proxies, resolver
cp -L /etc/resolv.conf "$root/etc/resolv.conf" 2>/dev/null || true
mount -t proc proc "$root/proc"
mount -t sysfs sys "$root/sys"
mount --bind /dev "$root/dev"
mount --bind /dev/shm "$root/dev/shm" 2>/dev/null || true
chroot "$root" apt-get update -q
chroot "$root" apt-get install -q -y --no-install-recommends make git ca-certificates
mkdir -p "$root/etc/ssl/certs" "$results"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
git -C "$here" clone -q --no-hardlinks "$here" "$root/root/crashlend"

status=0
chroot "$root" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
  PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
  ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
  sh -ec 'cd /root/crashlend && make check && make test' >"$results/log.txt" 2>&1 || status=$?
tail -n 15 "$results/log.txt"
cp -r "$root/root/crashlend/build/trials" "$results/" 2>/dev/null || true
[ "$status" = 0 ] && echo "bare: passed" || echo "bare: FAILED ($status), see $results/log.txt"
exit "$status"
