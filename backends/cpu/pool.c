/* One pool of threads with static splits.
 *
 * In: a number of tasks and a function. Out: the function was called for contiguous shares of them, thread t on the t-th.
 * A job is published by increasing `epoch`; workers watch it, first spinning, then asleep in a futex. The caller runs the
 * first share itself and waits for the others in the same way. The system tends to wake a worker on the core of whoever wakes
 * it, where the two would only take turns: a worker that finds itself there moves away. Thread and share of a task are fixed by their number, but
 * nothing may depend on it: tasks are independent. Tasks run with denormal numbers flushed to zero on every thread, the
 * caller's included: gradients that fade away would otherwise slow a step down tenfold. */
#include "../backend.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { POOL_MAX = 256, SPINS = 1000, PAUSES = 400, LINE = 64 };

typedef struct Worker {
  Pool *pool;
  pthread_t id;
  int thread;
} Worker;

struct Pool {
  int threads; /* the caller included */
  /* Looks at a word before sleeping on it: about a quarter of a millisecond, longer than the serial kernels of a step. A
   * sleeper costs a system call to wake, and on a virtual machine far more than most kernels take. */
  int spins;
  PoolFn *fn;
  void *user;
  int64_t n;
  bool quit;
  int core;                           /* that the job was published on */
  cpu_set_t cores;                    /* that the pool may use */
  _Alignas(LINE) atomic_uint epoch;   /* jobs published */
  atomic_uint sleepers;               /* workers that sleep, or are about to */
  _Alignas(LINE) atomic_uint pending; /* workers that have not finished the job */
  atomic_uint caller_sleeps;
  Worker worker[]; /* one per thread; the caller's is not used */
};

static void futex_wait(atomic_uint *word, unsigned seen) {
  syscall(SYS_futex, (void *)word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}
static void futex_wake(atomic_uint *word, int n) {
  syscall(SYS_futex, (void *)word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}
/* The i-th look at a word: at first only a pause; later the core is offered to whoever else wants it, so that waiting
 * does not hold up the thread that is waited for. */
static inline void spin_pause(int i) {
  if (i >= PAUSES) sched_yield();
#if defined(__x86_64__)
  else
    __builtin_ia32_pause();
#endif
}

/* The floating-point mode of tasks, as in PaddlePaddle's executor: vanishing gradients would make arithmetic a hundred times
 * slower. Returns what it was. MXCSR bits 15 (flush results) and 6 (take operands as zero);
 * FPCR bit 24 does both. */
static uint64_t flush_denormals(void) {
  uint64_t old = 0;
#if defined(__x86_64__)
  old = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr((unsigned)old | 1u << 15 | 1u << 6);
#elif defined(__aarch64__)
  __asm__ volatile("mrs %0, fpcr" : "=r"(old));
  __asm__ volatile("msr fpcr, %0" ::"r"(old | 1u << 24));
#endif
  return old;
}

static void restore_mode(uint64_t old) {
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr((unsigned)old);
#elif defined(__aarch64__)
  __asm__ volatile("msr fpcr, %0" ::"r"(old));
#else
  (void)old;
#endif
}

static void run_share(const Pool *p, int t) {
  int64_t q = p->n / p->threads, r = p->n % p->threads; /* the first r shares hold one more */
  int64_t begin = q * t + (t < r ? t : r), end = begin + q + (t < r);
  if (begin < end) p->fn(p->user, t, begin, end);
}

static unsigned next_epoch(Pool *p, unsigned seen) {
  for (int i = 0; i < p->spins; i++) {
    unsigned e = atomic_load_explicit(&p->epoch, memory_order_acquire);
    if (e != seen) return e;
    spin_pause(i);
  }
  atomic_fetch_add(&p->sleepers, 1);
  unsigned e;
  while ((e = atomic_load(&p->epoch)) == seen) futex_wait(&p->epoch, seen);
  atomic_fetch_sub(&p->sleepers, 1);
  return e;
}

/* From the caller's core to any other; from there on the system may move it as it likes. */
static void leave_core(const Pool *p) {
  cpu_set_t others = p->cores;
  int core = p->core;
  if (!p->spins || core < 0 || core >= CPU_SETSIZE || sched_getcpu() != core) return;
  CPU_CLR(core, &others);
  if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others))
    sched_setaffinity(0, sizeof p->cores, &p->cores);
}

static void *worker_main(void *arg) {
  Worker *w = arg;
  Pool *p = w->pool;
  unsigned seen = 0;
  flush_denormals();
  for (;;) {
    seen = next_epoch(p, seen);
    if (p->quit) return NULL;
    leave_core(p);
    run_share(p, w->thread);
    if (atomic_fetch_sub(&p->pending, 1) == 1 && atomic_load(&p->caller_sleeps))
      futex_wake(&p->pending, 1);
  }
}

static void publish(Pool *p) {
  atomic_fetch_add(&p->epoch, 1);
  if (atomic_load(&p->sleepers)) futex_wake(&p->epoch, POOL_MAX);
}

static void wait_done(Pool *p) {
  for (int i = 0; i < p->spins; i++) {
    if (!atomic_load_explicit(&p->pending, memory_order_acquire)) return;
    spin_pause(i);
  }
  atomic_store(&p->caller_sleeps, 1);
  unsigned left;
  while ((left = atomic_load(&p->pending)) != 0) futex_wait(&p->pending, left);
  atomic_store(&p->caller_sleeps, 0);
}

static int cores(cpu_set_t *set) {
  CPU_ZERO(set);
  int n = sched_getaffinity(0, sizeof *set, set) == 0 ? CPU_COUNT(set) : 1;
  return n < 1 ? 1 : n;
}

Pool *pool_new(int n_threads) {
  cpu_set_t set;
  int most = cores(&set), n = n_threads > 0 ? n_threads : most;
  if (n > POOL_MAX) n = POOL_MAX;
  Pool *p = mem_alloc(sizeof *p + sizeof *p->worker * (size_t)n);
  p->spins = n <= most ? SPINS : 0; /* spinning only pays on a core of one's own */
  p->cores = set;
  p->threads = n;
  int started = 1;
  for (; started < n; started++) {
    Worker *w = &p->worker[started];
    *w = (Worker){.pool = p, .thread = started};
    if (pthread_create(&w->id, NULL, worker_main, w)) break;
  }
  p->threads = started; /* read by the workers only after the first job is published */
  return p;
}

void pool_free(Pool *p) {
  if (!p) return;
  p->quit = true;
  publish(p);
  for (int t = 1; t < p->threads; t++) pthread_join(p->worker[t].id, NULL);
  mem_free(p);
}

int pool_threads(const Pool *p) { return p->threads; }

void pool_run_here(int64_t n, PoolFn *fn, void *user) {
  if (n <= 0) return;
  uint64_t mode = flush_denormals();
  fn(user, 0, 0, n);
  restore_mode(mode);
}

void pool_run(Pool *p, int64_t n, PoolFn *fn, void *user) {
  if (n <= 1 || p->threads == 1) {
    pool_run_here(n, fn, user);
    return;
  }
  p->fn = fn;
  p->user = user;
  p->n = n;
  p->core = sched_getcpu();
  atomic_store(&p->pending, (unsigned)p->threads - 1);
  uint64_t mode = flush_denormals();
  publish(p);
  run_share(p, 0);
  wait_done(p);
  restore_mode(mode);
}
