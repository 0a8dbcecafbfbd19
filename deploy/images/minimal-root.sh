#!/bin/sh
# minimal-root.sh ROOT PACKAGE…: fills ROOT with the shared libraries of Debian packages, their copyright notices,
# Mozilla's certificates, and the few files in /etc that libraries look up.
set -eu
root=$1
shift

# Debian's merged layout: the loader's path is /lib64, its file is in /usr/lib.
mkdir -p "$root/etc/ssl/certs" "$root/usr/lib" "$root/usr/lib64" "$root/var/lib/dpkg/status.d"
ln -s usr/lib "$root/lib"
ln -s usr/lib64 "$root/lib64"
install -d -m 1777 "$root/tmp"

copy() {
    place=$(readlink -f "$(dirname "$1")")/$(basename "$1")
    mkdir -p "$root$(dirname "$place")"
    cp -a "$place" "$root$place"
}

for package in "$@"; do
    for file in $(dpkg -L "$package"); do
        case $file in
        # Without what libc opens on demand and nothing here demands, and without debuggers' helpers.
        */gconv/* | */audit/* | /usr/share/gdb/*) ;;
        *.so | *.so.[0-9]* | /usr/share/doc/*/copyright) copy "$file" ;;
        esac
    done
    # Where image scanners look for the packages of an image without dpkg.
    dpkg-query --status "$package" > "$root/var/lib/dpkg/status.d/$package"
done
copy /usr/share/doc/ca-certificates/copyright

# The bundle is put together from the package's own files, not taken from this stage's /etc: whatever a builder was made
# to trust for its downloads does not become something that the server trusts.
find /usr/share/ca-certificates -name '*.crt' | sort | xargs cat > "$root/etc/ssl/certs/ca-certificates.crt"

# debian_version tells NVIDIA's container toolkit where libraries go, ld.so.conf tells its ldconfig.
cp -aL /etc/debian_version /etc/os-release /etc/ld.so.conf "$root/etc/"
cp -a /etc/ld.so.conf.d "$root/etc/"
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
echo 'nonroot:x:65532:65532:nonroot:/nonexistent:/sbin/nologin' > "$root/etc/passwd"
echo 'nonroot:x:65532:' > "$root/etc/group"
