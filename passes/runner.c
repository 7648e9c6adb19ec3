/* Runs the Graph passes of passes.def in order. In: a Graph from expand.c and options. Out: the Graph with kernels and a
 * memory plan, or as it stands after `stop_after`. Around every pass the runner verifies (verify_passes), times,
 * prints and dumps; the passes themselves know nothing of that. */
#include "passes.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

const PassInfo pass_info[] = {
#define PASS(name, why) {#name, pass_##name, why},
#include "passes.def"
#undef PASS
};
const int pass_n = (int)(sizeof pass_info / sizeof *pass_info);

double passes_clock(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* Is the name of n characters in the list, whose words end at commas or spaces? */
static bool listed(const char *list, const char *name) {
  size_t len = strlen(name);
  while (list && *list) {
    size_t n = strcspn(list, ", ");
    if (n == len && !memcmp(list, name, n)) return true;
    list += n + (list[n] != 0);
  }
  return false;
}

static bool known(const char *what, const char *list, bool all_ok) {
  const char *names[sizeof pass_info / sizeof *pass_info];
  for (int i = 0; i < pass_n; i++) names[i] = pass_info[i].name;
  while (list && *list) {
    char word[64];
    size_t n = strcspn(list, ", ");
    snprintf(word, sizeof word, "%.*s", (int)(n < 63 ? n : 63), list);
    bool ok = !n || (all_ok && (!strcmp(word, "all") || !strcmp(word, "expand")));
    for (int i = 0; i < pass_n && !ok; i++) ok = !strcmp(word, names[i]);
    if (!ok) {
      err_set(E_ARG_001, "%s: there is no pass %s", what, quoted(word));
      const char *near = name_nearest(word, pass_n, names);
      if (near) err_help("Did you mean %s?", near);
      return false;
    }
    list += n + (list[n] != 0);
  }
  return true;
}

typedef struct Dump {
  const PassOptions *o;
  Arena *arena;
  const char *last; /* the text after the pass before */
} Dump;

static bool print_and_dump(Dump *d, const Graph *g, int step, const char *name) {
  const PassOptions *o = d->o;
  bool print = o->print_after && (listed(o->print_after, name) || listed(o->print_after, "all"));
  if (!print && !o->dump_dir) return true;
  Str text;
  str_init(&text, d->arena);
  graph_print(g, &text);
  FILE *log = o->log ? o->log : stderr;
  bool same = d->last && !strcmp(d->last, text.s);
  if (print) fprintf(log, "# after %s%s\n%s", name, same ? " (unchanged)" : "", same ? "" : text.s);
  d->last = text.s;
  if (!o->dump_dir || same) return true;
  return vfs_write(arena_fmt(d->arena, "%s/%02d-%s.kl", o->dump_dir, step, name), text.s, text.n);
}

#ifdef __SANITIZE_ADDRESS__
bool verify_passes = true;
#else
bool verify_passes;
#endif

static void verify(const Graph *g, const char *after) {
  if (!verify_passes || graph_verify(g)) return;
  fprintf(stderr, "the Graph is broken after %s:\n", after);
  err_print(stderr, false);
  abort();
}

void passes_time(const PassOptions *o, const char *phase, double start_ms, const char *note) {
  if (o->time_passes)
    fprintf(o->log ? o->log : stderr, "%-10s %9.3f ms  %s\n", phase, passes_clock() - start_ms,
            note);
}

static bool schedule(Graph *g, const PassOptions *o) {
  double start = passes_clock();
  for (int i = 0; o->schedule && i < g->kernels.n; i++) {
    g->kernels.v[i]->conv_error = g->conv_error;
    g->kernels.v[i]->tuning = g->tuning;
    g->kernels.v[i]->options = g->options;
    if (o->schedule(g->kernels.v[i])) continue;
    err_where("kernel %s", g->kernels.v[i]->name);
    return false;
  }
  if (o->schedule) passes_time(o, "schedule", start, "");
  return true;
}

/* What a schedule follows from, of all kernels in any order: a pass that made other kernels changes it. */
static uint64_t kernels_sum(const Graph *g) {
  uint64_t sum = 0;
  for (int i = 0; i < g->kernels.n; i++) {
    const Kernel *k = g->kernels.v[i];
    const int of[] = {(int)k->kind, k->nodes.n, k->inputs.n, k->outputs.n};
    sum += hash_bytes(0, of, sizeof of);
  }
  return sum;
}

static bool run_all(Graph *g, Dump *d, bool *stopped) {
  const PassOptions *o = d->o;
  double checks = 0, start = passes_clock();
  graph_number(g);
  verify(g, "expand");
  checks += passes_clock() - start;
  if (!print_and_dump(d, g, 0, "expand")) return false;
  for (int i = 0; i < pass_n; i++) {
    const PassInfo *p = &pass_info[i];
    if (listed(o->disable, p->name)) continue;
    char note[48];
    int before = g->nodes.n;
    uint64_t sum = kernels_sum(g);
    start = passes_clock();
    p->run(g);
    graph_number(g);
    snprintf(note, sizeof note, "%6d -> %d nodes", before, g->nodes.n);
    passes_time(o, p->name, start, note);
    start = passes_clock();
    verify(g, p->name);
    checks += passes_clock() - start;
    if (kernels_sum(g) != sum && !schedule(g, o)) return false;
    if (!print_and_dump(d, g, i + 1, p->name)) return false;
    if (o->stop_after && !strcmp(o->stop_after, p->name)) {
      *stopped = true;
      break;
    }
  }
  if (verify_passes) passes_time(o, "verify", passes_clock() - checks, "after all of them");
  return true;
}

bool passes_run(Graph *g, const PassOptions *o, bool *stopped) {
  static const PassOptions none;
  bool stop = false;
  if (!o) o = &none;
  if (stopped) *stopped = false;
  if (!known("print-after", o->print_after, true) || !known("stop-after", o->stop_after, false) ||
      !known("disable", o->disable, false))
    return false;
  if (o->dump_dir && !vfs_mkdirs(o->dump_dir)) return false;
  Dump d = {o, arena_scratch(), NULL};
  bool ok = run_all(g, &d, &stop);
  arena_free(d.arena);
  if (stopped) *stopped = stop;
  return ok;
}

/* ---- the words of KILN_DEBUG ---- */

typedef struct Word {
  const char *name;
  size_t at; /* of the field in PassOptions */
  bool takes_value;
} Word;

static const Word words[] = {
    {"print-after", offsetof(PassOptions, print_after), true},
    {"stop-after", offsetof(PassOptions, stop_after), true},
    {"disable", offsetof(PassOptions, disable), true},
    {"dump-dir", offsetof(PassOptions, dump_dir), true},
    {"time-passes", offsetof(PassOptions, time_passes), false},
    {"libraries", offsetof(PassOptions, libraries), false},
};
enum { N_WORDS = sizeof words / sizeof *words, MAX_WORDS = 4096 };

/* "disable=a,disable=b" adds up; other words replace. Values live as long as the thread. */
static const char *keep(const char *old, bool join, const char *value, size_t n) {
  static _Thread_local char pool[MAX_WORDS];
  static _Thread_local size_t used;
  size_t had = join && old ? strlen(old) + 1 : 0;
  if (used + had + n + 1 > sizeof pool) used = 0;
  if (had + n + 1 > sizeof pool) return old;
  char *to = pool + used;
  snprintf(to, sizeof pool - used, "%s%s%.*s", had ? old : "", had ? "," : "", (int)n, value);
  used += had + n + 1;
  return to;
}

bool pass_options_parse(PassOptions *o, const char *text) {
  const char *names[N_WORDS];
  for (int i = 0; i < N_WORDS; i++) names[i] = words[i].name;
  while (text && *text) {
    size_t n = strcspn(text, ", "), key = strcspn(text, "=, ");
    int i = 0;
    while (i < N_WORDS && (strlen(names[i]) != key || memcmp(names[i], text, key))) i++;
    if (n && (i == N_WORDS || words[i].takes_value != (key < n))) {
      char word[64];
      snprintf(word, sizeof word, "%.*s", (int)(n < 63 ? n : 63), text);
      err_set(E_ARG_001, "KILN_DEBUG: the word %s is not understood", quoted(word));
      err_help("Words: print-after=PASS|all, stop-after=PASS, disable=PASS, dump-dir=DIR, "
               "time-passes, libraries.");
      return false;
    }
    if (n && words[i].takes_value) {
      const char **field = (const char **)((char *)o + words[i].at);
      *field = keep(*field, !strcmp(names[i], "disable"), text + key + 1, n - key - 1);
    } else if (n)
      *(bool *)((char *)o + words[i].at) = true;
    text += n + (text[n] != 0);
  }
  return true;
}

void pass_options_from_env(PassOptions *o) {
  const char *text = getenv("KILN_DEBUG");
  if (text && !pass_options_parse(o, text)) {
    err_print(stderr, false);
    err_clear();
  }
}
