/* Threads: parallel regions on the pool of the host's own libgomp, and a barrier that spins.

   A second pool would fight the host's for the cores, so the entry points of its libgomp are handed over at run time
   and nothing is linked. Without them everything runs on the caller's thread.

   Where other work wants the cores too, a thread that lost its core holds up all others, at worst in every step. A team
   that does little but wait therefore parts: its first thread goes on alone, until the next block of time. */
#if !defined(_WIN32)
#define _POSIX_C_SOURCE 200809L
#include <sched.h>
#endif
#include <stdatomic.h>
#include <time.h>

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
#define SPINS 2000 /* turns of a waiting loop before others may have the core: some 30 microseconds */
#ifndef PATIENCE
#define PATIENCE 1000 /* microseconds of waiting beyond that before a team may part */
#endif

/* Each thread announces the count of its meetings on a cache line of its own. */
typedef struct {
    _Alignas(128) atomic_uint count;
} Flag;

typedef struct {
    void (*work)(void *, int, int);
    void *argument;
    double begun;        /* seconds */
    atomic_uint waited;  /* microseconds, all threads */
    atomic_uint parting; /* the meeting after which the first thread is alone; 0: none */
    Flag flags[MOST];
} Region;

static _Thread_local Region *current;

static double seconds(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

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
    region.begun = seconds();
    atomic_init(&region.waited, 0);
    atomic_init(&region.parting, 0);
    for (int id = 0; id < (int)threads; id++) atomic_init(&region.flags[id].count, 0);
    gomp_parallel(enter, &region, (unsigned)threads, 0);
}

static inline void pause_a_little(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static int behind(const Flag *flag, unsigned meeting) {
    return (int)(atomic_load_explicit(&flag->count, memory_order_acquire) - meeting) < 0;
}

/* For one who may have lost its core to somebody else. */
static __attribute__((noinline)) void wait_long(Region *region, const Flag *flag, unsigned meeting) {
    const double begun = seconds();
    while (behind(flag, meeting)) {
        pause_a_little();
#if !defined(_WIN32)
        sched_yield();
#endif
    }
    atomic_fetch_add_explicit(&region->waited, (unsigned)(1e6 * (seconds() - begun)), memory_order_relaxed);
}

/* Waits until all have announced as many meetings, the thread's own next one included. */
static void meet(Region *region, int id, int team) {
    Flag *flags = region->flags;
    unsigned mine = atomic_load_explicit(&flags[id].count, memory_order_relaxed) + 1;
    atomic_store_explicit(&flags[id].count, mine, memory_order_release);
    for (int other = 0; other < team; other++) {
        unsigned spins = 0;
        /* A thread may already be one meeting ahead, never more. */
        while (behind(&flags[other], mine)) {
            pause_a_little();
            if (++spins > SPINS) wait_long(region, &flags[other], mine);
        }
    }
}

void chronograd_meet(int id, int team) {
    if (team > 1) meet(current, id, team);
}

/* Whether the threads have waited for most of the time. Long steps that end a little apart add up too, but to little. */
static int waits_only(Region *region) {
    const unsigned waited = atomic_load_explicit(&region->waited, memory_order_relaxed);
    return waited >= PATIENCE && 2e-6 * waited >= (seconds() - region->begun) * (PATIENCE > 0);
}

int chronograd_meet_or_part(int id, int team) {
    Region *region = current;
    const unsigned next = atomic_load_explicit(&region->flags[id].count, memory_order_relaxed) + 1;
    /* Said before the meeting that it takes effect after, and with its number: one who is late to leave the last
       meeting reads it too early. */
    if (id == 0 && !atomic_load_explicit(&region->parting, memory_order_relaxed) && waits_only(region))
        atomic_store_explicit(&region->parting, next, memory_order_relaxed);
    meet(region, id, team);
    const unsigned parting = atomic_load_explicit(&region->parting, memory_order_relaxed);
    return parting && (int)(next - parting) >= 0;
}
