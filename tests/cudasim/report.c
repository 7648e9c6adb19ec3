/* Counters per kernel, written to CUDASIM_REPORT at the end as a JSON array. */
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
            "\"reachable_sectors\": %llu, \"shared_requests\": %llu, \"wavefronts\": %llu, "
            "\"bank_conflicts\": %llu, \"branches\": %llu, \"divergent\": %llu, \"barriers\": "
            "%llu, \"mma_operations\": %llu}%s\n",
            (unsigned long long)n->lanes, (unsigned long long)n->requests,
            (unsigned long long)n->sectors, (unsigned long long)n->ideal,
            (unsigned long long)n->reachable, (unsigned long long)n->shared,
            (unsigned long long)n->wavefronts, (unsigned long long)n->conflicts,
            (unsigned long long)n->branches, (unsigned long long)n->divergent,
            (unsigned long long)n->barriers, (unsigned long long)n->mma, r->next ? "," : "");
  }
  fprintf(f, "]}\n");
  fclose(f);
  while (reports) {
    Report *next = reports->next;
    free(reports);
    reports = next;
  }
}
