#!/bin/sh
# Makes /mnt/local from a machine's own NVMe disk, if it has one: the place for copies of prepared data and weights, which
# each node reads again and again. env.sh points the cache there. Run as root with the user who will own it; never fails.
set -u
owner=$1
[ -e /mnt/local ] && exit 0

if mountpoint -q /opt/dlami/nvme; then # AWS's Deep Learning images mount it themselves
    place=/opt/dlami/nvme
else
    disk=$(lsblk --nodeps --noheadings --paths --output NAME,MODEL 2>/dev/null | awk '/Instance Storage/ {print $1; exit}')
    [ -n "$disk" ] || exit 0
    place=/mnt/nvme
    mkdir -p $place
    # A disk that is in use already cannot be formatted.
    { mkfs.ext4 -q "$disk" && mount "$disk" $place; } || exit 0
fi
install -d -o "$owner" "$place/cache" && ln -sfn "$place/cache" /mnt/local
exit 0
