/* Expansion: a Program's operators become primitives. The same code run on a `shapes_only` Graph is
 * the shape inference.
 *
 * In: operators with their rows of ops.def, an environment from variable names to Nodes. Out: Nodes
 * appended to a Graph, the environment extended by the operator's outputs.
 * A row's expansion is a formula (formula.c) or a function x_...(ops/); a gradient operator without
 * either is derived (expand_grad.c). One-element results are [1] in PaddlePaddle before 2.5 and []
 * since: the declaration decides. */
#include "ir.h"

#include <string.h>

/* ---- for expansion functions ---- */

Node *x_in_at(Expand *x, const char *slot, int i) {
  const char *name = op_in(x->op, slot, i);
  if (!name) return NULL;
  Node *n = map_get(x->env, name);
  if (n) return n;
  n = x->missing ? x->missing(x, name) : NULL;
  if (n)
    map_put(x->env, name, n);
  else if (!err_any())
    err_set(E_VER_002, "variable %s has no value yet", quoted(name));
  return n;
}

Node *x_in(Expand *x, const char *slot) { return x_in_at(x, slot, 0); }

int x_n_in(Expand *x, const char *slot) {
  const Slot *s = op_ins(x->op, slot);
  return s ? s->n : 0;
}

int x_n_out(Expand *x, const char *slot) {
  const Slot *s = op_outs(x->op, slot);
  return s ? s->n : 0;
}

bool x_wants(Expand *x, const char *slot) {
  for (int i = 0; i < x_n_out(x, slot); i++)
    if (op_out(x->op, slot, i)) return true;
  return false;
}

/* Are these both one-element shapes of rank 0 or 1, in different ranks? */
static bool loose_pair(int ra, const int64_t *da, int rb, const int64_t *db) {
  return ra + rb == 1 && (ra ? da[0] : db[0]) == 1;
}

static const char *without_end(Graph *g, const char *slot, const char *end) {
  size_t n = strlen(slot), k = strlen(end);
  return n > k && strcmp(slot + n - k, end) == 0 ? arena_strn(g->arena, slot, n - k) : NULL;
}

/* The input slot whose shapes the output slot has: X of X@GRAD, and of an optimiser's XOut; or NULL. */
static const char *shape_base(Expand *x, const char *slot) {
  const char *base = without_end(x->g, slot, "@GRAD");
  bool updates = x->op->def && (x->op->def->flags & OF_OPTIMIZER);
  return base || !updates ? base : without_end(x->g, slot, "Out");
}

/* The axes of `n` along which `of` was repeated to its shape; 0: it was not. */
static uint32_t repeated_axes(const Node *n, const Node *of) {
  uint32_t axes = 0;
  int more = n->rank - of->rank;
  if (more < 0) return 0;
  for (int d = 0; d < n->rank; d++) {
    int64_t was = d < more ? 1 : of->dims[d - more];
    if (was == n->dims[d]) continue;
    if (was != 1) return 0;
    axes |= 1u << d;
  }
  return axes;
}

/* n in the shape of `of`: the gradient of what was repeated is the sum. */
static Node *fit_shape(Expand *x, const char *slot, Node *n, const char *base, const Node *of) {
  if (node_numel(n) < 0 || node_numel(of) < 0 || node_same_shape(of, n)) return n;
  uint32_t axes = strchr(slot, '@') ? repeated_axes(n, of) : 0;
  if (axes) n = g_reduce(x->g, P_RSUM, n, axes, true);
  if (!n || node_numel(n) == node_numel(of)) return n ? g_reshape(x->g, n, of->rank, of->dims) : n;
  err_set(E_SHP_006, "%s would be %s, but %s is %s", slot, dims_text(n->rank, n->dims), base,
          dims_text(of->rank, of->dims));
  return NULL;
}

static Node *fit_output(Expand *x, const char *slot, int i, const char *name, Node *n) {
  const char *base = shape_base(x, slot);
  if (base && op_in(x->op, base, i)) {
    Node *of = x_in_at(x, base, i);
    if (!of || !node_same_shape(of, n)) return of ? fit_shape(x, slot, n, base, of) : NULL;
  }
  Var *v = x->op->block ? block_find_var(x->op->block, name) : NULL;
  if (v && v->dtype != DT_NONE && v->rank >= 0 && loose_pair(v->rank, v->dims, n->rank, n->dims))
    return g_reshape(x->g, n, v->rank, v->dims);
  return n;
}

/* ---- sequences ---- */

const char *lod_base(const char *name, Arena *a) {
  size_t n = strlen(name), k = strlen(LOD_SUFFIX);
  return n > k && !strcmp(name + n - k, LOD_SUFFIX) ? arena_strn(a, name, n - k) : NULL;
}

const Lod lod_none = {0};

const char *lod_name(Arena *a, const char *name, int depth) {
  Str s;
  str_init(&s, a);
  str_add(&s, name);
  for (int i = 0; i <= depth; i++) str_add(&s, LOD_SUFFIX);
  return s.s;
}

bool lod_fits(const Tensor *t, int64_t rows) {
  int64_t n = tensor_numel(t);
  const int64_t *v = t->data;
  bool ok = t->dtype == DT_INT64 && t->rank == 1 && n > 0 && v[0] == 0 && v[n - 1] == rows;
  for (int64_t i = 1; ok && i < n; i++) ok = v[i - 1] <= v[i];
  return ok;
}

/* Those of the first input with as many rows as the result. */
static const Lod *inherited(Expand *x, const Node *n) {
  for (int s = 0; n->rank > 0 && s < x->op->ins.n; s++)
    for (int i = 0; i < x->op->ins.v[s].n; i++) {
      const Node *in = map_get(x->env, x->op->ins.v[s].args[i]);
      if (in && in->lod && in->lod->offset[in->lod->n] == n->dims[0]) return in->lod;
    }
  return NULL;
}

const Lod *lod_read(Graph *g, const Lod *lod) {
  if (lod && lod->from) {
    if (!g->lods_read) g->lods_read = map_new(g->arena);
    map_put(g->lods_read, lod->from, (void *)(uintptr_t)lod);
  }
  return lod;
}

const Lod *x_lod(Expand *x, const char *slot, int i) {
  Node *n = x_in_at(x, slot, i);
  if (!n || x->g->shapes_only || n->lod)
    return n && !x->g->shapes_only ? lod_read(x->g, n->lod) : NULL;
  err_set(E_DAT_001, "%s %s has no sequences", slot, quoted(op_in(x->op, slot, i)));
  err_help("Feed their offsets, 0 first, as NAME" LOD_SUFFIX
           " beside the input NAME that they come from.");
  return NULL;
}

static bool put_output(Expand *x, const char *slot, int i, Node *n, const Lod *lod) {
  if (!n) return false;
  const char *name = op_out(x->op, slot, i);
  if (!name) return true;
  n = fit_output(x, slot, i, name, n);
  if (n && !lod) lod = inherited(x, n);
  if (n && lod && n->lod && n->lod != lod) n = g_alias(x->g, n);
  if (!n) return false;
  if (lod) n->lod = lod == &lod_none ? NULL : lod;
  map_put(x->env, name, n);
  return true;
}

bool x_out_at(Expand *x, const char *slot, int i, Node *n) {
  return put_output(x, slot, i, n, NULL);
}

bool x_out_lod(Expand *x, const char *slot, Node *n, const Lod *lod) {
  return put_output(x, slot, 0, n, lod);
}

bool x_out(Expand *x, const char *slot, Node *n) { return x_out_at(x, slot, 0, n); }

/* The operator's first output, in the order of its signature. */
static const char *first_output(const Op *op) {
  for (int s = 0; op->def && s < op->def->n_outs; s++) {
    const Slot *o = op_outs(op, op->def->outs[s].name);
    for (int i = 0; o && i < o->n; i++)
      if (op_out(op, o->name, i)) return o->args[i];
  }
  return "";
}

int64_t stream_of(const char *name, int k) {
  uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
  for (const char *c = name; *c; c++) h = (h ^ (uint8_t)*c) * 0x100000001b3u;
  h = (h ^ (uint8_t)k) * 0x100000001b3u;
  return (int64_t)h;
}

int64_t x_stream(Expand *x, int k) { return stream_of(first_output(x->op), k); }

/* ---- operators ---- */

/* Adds the operator's inputs with their shapes and producers to the error. */
static void note_inputs(Expand *x) {
  const Op *op = x->op;
  int shown = 0, at = op_index(op);
  for (int s = 0; s < op->ins.n; s++)
    for (int i = 0; i < op->ins.v[s].n && shown < 8; i++) {
      const char *name = op->ins.v[s].args[i];
      const Var *v = block_find_var(op->block, name);
      Node *n = map_get(x->env, name);
      const Op *from = NULL;
      for (int k = at - 1; k >= 0 && !from; k--)
        for (int o = 0; o < op->block->ops.v[k]->outs.n && !from; o++)
          for (int j = 0; j < op->block->ops.v[k]->outs.v[o].n; j++)
            if (strcmp(op->block->ops.v[k]->outs.v[o].args[j], name) == 0)
              from = op->block->ops.v[k];
      const char *shape = n   ? shape_text(n->dtype, n->rank, n->dims)
                          : v ? shape_text(v->dtype, v->rank < 0 ? 0 : v->rank, v->dims)
                              : "?";
      if (from)
        err_note("%s  %s  %s   <- %s", op->ins.v[s].name, quoted(name), shape, op_text(from));
      else
        err_note("%s  %s  %s%s", op->ins.v[s].name, quoted(name), shape,
                 v && v->is_parameter  ? "   parameter"
                 : v && v->persistable ? "   persistable"
                                       : "");
      shown++;
    }
}

static bool expand_with_row(Expand *x, const OpDef *def) {
  if ((def->flags & OF_HOST) && !x->g->shapes_only) {
    err_set(E_OPR_006, "%s runs between parts that are compiled", quoted(def->name));
    err_help("Programs with control flow run as they are, but not as one graph.");
    return false;
  }
  if (def->formula) return formula_expand(x, def->formula);
  if (def->expand) return def->expand(x);
  if (def->forward) return expand_gradient(x);
  return err_set(E_OPR_004, "operator %s cannot be run", quoted(def->name));
}

/* The input of the operator that the unknown node is, or is made from by views. */
static const char *unknown_input(Expand *x, const Op *op) {
  for (Node *n = x->g->unknown; n; n = n->n_in ? n->in[0] : NULL)
    for (int s = 0; s < op->ins.n; s++)
      for (int i = 0; i < op->ins.v[s].n; i++)
        if (map_get(x->env, op->ins.v[s].args[i]) == n) return op->ins.v[s].args[i];
  return NULL;
}

/* An input passed for optional, as all of a gradient operator's may be, was needed after all. */
static bool needs_more(const Op *op) {
  err_set(E_OPR_002, "operator `%s` lacks an input that it needs", op->type);
  for (int i = 0; i < op->def->n_ins; i++)
    if (!op_in(op, op->def->ins[i].name, 0)) err_note("%s is not connected", op->def->ins[i].name);
  return false;
}

bool expand_op(Expand *x, const Op *op) {
  const Op *outer = x->op;
  x->op = op;
  if (op->block) graph_set_op(x->g, op);
  bool ok;
  bool declared = false;
  const Op *given = op->def && op_has_given(op) ? op_with_constants(x, &declared) : op;
  if (given) x->op = given;
  if (op->def)
    ok = declared || (given && op_numbers_fit(given) && expand_with_row(x, op->def));
  else {
    ok = err_set(E_OPR_001, "unknown operator %s", quoted(op->type));
    const char *near = opdef_nearest(op->type);
    if (near) err_help("Did you mean `%s`?", near);
  }
  if (ok && err_any()) ok = false;
  if (!ok && !err_any()) needs_more(op);
  if (!ok && op->block) {
    if (x->g->unknown) x->g->wanted = (Wanted){op, unknown_input(x, op)};
    note_inputs(x);
    const char *out = first_output(op);
    if (*out)
      err_where("block %d, %s -> %s", op->block->idx, op_text(op), quoted(out));
    else
      err_where("block %d, %s", op->block->idx, op_text(op));
  }
  x->op = outer;
  return ok;
}

/* ---- programs ---- */

typedef struct Sources {
  const ExpandRequest *r;
  Map *fed, *written;
} Sources;

/* All levels of a variable's sequences; false: error set. */
static bool source_lod(Graph *g, const ExpandRequest *r, const char *name, int64_t rows,
                       const Lod **to) {
  for (int depth = 0; r->known && depth < PARAMS_LEVELS; depth++) {
    const char *from = lod_name(g->arena, name, depth);
    const Tensor *t = r->known(r->user, from);
    if (!t) return true;
    if (!lod_fits(t, rows)) {
      err_set(E_DAT_001, "%s is not the offsets of sequences of %lld %s", quoted(from),
              (long long)rows, depth ? "sequences" : "rows");
      err_help("They start with 0, do not decrease, and end with that number.");
      return false;
    }
    Lod *lod = arena_new_of(g->arena, Lod);
    rows = tensor_numel(t) - 1;
    *lod = (Lod){rows, arena_dup(g->arena, t->data, tensor_bytes(t)), NULL, from};
    *to = lod;
    to = &lod->up;
  }
  return true;
}

/* The offsets of a variable's sequences, fetched as NAME@LOD; NULL if it has none. */
static Node *lod_node(Expand *x, const char *name) {
  const char *base = lod_base(name, x->g->arena), *next;
  int depth = 0;
  for (; base && (next = lod_base(base, x->g->arena)); base = next) depth++;
  const Node *of = base ? map_get(x->env, base) : NULL;
  const Lod *lod = of ? of->lod : NULL;
  while (lod && depth--) lod = lod->up;
  if (!lod_read(x->g, lod)) return NULL;
  int64_t n = lod->n + 1;
  return g_data(x->g, DT_INT64, 1, &n, lod->offset, name);
}

static Node *source_node(Expand *x, const char *name) {
  Sources *s = x->user;
  const ExpandRequest *r = s->r;
  const Var *v = block_find_var(r->section.block, name);
  if (!v) {
    err_set(E_VER_001, "variable %s is not declared", quoted(name));
    return NULL;
  }
  bool fed = !v->persistable;
  const Tensor *known = fed && r->known ? r->known(r->user, name) : NULL;
  if (known) return g_data(x->g, known->dtype, known->rank, known->dims, known->data, name);
  if (fed && !map_get(s->fed, name) && map_get(s->written, name)) {
    err_set(E_VER_002, "variable %s is read before an operator has written it", quoted(name));
    return NULL;
  }
  DType t = v->dtype;
  int rank = v->rank;
  int64_t dims[KL_RANK];
  memcpy(dims, v->dims, sizeof v->dims);
  if (r->dims_of) {
    if (!r->dims_of(r->user, v, fed, &t, &rank, dims)) return NULL;
  } else if (t == DT_NONE || rank < 0) {
    err_set(E_VER_003, "variable %s is declared without element type or dimensions", quoted(name));
    return NULL;
  }
  Node *n = fed ? g_feed(x->g, name, t, rank, dims) : g_state(x->g, name, t, rank, dims);
  return n && n->rank > 0 && !source_lod(x->g, r, name, n->dims[0], &n->lod) ? NULL : n;
}

static void each_output(const Op *op, void (*f)(void *user, const Op *op, const char *name),
                        void *user) {
  for (int s = 0; s < op->outs.n; s++)
    for (int i = 0; i < op->outs.v[s].n; i++)
      if (op_out(op, op->outs.v[s].name, i)) f(user, op, op->outs.v[s].args[i]);
}

static void note_written(void *user, const Op *op, const char *name) {
  Sources *s = user;
  bool io = op->def && (op->def->flags & OF_IO);
  map_put(io ? s->fed : s->written, name, s);
}

static void note_state_write(void *user, const Op *op, const char *name) {
  Expand *x = user;
  Graph *g = x->g;
  const Var *v = block_find_var(op->block, name);
  Node *n = map_get(x->env, name);
  if (!v || !v->persistable || !n || (op->def && (op->def->flags & OF_IO))) return;
  if (n->prim == P_STATE && strcmp(n->s, name) == 0) return;
  for (int i = 0; i < g->writes.n; i++)
    if (strcmp(g->writes.v[i].name, name) == 0) return;
  NamedNode w = {arena_str(g->arena, name), n, NULL};
  vec_add(g->arena, &g->writes, w);
}

static bool fetch_nodes(Expand *x, int n, const char *const *fetches) {
  x->g->fetch_lods = arena_array(x->g->arena, const Lod *, n + 1);
  for (int i = 0; i < n; i++) {
    Sources *s = x->user;
    Node *v = map_get(x->env, fetches[i]);
    if (!v) v = lod_node(x, fetches[i]);
    if (!v) {
      if (!block_find_var(s->r->section.block, fetches[i])) {
        err_set(E_RUN_002, "fetch %s is not in the program", quoted(fetches[i]));
        block_suggest(s->r->section.block, fetches[i]);
        return false;
      }
      if (map_get(s->written, fetches[i]))
        return err_set(E_RUN_002, "fetch %s is not computed by its operator", quoted(fetches[i]));
      v = source_node(x, fetches[i]);
      if (!v) return false;
      map_put(x->env, fetches[i], v);
    }
    NamedNode f = {arena_str(x->g->arena, fetches[i]), v, NULL};
    vec_add(x->g->arena, &x->g->fetches, f);
    x->g->fetch_lods[i] = v->lod;
  }
  return true;
}

/* ---- operators that want a feed which is absent ---- */

static bool lacks_input(const Op *op, const Map *given, const Map *made) {
  for (int s = 0; s < op->ins.n; s++)
    for (int i = 0; i < op->ins.v[s].n; i++) {
      const char *name = op_in(op, op->ins.v[s].name, i);
      const Var *v = name ? block_find_var(op->block, name) : NULL;
      if (v && !v->persistable && !map_get(given, name) && !map_get(made, name)) return true;
    }
  return false;
}

bool op_is_needed(const Op *op, const Map *needed) {
  if (op->def && (op->def->flags & OF_EFFECT)) return true;
  for (int s = 0; s < op->outs.n; s++)
    for (int i = 0; i < op->outs.v[s].n; i++) {
      const char *name = op_out(op, op->outs.v[s].name, i);
      const Var *v = name ? block_find_var(op->block, name) : NULL;
      if (name && ((v && v->persistable) || map_get(needed, name))) return true;
    }
  return false;
}

bool *ops_left_out(const Block *b, Arena *a, int n_feeds, const char *const *feeds, int n_fetch,
                   const char *const *fetches) {
  bool *out = arena_array(a, bool, b->ops.n + 1);
  Map *given = map_new(a), *made = map_new(a), *needed = map_new(a);
  for (int i = 0; i < n_feeds; i++) map_put(given, feeds[i], given);
  for (int i = 0; i < n_fetch; i++) map_put(needed, fetches[i], needed);
  for (int i = 0; i < b->ops.n; i++) {
    const Op *op = b->ops.v[i];
    out[i] = (op->def && (op->def->flags & OF_IO)) || lacks_input(op, given, made);
    for (int s = 0; s < op->outs.n && !out[i]; s++)
      for (int k = 0; k < op->outs.v[s].n; k++) map_put(made, op->outs.v[s].args[k], made);
  }
  for (int i = b->ops.n - 1; i >= 0; i--) {
    const Op *op = b->ops.v[i];
    if ((op->def && (op->def->flags & OF_IO)) || !op_is_needed(op, needed)) continue;
    out[i] = false;
    for (int s = 0; s < op->ins.n; s++)
      for (int k = 0; k < op->ins.v[s].n; k++) map_put(needed, op->ins.v[s].args[k], needed);
  }
  return out;
}

static bool expand_ops(Expand *x, const ExpandRequest *r) {
  const bool *skip = r->section.skip;
  for (int i = r->section.from; i < r->section.to; i++)
    if (!(skip && skip[i]) && !expand_op(x, r->section.block->ops.v[i])) return false;
  graph_set_op(x->g, NULL);
  return fetch_nodes(x, r->n_fetch, r->fetches);
}

Graph *expand_section(const ExpandRequest *r) {
  const Block *b = r->section.block;
  const Program *p = b->prog;
  Graph *g = graph_new(p, false);
  Sources s = {r, map_new(g->arena), map_new(g->arena)};
  Expand x = {g, NULL, map_new(g->arena), source_node, &s};
  for (int i = 0; i < r->n_feeds; i++) map_put(s.fed, r->feeds[i], &s);
  for (int i = r->section.from; i < r->section.to; i++) each_output(b->ops.v[i], note_written, &s);
  if (!expand_ops(&x, r)) {
    if (r->wanted) *r->wanted = g->wanted;
    graph_free(g);
    return NULL;
  }
  for (int i = r->section.from; i < r->section.to; i++)
    each_output(b->ops.v[i], note_state_write, &x);
  return g;
}

Graph *expand_program(const Program *p, int n_feeds, const char *const *feeds, int n_fetch,
                      const char *const *fetches, DimsOf *dims_of, void *user) {
  const Block *b = p->blocks.v[0];
  Arena *a = arena_scratch();
  const bool *skip = ops_left_out(b, a, n_feeds, feeds, n_fetch, fetches);
  Graph *g = expand_section(&(ExpandRequest){.section = {b, 0, b->ops.n, skip},
                                             .n_feeds = n_feeds,
                                             .feeds = feeds,
                                             .n_fetch = n_fetch,
                                             .fetches = fetches,
                                             .dims_of = dims_of,
                                             .user = user});
  if (!g && p->file) err_where("%s", p->file);
  arena_free(a);
  return g;
}
