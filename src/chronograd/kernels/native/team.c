/* Threads: parallel regions on the pool of the host's own libgomp, and a barrier that spins.

   A second pool would fight the host's for the cores, so the entry points of its libgomp are handed over at run time
   and nothing is linked. Without them everything runs on the caller's thread. */
#if !defined(_WIN32)
#define _POSIX_C_SOURCE 200809L
#include <sched.h>
#endif
#include <stdatomic.h>

#include "kernels.h"

typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

static Parallel gomp_parallel;
static int (*gomp_thread_num)(void);
static int (*gomp_num_threads)(void);

void chronograd_use_threads(void *parallel, void *thread_num, void *num_threads) {
    int complete = parallel && thread_num && num_threads;
    gomp_parallel = complete ? (Parallel)parallel : NULL;
    gomp_thread_num = complete ? (int (*)(void))thread_num : NULL;
    gomp_num_threads = complete ? (int (*)(void))num_threads : NULL;
}

#define MOST 64 /* threads that can meet */

/* Each thread announces the count of its meetings on a cache line of its own. */
typedef struct {
    _Alignas(128) atomic_uint count;
} Flag;

typedef struct {
    void (*work)(void *, int, int);
    void *argument;
    Flag flags[MOST];
} Region;

static _Thread_local Region *current;

static void enter(void *data) {
    Region *region = data, *outer = current;
    current = region;
    region->work(region->argument, gomp_thread_num(), gomp_num_threads());
    current = outer;
}

void chronograd_team(int64_t threads, void (*work)(void *, int, int), void *argument) {
    if (threads > MOST) threads = MOST;
    if (threads <= 1 || !gomp_parallel) {
        work(argument, 0, 1);
        return;
    }
    Region region;
    region.work = work;
    region.argument = argument;
    for (int id = 0; id < (int)threads; id++) atomic_init(&region.flags[id].count, 0);
    gomp_parallel(enter, &region, (unsigned)threads, 0);
}

static inline void pause_a_little(unsigned spins) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
#if !defined(_WIN32)
    /* Whom we wait for may have lost its core to somebody else. */
    if (spins > 2000) sched_yield();
#else
    (void)spins;
#endif
}

void chronograd_meet(int id, int team) {
    if (team == 1) return;
    Flag *flags = current->flags;
    unsigned mine = atomic_load_explicit(&flags[id].count, memory_order_relaxed) + 1;
    atomic_store_explicit(&flags[id].count, mine, memory_order_release);
    for (int other = 0; other < team; other++) {
        unsigned spins = 0;
        /* A thread may already be one meeting ahead, never more. */
        while ((int)(atomic_load_explicit(&flags[other].count, memory_order_acquire) - mine) < 0)
            pause_a_little(++spins);
    }
}
