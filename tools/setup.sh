#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Sets up what `make demo` (lab) or `make check` and `make test` (dev) need: Debian packages that
# are missing, and a virtual environment in .venv. Says what it installs; changes nothing else.
set -eu

what=$1
lab="python3-venv qemu-system-x86 ovmf e2fsprogs dosfstools mtools kmod makedumpfile xz-utils zstd debian-archive-keyring"
# make and libelf: the trigger module of some trials is built against Debian's headers
dev="$lab binutils gcc make libelf-dev libc6-dev linux-libc-dev busybox-static cpio shellcheck xfsprogs"
case $what in
lab) packages=$lab ;;
dev) packages=$dev ;;
*)
  echo "usage: setup.sh lab|dev" >&2
  exit 2
  ;;
esac

if command -v dpkg-query >/dev/null; then
  missing=
  for package in $packages; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
  done
  if [ -n "$missing" ]; then
    echo "installing Debian packages:$missing"
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -q
    # shellcheck disable=SC2086  # words, on purpose
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -q -y --no-install-recommends $missing
  fi
else
  echo "this is not Debian: please have these installed, by whatever name: $packages"
fi

if [ ! -x .venv/bin/python ]; then
  echo "making a virtual environment in .venv"
  python3 -m venv .venv
fi
if [ "$what" = dev ]; then
  echo "installing into .venv: crashlend and its development tools (pyproject.toml, extra dev)"
  .venv/bin/pip install -q --disable-pip-version-check -e '.[dev]'
  touch .venv/.dev
else
  echo "installing into .venv: crashlend and what its lab needs (pyproject.toml, extra lab)"
  .venv/bin/pip install -q --disable-pip-version-check -e '.[lab]'
fi
touch .venv/.lab
