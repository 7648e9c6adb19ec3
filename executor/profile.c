/* Profiles and traces: what each kernel and each operator type costs.
 *
 * In: (kernel, begin, end) of every kernel run. Out: two tables sorted by time, and a trace in the JSON of Chrome's
 * about:tracing and Perfetto. A kernel that several operators were fused into counts for its core's operator, or else
 * in equal parts for each of them. */
#include "internal.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TRACE_EVENTS = 1 << 20 }; /* later ones are dropped, and the trace says how many */

typedef struct Row {
  const char *name;
  /* of a kernel: its operator with the user's file and line; NULL of an operator type */
  const char *from;
  const char *by; /* of a kernel: see Kernel */
  int64_t runs;
  double seconds, flops, bytes;
} Row;

typedef struct Event {
  const char *name;
  double t0, t1;
} Event;

struct Profile {
  Arena *arena;
  Map *kernels, *ops; /* name -> Row* */
  VEC(Event) events;
  int64_t dropped;
  bool trace;
};

double now_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

Profile *profile_new(bool trace) {
  Arena *a = arena_scratch();
  Profile *p = arena_new_of(a, Profile);
  p->arena = a;
  p->kernels = map_new(a);
  p->ops = map_new(a);
  p->trace = trace;
  arena_keep(a);
  return p;
}

void profile_free(Profile *p) {
  if (p) arena_free(p->arena);
}

static Row *row(Profile *p, Map *m, const char *name) {
  Row *r = map_get(m, name);
  if (!r) {
    r = arena_new_of(p->arena, Row);
    r->name = arena_str(p->arena, name);
    map_put(m, name, r);
  }
  return r;
}

static void add(Row *r, double seconds, double flops, double bytes) {
  r->runs++;
  r->seconds += seconds;
  r->flops += flops;
  r->bytes += bytes;
}

enum { OPS_PER_KERNEL = 16 };

static int kernel_ops(const Kernel *k, const char **types) {
  if (k->core && k->core->op) return types[0] = k->core->op->type, 1;
  int n = 0;
  for (int i = 0; i < k->nodes.n && n < OPS_PER_KERNEL; i++) {
    if (!k->nodes.v[i]->op) continue;
    const char *type = k->nodes.v[i]->op->type;
    int j = 0;
    while (j < n && strcmp(types[j], type)) j++;
    if (j == n) types[n++] = type;
  }
  return n;
}

/* The operator that a kernel is named by: its core's, or else the first. */
static const Op *kernel_op(const Kernel *k) {
  if (k->core && k->core->op) return k->core->op;
  for (int i = 0; i < k->nodes.n; i++)
    if (k->nodes.v[i]->op) return k->nodes.v[i]->op;
  return NULL;
}

void profile_add(Profile *p, const Executable *x, int kernel, double t0, double t1) {
  const Kernel *k = x->graph->kernels.v[kernel];
  Row *r = row(p, p->kernels, k->name);
  const Op *op = r->from ? NULL : kernel_op(k);
  if (op) r->from = arena_str(p->arena, op_text(op));
  if (!r->by) r->by = arena_str(p->arena, k->by);
  add(r, t1 - t0, (double)k->flops, (double)k->bytes);
  const char *types[OPS_PER_KERNEL];
  int n = kernel_ops(k, types);
  for (int i = 0; i < n; i++)
    add(row(p, p->ops, types[i]), (t1 - t0) / n, (double)k->flops / n, (double)k->bytes / n);
  if (!p->trace) return;
  if (p->events.n >= TRACE_EVENTS)
    p->dropped++;
  else
    vec_add(p->arena, &p->events, ((Event){r->name, t0, t1}));
}

static int by_time(const void *a, const void *b) {
  const Row *x = *(const Row *const *)a, *y = *(const Row *const *)b;
  return x->seconds < y->seconds ? 1 : x->seconds > y->seconds ? -1 : strcmp(x->name, y->name);
}

static Row **sorted(const Profile *p, Map *m, double *total) {
  int n = map_n(m);
  Row **rows = arena_array(p->arena, Row *, n + 1);
  *total = 0;
  for (int i = 0; i < n; i++) {
    void *v;
    map_at(m, i, &v);
    rows[i] = v;
    *total += rows[i]->seconds;
  }
  qsort(rows, (size_t)n, sizeof *rows, by_time);
  return rows;
}

double roof_seconds(const Roof *r, double flops, double bytes) {
  int i = 0;
  while (i + 1 < ROOF_SIZES && bytes > r->bytes[i]) i++;
  double arithmetic = flops / r->flops, traffic = bytes / r->rate[i];
  return arithmetic > traffic ? arithmetic : traffic;
}

static double row_bound(const Row *r, const Roof *roof) {
  double n = (double)r->runs;
  return n * roof_seconds(roof, r->flops / n, r->bytes / n);
}

/* Operators have no bound of their own: a kernel counts for several. */
static void print_table(const Profile *p, Map *m, const char *title, const Roof *roof, FILE *to) {
  double total;
  bool kernels = m == p->kernels;
  Row **rows = sorted(p, m, &total);
  fprintf(to, "%-40s %8s %10s %7s %9s %9s %8s%s%s\n", title, "runs", "total ms", "share", "us/run",
          "GFLOP/s", "GB/s", roof ? "  bound us of bound" : "", kernels ? "  by" : "");
  for (int i = 0; i < map_n(m); i++) {
    const Row *r = rows[i];
    double s = r->seconds > 0 ? r->seconds : 1e-12;
    fprintf(to, "%-40.40s %8lld %10.3f %6.1f%% %9.1f %9.2f %8.2f", r->name, (long long)r->runs,
            r->seconds * 1e3, 100 * r->seconds / (total > 0 ? total : 1),
            r->seconds * 1e6 / (double)r->runs, r->flops / s * 1e-9, r->bytes / s * 1e-9);
    if (roof)
      fprintf(to, " %9.1f %8.3f", row_bound(r, roof) * 1e6 / (double)r->runs,
              row_bound(r, roof) / s);
    if (kernels) fprintf(to, "  %-18s", r->by);
    fprintf(to, "%s%s\n", r->from ? "  " : "", r->from ? r->from : "");
  }
  fprintf(to, "%-40s %8s %10.3f\n\n", "total", "", total * 1e3);
}

static void print_json(const Profile *p, Map *m, const char *title, const Roof *roof, FILE *to) {
  double total;
  Row **rows = sorted(p, m, &total);
  Str s;
  str_init(&s, p->arena);
  str_fmt(&s, "\"%s\": [", title);
  for (int i = 0; i < map_n(m); i++) {
    const Row *r = rows[i];
    str_add(&s, i ? ",\n  {\"name\": " : "\n  {\"name\": ");
    str_json(r->name, &s);
    if (r->from) str_add(&s, ", \"from\": "), str_json(r->from, &s);
    if (r->by && *r->by) str_add(&s, ", \"by\": "), str_json(r->by, &s);
    str_fmt(&s, ", \"runs\": %lld, \"ms\": %.6f, \"flops\": %.0f, \"bytes\": %.0f",
            (long long)r->runs, r->seconds * 1e3, r->flops, r->bytes);
    if (roof) str_fmt(&s, ", \"bound_ms\": %.6f", row_bound(r, roof) * 1e3);
    str_add(&s, "}");
  }
  fprintf(to, "%s]", s.s);
}

void profile_print(const Profile *p, const Roof *roof, FILE *to, bool json) {
  if (json) {
    fprintf(to, "{");
    print_json(p, p->ops, "operators", NULL, to);
    fprintf(to, ",\n");
    print_json(p, p->kernels, "kernels", roof, to);
    fprintf(to, "}\n");
    return;
  }
  print_table(p, p->ops, "operator", NULL, to);
  print_table(p, p->kernels, "kernel", roof, to);
}

bool profile_write_trace(const Profile *p, const char *path) {
  Arena *a = arena_scratch();
  Str s;
  str_init(&s, a);
  str_add(&s, "{\"displayTimeUnit\": \"ns\", \"traceEvents\": [\n");
  double start = p->events.n ? p->events.v[0].t0 : 0;
  for (int i = 0; i < p->events.n; i++) {
    const Event *e = &p->events.v[i];
    str_fmt(
        &s,
        "{\"name\": \"%s\", \"ph\": \"X\", \"pid\": 1, \"tid\": 1, \"ts\": %.3f, \"dur\": %.3f},\n",
        e->name, (e->t0 - start) * 1e6, (e->t1 - e->t0) * 1e6);
  }
  str_fmt(
      &s,
      "{\"name\": \"dropped events: %lld\", \"ph\": \"i\", \"pid\": 1, \"tid\": 1, \"ts\": 0}]}\n",
      (long long)p->dropped);
  bool ok = vfs_write(path, s.s, s.n);
  arena_free(a);
  return ok;
}
