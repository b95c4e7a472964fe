# Makes a small Debian tree and packs it as a layer.
#
# usage: debian.sh SUITE PACKAGES FOLDER
# FOLDER gets the finished `layer.tar`. Run in a mount namespace of its own, as root.
suite=$1 packages=$2 folder=$3
root=$folder/root

debootstrap --variant=minbase --include="$packages" "$suite" "$root" > "$folder/log" 2>&1 || {
	tail -n 20 "$folder/log" >&2
	exit 1
}

# What differs from run to run, and what a container has no use for.
cd "$root"
rm -rf var/cache/* var/lib/apt/lists/* var/log/* tmp/* \
	usr/share/doc usr/share/info usr/share/lintian usr/share/locale usr/share/man
mkdir -p var/cache/apt/archives/partial var/lib/apt/lists/partial
rm -f var/lib/dpkg/*-old var/lib/systemd/catalog/database
: > etc/machine-id
: > etc/hostname
: > etc/resolv.conf

# All files get one time, and compiled modules that recorded another would be taken for stale.
chroot . /bin/sh -c 'exec python3 -m compileall -q -f --invalidation-mode unchecked-hash \
	/usr/lib/python3 /usr/lib/python3.*'

tar --create --file "$folder/layer.tar" --sort=name --mtime=@0 --numeric-owner --format=gnu \
	--exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' --directory "$root" .
