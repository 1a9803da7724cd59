/* Fault engines under test. An engine makes one unit present (`fill`) and takes away a contiguous
 * run of pages after reading them (`evict`). All work on `mem`, SIZE bytes, all absent at the start. */
#ifndef ENGINES_H
#define ENGINES_H
#include <stddef.h>

#define SIZE (16UL << 20)
#define MAX_RUN (64 * 4096UL)

struct engine {
	const char *name;
	const char *how;
	void (*setup)(void);
	void (*fill)(char *at, size_t len);
	void (*evict)(char *at, size_t len);
	void (*evict_scattered)(char **at, int n, size_t len); /* NULL: the engine has no such call */
	int one_thread; /* its fill cannot run twice at once */
	int handoff; /* another thread serves the faults */
};

extern const struct engine engines[];
extern const int engine_count;
extern char *mem, *ready, *sink;
extern int uffd;
#endif
