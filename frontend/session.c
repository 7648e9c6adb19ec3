/* Running: executors with their scope, runs, and the values in a scope.
 *
 * In: programs, feeds and where to put what is fetched. Out: values. A thin layer over executor.h. */
#include "internal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

kl_tensor kl_tensor_over(kl_dtype dtype, void *data, int rank, const int64_t *dims) {
  kl_tensor t = {.dtype = dtype, .rank = rank, .data = data};
  if (rank < 0 || rank > KL_VAR_RANK) {
    err_set(E_SHP_002, "a tensor of rank %d: at most %d dimensions are possible", rank,
            KL_VAR_RANK);
    return (kl_tensor){.dtype = dtype};
  }
  if (rank) memcpy(t.dims, dims, sizeof *dims * (size_t)rank);
  return t;
}

int64_t kl_numel(const kl_tensor *t) { return t ? tensor_numel(as_tensor(t)) : 0; }

void kl_tensor_free(kl_tensor *t) {
  if (!t) return;
  mem_free(t->data);
  t->data = NULL;
}

/* ---- errors ---- */

bool kl_failed(void) { return err_any(); }
void kl_clear_error(void) { err_clear(); }
const char *kl_version(void) { return KILN_VERSION; }

const char *kl_error_code(void) {
  const Diag *d = err_get();
  return d ? err_name(d->code) : "";
}

const char *kl_error(void) {
  static _Thread_local char text[4096];
  text[0] = 0;
  FILE *f = err_any() ? fmemopen(text, sizeof text, "w") : NULL;
  if (f) {
    err_print(f, false);
    fclose(f);
  }
  text[sizeof text - 1] = 0;
  return text;
}

/* ---- executors ---- */

kl_scope *kl_scope_new(void) {
  API_GUARD(NULL);
  return scope_new();
}

void kl_scope_free(kl_scope *s) { scope_free(s); }

kl_exec *kl_exec_new(kl_exec_options o) {
  ExecOptions e = {.threads = o.threads,
                   .device = o.device,
                   .math = o.math,
                   .interpret = o.interpret,
                   .check_nan = o.check_nan,
                   .profile = o.profile,
                   .memory_budget = o.memory_budget,
                   .conv_error = o.conv_error,
                   .deterministic = o.deterministic,
                   .tune = o.tune,
                   .max_steps = o.max_steps,
                   .trace = o.trace,
                   .seed = o.seed};
  API_GUARD(NULL);
  kl_exec *x = mem_alloc(sizeof *x);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    kl_exec_free(x);
    mem_rethrow();
  }
  x->scope = o.scope ? o.scope : scope_new();
  x->owns_scope = !o.scope;
  x->run = exec_new(&e);
  mem_unguard(&guard);
  if (x->run) return x;
  kl_exec_free(x);
  return NULL;
}

void kl_exec_free(kl_exec *exe) {
  if (!exe) return;
  exec_free(exe->run);
  if (exe->owns_scope) scope_free(exe->scope);
  mem_free(exe);
}

kl_scope *kl_exec_scope(kl_exec *exe) { return exe ? exe->scope : NULL; }

void kl_print_profile(kl_exec *exe) {
  API_GUARD();
  if (!exe) return;
  exec_profile_print(exe->run, NULL, stdout, false);
}

bool kl_run(kl_exec *exe, const kl_program *p, const kl_feed *feeds, const kl_fetch *fetches) {
  API_GUARD(false);
  if (err_any()) return false;
  if (!exe || !p)
    return err_set(E_ARG_002, "kl_run needs an executor and a program; one of them is NULL");
  int n_feeds = 0, n_fetch = 0;
  while (feeds && feeds[n_feeds].name) n_feeds++;
  while (fetches && fetches[n_fetch].name) n_fetch++;
  enum { FEW = 8 };
  Feed few_in[FEW], *in = few_in;
  const char *few_names[FEW], **names = few_names;
  Tensor few_out[FEW], *out = few_out;
  Arena *a = n_feeds > FEW || n_fetch > FEW ? arena_scratch() : NULL;
  if (a) {
    in = arena_array(a, Feed, n_feeds + 1);
    names = arena_array(a, const char *, n_fetch + 1);
    out = arena_array(a, Tensor, n_fetch + 1);
  }
  bool ok = true;
  for (int i = 0; i < n_feeds; i++) in[i] = (Feed){feeds[i].name, as_tensor(feeds[i].value)};
  for (int i = 0; i < n_fetch && ok; i++) {
    names[i] = fetches[i].name;
    if (!fetches[i].to)
      ok = err_set(E_ARG_002, "fetch %s has nowhere to go", quoted(names[i]));
    else
      out[i] = *as_tensor(fetches[i].to);
  }
  ok = ok && exec_run(exe->run, exe->scope, p, n_feeds, in, n_fetch, names, out);
  for (int i = 0; i < n_fetch && ok; i++) *as_tensor(fetches[i].to) = out[i];
  arena_free(a);
  return ok;
}

const kl_tensor *kl_get(kl_exec *exe, const char *name) {
  API_GUARD(NULL);
  return exe && name ? (const kl_tensor *)scope_get(exe->scope, name) : NULL;
}

/* A tensor that the caller describes: type, rank and dimensions are in range, and there is data. */
static bool is_tensor(const char *name, const kl_tensor *t) {
  bool ok =
      (int)t->dtype >= KL_BOOL && t->dtype <= KL_FLOAT64 && t->rank >= 0 && t->rank <= KL_VAR_RANK;
  for (int i = 0; ok && i < t->rank; i++) ok = t->dims[i] >= 0;
  if (!ok)
    return err_set(E_ARG_002, "the value for %s has no element type, or no dimensions",
                   quoted(name));
  return t->data || !kl_numel(t) ||
         err_set(E_ARG_002, "the value for %s has no data", quoted(name));
}

bool kl_set(kl_exec *exe, const char *name, const kl_tensor *value) {
  API_GUARD(false);
  if (err_any() || !NEED(exe) || !NEED(name) || !NEED(value) || !is_tensor(name, value))
    return false;
  const Tensor *t = as_tensor(value);
  return scope_set(exe->scope, name, t->dtype, t->rank, t->dims, t->data) != NULL;
}

bool kl_set_rate(kl_exec *exe, const kl_var *rate, double value) {
  if (err_any() || !NEED(exe)) return false;
  if (!rate) return err_set(E_ARG_002, "kl_set_rate: the learning-rate variable is NULL");
  Tensor *t = scope_edit(exe->scope, rate->name);
  if (!t) return err_set(E_RUN_001, "%s has no value: run the startup program first", rate->name);
  if (!isfinite(value))
    return err_set(E_ARG_002, "kl_set_rate: %g is no learning rate for %s", value,
                   quoted(rate->name));
  tensor_set(t, 0, value);
  return true;
}

bool kl_checkpoint(kl_exec *exe, const kl_program *p, const char *folder, const char *note) {
  API_GUARD(false);
  return !err_any() && NEED(exe) && NEED(p) && NEED(folder) &&
         checkpoint_save(folder, exe->scope, p, exec_step(exe->run), exec_options(exe->run)->seed,
                         note);
}

int64_t kl_resume(kl_exec *exe, const kl_program *p, const char *folder) {
  API_GUARD(-1);
  if (err_any() || !NEED(exe) || !NEED(p) || !NEED(folder)) return -1;
  Arena *a = arena_scratch();
  uint64_t step, seed;
  char *note;
  bool ok = checkpoint_load(folder, exe->scope, p, &step, &seed, &note, a);
  arena_free(a);
  if (!ok) return -1;
  exec_set_step(exe->run, step);
  exec_options(exe->run)->seed = seed;
  return (int64_t)step;
}
