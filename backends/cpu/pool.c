/* One pool of threads with static splits.
 *
 * In: steps, each a number of tasks and a function. Out: the steps were done one after the other; of each the function was
 * called for contiguous shares of its tasks, thread t on the t-th, or for all of them on the caller. All steps of a call are one
 * job: a worker that has been told of it goes through them by itself.
 *
 * Who waits for whom. A thread has a word `done`: base + s says that its tasks of all steps before the s-th are
 * done; the caller's is kept up only before steps that are divided. Before such a step a thread waits for those who worked on the
 * step before: for the caller's word after a step of the caller's, else for everybody's; before a step of its own the caller waits
 * in the same way. So when a task of step s begins, all tasks of step s - 1 have ended: words are stored with release and read
 * with acquire order, and who is waited for has itself waited for the step before, so all that earlier steps wrote is visible,
 * and nobody still reads what step s overwrites.
 * A job's fields are written before `epoch` is (release) and read after it (acquire), by a worker for the last time before its
 * last word, base + the number of steps; the caller waits for everybody's before it returns, so nobody reads the fields while they
 * change. Steps of the caller's at the end keep no worker.
 *
 * Waiting is spinning first, then sleeping in a futex. A sleeper counts itself in `asleep`, then lets the system compare the
 * word; who stores a word looks at `asleep` afterwards, all in one total order: either it sees the sleeper, or the
 * sleeper sees the word.
 * The system tends to wake a worker on the core of whoever wakes it, where the two would only take turns: a worker that finds
 * itself there moves away. Thread and share of a task are fixed by their number, but nothing may depend on it: tasks are
 * independent. Tasks run with denormal numbers flushed to zero on every thread, the caller's included: gradients that fade away
 * would otherwise slow a step down tenfold. */
#include "../backend.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { POOL_MAX = 256, PAUSES = 1000, SPINS = PAUSES + 600, LINE = 64 };

typedef struct Thread {
  _Alignas(LINE) atomic_uint done; /* see above */
  _Alignas(LINE) Pool *pool;       /* neighbouring lines are fetched together */
  pthread_t id;                    /* of a worker */
  int thread;
} Thread;

/* In one line with the word that tells of it. */
typedef struct Job {
  atomic_uint epoch; /* jobs published */
  unsigned base;
  int n, core; /* core: that it was published on */
  const PoolStep *step;
  bool quit;
} Job;

struct Pool {
  _Alignas(LINE) Job job;
  _Alignas(LINE) atomic_uint asleep; /* threads that sleep, or are about to */
  _Alignas(LINE) int threads;        /* the caller included */
  /* Looks at a word before sleeping on it: about a quarter of a millisecond, longer than the serial kernels of a step. A
   * sleeper costs a system call to wake, and on a virtual machine far more than most kernels take. */
  int spins;
  cpu_set_t cores; /* that the pool may use */
  Thread thread[]; /* the first is the caller's */
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

/* ---- words ---- */

static void store(Pool *p, atomic_uint *word, unsigned value) {
  atomic_store(word, value);
  if (atomic_load(&p->asleep)) futex_wake(word, POOL_MAX);
}

/* Words only grow, and wrap around. */
static bool reached(unsigned word, unsigned value) { return (int)(word - value) >= 0; }

static void wait_for(Pool *p, atomic_uint *word, unsigned value) {
  for (int i = 0; i < p->spins; i++) {
    if (reached(atomic_load_explicit(word, memory_order_acquire), value)) return;
    spin_pause(i);
  }
  atomic_fetch_add(&p->asleep, 1);
  for (unsigned seen; !reached(seen = atomic_load(word), value);) futex_wait(word, seen);
  atomic_fetch_sub(&p->asleep, 1);
}

/* ---- steps ---- */

static bool is_divided(const PoolStep *s) { return s->n > 1 && !s->here; }

static void run_share(const PoolStep *s, int threads, int t) {
  int64_t q = s->n / threads, r = s->n % threads; /* the first r shares hold one more */
  int64_t begin = q * t + (t < r ? t : r), end = begin + q + (t < r);
  if (begin < end) s->fn(s->user, t, begin, end);
}

/* Until those who worked on step s - 1 are done with it. */
static void wait_before(Pool *p, const Job *j, int s, int self) {
  int n = s == 0 ? 0 : is_divided(&j->step[s - 1]) ? p->threads : 1;
  for (int t = 0; t < n; t++)
    if (t != self) wait_for(p, &p->thread[t].done, j->base + (unsigned)s);
}

/* A worker's part of a job. Its last word says that it has read all of it. */
static void work(Pool *p, const Job *j, int t) {
  int last = j->n - 1;
  while (!is_divided(&j->step[last])) last--;
  for (int s = 0; s <= last; s++) {
    if (!is_divided(&j->step[s])) continue;
    wait_before(p, j, s, t);
    run_share(&j->step[s], p->threads, t);
    store(p, &p->thread[t].done, j->base + (unsigned)(s < last ? s + 1 : j->n));
  }
}

/* The caller's: its word is of use only before a step that is divided. */
static void lead(Pool *p, const Job *j) {
  for (int s = 0; s < j->n; s++) {
    const PoolStep *step = &j->step[s];
    bool divided = is_divided(step), next = s + 1 < j->n && is_divided(step + 1);
    if (s && is_divided(step - 1)) wait_before(p, j, s, 0);
    if (divided)
      run_share(step, p->threads, 0);
    else if (step->n > 0)
      step->fn(step->user, 0, 0, step->n);
    if (next) store(p, &p->thread[0].done, j->base + (unsigned)s + 1);
  }
  for (int t = 1; t < p->threads; t++) wait_for(p, &p->thread[t].done, j->base + (unsigned)j->n);
}

/* From the caller's core to any other; from there on the system may move it as it likes. */
static void leave_core(const Pool *p, int core) {
  if (!p->spins || core < 0 || core >= CPU_SETSIZE || sched_getcpu() != core) return;
  cpu_set_t others = p->cores;
  CPU_CLR(core, &others);
  if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others))
    sched_setaffinity(0, sizeof p->cores, &p->cores);
}

static void *worker_main(void *arg) {
  Thread *w = arg;
  Pool *p = w->pool;
  flush_denormals();
  for (unsigned next = 1;; next++) {
    wait_for(p, &p->job.epoch, next);
    const Job j = p->job;
    if (j.quit) return NULL;
    leave_core(p, j.core);
    work(p, &j, w->thread);
  }
}

static void publish(Pool *p) {
  store(p, &p->job.epoch, atomic_load_explicit(&p->job.epoch, memory_order_relaxed) + 1);
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
  Pool *p = mem_alloc(sizeof *p + sizeof *p->thread * (size_t)n + LINE);
  p->spins = n <= most ? SPINS : 0; /* spinning only pays on a core of one's own */
  p->cores = set;
  p->threads = n;
  int started = 1;
  for (; started < n; started++) {
    Thread *w = &p->thread[started];
    w->pool = p;
    w->thread = started;
    if (pthread_create(&w->id, NULL, worker_main, w)) break;
  }
  p->threads = started; /* read by the workers only after the first job is published */
  return p;
}

void pool_free(Pool *p) {
  if (!p) return;
  p->job.quit = true;
  publish(p);
  for (int t = 1; t < p->threads; t++) pthread_join(p->thread[t].id, NULL);
  mem_free(p);
}

int pool_threads(const Pool *p) { return p->threads; }

void pool_run_here(int64_t n, PoolFn *fn, void *user) {
  if (n <= 0) return;
  uint64_t mode = flush_denormals();
  fn(user, 0, 0, n);
  restore_mode(mode);
}

void pool_run_steps(Pool *p, int n, const PoolStep *step) {
  bool divided = false;
  for (int i = 0; i < n && p->threads > 1; i++) divided |= is_divided(&step[i]);
  uint64_t mode = flush_denormals();
  if (divided) {
    Job *j = &p->job;
    j->base += (unsigned)j->n;
    j->n = n;
    j->step = step;
    j->core = sched_getcpu();
    publish(p);
    lead(p, j);
  }
  for (int i = 0; i < n && !divided; i++)
    if (step[i].n > 0) step[i].fn(step[i].user, 0, 0, step[i].n);
  restore_mode(mode);
}

void pool_run(Pool *p, int64_t n, PoolFn *fn, void *user) {
  pool_run_steps(p, 1, &(PoolStep){fn, user, n, false});
}
