/* summary: what a model is made of: operators, output shapes, parameters, FLOPs, bytes.
 *
 * In: a program and feed shapes. Out: a row per operator and totals. FLOPs count two for each multiply-add of a
 * contraction and one for each element of other maps and reductions; bytes are the operator's outputs. */
#include "tools.h"
#include <string.h>

typedef struct Row {
  const Op *op;
  DType dtype;
  int rank;
  int64_t dims[KL_RANK];
  int64_t flops, bytes, params;
} Row;

static bool declared_dims(void *user, const Var *v, bool fed, DType *t, int *rank, int64_t *dims) {
  const CompileRequest *r = user;
  const Tensor *f = NULL;
  for (int i = 0; fed && i < r->n_feeds; i++)
    if (!strcmp(r->feeds[i].name, v->name)) f = r->feeds[i].value;
  *t = f ? f->dtype : v->dtype;
  *rank = f ? f->rank : v->rank;
  for (int i = 0; i < *rank; i++) {
    dims[i] = f ? f->dims[i] : v->dims[i];
    if (dims[i] < 0) dims[i] = 1;
  }
  return true;
}

static int64_t node_flops(const Node *n) {
  int64_t count = node_numel(n);
  if (n->prim == P_CONTRACT) {
    count = 2;
    for (int i = 0; i < n->n_loops; i++) count *= n->ext[i];
    return count;
  }
  if (prim_is_reduce(n->prim)) return node_numel(n->in[0]);
  return prim_is_map(n->prim) && n->prim != P_CAST ? count : 0;
}

static const char *main_output(const Op *op) {
  for (int i = 0; op->def && i < op->def->n_outs; i++) {
    const SlotDef *d = &op->def->outs[i];
    if (!d->intermediate && op_out(op, d->name, 0)) return op_out(op, d->name, 0);
  }
  return op->outs.n && op->outs.v[0].n ? op->outs.v[0].args[0] : NULL;
}

static int64_t op_params(const Op *op, Map *counted) {
  int64_t n = 0;
  for (int s = 0; s < op->ins.n; s++)
    for (int k = 0; k < op->ins.v[s].n; k++) {
      const Var *v = block_find_var(op->block, op->ins.v[s].args[k]);
      if (!v || !v->persistable || v->dtype == DT_NONE || map_get(counted, v->name)) continue;
      map_put(counted, v->name, (void *)v);
      n += numel_of(v->rank, v->dims);
    }
  return n;
}

/* What the operators of a graph compute. first: where the rows of each block begin. */
static void add_flops(const Graph *g, Row *rows, const int *first) {
  for (int i = 0; i < g->nodes.n; i++) {
    const Op *op = g->nodes.v[i]->op;
    int at = op && op->block ? op_index(op) : -1;
    if (at >= 0) rows[first[op->block->idx] + at].flops += node_flops(g->nodes.v[i]);
  }
}

static int fill_rows(const Model *m, const Graph *g, Row **rows) {
  const Block *b = m->prog->blocks.v[0];
  Map *counted = map_new(m->arena);
  *rows = arena_array(m->arena, Row, b->ops.n + 1);
  for (int i = 0; i < b->ops.n; i++) {
    Row *r = &(*rows)[i];
    r->op = b->ops.v[i];
    r->dtype = DT_NONE;
    r->params = op_params(r->op, counted);
    const char *out = main_output(r->op);
    for (int f = 0; out && f < g->fetches.n; f++) {
      const Node *n = g->fetches.v[f].node;
      if (strcmp(g->fetches.v[f].name, out)) continue;
      r->dtype = n->dtype;
      r->rank = n->rank;
      memcpy(r->dims, n->dims, sizeof *n->dims * (size_t)n->rank);
      r->bytes = node_numel(n) * dtype_info[n->dtype].size;
    }
  }
  add_flops(g, *rows, (int[]){0});
  return b->ops.n;
}

/* ---- programs that run in parts: the operators of all blocks, in declared shapes ---- */

typedef struct Parts {
  Row *rows;
  int *first;
} Parts;

static bool add_section(void *user, const CompileRequest *r) {
  const Parts *p = user;
  for (int i = 0; i < r->n_feeds; i++)
    if (r->known[i]) return true; /* depends on values */
  CompileRequest all = *r;
  Arena *a = arena_new();
  const char **feeds = arena_array(a, const char *, r->n_feeds + 1);
  for (int i = 0; i < r->n_feeds; i++) feeds[i] = r->feeds[i].name;
  Graph *g = expand_section(&(ExpandRequest){.section = r->section,
                                             .n_feeds = r->n_feeds,
                                             .feeds = feeds,
                                             .n_fetch = r->n_fetch,
                                             .fetches = r->fetch,
                                             .dims_of = declared_dims,
                                             .user = &all,
                                             .wanted = r->wanted});
  arena_free(a);
  if (!g) return false;
  add_flops(g, p->rows, p->first);
  graph_free(g);
  return true;
}

static int fill_parts(const Model *m, const CompileRequest *r, Row **rows) {
  const Program *prog = m->prog;
  Parts p = {.first = arena_array(m->arena, int, prog->blocks.n + 1)};
  Map *counted = map_new(m->arena);
  int n = 0;
  for (int i = 0; i < prog->blocks.n; i++) {
    p.first[i] = n;
    n += prog->blocks.v[i]->ops.n;
  }
  *rows = p.rows = arena_array(m->arena, Row, n + 1);
  for (int i = 0; i < prog->blocks.n; i++)
    for (int k = 0; k < prog->blocks.v[i]->ops.n; k++) {
      Row *row = &p.rows[p.first[i] + k];
      row->op = prog->blocks.v[i]->ops.v[k];
      row->dtype = DT_NONE;
      row->params = op_params(row->op, counted);
      const char *out = main_output(row->op);
      const Var *v = out ? block_find_var(row->op->block, out) : NULL;
      if (!v || v->kind != VK_TENSOR || v->dtype == DT_NONE || v->rank < 0) continue;
      row->dtype = v->dtype;
      row->rank = v->rank;
      memcpy(row->dims, v->dims, sizeof *v->dims * (size_t)v->rank);
      row->bytes = dtype_info[v->dtype].size;
      for (int d = 0; d < v->rank; d++) row->bytes *= v->dims[d] < 0 ? 1 : v->dims[d];
    }
  return each_section(r, add_section, &p) ? n : -1;
}

typedef struct Totals {
  int64_t trainable, other, flops, bytes;
} Totals;

static Totals add_up(const Model *m, const Row *rows, int n) {
  Totals t = {0};
  const Block *b = m->prog->blocks.v[0];
  for (int i = 0; i < n; i++) {
    t.flops += rows[i].flops;
    t.bytes += rows[i].bytes;
  }
  for (int i = 0; i < b->vars.n; i++) {
    const Var *v = b->vars.v[i];
    if (!v->persistable || v->dtype == DT_NONE || v->kind != VK_TENSOR) continue;
    bool trains = v->is_parameter && !v->stop_gradient;
    *(trains ? &t.trainable : &t.other) += numel_of(v->rank, v->dims);
  }
  return t;
}

static void print_rows(const Row *rows, int n, Totals t) {
  printf("%5s %-34s %-30s %12s %14s %12s\n", "op", "type", "output", "parameters", "FLOPs",
         "bytes");
  for (int i = 0; i < n; i++) {
    const Block *b = rows[i].op->block;
    if (b->idx && rows[i].op == b->ops.v[0]) printf("block %d\n", b->idx);
    printf("%5d %-34.34s %-30s %12s %14s %12s\n", op_index(rows[i].op), rows[i].op->type,
           rows[i].dtype == DT_NONE ? "" : shape_text(rows[i].dtype, rows[i].rank, rows[i].dims),
           grouped(rows[i].params), grouped(rows[i].flops), grouped(rows[i].bytes));
  }
  printf("\nparameters: %s trainable, %s other\nFLOPs:      %s\n", grouped(t.trainable),
         grouped(t.other), grouped(t.flops));
  printf("bytes:      %s in the operators' outputs\n", grouped(t.bytes));
}

static void print_json(const Row *rows, int n, Totals t) {
  printf("{\"operators\": [");
  for (int i = 0; i < n; i++)
    printf("%s\n  {\"block\": %d, \"index\": %d, \"type\": \"%s\", \"shape\": %s, \"parameters\": "
           "%lld, "
           "\"flops\": %lld, \"bytes\": %lld}",
           i ? "," : "", rows[i].op->block->idx, op_index(rows[i].op), rows[i].op->type,
           dims_text(rows[i].rank, rows[i].dims), (long long)rows[i].params,
           (long long)rows[i].flops, (long long)rows[i].bytes);
  printf("],\n\"trainable\": %lld, \"other\": %lld, \"flops\": %lld, \"bytes\": %lld}\n",
         (long long)t.trainable, (long long)t.other, (long long)t.flops, (long long)t.bytes);
}

static bool summarise(const char *path, const List *shapes, bool json) {
  Model m;
  CompileRequest r = {0};
  Graph *g = NULL;
  const char **names;
  bool ok =
      model_open(&m, path, NULL) && model_feed_shapes(&m, shapes, &r.n_feeds, (Feed **)&r.feeds);
  Row *rows;
  int n_rows = 0;
  bool parts = ok && program_has_host_ops(m.prog);
  if (ok && !parts) {
    const char **feeds = arena_array(m.arena, const char *, r.n_feeds + 1);
    for (int i = 0; i < r.n_feeds; i++) feeds[i] = r.feeds[i].name;
    int n = model_outputs(&m, &names);
    g = expand_program(m.prog, r.n_feeds, feeds, n, names, declared_dims, &r);
    if (g)
      n_rows = fill_rows(&m, g, &rows);
    else
      parts = err_get() && err_get()->code == E_OPR_006;
    ok = g || parts;
    if (parts) err_clear();
  }
  if (ok && parts) {
    r.prog = m.prog;
    r.n_fetch = model_outputs(&m, &names);
    r.fetch = names;
    n_rows = fill_parts(&m, &r, &rows);
    ok = n_rows >= 0;
  }
  if (ok) {
    Totals t = add_up(&m, rows, n_rows);
    if (json)
      print_json(rows, n_rows, t);
    else
      print_rows(rows, n_rows, t);
  }
  graph_free(g);
  model_close(&m);
  return ok;
}

int verb_summary(int argc, char **argv) {
  List shapes = {0};
  bool json = false;
  Flag flags[] = {{"--feed-shape", FLAG_LIST, &shapes, "NAME=DIMS", FEED_SHAPE_HELP},
                  {"--json", FLAG_BOOL, &json, NULL, "as JSON"},
                  {0}};
  Usage u = {"MODEL [--feed-shape NAME=DIMS] [--json]",
             "Operators, output shapes, parameters, FLOPs and bytes, with totals.", 1, 1, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  return summarise(args.v[0], &shapes, json) ? 0 : report();
}
