/* Memory traffic of a request, the access of a warp's lanes by one instruction: sectors of 32 bytes in global memory, passes over
 * the banks of shared memory.
 *
 * Sectors are counted against two ideals.
 *   ideal      per request: the least sectors that so many different bytes fill, wherever they lie
 *   reachable  per block: a request gets each byte of a sector at most once, so a sector of which some byte is asked for by m
 *              requests is touched m times at least, however the requests are cut: the sum of these m. It differs from the
 *              first where bytes that nobody wants lie beside those that are wanted, as at the ends of rows that
 *              are not multiples of a sector. */
#include "sim.h"
#include <stdlib.h>
#include <string.h>

enum { SECTOR = 32 };

/* Bytes of one sector that a request asks for. */
typedef struct Piece {
  uint64_t sector;
  uint32_t bytes;
} Piece;

/* ---- the requests of a block, by sector ---- */

struct Asked {
  uint64_t key; /* sector and direction */
  uint32_t block, most, times[SECTOR];
};

static Asked *slot(AskedTable *t, uint64_t key) {
  uint64_t at = (key * UINT64_C(0x9e3779b97f4a7c15)) >> 20 & (t->size - 1);
  while (t->v[at].block == t->block && t->v[at].key != key) at = (at + 1) & (t->size - 1);
  return &t->v[at];
}

static void grow(AskedTable *t) {
  AskedTable old = *t;
  t->size = old.size ? 2 * old.size : 1024;
  t->v = host_alloc(t->size * sizeof *t->v);
  for (uint64_t k = 0; k < old.size; k++)
    if (old.v[k].block == t->block) *slot(t, old.v[k].key) = old.v[k];
  free(old.v);
}

void traffic_start(AskedTable *t) {
  t->block++;
  t->n = 0;
}

void traffic_free(AskedTable *t) {
  free(t->v);
  *t = (AskedTable){0};
}

/* How much the least grows. */
static uint64_t ask(AskedTable *t, const Piece *p, bool write) {
  if (2 * t->n >= t->size) grow(t);
  uint64_t key = 2 * p->sector + write;
  Asked *a = slot(t, key);
  if (a->block != t->block) {
    *a = (Asked){.key = key, .block = t->block};
    t->n++;
  }
  uint32_t before = a->most;
  FOR_LANES(b, p->bytes) {
    if (++a->times[b] > a->most) a->most = a->times[b];
  }
  return a->most - before;
}

/* ---- requests ---- */

static void add_bytes(Piece *piece, int *n, uint64_t from, uint64_t to) {
  uint64_t sector = from / SECTOR;
  uint32_t bytes = (uint32_t)(((UINT64_C(1) << (to - from)) - 1) << from % SECTOR);
  for (int k = *n; k-- > 0;)
    if (piece[k].sector == sector) {
      piece[k].bytes |= bytes;
      return;
    }
  piece[(*n)++] = (Piece){sector, bytes};
}

void count_global(Group *g, const uint64_t at[LANES], uint32_t mask, uint32_t bytes, bool write) {
  Piece piece[LANES * 2];
  int n = 0;
  uint32_t distinct = 0;
  FOR_LANES(l, mask) {
    uint64_t end = at[l] + bytes, cut = (at[l] / SECTOR + 1) * SECTOR;
    add_bytes(piece, &n, at[l], end < cut ? end : cut);
    if (end > cut) add_bytes(piece, &n, cut, end);
  }
  for (int k = 0; k < n; k++) {
    distinct += (uint32_t)__builtin_popcount(piece[k].bytes);
    g->n.reachable += ask(&g->asked, &piece[k], write);
  }
  g->n.requests++;
  g->n.sectors += (uint64_t)n;
  g->n.ideal += (distinct + SECTOR - 1) / SECTOR;
}

/* Passes over the 32 banks of 4 bytes: 128 bytes of lanes at a time; lanes that share a word share its pass. */
void count_shared(Group *g, const uint64_t at[LANES], uint32_t mask, uint32_t bytes) {
  int per = bytes > 4 ? (int)(128 / bytes) : LANES;
  g->n.shared++;
  for (int first = 0; first < LANES; first += per) {
    uint64_t word[LANES * 4];
    int n = 0, load[32] = {0}, most = 0;
    for (int l = first; l < first + per; l++) {
      if (!(mask >> l & 1)) continue;
      for (uint64_t w = at[l] / 4; w <= (at[l] + bytes - 1) / 4; w++) {
        bool known = false;
        for (int k = n; k-- > 0 && !known;) known = word[k] == w;
        if (known) continue;
        word[n++] = w;
        if (++load[w % 32] > most) most = load[w % 32];
      }
    }
    g->n.wavefronts += (uint64_t)most;
    if (most > 1) g->n.conflicts += (uint64_t)most - 1;
  }
}
