/* A launch: its blocks in a shuffled order over a few threads, each with a block context of its own; counters are added up. */
#include "sim.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MAX_THREADS 16
Checks checks = {.race = true, .init = true, .budget = 20000000000u, .threads = 2};
bool counting;
static Group groups[MAX_THREADS];

/* A permutation of 0 .. n-1: multiplication by an odd number that has no factor in common with n. */
static uint64_t gcd(uint64_t a, uint64_t b) { return b ? gcd(b, a % b) : a; }

static uint64_t stride_of(uint64_t seed, uint64_t n) {
  uint64_t s = seed % n;
  while (gcd(s, n) != 1) s++;
  return s;
}

static void add(Counters *to, const Counters *from) {
  uint64_t *t = (uint64_t *)to;
  const uint64_t *f = (const uint64_t *)from;
  for (size_t k = 0; k < sizeof *to / sizeof *t; k++) t[k] += f[k];
}

static void run_blocks(Group *g) {
  Launch *l = g->l;
  uint64_t stride = stride_of(l->seed | 1, l->blocks);
  for (;;) {
    uint64_t k = __atomic_fetch_add(&l->next, 1, __ATOMIC_RELAXED);
    if (k >= l->blocks || l->result) break;
    k = k * stride % l->blocks;
    g->block = (uint32_t)k;
    g->id[0] = (uint32_t)(k % l->grid[0]);
    g->id[1] = (uint32_t)(k / l->grid[0] % l->grid[1]);
    g->id[2] = (uint32_t)(k / l->grid[0] / l->grid[1]);
    group_run(g);
    __atomic_fetch_add(&l->insns, g->insns, __ATOMIC_RELAXED);
  }
}

static __attribute__((noinline)) void *work(void *arg) {
  Group *g = arg;
  memset(&g->n, 0, sizeof g->n);
  g->hit = (Range){0};
  g->counting = counting;
  if (!setjmp(g->fault)) run_blocks(g);
  return NULL;
}

void launch_run(Launch *l) {
  l->blocks = (uint64_t)l->grid[0] * l->grid[1] * l->grid[2];
  l->n_warps = (int)(((uint64_t)l->block[0] * l->block[1] * l->block[2] + LANES - 1) / LANES);
  int n = checks.threads < MAX_THREADS ? checks.threads : MAX_THREADS;
  if ((uint64_t)n > l->blocks) n = (int)l->blocks;
  blocks_start(l);
  pthread_t thread[MAX_THREADS];
  bool started[MAX_THREADS] = {0};
  for (int k = 0; k < n; k++) group_prepare(&groups[k], l);
  for (int k = 1; k < n; k++) started[k] = !pthread_create(&thread[k], NULL, work, &groups[k]);
  work(&groups[0]);
  for (int k = 1; k < n; k++)
    if (started[k]) pthread_join(thread[k], NULL);
  for (int k = 0; k < n; k++) add(&l->counters, &groups[k].n);
  blocks_end(l);
}

void launch_close(void) {
  for (int k = 0; k < MAX_THREADS; k++) group_free(&groups[k]);
}
