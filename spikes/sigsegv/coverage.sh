#!/bin/sh
# Which system calls of real programs get past a patched libc? ./coverage.sh PROG ARGS...
# One program, under strace -i with the preload: calls from the gate's address were seen first.
log=$(mktemp)
setarch -R strace -f -i -o "$log" -E LD_PRELOAD="$PWD/preload.so" "$@" >/dev/null 2>&1 </dev/null
# strace shows the address behind `syscall`; with randomisation off only the page is unknown.
gate=$(nm preload.so | awk '$3 == "gate_sigreturn" { print substr($1, 14) }')
awk -v name="$(basename "$1")" -v gate="$gate" '
	BEGIN { d = "0123456789abcdef"; v = 0; for (i = 1; i <= 3; i++) v = v * 16 + index(d, substr(gate, i, 1)) - 1; gate = sprintf("%03x", v - 1) }
	match($0, /\[[0-9a-f]+\]/) {
		ip = substr($0, RSTART + 1, RLENGTH - 2); call = substr($0, RSTART + RLENGTH + 1); sub(/\(.*/, "", call)
		if (call !~ /^[a-z_0-9]+$/) next
		mine = substr(ip, length(ip) - 2) == gate && ip ~ /^0*7/
		if (first == "") first = $1
		if (mine) { seen++; after[$1] = 1 }
		else if (!($1 in after) && $1 != first || after[$1]) { past++; by[call]++ }
		else before++
		if (call == "execve") after[$1] = 0
	}
	END {
		printf "%s: %d calls of ld.so before the patch; after it %d seen, %d not:", name, before, seen, past
		for (c in by) printf " %s %d", c, by[c]
		printf "\n"
	}' "$log"
rm -f "$log"
