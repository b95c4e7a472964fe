#!/bin/sh
# Builds Debian's CRIU with the lab's patch, in a mount namespace of its own.
#
# usage: build-criu.sh TREE FOLDER
# TREE is the lab's Debian tree, which stays as it is; FOLDER holds criu.patch and gets
# the finished `criu`.
set -eu
tree=$1 folder=$2
mkdir "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay overlay \
	-o "lowerdir=$tree,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
mount -t proc proc "$folder/root/proc"
cp "$folder/criu.patch" "$folder/root/tmp/"
cp /etc/resolv.conf "$folder/root/etc/resolv.conf"
# The sources come from where the tree's packages came from.
sed -n 's/^deb /deb-src /p' "$tree/etc/apt/sources.list" >> "$folder/root/etc/apt/sources.list"
chroot "$folder/root" /bin/sh -ec '
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -q
	apt-get install -y -q --no-install-recommends dpkg-dev gcc libbsd-dev libcap-dev \
		libnet1-dev libnftables-dev libnl-3-dev libprotobuf-c-dev libprotobuf-dev make \
		patch pkg-config protobuf-c-compiler protobuf-compiler uuid-dev
	cd /tmp
	apt-get source -q --tar-only criu
	mkdir criu
	tar -xf criu_*.orig.tar.* -C criu --strip-components=1
	cd criu
	patch -p1 < ../criu.patch
	# GnuTLS only serves remote page servers.
	make -j"$(nproc)" NO_GNUTLS=1 criu/criu
'
cp "$folder/root/tmp/criu/criu/criu" "$folder/criu"
strip "$folder/criu"
umount -R "$folder/root"
rm -rf "$folder/upper" "$folder/work" "$folder/root" "$folder/criu.patch"
