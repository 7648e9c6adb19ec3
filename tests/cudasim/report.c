/* Counters per kernel, written to CUDASIM_REPORT at the end as a JSON array; how sectors and banks are counted. */
#include "driver.h"
#include <stdlib.h>
#include <string.h>

typedef struct Report {
  struct Report *next;
  char name[160];
  uint64_t launches, blocks, threads;
  Counters n;
} Report;
static Report *reports;
static uint64_t copies[3][2];

/* Sectors of 32 bytes that a request touches, against the least that so many different bytes need. */
void count_global(Group *g, const uint64_t at[LANES], uint32_t mask, uint32_t bytes) {
  uint64_t sector[LANES * 2], start[LANES];
  int n = 0, distinct = 0;
  FOR_LANES(l, mask) {
    bool seen = false;
    for (int k = distinct; k-- > 0 && !seen;) seen = start[k] == at[l];
    if (seen) continue;
    start[distinct++] = at[l];
    for (uint64_t s = at[l] / 32; s <= (at[l] + bytes - 1) / 32; s++) {
      bool known = false;
      for (int k = n; k-- > 0 && !known;) known = sector[k] == s;
      if (!known) sector[n++] = s;
    }
  }
  g->n.requests++;
  g->n.sectors += (uint64_t)n;
  g->n.ideal += ((uint64_t)distinct * bytes + 31) / 32;
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

void report_add(const Launch *l) {
  if (!counting) return;
  Report *r = reports;
  while (r && strcmp(r->name, l->f->name)) r = r->next;
  if (!r) {
    r = host_alloc(sizeof *r);
    snprintf(r->name, sizeof r->name, "%s", l->f->name);
    r->next = reports;
    reports = r;
  }
  r->launches++;
  r->blocks += l->blocks;
  r->threads += l->blocks * l->block[0] * l->block[1] * l->block[2];
  uint64_t *to = (uint64_t *)&r->n;
  const uint64_t *from = (const uint64_t *)&l->counters;
  for (size_t k = 0; k < sizeof r->n / sizeof *to; k++) to[k] += from[k];
}

void report_copy(uint64_t bytes, int direction) {
  copies[direction][0]++;
  copies[direction][1] += bytes;
}

void report_write(void) {
  static const char *const classes[] = {"int",     "float",  "double", "half",    "convert",
                                        "special", "mma",    "global", "shared",  "local",
                                        "param",   "atomic", "warp",   "barrier", "branch"};
  const char *path = getenv("CUDASIM_REPORT");
  FILE *f = path && *path ? fopen(path, "w") : NULL;
  if (!f) return;
  fprintf(f, "{\"copies\": {");
  for (int k = 0; k < 3; k++)
    fprintf(f, "%s\"%s\": {\"n\": %llu, \"bytes\": %llu}", k ? ", " : "",
            k == 0   ? "to_device"
            : k == 1 ? "to_host"
                     : "on_device",
            (unsigned long long)copies[k][0], (unsigned long long)copies[k][1]);
  fprintf(f, "},\n\"kernels\": [\n");
  for (const Report *r = reports; r; r = r->next) {
    const Counters *n = &r->n;
    fprintf(f,
            "{\"name\": \"%s\", \"launches\": %llu, \"blocks\": %llu, \"threads\": %llu, "
            "\"instructions\": {",
            r->name, (unsigned long long)r->launches, (unsigned long long)r->blocks,
            (unsigned long long)r->threads);
    for (int k = 0; k < C_N; k++)
      fprintf(f, "%s\"%s\": %llu", k ? ", " : "", classes[k], (unsigned long long)n->insns[k]);
    fprintf(f,
            "}, \"lanes\": %llu, \"requests\": %llu, \"sectors\": %llu, \"ideal_sectors\": %llu, "
            "\"shared_requests\": %llu, \"wavefronts\": %llu, "
            "\"bank_conflicts\": %llu, \"branches\": %llu, \"divergent\": %llu, \"barriers\": "
            "%llu, \"mma_operations\": %llu}%s\n",
            (unsigned long long)n->lanes, (unsigned long long)n->requests,
            (unsigned long long)n->sectors, (unsigned long long)n->ideal,
            (unsigned long long)n->shared, (unsigned long long)n->wavefronts,
            (unsigned long long)n->conflicts, (unsigned long long)n->branches,
            (unsigned long long)n->divergent, (unsigned long long)n->barriers,
            (unsigned long long)n->mma, r->next ? "," : "");
  }
  fprintf(f, "]}\n");
  fclose(f);
  while (reports) {
    Report *next = reports->next;
    free(reports);
    reports = next;
  }
}
