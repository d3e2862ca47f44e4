#!/bin/sh
# The first program of the guest: builds a root of its own in memory and starts systemd in it. Of the host's file system
# it takes /usr, read-only, and nothing else: no unit, no user and no setting of the host's.
# The kernel hands down `shared`, the folder on the host that both sides see.
set -e
PATH=/usr/sbin:/usr/bin:/sbin:/bin
root=/mnt
units=usr/lib/systemd/system

mount -t tmpfs -o mode=755 root $root
cd $root
mkdir -p dev etc/systemd/system host mnt opt/programs proc root run shared sys tmp usr var/lib var/tmp
chmod 1777 tmp var/tmp
for folder in bin sbin lib lib64; do ln -s usr/$folder $folder; done
ln -s ../run var/run
mount -t devtmpfs dev dev
mount --bind /usr usr
mount -t hostfs -o "$shared" shared shared
mount -t hostfs -o ro,"$(cat shared/programs)" programs opt/programs
# A disk and not a folder of the host's: SQLite wants shared memory and locks, and a power cut should lose what it would.
mount -t ext4 /dev/ubda var/lib

# The distribution's targets without what it hangs on them: udev, the journal, logins and a dozen more take seconds.
mount -t tmpfs -o mode=755 units $units
for unit in sysinit basic local-fs swap sockets timers paths slices network multi-user shutdown umount final poweroff; do
    cp /$units/$unit.target $units/
done
cp /$units/systemd-poweroff.service $units/
mount -t tmpfs none usr/lib/systemd/system-generators

echo 'root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/usr/sbin/nologin' >etc/passwd
echo 'root:x:0:
nogroup:x:65534:' >etc/group
echo 'passwd: files
group: files' >etc/nsswitch.conf
cp shared/machine-id etc/machine-id
echo machine >etc/hostname
: >etc/fstab
cp /etc/ld.so.cache etc/ 2>&- || true
cp -R shared/units/. etc/systemd/system/

echo '[Unit]
DefaultDependencies=no
[Service]
ExecStart=/bin/sh /shared/agent
StandardInput=file:/dev/ttyS0
StandardOutput=file:/dev/console
StandardError=inherit' >$units/agent.service
mkdir $units/multi-user.target.wants
ln -s ../agent.service $units/multi-user.target.wants/

pivot_root . mnt
exec chroot . /usr/lib/systemd/systemd </dev/console >/dev/console 2>&1
