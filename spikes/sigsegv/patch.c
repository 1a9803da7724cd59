/* Replaces `mov $nr,%eax; syscall` in the running libc by a jump to a stub that calls serve(). */
#define _GNU_SOURCE
#include "patch.h"
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define STUB 48
#define STUBS (1 << 20)

/* These return on another stack, or never: each would need a stub of its own. */
static int special(uint32_t nr)
{
	return nr == SYS_rt_sigreturn || nr == SYS_clone || nr == SYS_fork || nr == SYS_vfork || nr == SYS_clone3 || nr == SYS_exit ||
	       nr == SYS_exit_group || nr == SYS_execve || nr == SYS_execveat;
}

static int named_special(const uint8_t *syscall_at)
{
	uint32_t nr;
	memcpy(&nr, syscall_at - 4, 4);
	return syscall_at[-5] == 0xb8 && special(nr);
}

static uint8_t *put32(uint8_t *p, int64_t v)
{
	int32_t w = (int32_t)v;
	memcpy(p, &w, 4);
	return p + 4;
}

static void divert(uint8_t *site, size_t len, uint8_t *stub, const uint8_t *head, size_t head_len, const uint8_t *tail, size_t tail_len)
{
	uint8_t *p = stub;
	void (*target)(void) = from_site;
	if (head_len)
		memcpy(p, head, head_len), p += head_len;
	memcpy(p, "\x48\x8d\x64\x24\x80", 5), p += 5;             /* lea -128(%rsp),%rsp: the red zone */
	memcpy(p, "\xff\x15", 2), p = put32(p + 2, 13 + tail_len); /* call *address(%rip) */
	memcpy(p, "\x48\x8d\xa4\x24\x80\0\0\0", 8), p += 8;        /* lea 128(%rsp),%rsp */
	if (tail_len)
		memcpy(p, tail, tail_len), p += tail_len;
	*p = 0xe9, p = put32(p + 1, site + len - (p + 5));
	memcpy(p, &target, 8);
	memset(site, 0x90, len);
	*site = 0xe9;
	put32(site + 1, stub - (site + 5));
}

int patch_object(const char *name)
{
	char line[512], perms[8];
	uint8_t *lo = NULL, *hi = NULL;
	unsigned long a, b;
	FILE *f = fopen("/proc/self/maps", "r");
	while (f && fgets(line, sizeof line, f))
		if (strstr(line, name) && sscanf(line, "%lx-%lx %7s", &a, &b, perms) == 3 && perms[2] == 'x')
			lo = (uint8_t *)a, hi = (uint8_t *)b;
	if (f)
		fclose(f);
	if (!lo)
		return -1;
	/* Below the object, within reach of a 32-bit jump. */
	uint8_t *stub = mmap(lo - (64 << 20), STUBS, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (stub == MAP_FAILED || lo - stub > INT32_MAX || stub - hi > INT32_MAX || mprotect(lo, hi - lo, PROT_READ | PROT_WRITE | PROT_EXEC))
		return -1;
	int n = 0;
	for (uint8_t *p = lo + 5; p + 10 < hi; p++) {
		uint32_t nr;
		memcpy(&nr, p + 1, 4);
		if (p[0] == 0xb8 && p[5] == 0x0f && p[6] == 0x05 && nr < 512 && !special(nr)) {
			divert(p, 7, stub, p, 5, NULL, 0);
			stub += STUB, n++;
		} else if (!memcmp(p, "\x31\xc0\x0f\x05\x48\x3d\x00\xf0\xff\xff", 10)) {
			/* xor %eax,%eax; syscall; cmp $-4096,%rax: read(2). The cmp moves into the stub. */
			divert(p, 10, stub, p, 2, p + 4, 6);
			stub += STUB, n++;
		} else if (!memcmp(p, "\x4c\x8b\x4c\x24\x08\x0f\x05", 7)) {
			divert(p, 7, stub, p, 5, NULL, 0); /* syscall(3): mov 8(%rsp),%r9; syscall */
			stub += STUB, n++;
		} else if (p[0] == 0x0f && p[1] == 0x05 && !memcmp(p + 2, "\x48\x3d\x00\xf0\xff\xff", 6) && !named_special(p)) {
			divert(p, 8, stub, NULL, 0, p + 2, 6); /* syscall; cmp $-4096,%rax */
			stub += STUB, n++;
		} else if (p[0] == 0x0f && p[1] == 0x05 && !memcmp(p + 2, "\x3d\x00\xf0\xff\xff", 5) && !named_special(p)) {
			divert(p, 7, stub, NULL, 0, p + 2, 5); /* syscall; cmp $-4096,%eax */
			stub += STUB, n++;
		}
	}
	mprotect(lo, hi - lo, PROT_READ | PROT_EXEC);
	return n;
}
