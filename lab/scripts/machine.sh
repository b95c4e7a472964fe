#!/bin/sh
# PID 1 of one machine of the lab, started by `unshare` in fresh mount, UTS, IPC,
# network and PID namespaces. It builds the machine's root out of the shared Debian
# tree, enters it and becomes a reaper. Everything it mounts lives in its own mount
# namespace: when it dies, nothing is left on the host.
#
# usage: machine.sh NAME ROOTFS DATA BIN
# environment: CGROUP_V1 names the v1 hierarchies to show (empty on a pure v2 host),
# HUGETLB=1 asks for a v1 hugetlb hierarchy, CGROUP_V2 is the v2 mount of a pure v2 host.
set -eu
name=$1 rootfs=$2 data=$3 bin=$4
root=$data/root

# Still the host's /proc: this is the number by which the host knows us.
read -r pid _ < /proc/self/stat
printf '%s' "$name" > /proc/sys/kernel/hostname

mkdir -p "$root" "$data/upper" "$data/work" "$data/storage"
mount -t overlay overlay -o "lowerdir=$rootfs,upperdir=$data/upper,workdir=$data/work" "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o nosuid,nodev,noexec sysfs "$root/sys"

mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
device() { mknod -m "$2" "$root/dev/$1" c "$3" "$4"; }
device null 666 1 3
device zero 666 1 5
device full 666 1 7
device random 666 1 8
device urandom 666 1 9
device kmsg 644 1 11
device tty 666 5 0
mkdir "$root/dev/net" "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
device net/tun 666 10 200
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o nosuid,nodev shm "$root/dev/shm"
mount -t mqueue mqueue "$root/dev/mqueue"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"

# crun refuses a v1 host that also shows the v2 tree, and crun, runc and CRI-O all
# want a hugetlb hierarchy; so the machine gets its own view of /sys/fs/cgroup.
if [ -n "${CGROUP_V2:-}" ]; then
	mount --bind "$CGROUP_V2" "$root/sys/fs/cgroup"
else
	mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
	for hierarchy in $CGROUP_V1; do
		mkdir "$root/sys/fs/cgroup/$hierarchy"
		mount --bind "/sys/fs/cgroup/$hierarchy" "$root/sys/fs/cgroup/$hierarchy"
	done
	if [ -n "${HUGETLB:-}" ]; then
		mkdir "$root/sys/fs/cgroup/hugetlb"
		mount -t cgroup -o hugetlb cgroup "$root/sys/fs/cgroup/hugetlb"
	fi
fi

mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir -p "$root/etc/shadow-lab" "$root/opt/shadow-lab/bin" "$root/var/lib/containers" \
	"$root/var/lib/etcd" "$root/run/lock" "$root/.old"
mount -t tmpfs -o mode=700 tmpfs "$root/var/lib/etcd"
mount --bind "$data/etc" "$root/etc/shadow-lab"
mount --bind "$bin" "$root/opt/shadow-lab/bin"
# Under Debian's own path, where the runtimes look for it.
mount --bind "$bin/criu" "$root/usr/sbin/criu"
mount --bind "$data/storage" "$root/var/lib/containers"

# The kubelet insists on these values and would set them for the whole host. It
# finds them already right, on files that only this machine sees.
mkdir -p "$root/run/sysctl"
tunable() {
	printf '%s\n' "$2" > "$root/run/sysctl/${1##*/}"
	mount --bind "$root/run/sysctl/${1##*/}" "$root/proc/sys/$1"
}
tunable vm/overcommit_memory 1
tunable vm/panic_on_oom 0
tunable kernel/panic 10
tunable kernel/panic_on_oops 1
tunable kernel/keys/root_maxkeys 1000000
tunable kernel/keys/root_maxbytes 25000000

cd "$root"
pivot_root . .old
exec chroot . /bin/sh -eu -c '
	umount -l /.old
	rmdir /.old
	mount --make-rshared /
	# CRIU measures the kernel over loopback: it must be up before anything else.
	ip link set lo up
	echo 1 > /proc/sys/net/ipv4/ip_forward
	if [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]; then
		echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables
	fi
	cp -a /etc/shadow-lab/root/. /
	echo "$1" > /etc/shadow-lab/init.pid.new
	mv /etc/shadow-lab/init.pid.new /etc/shadow-lab/init.pid
	exec catatonit -P
' machine "$pid"
