#!/bin/busybox sh
# The guest's first process: makes the machine a usual one (mounts, cgroup2 with every controller, loopback,
# swap), runs /vm/command and tells the host how it ended. The second serial port carries the command's
# standard output and nothing else, closed by a line with the run's own mark; the third its standard error.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=dumb
busybox mount -t proc proc /proc
busybox --install -s /bin

mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
ln -s /proc/self/fd /dev/fd
ln -s /dev/ttyS3 /dev/host
for port in 1 2 3; do stty -F /dev/ttyS$port raw -echo; done
# Kept open: an answer that comes while nobody has the port open would be lost.
exec 9<>/dev/host

finish() {
    printf '\036%s %d\n' "$(cat /vm/mark)" "$1" >/dev/ttyS1
    # The host ends this machine as soon as it has read that, which a reboot on a busy host may cut off.
    sleep 10
    reboot -f
}

fail() {
    echo "init: $1" >/dev/ttyS2
    finish 125
}

for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || fail "cgroup controller $controller is refused"
done
ip link set lo up || fail "loopback cannot be set up"
while read -r module parameters; do
    insmod "$module" $parameters || fail "module $module cannot be loaded"
done </vm/modules
if [ -e /vm/zram ]; then
    cat /vm/zram >/sys/block/zram0/disksize || fail "zram cannot be set up"
fi
while read -r device; do
    mkswap "$device" >/dev/null && swapon "$device" || fail "$device cannot be used as swap"
done </vm/swaps
while read -r device; do
    mke2fs "$device" >/dev/null && mount -t ext2 "$device" /mnt || fail "$device cannot be mounted"
done </vm/disks

cd /root
/vm/command </dev/null >/dev/ttyS1 2>/dev/ttyS2 9<&-
finish $?
