#!/bin/sh
# measure.sh VSWAP [MIB] [CHILDREN]: what RAM a process and its children take that read all that it has
# swapped out, under vswap and with the kernel's swap on zram. As root; needs a zram device that is not in use, and
# puts it back. Prints, in MiB, the sum of Pss of the tree, and what the swapped-out data takes beside that.
set -eu
vswap=$1 mib=${2:-128} children=${3:-8}
here=$(dirname "$0") work=$(mktemp -d) device=
end() {
    [ -z "$device" ] || { swapoff "/dev/$device" || true; echo 1 >"/sys/block/$device/reset"; }
    rm -rf "$work"
}
trap end EXIT
trap 'exit 130' INT TERM
cc -O2 -Wall -o "$work/readers" "$here/readers.c"
mkfifo "$work/in"

# Everything that descends from $1, itself included.
tree() { echo "$1"; for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do tree "$child"; done; }
pss() {
    sum=0
    for pid in $(tree "$1"); do
        one=$(awk '/^Pss:/ { print $2 }' "/proc/$pid/smaps_rollup" 2>/dev/null || true)
        sum=$((sum + ${one:-0}))
    done
    echo $((sum / 1024))
}
# $1: how it is called; the rest: the command.
run() {
    name=$1
    shift
    "$@" "$work/readers" "$mib" "$children" <"$work/in" >"$work/out" &
    pid=$!
    exec 9>"$work/in"
    until [ -s "$work/out" ]; do kill -0 $pid; sleep 0.2; done
    beside=0
    [ -z "$device" ] || beside=$(awk '{ print int($3 / 1048576) }' "/sys/block/$device/mm_stat")
    echo "$name: $(pss $pid) MiB, and $beside MiB of zram; $(cat "$work/out") s"
    echo >&9
    exec 9>&-
    wait $pid
    : >"$work/out"
}

# The pool is in the processes' own memory.
run "vswap, all fits" "$vswap" run --ram $((mib * (children + 3)))M --
run "vswap, a budget of $((mib * 2)) MiB" "$vswap" run --ram $((mib * 2))M --
device=$(cd /sys/block && for one in zram*; do [ "$(cat "$one/disksize")" != 0 ] || { echo "$one"; break; }; done)
[ -n "$device" ] || { echo "no zram device is free" >&2; exit 1; }
echo $((mib * 4))M >"/sys/block/$device/disksize"
mkswap "/dev/$device" >/dev/null
swapon -p 32767 "/dev/$device"
run "kernel, zram, all fits" env
