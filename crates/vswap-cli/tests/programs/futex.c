/*
 * futex CASE: waiting and waking on words that are swapped out.
 *
 * `words` uses the system call itself; `primitives` uses every lock that pthread has, in heap memory
 * which one thread evicts all the time; `priority_inheritance` uses mutexes of that kind, whose
 * system calls cannot fault memory in, and `changed_words` makes such calls itself; `robust` loses
 * an owner.
 */
#include "vswap_test.h"
#include <linux/futex.h>
#include <semaphore.h>
#include <stdatomic.h>

static long futex(uint32_t *word, int operation, uint32_t value, void *timeout, uint32_t *second,
		  uint32_t third)
{
	return syscall(SYS_futex, word, operation, value, timeout, second, third);
}

static uint32_t *word_page(void)
{
	return map(1);
}

static void *wait_for_change(void *word)
{
	while (__atomic_load_n((uint32_t *)word, __ATOMIC_SEQ_CST) == 7)
		futex(word, FUTEX_WAIT, 7, NULL, NULL, 0);
	return NULL;
}

/* Long enough for the other thread to go to sleep; if it was not, the round proves less. */
static void let_it_sleep(void)
{
	struct timespec pause = { 0, 20000000 };
	nanosleep(&pause, NULL);
}

static void words(void)
{
	uint32_t *word = word_page(), *other = word_page();
	struct timespec *timeout = (struct timespec *)word_page();
	pthread_t waiter;

	*word = 7;
	evict(word, 1);
	REQUIRE(futex(word, FUTEX_WAIT, 8, NULL, NULL, 0) == -1 && errno == EAGAIN);
	evict(word, 1);
	timeout->tv_nsec = 2000000;
	evict(timeout, 1);
	REQUIRE(futex(word, FUTEX_WAIT, 7, timeout, NULL, 0) == -1 && errno == ETIMEDOUT);
	evict(word, 1);
	REQUIRE(futex(word, FUTEX_WAKE, 1, NULL, NULL, 0) == 0);

	/* Evicted while a thread sleeps on it, changed, and woken. */
	for (int round = 0; round < 5; round++) {
		*word = 7;
		REQUIRE(pthread_create(&waiter, NULL, wait_for_change, word) == 0);
		let_it_sleep();
		evict(word, 1);
		__atomic_store_n(word, 8, __ATOMIC_SEQ_CST);
		evict(word, 1);
		futex(word, FUTEX_WAKE, 1, NULL, NULL, 0);
		REQUIRE(pthread_join(waiter, NULL) == 0);
	}

	/* Moved to another word, both swapped out. */
	*word = 7;
	*other = 7;
	REQUIRE(pthread_create(&waiter, NULL, wait_for_change, word) == 0);
	let_it_sleep();
	evict(word, 1);
	evict(other, 1);
	REQUIRE(futex(word, FUTEX_CMP_REQUEUE, 0, (void *)1, other, 7) >= 0);
	__atomic_store_n(word, 8, __ATOMIC_SEQ_CST);
	evict(other, 1);
	futex(other, FUTEX_WAKE, 1, NULL, NULL, 0);
	REQUIRE(pthread_join(waiter, NULL) == 0);
}

struct shared {
	pthread_mutex_t mutex;
	pthread_cond_t condition;
	pthread_rwlock_t rwlock;
	pthread_barrier_t barrier;
	sem_t semaphore;
	uint64_t counter, turns;
	atomic_bool stop;
};

static struct shared *shared;

static void *evict_always(void *unused)
{
	struct timespec pause = { 0, 50000 };
	while (!atomic_load(&shared->stop)) {
		madvise((void *)((uintptr_t)shared & ~(PAGE - 1)), 2 * PAGE, MADV_PAGEOUT);
		nanosleep(&pause, NULL);
	}
	return unused;
}

#define ROUNDS 20000
#define THREADS 4

static void *use_primitives(void *argument)
{
	uint64_t me = (uintptr_t)argument;
	for (uint64_t i = 0; i < ROUNDS; i++) {
		REQUIRE(pthread_mutex_lock(&shared->mutex) == 0);
		shared->counter++;
		REQUIRE(pthread_mutex_unlock(&shared->mutex) == 0);
		REQUIRE(sem_wait(&shared->semaphore) == 0);
		REQUIRE(sem_post(&shared->semaphore) == 0);
		if (i % 16 == me) {
			REQUIRE(pthread_rwlock_wrlock(&shared->rwlock) == 0);
			REQUIRE(pthread_rwlock_unlock(&shared->rwlock) == 0);
		} else {
			REQUIRE(pthread_rwlock_rdlock(&shared->rwlock) == 0);
			REQUIRE(pthread_rwlock_unlock(&shared->rwlock) == 0);
		}
		if (i % 100 == 0)
			pthread_barrier_wait(&shared->barrier);
		if (i % 50 == 0) {
			/* Threads take turns, in order. */
			REQUIRE(pthread_mutex_lock(&shared->mutex) == 0);
			while (shared->turns % THREADS != me)
				pthread_cond_wait(&shared->condition, &shared->mutex);
			shared->turns++;
			pthread_cond_broadcast(&shared->condition);
			REQUIRE(pthread_mutex_unlock(&shared->mutex) == 0);
		}
	}
	return NULL;
}

static void run_threads(void *(*work)(void *))
{
	pthread_t threads[THREADS], evictor;
	REQUIRE(pthread_create(&evictor, NULL, evict_always, NULL) == 0);
	for (uintptr_t i = 0; i < THREADS; i++)
		REQUIRE(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
	for (int i = 0; i < THREADS; i++)
		REQUIRE(pthread_join(threads[i], NULL) == 0);
	atomic_store(&shared->stop, true);
	REQUIRE(pthread_join(evictor, NULL) == 0);
	REQUIRE(shared->counter == ROUNDS * THREADS);
}

static void primitives(void)
{
	run_threads(use_primitives);
	REQUIRE(shared->turns == ROUNDS / 50 * THREADS);
}

static void *use_the_mutex(void *unused)
{
	for (uint64_t i = 0; i < ROUNDS; i++) {
		REQUIRE(pthread_mutex_lock(&shared->mutex) == 0);
		uint64_t seen = shared->counter;
		if (i % 64 == 0)
			sched_yield();
		shared->counter = seen + 1;
		REQUIRE(pthread_mutex_unlock(&shared->mutex) == 0);
	}
	return unused;
}

static void *lock_once(void *unused)
{
	REQUIRE(pthread_mutex_lock(&shared->mutex) == 0);
	REQUIRE(pthread_mutex_unlock(&shared->mutex) == 0);
	return unused;
}

static void make_mutex(int protocol, int robustness)
{
	pthread_mutexattr_t kind;
	REQUIRE(pthread_mutexattr_init(&kind) == 0);
	REQUIRE(pthread_mutexattr_setprotocol(&kind, protocol) == 0);
	REQUIRE(pthread_mutexattr_setrobust(&kind, robustness) == 0);
	REQUIRE(pthread_mutex_init(&shared->mutex, &kind) == 0);
}

static void evict_shared(void)
{
	evict((void *)((uintptr_t)shared & ~(PAGE - 1)), 2);
}

static void *fail_to_lock(void *unused)
{
	struct timespec soon;
	evict_shared();
	REQUIRE(pthread_mutex_trylock(&shared->mutex) == EBUSY);
	REQUIRE(clock_gettime(CLOCK_REALTIME, &soon) == 0);
	soon.tv_sec += 1;
	evict_shared();
	REQUIRE(pthread_mutex_timedlock(&shared->mutex, &soon) == ETIMEDOUT);
	REQUIRE(clock_gettime(CLOCK_MONOTONIC, &soon) == 0);
	evict_shared();
	REQUIRE(pthread_mutex_clocklock(&shared->mutex, CLOCK_MONOTONIC, &soon) == ETIMEDOUT);
	return unused;
}

static void priority_inheritance(void)
{
	pthread_t contender;
	make_mutex(PTHREAD_PRIO_INHERIT, PTHREAD_MUTEX_STALLED);
	/* A contender sleeps in the kernel, and the mutex is evicted under it. */
	for (int round = 0; round < 5; round++) {
		REQUIRE(pthread_mutex_lock(&shared->mutex) == 0);
		REQUIRE(pthread_create(&contender, NULL, lock_once, NULL) == 0);
		let_it_sleep();
		madvise((void *)((uintptr_t)shared & ~(PAGE - 1)), 2 * PAGE, MADV_PAGEOUT);
		REQUIRE(pthread_mutex_unlock(&shared->mutex) == 0);
		REQUIRE(pthread_join(contender, NULL) == 0);
	}
	run_threads(use_the_mutex);

	REQUIRE(pthread_mutex_lock(&shared->mutex) == 0);
	REQUIRE(pthread_create(&contender, NULL, fail_to_lock, NULL) == 0);
	REQUIRE(pthread_join(contender, NULL) == 0);
	evict_shared();
	REQUIRE(pthread_mutex_unlock(&shared->mutex) == 0);
}

static uint32_t *condition, *mutex;
/* Without FUTEX_PRIVATE_FLAG the kernel looks for the page first, and so brings it in. */
static int private_flag;

static void *wait_and_get_the_mutex(void *unused)
{
	REQUIRE(futex(condition, FUTEX_WAIT_REQUEUE_PI | private_flag, 7, NULL, mutex, 0) == 0);
	REQUIRE((*mutex & FUTEX_TID_MASK) == (uint32_t)gettid());
	evict(mutex, 1);
	REQUIRE(futex(mutex, FUTEX_UNLOCK_PI | private_flag, 0, NULL, NULL, 0) == 0);
	return unused;
}

/* Calls that change a word, on words that are not there. */
static void changed_words(void)
{
	pthread_t waiter;
	condition = word_page();
	mutex = word_page();

	*mutex = 7;
	evict(condition, 1);
	evict(mutex, 1);
	REQUIRE(futex(condition, FUTEX_WAKE_OP | private_flag, 1, (void *)1, mutex,
		      FUTEX_OP(FUTEX_OP_ADD, 5, FUTEX_OP_CMP_EQ, 7)) == 0);
	REQUIRE(*mutex == 12);

	/* Never touched, then swapped out. */
	madvise(mutex, PAGE, MADV_DONTNEED);
	REQUIRE(futex(mutex, FUTEX_TRYLOCK_PI | private_flag, 0, NULL, NULL, 0) == 0);
	REQUIRE(*mutex == (uint32_t)gettid());
	evict(mutex, 1);
	REQUIRE(futex(mutex, FUTEX_UNLOCK_PI | private_flag, 0, NULL, NULL, 0) == 0);
	REQUIRE(*mutex == 0);
	evict(mutex, 1);
	REQUIRE(futex(mutex, FUTEX_LOCK_PI | private_flag, 0, NULL, NULL, 0) == 0);
	REQUIRE(*mutex == (uint32_t)gettid());

	*condition = 7;
	evict(condition, 1);
	evict(mutex, 1);
	REQUIRE(pthread_create(&waiter, NULL, wait_and_get_the_mutex, NULL) == 0);
	long moved;
	do {
		let_it_sleep();
		evict(condition, 1);
		evict(mutex, 1);
		/* One to wake, should the mutex be free; the rest to wait for it. */
		moved = futex(condition, FUTEX_CMP_REQUEUE_PI | private_flag, 1, (void *)1, mutex,
			      7);
		REQUIRE(moved >= 0);
	} while (moved == 0);
	evict(mutex, 1);
	REQUIRE(futex(mutex, FUTEX_UNLOCK_PI | private_flag, 0, NULL, NULL, 0) == 0);
	REQUIRE(pthread_join(waiter, NULL) == 0);

	/* Where there is no memory, that is still what the calls say. */
	uint32_t *nothing = word_page(), *constant = word_page();
	munmap(nothing, PAGE);
	mprotect(constant, PAGE, PROT_READ);
	for (int i = 0; i < 2; i++) {
		uint32_t *bad = i == 0 ? nothing : constant;
		REQUIRE(futex(bad, FUTEX_LOCK_PI | private_flag, 0, NULL, NULL, 0) == -1 && errno == EFAULT);
		REQUIRE(futex(condition, FUTEX_WAKE_OP | private_flag, 1, (void *)1, bad,
			      FUTEX_OP(FUTEX_OP_SET, 1, FUTEX_OP_CMP_EQ, 0)) == -1 &&
			errno == EFAULT);
	}
}

static void *die_with_the_mutex(void *unused)
{
	REQUIRE(pthread_mutex_lock(&shared->mutex) == 0);
	return unused;
}

static void robust(void)
{
	for (int protocol = 0; protocol < 2; protocol++) {
		pthread_t owner;
		make_mutex(protocol ? PTHREAD_PRIO_INHERIT : PTHREAD_PRIO_NONE,
			   PTHREAD_MUTEX_ROBUST);
		evict((void *)((uintptr_t)shared & ~(PAGE - 1)), 2);
		REQUIRE(pthread_create(&owner, NULL, die_with_the_mutex, NULL) == 0);
		REQUIRE(pthread_join(owner, NULL) == 0);
		REQUIRE(pthread_mutex_lock(&shared->mutex) == EOWNERDEAD);
		REQUIRE(pthread_mutex_consistent(&shared->mutex) == 0);
		REQUIRE(pthread_mutex_unlock(&shared->mutex) == 0);
	}
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "words";
	/* In heap memory, on pages of its own. */
	shared = aligned_alloc(PAGE, 2 * PAGE);
	REQUIRE(shared != NULL);
	memset(shared, 0, 2 * PAGE);
	REQUIRE(pthread_mutex_init(&shared->mutex, NULL) == 0);
	REQUIRE(pthread_cond_init(&shared->condition, NULL) == 0);
	REQUIRE(pthread_rwlock_init(&shared->rwlock, NULL) == 0);
	REQUIRE(pthread_barrier_init(&shared->barrier, NULL, THREADS) == 0);
	REQUIRE(sem_init(&shared->semaphore, 0, 2) == 0);
	if (strcmp(name, "words") == 0)
		words();
	else if (strcmp(name, "primitives") == 0)
		primitives();
	else if (strcmp(name, "priority_inheritance") == 0)
		priority_inheritance();
	else if (strcmp(name, "changed_words") == 0)
		for (private_flag = 0; private_flag <= FUTEX_PRIVATE_FLAG;
		     private_flag += FUTEX_PRIVATE_FLAG)
			changed_words();
	else if (strcmp(name, "robust") == 0)
		robust();
	else
		fail("no case %s", name);
	say("ok futex %s", name);
	return 0;
}
