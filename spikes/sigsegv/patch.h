#ifndef PATCH_H
#define PATCH_H
long serve(long nr, long a1, long a2, long a3, long a4, long a5, long a6);
long gate_syscall(long nr, long a1, long a2, long a3, long a4, long a5, long a6);
void from_site(void);
void gate_sigreturn(void);
extern char gate_start[], gate_end[];
/* Diverts the sites of the mapped object whose path contains `name`; how many, or -1. */
int patch_object(const char *name);
#endif
