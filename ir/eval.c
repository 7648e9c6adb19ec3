/* The plain interpreter: the meaning of every primitive. In: a graph and the values of its sources; out: the value of every
 * node that the writes, fetches and checks need. One node after the other, in simple loops; floating types are
 * computed in double and rounded to the node's type once per primitive. Random numbers are Philox4x32-10 (Salmon, Moraes,
 * Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; 2011). */
#include "eval.h"
#include <string.h>

void philox(const uint32_t ctr[4], const uint32_t key[2], uint32_t out[4]) {
  uint32_t c0 = ctr[0], c1 = ctr[1], c2 = ctr[2], c3 = ctr[3], k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xD2511F53 * c0, p1 = (uint64_t)0xCD9E8D57 * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* ---- affine addressing ---- */

Walk walk_of(const Node *operand, const AffDim *map) {
  Walk w = {.rank = operand->rank, .map = map, .dims = operand->dims};
  int64_t stride = 1;
  for (int d = w.rank - 1; d >= 0; d--) {
    w.stride[d] = stride;
    stride *= operand->dims[d];
  }
  return w;
}

/* The dimension's coordinate times div, with the loops at idx. */
static int64_t numerator(const AffDim *a, const int64_t *idx) {
  int64_t v = a->off;
  if (a->l0 >= 0) v += a->c0 * idx[a->l0];
  if (a->l1 >= 0) v += a->c1 * idx[a->l1];
  return v;
}

int64_t walk_at(const Walk *w, const int64_t *idx) {
  int64_t at = 0;
  for (int d = 0; d < w->rank; d++) {
    int64_t v = numerator(&w->map[d], idx), div = w->map[d].div;
    if (v < 0 || v % div || v / div >= w->dims[d]) return -1;
    at += v / div * w->stride[d];
  }
  return at;
}

static int64_t coef_of(const AffDim *a, int loop) {
  return (a->l0 == loop ? a->c0 : 0) + (int64_t)(a->l1 == loop ? a->c1 : 0);
}

bool walk_is_linear(const Walk *w, int inner) {
  for (int d = 0; d < w->rank; d++)
    if (coef_of(&w->map[d], inner) && w->map[d].div != 1) return false;
  return true;
}

static int64_t floor_div(int64_t a, int64_t b) {
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

Run walk_run(const Walk *w, int64_t *idx, int inner, int64_t n) {
  Run r = {0, 0, 0, n};
  idx[inner] = 0;
  for (int d = 0; d < w->rank; d++) {
    const AffDim *a = &w->map[d];
    int64_t v = numerator(a, idx), c = coef_of(a, inner), last = w->dims[d] - 1;
    if (c == 0) {
      if (v < 0 || v % a->div || v / a->div > last) return (Run){0, 0, 0, 0};
      r.base += v / a->div * w->stride[d];
      continue;
    }
    /* 0 <= v + c*i <= last */
    int64_t lo = c > 0 ? -floor_div(v, c) : -floor_div(last - v, -c);
    int64_t hi = (c > 0 ? floor_div(last - v, c) : floor_div(v, -c)) + 1;
    if (lo > r.lo) r.lo = lo;
    if (hi < r.hi) r.hi = hi;
    r.base += v * w->stride[d];
    r.step += c * w->stride[d];
  }
  return r;
}

bool next_index(int n, const int *loops, const int64_t *ext, int64_t *idx) {
  for (int k = n - 1; k >= 0; k--) {
    if (++idx[loops[k]] < ext[loops[k]]) return true;
    idx[loops[k]] = 0;
  }
  return false;
}

/* ---- sources ---- */

static bool eval_const(Eval *e, const Node *n, Tensor *out) {
  (void)e;
  int64_t count = node_numel(n);
  for (int64_t k = 0; k < count; k++)
    if (dtype_is_float(n->dtype))
      store_f(n->dtype, out->data, k, 1, &n->f);
    else
      store_i(n->dtype, out->data, k, 1, &n->i);
  return true;
}

static bool eval_bound(Eval *e, const Node *n, Tensor *out) {
  Tensor *t = e->env->lookup(e->env->user, n->s, n->prim == P_STATE);
  const char *kind = n->prim == P_STATE ? "persistable variable" : "feed";
  if (!t || !t->data) return err_set(E_RUN_001, "%s %s has no value", kind, quoted(n->s));
  bool permuted = n->prim == P_STATE && n->n_ia;
  if (t->dtype != n->dtype || tensor_numel(t) != node_numel(n) || (permuted && t->rank != n->rank))
    return err_set(E_DAT_001, "%s %s is %s, not %s", kind, quoted(n->s),
                   shape_text(t->dtype, t->rank, t->dims), shape_text(n->dtype, n->rank, n->dims));
  if (!permuted) {
    out->data = t->data;
    return true;
  }
  out->data = arena_alloc(e->a, tensor_bytes(t));
  tensor_permute(out->data, t, n->ia);
  return true;
}

static bool eval_data(Eval *e, const Node *n, Tensor *out) {
  (void)e;
  memcpy(out->data, n->data, (size_t)node_numel(n) * (size_t)dtype_info[n->dtype].size);
  return true;
}

static bool eval_iota(Eval *e, const Node *n, Tensor *out) {
  (void)e;
  int64_t count = node_numel(n), inner = 1;
  for (int d = (int)n->i + 1; d < n->rank; d++) inner *= n->dims[d];
  for (int64_t k = 0; k < count; k++) {
    int64_t v = k / inner % n->dims[n->i];
    double f = (double)v;
    if (dtype_is_float(n->dtype))
      store_f(n->dtype, out->data, k, 1, &f);
    else
      store_i(n->dtype, out->data, k, 1, &v);
  }
  return true;
}

static bool eval_random(Eval *e, const Node *n, Tensor *out) {
  uint64_t seed = n->ia[0] ? (uint64_t)n->ia[0] : e->env->seed, stream = (uint64_t)n->ia[1],
           step = n->ia[2] ? 0 : e->env->step;
  uint32_t key[2] = {(uint32_t)seed ^ (uint32_t)(stream >> 32),
                     (uint32_t)(seed >> 32) ^ (uint32_t)(step >> 32)};
  int64_t count = node_numel(n);
  uint32_t word[4];
  for (int64_t k = 0; k < count; k++) {
    uint64_t block = (uint64_t)k / 4;
    uint32_t ctr[4] = {(uint32_t)block, (uint32_t)(block >> 32), (uint32_t)stream, (uint32_t)step};
    if (k % 4 == 0) philox(ctr, key, word);
    uint32_t x = word[k % 4];
    double v = n->dtype == DT_FLOAT64 ? (x + 0.5) * 0x1p-32 : (x >> 9) * 0x1p-23 + 0x1p-24;
    store_f(n->dtype, out->data, k, 1, &v);
  }
  return true;
}

/* ---- moving elements ---- */

static void copy_elem(Tensor *out, int64_t to, const void *from, int64_t at, size_t size) {
  memcpy((char *)out->data + (size_t)to * size, (const char *)from + (size_t)at * size, size);
}

static bool eval_view(Eval *e, const Node *n, Tensor *out) {
  Walk w = walk_of(n->in[0], n->map[0]);
  const void *x = eval_in(e, n, 0);
  size_t size = (size_t)dtype_info[n->dtype].size;
  int64_t count = node_numel(n), idx[KL_RANK] = {0};
  int inner = n->rank - 1, outer[KL_RANK];
  int64_t len = n->rank ? n->dims[inner] : 1;
  bool linear = n->rank && walk_is_linear(&w, inner);
  char pad[8];
  Tensor one = {.dtype = n->dtype, .data = pad};
  tensor_set(&one, 0, n->f);
  for (int d = 0; d < n->rank; d++) outer[d] = d;
  for (int64_t row = 0; row < count; row += len) {
    Run r = linear ? walk_run(&w, idx, inner, len) : (Run){0};
    for (int64_t k = 0; k < len; k++) {
      if (n->rank) idx[inner] = k;
      int64_t at = !linear ? walk_at(&w, idx) : k >= r.lo && k < r.hi ? r.base + k * r.step : -1;
      copy_elem(out, row + k, at < 0 ? pad : x, at < 0 ? 0 : at, size);
    }
    next_index(inner, outer, n->dims, idx);
  }
  return true;
}

static bool eval_reshape(Eval *e, const Node *n, Tensor *out) {
  out->data = e->val[n->in[0]->id]->data;
  return true;
}

static bool eval_gather(Eval *e, const Node *n, Tensor *out) {
  const Node *x = n->in[0];
  int64_t *from = all_i(e, n, 1), count = node_numel(n), idx[KL_RANK] = {0}, axis = x->dims[n->i];
  int loops[KL_RANK];
  for (int d = 0; d < n->rank; d++) loops[d] = d;
  for (int64_t k = 0; k < count && axis > 0; k++) {
    int64_t at = 0, v = from[k] < 0 ? 0 : from[k] < axis ? from[k] : axis - 1;
    for (int d = 0; d < n->rank; d++) at = at * x->dims[d] + (d == n->i ? v : idx[d]);
    copy_elem(out, k, eval_in(e, n, 0), at, (size_t)dtype_info[n->dtype].size);
    next_index(n->rank, loops, n->dims, idx);
  }
  return true;
}

static bool eval_concat(Eval *e, const Node *n, Tensor *out) {
  size_t size = (size_t)dtype_info[n->dtype].size;
  int64_t outer = 1;
  char *to = out->data;
  for (int d = 0; d < n->i; d++) outer *= n->dims[d];
  for (int64_t o = 0; o < outer; o++)
    for (int k = 0; k < n->n_in; k++) {
      size_t bytes = (size_t)(node_numel(n->in[k]) / outer) * size;
      if (bytes) memcpy(to, (const char *)eval_in(e, n, k) + (size_t)o * bytes, bytes);
      to += bytes;
    }
  return true;
}

/* ---- checks and calls ---- */

static bool check_fails(Eval *e, const Node *n, int64_t at, int64_t v) {
  int64_t idx[KL_RANK], lo = n->ia[0], hi = n->ia[1];
  ErrCode code = n->ia[4] > E_NONE && n->ia[4] < E_N ? (ErrCode)n->ia[4] : E_DAT_002;
  for (int d = n->rank - 1; d >= 0; d--) {
    idx[d] = at % n->dims[d];
    at /= n->dims[d];
  }
  err_set(code, "value %lld at %s is outside %lld..%lld", (long long)v, dims_text(n->rank, idx),
          (long long)lo, (long long)(hi - 1));
  if (n->op) err_where("%s", op_text(n->op));
  err_where("step %llu", (unsigned long long)e->env->step);
  return false;
}

static bool eval_check(Eval *e, const Node *n, Tensor *out) {
  int64_t *v = all_i(e, n, 0), count = node_numel(n);
  for (int64_t k = 0; k < count; k++) {
    bool ignored = n->ia[2] && v[k] == n->ia[3];
    if (!ignored && (v[k] < n->ia[0] || v[k] >= n->ia[1])) return check_fails(e, n, k, v[k]);
  }
  out->data = e->val[n->in[0]->id]->data;
  return true;
}

static bool eval_call(Eval *e, const Node *n, Tensor *out) {
  const CustomOp *c = n->custom;
  int n_out = call_n_out(n);
  Tensor *in = arena_array(e->tmp, Tensor, n->n_in), *outs = arena_array(e->a, Tensor, n_out);
  for (int k = 0; k < n->n_in; k++) in[k] = *e->val[n->in[k]->id];
  for (int k = 0; k < n_out; k++) {
    call_out(n, k, &outs[k]);
    if (!tensor_make(&outs[k], e->a, outs[k].dtype, outs[k].rank, outs[k].dims)) return false;
  }
  if (!(n->i ? c->backward : c->forward)(c, n->n_in, in, n_out, outs))
    return err_any() ? false
                     : err_set(E_PLG_001, "custom operator %s: its %s function failed",
                               quoted(c->name), n->i ? "backward" : "forward");
  e->outs[n->id] = outs;
  out->data = outs[0].data;
  return true;
}

static bool eval_out(Eval *e, const Node *n, Tensor *out) {
  out->data = e->outs[n->in[0]->id][n->i].data;
  return true;
}

/* ---- the whole graph ---- */

/* Missing rows are the maps. `shares`: the function sets data to something that exists. */
static const struct {
  EvalFn *fn;
  bool shares;
} eval_fn[P_N] = {
    [P_CONST] = {eval_const, false},       [P_DATA] = {eval_data, false},
    [P_FEED] = {eval_bound, true},         [P_STATE] = {eval_bound, true},
    [P_IOTA] = {eval_iota, false},         [P_RANDOM] = {eval_random, false},
    [P_CAST] = {eval_cast, false},         [P_SELECT] = {eval_select, false},
    [P_VIEW] = {eval_view, false},         [P_RESHAPE] = {eval_reshape, true},
    [P_RSUM] = {eval_reduce, false},       [P_RMAX] = {eval_reduce, false},
    [P_RPROD] = {eval_reduce, false},      [P_ARGMAX] = {eval_argmax, false},
    [P_CONTRACT] = {eval_contract, false}, [P_GATHER] = {eval_gather, false},
    [P_SCATTER] = {eval_scatter, false},   [P_CHECK] = {eval_check, true},
    [P_CONCAT] = {eval_concat, false},     [P_ARGSORT] = {eval_argsort, false},
    [P_CALL] = {eval_call, true},          [P_OUT] = {eval_out, true},
};

static void mark_needed(const Graph *g, bool *need) {
  for (int i = 0; i < g->writes.n; i++) need[g->writes.v[i].node->id] = true;
  for (int i = 0; i < g->fetches.n; i++) need[g->fetches.v[i].node->id] = true;
  for (int i = g->nodes.n - 1; i >= 0; i--) {
    const Node *n = g->nodes.v[i];
    need[i] |= n->prim == P_CHECK;
    for (int k = 0; need[i] && k < n->n_in; k++) need[n->in[k]->id] = true;
  }
}

/* A value of a rank beyond a Tensor's is kept as a flat one. */
static Tensor *new_value(Eval *e, const Node *n, bool with_data) {
  Tensor *t = arena_new_of(e->a, Tensor);
  int64_t count = node_numel(n);
  *t = (Tensor){.dtype = n->dtype, .rank = n->rank <= KL_VAR_RANK ? n->rank : 1, .dims = {count}};
  if (n->rank && n->rank <= KL_VAR_RANK)
    memcpy(t->dims, n->dims, (size_t)n->rank * sizeof *t->dims);
  if (with_data) t->data = arena_alloc(e->a, (size_t)count * (size_t)dtype_info[n->dtype].size);
  return t;
}

bool graph_eval(Graph *g, const EvalEnv *env, Arena *a, Tensor **values) {
  Eval e = {.g = g, .env = env, .a = a, .val = values};
  graph_number(g);
  bool *need = arena_array(a, bool, g->nodes.n);
  e.outs = arena_array(a, Tensor *, g->nodes.n);
  mark_needed(g, need);
  bool ok = true;
  for (int i = 0; ok && i < g->nodes.n; i++) {
    const Node *n = g->nodes.v[i];
    values[i] = NULL;
    if (!need[i]) continue;
    EvalFn *fn = eval_fn[n->prim].fn ? eval_fn[n->prim].fn : eval_map;
    values[i] = new_value(&e, n, !eval_fn[n->prim].shares);
    e.tmp = arena_scratch();
    ok = fn(&e, n, values[i]);
    arena_free(e.tmp);
  }
  return ok;
}
