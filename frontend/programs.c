/* Programs as values and files: saving, loading, cloning, pruning, inference models.
 *
 * An inference model is PREFIX.pdmodel, pruned to what the fetches need with `feed` operators in front and `fetch`
 * operators at the end, and PREFIX.pdiparams beside it, as PaddlePaddle saves them. */
#include "internal.h"
#include <string.h>

bool kl_save(const kl_program *p, const char *path) {
  API_GUARD(false);
  return !err_any() && NEED(p) && NEED(path) && prog_save(p, path);
}

kl_program *kl_load(const char *path) {
  API_GUARD(NULL);
  return !err_any() && NEED(path) ? prog_load(path) : NULL;
}

void kl_program_free(kl_program *p) { prog_free(p); }
void kl_free(void *p) { mem_free(p); }

kl_program *kl_clone(const kl_program *p) {
  API_GUARD(NULL);
  return !err_any() && NEED(p) ? prog_clone(p) : NULL;
}

kl_program *kl_clone_for_test(const kl_program *p) {
  API_GUARD(NULL);
  return !err_any() && NEED(p) ? prog_clone_for_test(p) : NULL;
}

char *kl_text(const kl_program *p) {
  if (!p) return NULL;
  API_GUARD(NULL);
  Arena *a = arena_scratch();
  Str s;
  str_init(&s, a);
  prog_print(p, &s);
  char *text = mem_alloc(s.n + 1);
  memcpy(text, s.s, s.n);
  arena_free(a);
  return text;
}

static int list_length(const char *const *names) {
  int n = 0;
  while (names && names[n]) n++;
  return n;
}

bool kl_prune(kl_program *p, const char *const *feeds, const char *const *targets) {
  API_GUARD(false);
  return !err_any() && NEED(p) &&
         prog_prune(p, list_length(feeds), feeds, list_length(targets), targets);
}

bool kl_save_params(kl_exec *exe, const kl_program *p, const char *path) {
  API_GUARD(false);
  return !err_any() && NEED(exe) && NEED(p) && NEED(path) && scope_save_params(exe->scope, p, path);
}

bool kl_load_params(kl_exec *exe, const kl_program *p, const char *path) {
  API_GUARD(false);
  return !err_any() && NEED(exe) && NEED(p) && NEED(path) && scope_load_params(exe->scope, p, path);
}

/* ---- inference models ---- */

/* The second is NULL if one of them cannot be opened. */
static VfsOut *const *open_both(Arena *a, const char *first, const char *second) {
  VfsOut **out = arena_array(a, VfsOut *, 2);
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    vfs_out_close_all(2, out, false);
    mem_rethrow();
  }
  out[0] = vfs_out_open(first);
  if (out[0]) out[1] = vfs_out_open(second);
  mem_unguard(&guard);
  return out;
}

/* Both files of a model, or neither. */
static bool write_model(Arena *a, Scope *s, const Program *p, const char *prefix) {
  uint8_t *model;
  size_t n;
  if (!prog_encode(p, a, &model, &n)) return false;
  VfsOut *const *out =
      open_both(a, arena_fmt(a, "%s.pdmodel", prefix), arena_fmt(a, "%s.pdiparams", prefix));
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    vfs_out_close_all(2, out, false);
    mem_rethrow();
  }
  bool ok = out[1] && vfs_out_add(out[0], model, n) && scope_write_params(s, p, out[1]);
  mem_unguard(&guard);
  return vfs_out_close_all(2, out, ok) && ok;
}

bool kl_save_inference(kl_exec *exe, const kl_program *p, const char *prefix,
                       const char *const *feeds, const char *const *fetches) {
  API_GUARD(false);
  if (err_any() || !NEED(exe) || !NEED(p) || !NEED(prefix)) return false;
  Arena *a = arena_scratch();
  Program *q = prog_clone_for_test(p);
  if (q) arena_unkeep(q->arena);
  bool ok = q && prog_prune(q, list_length(feeds), feeds, list_length(fetches), fetches) &&
            prog_add_ends(q, list_length(feeds), feeds, list_length(fetches), fetches);
  ok = ok && write_model(a, exe->scope, q, prefix);
  prog_free(q);
  arena_free(a);
  return ok;
}

kl_program *kl_load_inference(kl_exec *exe, const char *prefix) {
  API_GUARD(NULL);
  if (err_any() || !NEED(exe) || !NEED(prefix)) return NULL;
  Arena *a = arena_scratch();
  Program *p = prog_load(arena_fmt(a, "%s.pdmodel", prefix));
  if (p) {
    arena_unkeep(p->arena);
    if (scope_load_params(exe->scope, p, arena_fmt(a, "%s.pdiparams", prefix)))
      arena_keep(p->arena);
    else {
      prog_free(p);
      p = NULL;
    }
  }
  arena_free(a);
  return p;
}

/* Names at the ends of a program in column order; returns how many there are. */
static int end_names(const Program *p, const char *type, bool feed, const char **names, int max) {
  if (!p) return 0;
  const Block *b = p->blocks.v[0];
  int n = 0;
  for (int i = 0; i < b->ops.n; i++) {
    const Op *op = b->ops.v[i];
    if (strcmp(op->type, type)) continue;
    int64_t col = op_int(op, "col");
    const char *name = feed ? op_out(op, "Out", 0) : op_in(op, "X", 0);
    if (names && col >= 0 && col < max) names[col] = name;
    n++;
  }
  return n;
}

int kl_feed_names(const kl_program *p, const char **names, int max) {
  return end_names(p, "feed", true, names, max);
}

int kl_fetch_names(const kl_program *p, const char **names, int max) {
  return end_names(p, "fetch", false, names, max);
}
