#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Installs a Debian system from .deb files into a file system image. Runs as root of a mount and a pid
# namespace of its own: image.py starts it.
#
#   install.sh ROOT EARLY LATE EXTRA IMAGE LABEL SIZE
#
# ROOT: an empty directory. EARLY: a directory with the packages that are installed first, all at
# once; LATE: those that are installed when the system stands. EXTRA: files that are put over it.
set -eu
root=$1 early=$2 late=$3 extra=$4 image=$5 label=$6 size=$7
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true LC_ALL=C
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
umask 022

for name in bin sbin lib lib64; do
    mkdir -p "$root/usr/$name"
    ln -s "usr/$name" "$root/$name"
done
# All files first: the packages' scripts need each other's programs. dpkg unpacks them again.
for deb in "$early"/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -p --keep-directory-symlink -C "$root" \
        --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*'
done
mkdir -p "$root/etc/dpkg/dpkg.cfg.d" "$root/var/lib/dpkg" "$root/debs" "$root/more"
: >"$root/var/lib/dpkg/status"
{
    echo "force-unsafe-io"
    for name in doc man locale; do echo "path-exclude=/usr/share/$name/*"; done
} >"$root/etc/dpkg/dpkg.cfg.d/lab"
# nothing is started in a directory
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind "$early" "$root/debs"
mount --bind "$late" "$root/more"
chroot "$root" sh -c 'dpkg --unpack --force-depends --force-confold /debs/*.deb'
chroot "$root" dpkg --configure -a --force-depends
chroot "$root" sh -c 'dpkg --install --force-confold /more/*.deb'
umount "$root/more" "$root/debs"
umount -l "$root/dev"
umount "$root/proc"
rmdir "$root/more" "$root/debs"
rm "$root/usr/sbin/policy-rc.d" "$root/etc/dpkg/dpkg.cfg.d/lab"
cp -R --no-preserve=ownership "$extra/." "$root/"
: >"$root/etc/machine-id"
# with a journal, as installers make it: this system is crashed while it is mounted
truncate -s "$size" "$image"
mke2fs -q -F -t ext4 -b 4096 -m 0 -E root_owner=0:0 -L "$label" -d "$root" "$image"
cp "$root"/boot/vmlinuz-* "$root"/boot/initrd.img-* "$(dirname "$image")/"
chmod 644 "$(dirname "$image")"/vmlinuz-* "$(dirname "$image")"/initrd.img-*
