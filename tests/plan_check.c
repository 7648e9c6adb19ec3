/* plan_check FILE: verifies a memory plan that `kiln compile --plan FILE` wrote. It shares no code with Kiln and knows only
 * the format (passes/planfile.c). It keeps which value every byte of memory holds, runs through the kernels, twice since
 * later runs leave out those whose results are kept, and fails where
 *   - a kernel or the exit reads a value whose bytes hold another one by then, or that nobody has written
 *   - a kernel writes outside its memory or off the alignment, or over what it reads, unless that is one value of the same
 *     place and size, read only where it is written
 *   - two outputs, or an output and the workspace, overlap
 * Peak and lower bound are computed here: the bound is the largest sum of bytes needed at once, where an output may take the
 * place of an input of its size that is read for the last time, only where it is written. Prints them; exit 1 on faults. */
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX = 1 << 18, NAME = 64 };
typedef long long Int;

typedef struct Value {
  int memory, base; /* base: of an alias, else itself; -1: no such value */
  Int at, bytes;
  int made, last; /* kernels: -1 before all; the number of kernels at the exit */
} Value;
typedef struct Access {
  int kernel, value; /* value -1: the workspace */
  bool write, aligned;
  Int at, bytes; /* of the workspace */
} Access;
typedef struct Range { /* what memory holds now */
  int memory, value;
  Int at, end;
} Range;

static Value value[MAX];
static Access *access_, *exit_; /* in the order of the file */
static Range *range;
static char kind[MAX][NAME], name[MAX][NAME]; /* of memories; of kernels */
static Int size[MAX], live[MAX];
static bool constant[MAX]; /* kernels that later runs leave out */
static int n_access, n_exit, n_range, n_kernels, faults;
static Int align = 1, peak, bound;

static void fault(int kernel, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  printf("kernel %d %s: ", kernel, kernel < n_kernels ? name[kernel] : "(exit)");
  vprintf(fmt, ap);
  printf("\n");
  va_end(ap);
  faults++;
}

static Int round_up(Int n) { return (n + align - 1) / align * align; }
static bool meet(Int a, Int a_end, Int b, Int b_end) { return a < b_end && b < a_end; }

/* ---- reading the file ---- */

static void die(int line, const char *text) {
  fprintf(stderr, "line %d is not understood: %s", line, text);
  exit(2);
}

static int known(int id, int line, const char *text) {
  if (id < 0 || id >= MAX || value[id].base < 0) die(line, text);
  return value[id].base;
}

static bool read_line(const char *s, int line, int *kernel) {
  Access a = {.kernel = *kernel};
  Value v = {0};
  char word[NAME] = "", last[NAME] = "";
  int id, other;
  if (s[0] == '#' || s[0] == '\n') return true;
  if (sscanf(s, "plan kernels %d align %lld", &n_kernels, &align) == 2)
    return n_kernels >= 0 && n_kernels < MAX && align > 0;
  if (sscanf(s, "memory %d %63s %lld", &id, word, &v.bytes) == 3 && id >= 0 && id < MAX) {
    strcpy(kind[id], word);
    size[id] = v.bytes;
    return true;
  }
  if (sscanf(s, "value %d memory %d at %lld bytes %lld", &id, &v.memory, &v.at, &v.bytes) == 4) {
    v.base = id;
    v.made = v.last = -1;
    bool ok = id >= 0 && id < MAX && v.memory >= 0 && v.memory < MAX && kind[v.memory][0];
    if (ok) value[id] = v;
    return ok;
  }
  if (sscanf(s, "alias %d of %d", &id, &other) == 2 && id >= 0 && id < MAX) {
    value[id].base = known(other, line, s);
    return true;
  }
  if (sscanf(s, "kernel %d %63s %63s", &id, word, last) >= 2) {
    if (id != *kernel + 1 || id >= n_kernels) return false;
    strcpy(name[id], word);
    constant[id] = !strcmp(last, "constant");
    *kernel = id;
    return true;
  }
  if (sscanf(s, "work at %lld bytes %lld", &a.at, &a.bytes) == 2)
    a.value = -1, a.write = true;
  else if (sscanf(s, "read %d %63s", &id, word) >= 1)
    a.value = known(id, line, s), a.aligned = !strcmp(word, "aligned");
  else if (sscanf(s, "write %d", &id) == 1)
    a.value = known(id, line, s), a.write = true;
  else if (sscanf(s, "copy %d", &id) == 1 || sscanf(s, "keep %d", &id) == 1)
    a.value = known(id, line, s), a.kernel = n_kernels;
  else
    return false;
  if (a.kernel == n_kernels)
    exit_[n_exit++] = a;
  else
    access_[n_access++] = a;
  return a.kernel >= 0 && n_access < MAX && n_exit < MAX;
}

static void read_plan(const char *path) {
  FILE *f = fopen(path, "r");
  char *s = NULL;
  size_t cap = 0;
  int line = 0, kernel = -1;
  for (int i = 0; i < MAX; i++) value[i].base = -1;
  access_ = calloc(MAX, sizeof *access_), exit_ = calloc(MAX, sizeof *exit_);
  range = calloc(2 * MAX, sizeof *range);
  if (!f || !access_ || !exit_ || !range) exit((perror(path), 2));
  while (getline(&s, &cap, f) > 0)
    if (!read_line(s, ++line, &kernel)) die(line, s);
  if (kernel + 1 != n_kernels || !line) die(line, "the end\n");
  free(s);
  fclose(f);
}

/* ---- what memory holds ---- */

static void hold(int memory, int v, Int at, Int bytes) {
  int kept = 0;
  for (int i = 0; i < n_range; i++)
    if (range[i].memory != memory || !meet(range[i].at, range[i].end, at, at + bytes))
      range[kept++] = range[i];
  n_range = kept;
  if (v >= 0) range[n_range++] = (Range){memory, v, at, at + bytes};
}

static void must_hold(int kernel, int v) {
  for (int i = 0; i < n_range; i++)
    if (range[i].value == v) return;
  fault(kernel, "value %d is needed, but its bytes were overwritten or never written", v);
}

/* What memory holds before a run: what is bound, and in later runs what is kept. */
static void begin_run(bool later) {
  n_range = 0;
  for (int i = 0; i < MAX; i++) {
    const Value *v = &value[i];
    bool bound = v->made < 0 && strcmp(kind[v->memory], "arena");
    if (v->base == i && (bound || (later && !strcmp(kind[v->memory], "kept"))))
      range[n_range++] = (Range){v->memory, i, v->at, v->at + v->bytes};
  }
}

/* From when to when values are needed. */
static void find_lives(void) {
  for (int i = 0; i < n_access + n_exit; i++) {
    const Access *a = i < n_access ? &access_[i] : &exit_[i - n_access];
    if (a->value < 0) continue;
    Value *v = &value[a->value];
    if (a->write && v->made >= 0) fault(a->kernel, "value %d is written twice", a->value);
    if (a->write) v->made = a->kernel;
    if (v->last < a->kernel) v->last = a->kernel;
  }
  for (int i = 0; i < MAX; i++) {
    const Value *v = &value[i];
    if (v->base != i) continue;
    for (int k = v->made; k >= 0 && k <= v->last && k < n_kernels; k++)
      if (!strcmp(kind[v->memory], "arena")) live[k] += round_up(v->bytes);
  }
}

/* How accesses a..end-1 read value v: 0 not, 1 only where it is written, 2 elsewhere. */
static int how_read(int a, int end, int v) {
  int how = 0;
  for (; a < end; a++)
    if (!access_[a].write && access_[a].value == v) how = access_[a].aligned && how < 2 ? 1 : 2;
  return how;
}

/* The kernel of accesses begin..end-1 stores to these bytes. */
static void check_store(int begin, int end, int kernel, int v, int memory, Int at, Int bytes) {
  bool arena = !strcmp(kind[memory], "arena");
  if (at < 0 || at % align || at + bytes > size[memory] ||
      (!arena && strcmp(kind[memory], "state") && strcmp(kind[memory], "kept") &&
       strcmp(kind[memory], "local")))
    fault(kernel, "value %d is stored outside its memory, off the alignment or in a constant", v);
  for (int i = begin; i < end; i++) {
    const Value *r = access_[i].value < 0 ? NULL : &value[access_[i].value];
    if (!r || access_[i].write || r->memory != memory ||
        !meet(r->at, r->at + r->bytes, at, at + bytes))
      continue;
    if (v < 0 || r->at != at || r->bytes != bytes || how_read(begin, end, access_[i].value) != 1)
      fault(kernel, "value %d overwrites %d, which the kernel reads", v, access_[i].value);
  }
  if (arena && at + round_up(bytes) > peak) peak = at + round_up(bytes);
}

/* Bytes of outputs that may take the place of an input: pairs of one size. */
static Int shareable(int begin, int end, int kernel) {
  bool *taken = calloc((size_t)(end - begin) + 1, 1);
  Int sum = 0;
  for (int i = begin; i < end; i++) {
    if (!access_[i].write || access_[i].value < 0) continue;
    const Value *w = &value[access_[i].value];
    for (int j = begin; j < end && !strcmp(kind[w->memory], "arena"); j++) {
      int id = access_[j].value;
      if (access_[j].write || taken[j - begin] || value[id].memory != w->memory ||
          value[id].bytes != w->bytes || value[id].last != kernel || how_read(begin, end, id) != 1)
        continue;
      for (int m = begin; m < end; m++) taken[m - begin] |= access_[m].value == id;
      sum += round_up(w->bytes);
      break;
    }
  }
  free(taken);
  return sum;
}

static void run_kernel(int begin, int end, int kernel) {
  Int needed = live[kernel] - shareable(begin, end, kernel);
  for (int i = begin; i < end; i++)
    if (!access_[i].write) must_hold(kernel, access_[i].value);
  for (int i = begin; i < end; i++) {
    const Access *a = &access_[i];
    const Value *w = a->value < 0 ? NULL : &value[a->value];
    if (!a->write) continue;
    int memory = w ? w->memory : 0;
    Int at = w ? w->at : a->at, bytes = w ? w->bytes : a->bytes;
    check_store(begin, end, kernel, a->value, memory, at, bytes);
    hold(memory, a->value, at, bytes);
    if (!w) needed += round_up(bytes);
  }
  for (int i = begin; i < end; i++) /* still there: the stores do not overlap */
    if (access_[i].write && access_[i].value >= 0) must_hold(kernel, access_[i].value);
  if (needed > bound) bound = needed;
}

int main(int argc, char **argv) {
  if (argc != 2) return fprintf(stderr, "usage: plan_check FILE\n"), 2;
  read_plan(argv[1]);
  find_lives();
  for (int later = 0; later < 2; later++) {
    begin_run(later);
    for (int i = 0, end; i < n_access; i = end) {
      for (end = i; end < n_access && access_[end].kernel == access_[i].kernel;) end++;
      if (!later || !constant[access_[i].kernel]) run_kernel(i, end, access_[i].kernel);
    }
    for (int i = 0; i < n_exit; i++) must_hold(n_kernels, exit_[i].value);
  }
  printf("%d kernels, arena %lld, peak %lld, lower bound %lld, ratio %.4f, %d faults\n", n_kernels,
         size[0], peak, bound, bound ? (double)peak / (double)bound : 1.0, faults);
  return faults > 0;
}
