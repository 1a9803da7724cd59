/*
 * differential SEED STEPS MIB [THREADS [FLAGS]]: random mapping operations against a model.
 *
 * Each thread owns an arena at an address that nothing else uses and performs STEPS random operations
 * on random ranges of it: write, poke, verify, mmap over, munmap, map again, mprotect, mremap (moved,
 * over used pages, DONTUNMAP, smaller, bigger in place), madvise of all kinds, file mappings, system
 * calls on the memory, fork. A model in shared memory, which is not paged, says what each page must
 * hold; every operation's result must be the one that Linux gives. FLAGS, with commas between: the ways
 * to make the calls (see mapping_calls.h), one of which is drawn for each; `nosys` leaves out system
 * calls on paged memory and forks (for the inline engine), `nofork` only forks; `tree` adds children
 * that go on beside their parent (branches.h). On failure, the seed, the step and the child's line
 * are printed.
 */
#include "mapping_calls.h"
#include <sys/uio.h>

#define FILE_PAGES 256ul
#define LONGEST 192ul /* pages of one operation */
#define FILE_SEED 0xf11eull
#define CHILDREN_MAX 2ul /* of one process at a time, in a tree */

/* What a page must hold. */
struct model {
	uint64_t key;    /* 0: zeros */
	uint64_t poked;  /* value of the word at poke_at(), or 0: not poked */
	uint64_t origin; /* key that DONTNEED brings back: 0, or that of the file's page */
	uint32_t segment; /* mmap call that made it; 0 is unmapped */
	uint8_t prot;
	bool perhaps_zero; /* MADV_FREE, and not written since */
};

struct arena {
	pthread_t thread;
	uint64_t index, seed, step, sum;
	char *base;
	struct model *pages, *snapshot;
	struct rng rng;
	uint32_t segments;
	uint64_t line; /* 0, or what the child was drawn with */
	uint64_t depth, children;
	pid_t child[CHILDREN_MAX];
	bool doomed[CHILDREN_MAX];
	bool bare; /* libc's locks may be held by threads that are not here */
};

static uint64_t steps, arena_pages, seed;
static bool with_system_calls, with_forks, with_trees;
static int pattern_file;

static __thread struct arena *current;

#define EXPECT(condition)                                                                          \
	do {                                                                                       \
		if (!(condition))                                                                  \
			fail("seed %lu thread %lu child %lx step %lu: %s (line %d)", seed,         \
			     current->index, current->line, current->step, #condition, __LINE__);  \
	} while (0)

struct range {
	uint64_t first, count;
};

static char *address(uint64_t page)
{
	return current->base + page * PAGE;
}

static uint64_t poke_at(uint64_t key)
{
	return mix(key + 1) % WORDS;
}

static void check_one(uint64_t page)
{
	struct model *m = &current->pages[page];
	volatile uint64_t *words = (volatile uint64_t *)address(page);
	uint64_t repeat = period(m->key), at = poke_at(m->key);
	for (uint64_t i = 0; i < WORDS; i++) {
		uint64_t want = m->poked != 0 && i == at ? m->poked : word_of(m->key, repeat, i);
		if (words[i] == want)
			continue;
		/* A page that may become zero does so as a whole, perhaps while it is looked at. */
		if (m->perhaps_zero && first_difference(address(page), 0) == WORDS)
			return;
		fail("seed %lu thread %lu child %lx step %lu: page %lu (%p) word %lu holds "
		     "%016lx, not %016lx", seed, current->index, current->line, current->step, page,
		     (void *)address(page), i, words[i], want);
	}
	if (!m->perhaps_zero)
		current->sum += mix(m->key + m->poked);
}

static void check_all(void)
{
	for (uint64_t i = 0; i < arena_pages; i++)
		if (current->pages[i].segment != 0 && (current->pages[i].prot & PROT_READ))
			check_one(i);
}

static struct range pick(void)
{
	struct rng *rng = &current->rng;
	uint64_t longest = draw(rng) % 4 == 0 ? LONGEST : 24;
	uint64_t first = below(rng, arena_pages);
	uint64_t count = 1 + below(rng, longest);
	if (count > arena_pages - first)
		count = arena_pages - first;
	return (struct range){ first, count };
}

/* Shortens a range to pages of one mmap call and one protection. */
static struct range uniform(struct range range)
{
	const struct model *pages = &current->pages[range.first];
	uint64_t n = 1;
	while (n < range.count && pages[n].segment == pages[0].segment &&
	       pages[n].prot == pages[0].prot)
		n++;
	return (struct range){ range.first, n };
}

/* A uniform range of mapped, writable pages, or an empty one. */
static struct range pick_writable(void)
{
	struct range range = uniform(pick());
	const struct model *m = &current->pages[range.first];
	if (m->segment == 0 || !(m->prot & PROT_WRITE))
		range.count = 0;
	return range;
}

static void mapped_anew(struct range range, uint64_t file_key_base)
{
	current->segments++;
	for (uint64_t i = 0; i < range.count; i++) {
		uint64_t key = file_key_base == 0 ? 0 : key_of(FILE_SEED, file_key_base - 1 + i);
		current->pages[range.first + i] = (struct model){
			.key = key, .origin = key, .segment = current->segments,
			.prot = PROT_READ | PROT_WRITE,
		};
	}
	/* Writing the first page gives the mapping its anon_vma before it can be split: then its
	 * parts merge again, and a range of one segment is one mapping to mremap. */
	struct model *m = &current->pages[range.first];
	m->key = draw(&current->rng) | 1;
	fill_page(address(range.first), m->key);
}

static void op_write(void)
{
	struct range range = pick_writable();
	for (uint64_t i = 0; i < range.count; i++) {
		struct model *m = &current->pages[range.first + i];
		m->key = draw(&current->rng) % 8 == 0 ? 0 : draw(&current->rng) | 1;
		m->poked = 0;
		m->perhaps_zero = false;
		fill_page(address(range.first + i), m->key);
	}
}

static void op_poke(void)
{
	struct range range = pick_writable();
	for (uint64_t i = 0; i < range.count; i++) {
		struct model *m = &current->pages[range.first + i];
		if (m->perhaps_zero)
			continue;
		m->poked = draw(&current->rng) | 1;
		((volatile uint64_t *)address(range.first + i))[poke_at(m->key)] = m->poked;
	}
}

static void op_verify(void)
{
	struct range range = pick();
	for (uint64_t i = 0; i < range.count; i++)
		if (current->pages[range.first + i].segment != 0 &&
		    (current->pages[range.first + i].prot & PROT_READ))
			check_one(range.first + i);
}

static void op_map_over(void)
{
	struct range range = pick();
	EXPECT(do_mmap(address(range.first), range.count, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == address(range.first));
	mapped_anew(range, 0);
}

static void op_map_file(void)
{
	struct range range = pick();
	uint64_t from = below(&current->rng, FILE_PAGES - LONGEST);
	EXPECT(do_mmap(address(range.first), range.count, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_FIXED, pattern_file, (off_t)(from * PAGE)) ==
	       address(range.first));
	mapped_anew(range, from + 1);
}

static void op_unmap(void)
{
	struct range range = pick();
	EXPECT(do_munmap(address(range.first), range.count) == 0);
	memset(&current->pages[range.first], 0, range.count * sizeof(struct model));
}

/*
 * What is divided in a child stays several mappings when the parts are the same again: the kernel
 * merges no memory that was there at a fork. To mremap it is of several mmap calls from then on.
 */
static void divide(uint64_t page)
{
	struct model *pages = current->pages;
	if (current->depth == 0 || page == 0 || page >= arena_pages ||
	    pages[page].segment != pages[page - 1].segment || pages[page].segment == 0)
		return;
	uint32_t whole = pages[page].segment;
	current->segments++;
	for (; page < arena_pages && pages[page].segment == whole; page++)
		pages[page].segment = current->segments;
}

static void op_protect(void)
{
	static const int choices[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE,
				       PROT_READ | PROT_WRITE };
	struct range range = uniform(pick());
	if (current->pages[range.first].segment == 0)
		return;
	int prot = choices[below(&current->rng, 4)];
	EXPECT(do_mprotect(address(range.first), range.count, prot) == 0);
	for (uint64_t i = 0; i < range.count; i++)
		current->pages[range.first + i].prot = (uint8_t)prot;
	divide(range.first);
	divide(range.first + range.count);
}

static void op_move(void)
{
	struct range from = uniform(pick());
	uint64_t to = below(&current->rng, arena_pages - from.count + 1);
	bool overlap = to < from.first + from.count && from.first < to + from.count;
	struct model *source = &current->pages[from.first], *target = &current->pages[to];
	if (source->segment == 0 || overlap)
		return;
	bool anonymous = true;
	for (uint64_t i = 0; i < from.count; i++)
		anonymous &= source[i].origin == 0;
	int keep = anonymous && draw(&current->rng) % 4 == 0 ? MREMAP_DONTUNMAP : 0;
	EXPECT(do_mremap(address(from.first), from.count, from.count,
			 MREMAP_MAYMOVE | MREMAP_FIXED | keep, address(to)) == address(to));
	/* What moved is a mapping of its own from now on. */
	current->segments++;
	for (uint64_t i = 0; i < from.count; i++) {
		target[i] = source[i];
		target[i].segment = current->segments;
		if (keep)
			source[i] = (struct model){ .segment = current->segments + 1,
						    .prot = source[i].prot };
		else
			source[i] = (struct model){ 0 };
	}
	current->segments += keep != 0;
	if (keep)
		EXPECT(do_munmap(address(from.first), from.count / 2) == 0 || from.count < 2);
	if (keep)
		memset(source, 0, from.count / 2 * sizeof *source);
}

static void op_grow_in_place(void)
{
	struct range range = uniform(pick());
	uint64_t end = range.first + range.count, room = 0;
	const struct model *last = &current->pages[end - 1];
	if (last->segment == 0 || last->origin != 0)
		return;
	while (end + room < arena_pages && room < 64 && current->pages[end + room].segment == 0)
		room++;
	if (room == 0)
		return;
	EXPECT(do_mremap(address(range.first), range.count, range.count + room, 0, NULL) ==
	       address(range.first));
	for (uint64_t i = 0; i < room; i++)
		current->pages[end + i] = (struct model){ .segment = last->segment,
							  .prot = last->prot };
	divide(end + room);
}

static void op_shrink(void)
{
	struct range range = uniform(pick());
	uint64_t keep = range.count / 2;
	if (current->pages[range.first].segment == 0 || keep == 0)
		return;
	EXPECT(do_mremap(address(range.first), range.count, keep, 0, NULL) ==
	       address(range.first));
	memset(&current->pages[range.first + keep], 0,
	       (range.count - keep) * sizeof(struct model));
}

static void op_dontneed(void)
{
	struct range range = uniform(pick());
	if (current->pages[range.first].segment == 0)
		return;
	EXPECT(do_madvise(address(range.first), range.count, MADV_DONTNEED) == 0);
	for (uint64_t i = 0; i < range.count; i++) {
		struct model *m = &current->pages[range.first + i];
		*m = (struct model){ .key = m->origin, .origin = m->origin,
				     .segment = m->segment, .prot = m->prot };
	}
}

static void op_free(void)
{
	struct range range = pick_writable();
	for (uint64_t i = 0; i < range.count; i++)
		if (current->pages[range.first + i].origin != 0)
			return;
	if (range.count == 0)
		return;
	EXPECT(do_madvise(address(range.first), range.count, MADV_FREE) == 0);
	for (uint64_t i = 0; i < range.count; i++)
		current->pages[range.first + i].perhaps_zero = true;
}

static void op_advise(void)
{
	static const int advice[] = { MADV_PAGEOUT, MADV_PAGEOUT, MADV_PAGEOUT, MADV_COLD,
				      MADV_WILLNEED, MADV_SEQUENTIAL, MADV_NORMAL };
	struct range range = uniform(pick());
	if (current->pages[range.first].segment == 0)
		return;
	EXPECT(do_madvise(address(range.first), range.count, advice[below(&current->rng, 5)]) ==
	       0);
}

/* The kernel reads memory that is not there. */
static void op_system_write(void)
{
	struct range range = uniform(pick());
	const struct model *m = &current->pages[range.first];
	int ends[2];
	char copy[PAGE] __attribute__((aligned(8)));
	if (m->segment == 0 || !(m->prot & PROT_READ) || m->perhaps_zero || m->poked != 0)
		return;
	EXPECT(pipe(ends) == 0);
	EXPECT(write(ends[1], address(range.first), PAGE) == (ssize_t)PAGE);
	EXPECT(read(ends[0], copy, PAGE) == (ssize_t)PAGE);
	EXPECT(first_difference(copy, m->key) == WORDS);
	close(ends[0]);
	close(ends[1]);
}

/* The kernel writes memory that is not there. */
static void op_system_read(void)
{
	struct range range = pick_writable();
	if (range.count == 0)
		return;
	uint64_t from = below(&current->rng, FILE_PAGES - LONGEST);
	EXPECT(pread(pattern_file, address(range.first), range.count * PAGE,
		     (off_t)(from * PAGE)) == (ssize_t)(range.count * PAGE));
	for (uint64_t i = 0; i < range.count; i++) {
		struct model *m = &current->pages[range.first + i];
		m->key = key_of(FILE_SEED, from + i);
		m->poked = 0;
		m->perhaps_zero = false;
	}
}

static void *shared(uint64_t bytes)
{
	void *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	REQUIRE(start != MAP_FAILED);
	return start;
}

static void op_fork(void)
{
	int status;
	memcpy(current->snapshot, current->pages, arena_pages * sizeof(struct model));
	pid_t child = fork();
	EXPECT(child >= 0);
	if (child == 0) {
		current->pages = current->snapshot;
		check_all();
		for (int i = 0; i < 20; i++) {
			op_write();
			op_verify();
		}
		check_all();
		_exit(0);
	}
	for (int i = 0; i < 20; i++)
		op_write();
	EXPECT(waitpid(child, &status, 0) == child);
	EXPECT(status == 0);
	check_all();
}

static void op_branch(void);
static void reap_oldest(void);

/* Chosen with these weights; the last entries need system calls on paged memory, or forks. */
static const struct {
	void (*run)(void);
	unsigned weight;
} operations[] = {
	{ op_write, 30 },   { op_poke, 15 },	      { op_verify, 20 },   { op_map_over, 8 },
	{ op_map_file, 2 }, { op_unmap, 4 },	      { op_protect, 8 },   { op_move, 10 },
	{ op_shrink, 2 },   { op_grow_in_place, 4 },  { op_dontneed, 4 },  { op_free, 2 },
	{ op_advise, 12 },  { op_system_write, 4 },   { op_system_read, 3 },
};

static void one_step(void)
{
	struct rng *rng = &current->rng;
	unsigned n = sizeof operations / sizeof *operations - (with_system_calls ? 0 : 2);
	unsigned total = 0, i = 0;
	for (unsigned j = 0; j < n; j++)
		total += operations[j].weight;
	unsigned chosen = (unsigned)below(rng, total);
	while (chosen >= operations[i].weight)
		chosen -= operations[i++].weight;
	way = ways[draw(rng) % way_count];
	operations[i].run();
	if (with_forks && current->step % 400 == 399)
		op_fork();
	if (with_trees && below(rng, 100) == 0)
		op_branch();
}

static void *work(void *arena)
{
	current = arena;
	current->rng.state = current->seed;
	way = ways[0];
	for (uint64_t i = 0; i < arena_pages; i += LONGEST) {
		struct range range = { i, arena_pages - i < LONGEST ? arena_pages - i : LONGEST };
		EXPECT(do_mmap(address(i), range.count, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
		       address(i));
		mapped_anew(range, 0);
		for (uint64_t j = 1; j < range.count; j++) {
			current->pages[i + j].key = draw(&current->rng) | 1;
			fill_page(address(i + j), current->pages[i + j].key);
		}
	}
	for (current->step = 0; current->step < steps; current->step++) {
		one_step();
		if (current->step % 500 == 499)
			check_all();
	}
	check_all();
	while (current->children > 0)
		reap_oldest();
	return NULL;
}

#include "branches.h"

static int make_pattern_file(void)
{
	char path[] = "/tmp/vswap-differential-XXXXXX";
	int fd = mkstemp(path);
	REQUIRE(fd >= 0 && unlink(path) == 0);
	char page[PAGE] __attribute__((aligned(8)));
	for (uint64_t i = 0; i < FILE_PAGES; i++) {
		fill_page(page, key_of(FILE_SEED, i));
		REQUIRE(write(fd, page, PAGE) == (ssize_t)PAGE);
	}
	return fd;
}

int main(int argc, char **argv)
{
	seed = argument(argc, argv, 1, 1);
	steps = argument(argc, argv, 2, 3000);
	arena_pages = argument(argc, argv, 3, 32) * MIB / PAGE;
	uint64_t threads = argument(argc, argv, 4, 1), sum = 0;
	const char *flags = argc > 5 ? argv[5] : "";
	choose_ways(flags);
	with_system_calls = !has_flag(flags, "nosys");
	with_forks = with_system_calls && !has_flag(flags, "nofork");
	with_trees = has_flag(flags, "tree");
	REQUIRE(threads >= 1 && threads <= 8);
	arena_pages /= threads;
	pattern_file = make_pattern_file();

	/* On the stack: private to each process, and never paged. */
	struct arena arenas[8] = { 0 };
	for (uint64_t i = 0; i < threads; i++) {
		/* Far below where the kernel places mappings, so that holes stay holes. */
		arenas[i].base = (char *)(0x200000000000ul + i * (1ul << 36));
		arenas[i].index = i;
		arenas[i].seed = mix(seed) + i;
		arenas[i].pages = shared(arena_pages * sizeof(struct model));
		arenas[i].snapshot = shared(arena_pages * sizeof(struct model));
		REQUIRE(pthread_create(&arenas[i].thread, NULL, work, &arenas[i]) == 0);
	}
	for (uint64_t i = 0; i < threads; i++) {
		REQUIRE(pthread_join(arenas[i].thread, NULL) == 0);
		sum += arenas[i].sum;
	}
	say("ok differential seed %lu steps %lu checksum %016lx", seed, steps, sum);
	return 0;
}
