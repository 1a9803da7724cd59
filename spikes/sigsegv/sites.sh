#!/bin/sh
# How each `syscall` instruction of an object can be diverted: ./sites.sh [FILE...]
# 7 bytes: `mov $nr,%eax; syscall`, no branch into the middle. Window: with a neighbouring instruction that
# can move (not a branch, not relative to rip) there are 5 bytes or more, and no branch into them.
set -e
[ $# -gt 0 ] || set -- /lib/x86_64-linux-gnu/libc.so.6 /lib64/ld-linux-x86-64.so.2
for file; do
	objdump -d --no-show-raw-insn "$file" | awk -v file="$file" '
	function movable(text) { return text !~ /^(j|call|ret|bnd|loop|xbegin|\(bad\)|hlt|notrack|syscall)/ && text !~ /\(%rip\)/ }
	/^ *[0-9a-f]+:\t/ {
		split($0, part, "\t"); sub(/^ */, "", part[1]); sub(/:/, "", part[1])
		n++; at[n] = part[1]; text[n] = part[2]
		if (part[2] ~ /^(j|call|bnd j|loop|xbegin)/ && match(part[2], /[0-9a-f]+ </)) target[substr(part[2], RSTART, RLENGTH - 2)] = 1
	}
	function hex(s,   i, v) { v = 0; for (i = 1; i <= length(s); i++) v = v * 16 + index("0123456789abcdef", substr(s, i, 1)) - 1; return v }
	END {
		for (i = 2; i < n; i++) if (text[i] ~ /^syscall/) {
			total++
			before = hex(at[i]) - hex(at[i - 1]); after = (i + 2 <= n) ? hex(at[i + 2]) - hex(at[i + 1]) : 0
			entered = at[i] in target
			if (text[i - 1] ~ /^mov +\$0x[0-9a-f]+,%eax/ && !entered) seven++
			else if (text[i - 1] ~ /^mov +\$0x[0-9a-f]+,%eax/) { jumped++; if (movable(text[i + 1]) && after >= 3 && !(at[i + 1] in target)) window++; else rest++ }
			else if (text[i - 1] ~ /^mov +0x8\(%rsp\),%r9/ && !entered) generic++
			else if (movable(text[i + 1]) && after >= 3 && !(at[i + 1] in target)) { window++; cmp += text[i + 1] ~ /^cmp +\$0xf+000,%[er]ax/ }
			else if (movable(text[i - 1]) && before >= 3 && !entered) window++
			else { rest++; print "    not diverted: " at[i - 1] " " text[i - 1] " | syscall | " text[i + 1] }
		}
		printf "%s: %d syscall instructions: %d match the 7 bytes, %d syscall(3), %d by a window of neighbours (%d of them: syscall; cmp $-4096), %d not (of the 7-byte ones %d are branched into)\n", \
			file, total, seven, generic, window, cmp, rest, jumped
	}'
done
