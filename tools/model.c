/* Models: a program file with its parameters, and what it wants to be fed.
 *
 * In: a path to a program (or its folder). Out: the program, the parameter file found beside it, feeds and fetches. */
#include "tools.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

double wall_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool open_model(Model *m, Program *p, const char *path, const char *params) {
  *m = (Model){.arena = arena_new(), .path = path, .prog = p, .stored = p};
  if (!p) return false;
  m->params = params ? params : values_beside(m->arena, p, p->file ? p->file : path);
  return !err_any();
}

bool model_open(Model *m, const char *path, const char *params) {
  return open_model(m, prog_load(path), path, params);
}

bool model_open_any(Model *m, const char *path, const char *params) {
  return open_model(m, prog_load_any(path), path, params);
}

static bool trains(const Op *op) {
  return (op_role(op) & (ROLE_BACKWARD | ROLE_OPTIMIZE | ROLE_LRSCHED)) != 0;
}

static int training_ops(const Program *p) {
  int n = 0;
  for (int b = 0; b < p->blocks.n; b++)
    for (int i = 0; i < p->blocks.v[b]->ops.n; i++) n += trains(p->blocks.v[b]->ops.v[i]);
  return n;
}

bool model_trains(const Model *m) { return training_ops(m->prog) > 0; }

/* By other operators than those of training? */
static bool computes(const Program *p, const char *name) {
  const Block *b = p->blocks.v[0];
  const Var *v = block_var(b, name);
  bool forward = false;
  for (int i = 0; i < b->ops.n && !forward; i++) {
    const Op *op = b->ops.v[i];
    for (int s = 0; s < op->outs.n && !trains(op); s++)
      for (int k = 0; k < op->outs.v[s].n; k++)
        forward = forward || !strcmp(op->outs.v[s].args[k], name);
  }
  return v && (v->persistable || forward);
}

bool model_for_inference(Model *m, int n, const char *const *fetches) {
  int dropped = training_ops(m->prog);
  if (!dropped) return true;
  Program *p = prog_clone_for_test(m->prog);
  if (!p) return false;
  bool all = true;
  for (int i = 0; i < n; i++) all = all && computes(p, fetches[i]);
  if (!all) return prog_free(p), true;
  fprintf(stderr,
          "note: %s trains; %d operators of its backward pass and updates are left out, the "
          "others behave as in testing\n",
          m->path, dropped);
  m->prog = p;
  return true;
}

void model_close(Model *m) {
  if (m->prog != m->stored) prog_free(m->prog);
  prog_free(m->stored);
  arena_free(m->arena);
}

/* Parameters whose first use is not that an operator writes them, as a startup program does. */
static int unwritten(const Model *m) {
  Var **vars;
  int n = params_list(m->prog, m->arena, &vars), missing = n;
  Map *used = map_new(m->arena);
  const Block *b = m->prog->blocks.v[0];
  for (int i = 0; i < b->ops.n; i++)
    for (int out = 0; out < 2; out++) {
      const SlotVec *slots = out ? &b->ops.v[i]->outs : &b->ops.v[i]->ins;
      for (int s = 0; s < slots->n; s++)
        for (int k = 0; k < slots->v[s].n; k++) {
          const char *name = slots->v[s].args[k];
          const Var *v = map_get(used, name) ? NULL : block_var(b, name);
          for (int j = 0; out && v && j < n; j++) missing -= vars[j] == v;
          map_put(used, name, used);
        }
    }
  return missing;
}

bool model_load_params(const Model *m, Scope *s) {
  if (m->params && scope_load_values(s, m->stored, m->prog, m->params)) return true;
  if (m->params && m->prog != m->stored) { /* or are they those of the program that was cut down? */
    Diag whole = *err_get();
    err_clear();
    if (scope_load_params(s, m->prog, m->params)) return true;
    err_put(&whole);
    return false;
  }
  if (m->params) return false;
  int n = unwritten(m);
  if (!n) return true;
  err_set(E_RUN_001, "the program has %d parameter%s, but no parameter file", n, n == 1 ? "" : "s");
  err_where("%s", m->path);
  err_help("give one with --params FILE");
  return false;
}

/* All that operators of the block read, or write. */
static Map *names_used(Arena *a, const Block *b, bool written) {
  Map *names = map_new(a);
  for (int i = 0; i < b->ops.n; i++) {
    const SlotVec *slots = written ? &b->ops.v[i]->outs : &b->ops.v[i]->ins;
    for (int s = 0; s < slots->n; s++)
      for (int k = 0; k < slots->v[s].n; k++) map_put(names, slots->v[s].args[k], names);
  }
  return names;
}

int model_feeds(const Model *m, Var ***vars) {
  const Block *b = m->prog->blocks.v[0];
  int n = kl_feed_names(m->prog, NULL, 0);
  *vars = arena_array(m->arena, Var *, b->vars.n + n + 1);
  if (n > 0) {
    const char **names = arena_array(m->arena, const char *, n);
    int k = 0;
    kl_feed_names(m->prog, names, n);
    for (int i = 0; i < n; i++)
      if (names[i] && block_var(b, names[i])) (*vars)[k++] = block_var(b, names[i]);
    return k;
  }
  Map *read = names_used(m->arena, b, false), *written = names_used(m->arena, b, true);
  for (int i = 0; i < b->vars.n; i++) {
    Var *v = b->vars.v[i];
    if (v->kind == VK_TENSOR && !v->persistable && v->dtype != DT_NONE && map_get(read, v->name) &&
        !map_get(written, v->name))
      (*vars)[n++] = v;
  }
  return n;
}

/* Results of an operator that are no state. */
static int op_results(const Model *m, const Op *op, const char ***names) {
  int n = 0;
  for (int s = 0; s < op->outs.n; s++) n += op->outs.v[s].n;
  *names = arena_array(m->arena, const char *, n + 1);
  n = 0;
  for (int s = 0; s < op->outs.n; s++)
    for (int k = 0; k < op->outs.v[s].n; k++) {
      const Var *v = block_var(op->block, op->outs.v[s].args[k]);
      if (v && v->kind == VK_TENSOR && !v->persistable) (*names)[n++] = v->name;
    }
  return n;
}

int model_fetches(const Model *m, const char ***names) {
  const Block *b = m->prog->blocks.v[0];
  int n = kl_fetch_names(m->prog, NULL, 0);
  *names = arena_array(m->arena, const char *, n + 1);
  if (n > 0) return kl_fetch_names(m->prog, *names, n);
  for (int i = b->ops.n - 1; i >= 0 && !n; i--) n = op_results(m, b->ops.v[i], names);
  return n;
}

static bool has_inputs(const Map *known, const Op *op) {
  for (int s = 0; s < op->ins.n; s++)
    for (int k = 0; k < op->ins.v[s].n; k++) {
      const char *name = op->ins.v[s].args[k];
      const Var *v = block_find_var(op->block, name);
      if (strcmp(name, "@EMPTY@") && !(v && v->persistable) && !map_get(known, name)) return false;
    }
  return true;
}

int model_reached(const Model *m, int n_feeds, const Feed *feeds, const char ***names) {
  const Block *b = m->prog->blocks.v[0];
  int n = model_fetches(m, names);
  if (kl_fetch_names(m->prog, NULL, 0) > 0) return n;
  Map *known = map_new(m->arena);
  for (int i = 0; i < n_feeds; i++) map_put(known, feeds[i].name, known);
  for (int i = 0; i < b->ops.n; i++) {
    const Op *op = b->ops.v[i];
    if (!has_inputs(known, op)) continue;
    const char **results;
    int k = op_results(m, op, &results);
    for (int j = 0; j < k; j++) map_put(known, results[j], known);
    if (!k) continue;
    n = k;
    *names = results;
  }
  return n;
}

int model_outputs(const Model *m, const char ***names) {
  const Block *b = m->prog->blocks.v[0];
  return block_results(b, 0, b->ops.n, NULL, m->arena, names);
}

void split_names(Arena *a, const char *text, int *n, const char ***names) {
  int max = 1;
  for (const char *c = text; c && *c; c++) max += *c == ',';
  *n = 0;
  *names = arena_array(a, const char *, max);
  while (text && *text) {
    const char *comma = strchr(text, ',');
    size_t len = comma ? (size_t)(comma - text) : strlen(text);
    if (len) (*names)[(*n)++] = arena_strn(a, text, len);
    text += len + (comma != NULL);
  }
}

static bool parse_shape(const char *text, Tensor *t) {
  t->rank = 0;
  for (const char *p = text;;) {
    char *end;
    errno = 0;
    int64_t d = strtoll(p, &end, 10);
    if (end == p || d < 0 || errno || t->rank == KL_VAR_RANK) break;
    t->dims[t->rank++] = d;
    if (!*end) return true;
    if (*end != 'x') break;
    p = end + 1;
  }
  err_set(E_ARG_001, "%s is no shape", quoted(text));
  err_help("write at most %d dims with x between, as in --feed-shape image=8x3x224x224",
           KL_VAR_RANK);
  return false;
}

/* A batch is one size: where the shapes that are given begin alike, so do those of the other inputs of any first dimension. */
static void share_batch(int n, Feed *feeds, Var *const *vars, const bool *given) {
  int64_t batch = -1;
  bool same = true;
  for (int i = 0; i < n; i++) {
    if (!given[i] || !vars[i]->rank || vars[i]->dims[0] >= 0 || !feeds[i].value->rank) continue;
    same = same && (batch < 0 || batch == feeds[i].value->dims[0]);
    batch = feeds[i].value->dims[0];
  }
  for (int i = 0; same && batch >= 0 && i < n; i++)
    if (!given[i] && vars[i]->rank && vars[i]->dims[0] < 0)
      ((Tensor *)feeds[i].value)->dims[0] = batch;
}

bool model_feed_shapes(const Model *m, const List *shapes, int *n, Feed **feeds) {
  Var **vars;
  *n = model_feeds(m, &vars);
  *feeds = arena_array(m->arena, Feed, *n + 1);
  bool *given = arena_array(m->arena, bool, *n + 1);
  for (int i = 0; i < *n; i++) {
    Tensor *t = arena_new_of(m->arena, Tensor);
    t->dtype = vars[i]->dtype;
    t->rank = vars[i]->rank;
    for (int d = 0; d < t->rank; d++) t->dims[d] = vars[i]->dims[d] < 0 ? 1 : vars[i]->dims[d];
    (*feeds)[i] = (Feed){vars[i]->name, t};
  }
  for (int s = 0; s < shapes->n; s++) {
    const char *eq = strchr(shapes->v[s], '=');
    int i = 0;
    while (i < *n && (!eq || strlen((*feeds)[i].name) != (size_t)(eq - shapes->v[s]) ||
                      strncmp((*feeds)[i].name, shapes->v[s], (size_t)(eq - shapes->v[s]))))
      i++;
    if (i == *n) {
      err_set(E_ARG_001, "--feed-shape %s names no input of the program", quoted(shapes->v[s]));
      for (int j = 0; j < *n; j++)
        err_note("input %s %s", quoted(vars[j]->name),
                 shape_text(vars[j]->dtype, vars[j]->rank, vars[j]->dims));
      return false;
    }
    if (!parse_shape(eq + 1, (Tensor *)(*feeds)[i].value)) return false;
    given[i] = true;
  }
  share_batch(*n, *feeds, vars, given);
  return true;
}

void fill_random(Tensor *t, uint64_t seed) {
  int64_t n = tensor_numel(t);
  for (int64_t i = 0; i < n; i += 4) {
    uint32_t out[4];
    philox((uint32_t[4]){(uint32_t)(i / 4), (uint32_t)((i / 4) >> 32), 0, 0},
           (uint32_t[2]){(uint32_t)seed, (uint32_t)(seed >> 32)}, out);
    for (int64_t j = i; t->dtype == DT_FLOAT32 && j < i + 4 && j < n; j++)
      ((float *)t->data)[j] = (float)(out[j - i] * 0x1p-31 - 1);
    for (int64_t j = i; t->dtype != DT_FLOAT32 && j < i + 4 && j < n; j++)
      tensor_set(t, j, dtype_is_float(t->dtype) ? out[j - i] * 0x1p-31 - 1 : out[j - i] >> 31);
  }
}
