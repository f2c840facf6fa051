/* Threads that share one job's tasks. Nobody waits for a thread that has not begun: where another process holds its core,
 * the others do its share. (OpenMP's threads meet at the end of every region, and a learner has a dozen regions a
 * millisecond: with one core taken away it becomes ten times slower, not two.)
 *
 * Which thread does which task is left open, so tasks must not depend on each other; each writes what is its own.
 */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 256
#define CLOSED 0xffffffffu
#define SPIN_NS 300000 /* the learner's Python between two jobs takes less; waking a sleeper takes tens of microseconds */

typedef void (*task_t)(void *, int64_t);
typedef int (*threads_t)(int);

static threads_t set_threads; /* of the BLAS, for the calling thread; may be absent */

static struct {
    pthread_mutex_t one;        /* job at a time */
    int workers;                /* that have been started */
    _Atomic uint64_t ticket;    /* number of the job << 32 | its next task */
    _Atomic int64_t done;       /* tasks of this job */
    _Atomic uint32_t epoch;     /* jobs so far, for those who sleep */
    _Atomic int sleepers, wanted; /* wanted: workers that may take part */
    int64_t tasks;
    task_t task;
    void *argument;
} pool = {.one = PTHREAD_MUTEX_INITIALIZER};

/* Called at the i-th look. A hypervisor takes a series of close pause instructions for a lock that will not open, and
 * takes the core away; so they are few and far between. */
static inline void relax(int i) {
#if defined(__x86_64__) || defined(__i386__)
    if (i % 128 == 0) __builtin_ia32_pause();
#endif
    for (int k = 0; k < 4; k++) atomic_signal_fence(memory_order_seq_cst);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Do tasks of the job in hand until none is left. */
static void work(void) {
    for (;;) {
        uint64_t ticket = atomic_load_explicit(&pool.ticket, memory_order_acquire);
        /* These belong to the ticket if it is still the same when it is taken: a job's fields change only after all
         * its tasks are done and its tickets are closed. */
        task_t task = pool.task;
        void *argument = pool.argument;
        uint32_t next = (uint32_t)ticket;
        if (next == CLOSED || next >= (uint64_t)pool.tasks) return;
        if (!atomic_compare_exchange_weak_explicit(&pool.ticket, &ticket, ticket + 1, memory_order_acq_rel,
                                                   memory_order_relaxed))
            continue;
        task(argument, next);
        atomic_fetch_add_explicit(&pool.done, 1, memory_order_release);
    }
}

static void *worker(void *argument) {
    int number = (int)(intptr_t)argument;
    uint32_t seen = 0;
    if (set_threads) set_threads(1);
    for (;;) {
        int64_t until = now_ns() + SPIN_NS;
        uint32_t epoch;
        for (int i = 1; (epoch = atomic_load_explicit(&pool.epoch, memory_order_acquire)) == seen; i++) {
            relax(i);
            if (i % 1024 == 0 && now_ns() > until) {
                atomic_fetch_add(&pool.sleepers, 1);
                syscall(SYS_futex, &pool.epoch, FUTEX_WAIT_PRIVATE, seen, 0, 0, 0);
                atomic_fetch_sub(&pool.sleepers, 1);
                until = now_ns() + SPIN_NS;
            }
        }
        seen = epoch;
        if (number < atomic_load_explicit(&pool.wanted, memory_order_relaxed)) work();
    }
    return 0;
}

static void after_fork(void) { /* a child has none of the threads */
    pool.workers = 0;
    pthread_mutex_init(&pool.one, 0);
}

static void alone(int64_t tasks, task_t task, void *argument) {
    for (int64_t i = 0; i < tasks; i++) task(argument, i);
}

/* Call task(argument, i) for i in [0, tasks) on up to `threads` threads; back when all are done. A second caller at the
 * same time (another Python thread) does its tasks alone. */
static void share(int threads, int64_t tasks, task_t task, void *argument) {
    int before = set_threads ? set_threads(1) : 0;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads > tasks) threads = (int)tasks;
    if (threads <= 1 || pthread_mutex_trylock(&pool.one)) {
        alone(tasks, task, argument);
    } else {
        while (pool.workers < threads - 1) {
            pthread_t thread;
            static int registered;
            if (!registered++) pthread_atfork(0, 0, after_fork);
            if (pthread_create(&thread, 0, worker, (void *)(intptr_t)pool.workers)) break; /* fewer threads then */
            pthread_detach(thread);
            pool.workers++;
        }
        uint64_t job = (atomic_load(&pool.ticket) >> 32) + 1;
        atomic_store_explicit(&pool.ticket, job << 32 | CLOSED, memory_order_seq_cst);
        pool.task = task;
        pool.argument = argument;
        pool.tasks = tasks;
        atomic_store(&pool.done, 0);
        atomic_store(&pool.wanted, threads - 1);
        atomic_store_explicit(&pool.ticket, job << 32, memory_order_seq_cst);
        atomic_fetch_add(&pool.epoch, 1);
        if (atomic_load(&pool.sleepers)) syscall(SYS_futex, &pool.epoch, FUTEX_WAKE_PRIVATE, MAX_THREADS, 0, 0, 0);
        work();
        for (int i = 1; atomic_load_explicit(&pool.done, memory_order_acquire) < tasks; i++) {
            relax(i);
            if (i % 65536 == 0) sched_yield(); /* whoever has the last task may need this core */
        }
        pthread_mutex_unlock(&pool.one);
    }
    if (set_threads) set_threads(before);
}
