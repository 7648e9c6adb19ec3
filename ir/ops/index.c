/* Indexing by tensors: gather, gather_nd, scatter, scatter_nd_add, index_select, index_sample, take_along_axis and the
 * embedding lookups. Every index passes a CHECK against the dimension that it addresses (E-DAT-002); indices of several
 * components are first combined into one, with the addressed dimensions of the tensor flattened. */
#include "ops.h"

#include <string.h>

/* The index, checked against 0..n-1 and as a vector. n = -1: unknown. */
static Node *index_vector(Expand *x, const char *slot, int64_t n) {
  Node *idx = x_in(x, slot);
  if (!ops_index(idx, slot)) return NULL;
  bool column = idx->rank == 2 && (idx->dims[1] == 1 || idx->dims[1] == -1);
  if (idx->rank > 1 && !column) {
    ops_rank(idx, slot, 0, 1);
    return NULL;
  }
  if (idx->rank != 1) {
    int64_t len = idx->rank == 0 ? 1 : idx->dims[0];
    idx = ops_reshape(x->g, idx, 1, &len);
  }
  return n < 0 ? idx : g_check(x->g, idx, 0, n, false, 0, E_DAT_002);
}

/* ---- gather, index_select, index_sample, take_along_axis ---- */

bool x_gather(Expand *x) {
  Node *in = x_in(x, "X"), *given = x_in(x, "Index");
  int axis;
  if (!ops_rank(in, "X", 1, KL_RANK) || !given) return false;
  int found = ops_axis_of(x, "Axis", in->rank, &axis);
  if (found < 0) return ops_out_unknown(x, "Out", in->dtype, in->rank - (given->rank == 0));
  if (!found) return false;
  Node *out = ops_take(x->g, in, index_vector(x, "Index", in->dims[axis]), axis);
  if (!out || given->rank != 0) return x_out(x, "Out", out);
  int64_t dims[KL_RANK];
  int rank = 0;
  for (int i = 0; i < in->rank; i++)
    if (i != axis) dims[rank++] = in->dims[i];
  return x_out(x, "Out", ops_reshape(x->g, out, rank, dims));
}

bool x_index_select(Expand *x) {
  Node *in = x_in(x, "X");
  int axis;
  if (!ops_rank(in, "X", 1, KL_RANK) || !ops_axis("dim", op_int(x->op, "dim"), in->rank, &axis))
    return false;
  return x_out(x, "Out", ops_take(x->g, in, index_vector(x, "Index", in->dims[axis]), axis));
}

/* out[.., i, ..] = in[.., idx[.., i, ..], ..]: idx has the dims of in, but along the axis. */
static Node *along_axis(Expand *x, Node *in, const char *slot, int axis) {
  Node *idx = x_in(x, slot);
  if (!ops_index(idx, slot) || !ops_rank(idx, slot, in->rank, in->rank)) return NULL;
  int64_t dims[KL_RANK], n = in->dims[axis];
  for (int i = 0; i < in->rank; i++) dims[i] = i == axis ? idx->dims[i] : in->dims[i];
  for (int i = 0; i < in->rank; i++)
    if (dims[i] < 0) return ops_blank(x->g, in->dtype, in->rank, dims);
  if (n >= 0) idx = g_check(x->g, idx, 0, n, false, 0, E_DAT_002);
  return g_gather(x->g, in, g_expand(x->g, idx, in->rank, dims), axis);
}

bool x_index_sample(Expand *x) {
  Node *in = x_in(x, "X"), *idx = x_in(x, "Index");
  if (!ops_rank(in, "X", 2, 2) || !ops_rank(idx, "Index", 2, 2) ||
      !ops_same("rows of X and Index", in->dims[0], idx->dims[0]))
    return false;
  return x_out(x, "Out", along_axis(x, in, "Index", 1));
}

bool x_take_along_axis(Expand *x) {
  Node *in = x_in(x, "Input");
  int axis;
  if (!ops_rank(in, "Input", 1, KL_RANK) ||
      !ops_axis("Axis", op_int(x->op, "Axis"), in->rank, &axis))
    return false;
  return x_out(x, "Result", along_axis(x, in, "Index", axis));
}

/* ---- lookup_table ---- */

static bool lookup(Expand *x, int rank, const int64_t *lead) {
  Graph *g = x->g;
  Node *w = x_in(x, "W"), *ids = x_in(x, "Ids");
  int64_t pad = op_int(x->op, "padding_idx"), n, dims[KL_RANK];
  if (!ops_rank(w, "W", 2, 2) || !ops_index(ids, "Ids")) return false;
  if (rank + 1 > KL_RANK) return ops_rank(ids, "Ids", 1, KL_RANK - 1);
  memcpy(dims, lead, sizeof *dims * (size_t)rank);
  dims[rank] = w->dims[1];
  n = ops_prod(ids->dims, 0, ids->rank);
  if (n < 0 || !ops_known(w)) return x_out(x, "Out", ops_blank(g, w->dtype, rank + 1, dims));
  ids = g_check(g, ops_reshape(g, ids, 1, &n), 0, w->dims[0], pad != -1, pad, E_DAT_002);
  Node *rows = ops_take(g, w, ids, 0);
  /* without a block it is expanded for a gradient: PaddlePaddle leaves the rows of padding in those that are rows */
  bool keep_pad = !x->op->block && op_bool(x->op, "is_sparse");
  if (pad != -1 && rows && !keep_pad) {
    Node *hit = g_map2(g, P_EQ, ids, g_full_int(g, ids->dtype, pad, 1, &n));
    rows = g_select(g, ops_along(g, hit, 2, 0), g_const(g, w->dtype, 0), rows);
  }
  return x_out(x, "Out", ops_reshape(g, rows, rank + 1, dims));
}

bool x_lookup_table_v2(Expand *x) {
  Node *ids = x_in(x, "Ids");
  return ids && lookup(x, ids->rank, ids->dims);
}

bool x_lookup_table(Expand *x) {
  Node *ids = x_in(x, "Ids");
  if (!ops_rank(ids, "Ids", 1, KL_RANK)) return false;
  return ops_same("1 and the last dimension of Ids", 1, ids->dims[ids->rank - 1]) &&
         lookup(x, ids->rank - 1, ids->dims);
}

/* ---- indices of several components ---- */

typedef struct NdIndex {
  int k;     /* components */
  Node *idx; /* [rows], linear over the first k dimensions; NULL if not all is known */
  int64_t rows, all, rest; /* all = product of the addressed dims, rest = of the others */
  int rank;                /* of the result of gathering */
  int64_t dims[2 * KL_RANK];
} NdIndex;

/* Index [.., k] into the dimensions of a tensor like `in`. */
static bool nd_index(Expand *x, const Node *in, NdIndex *d) {
  Graph *g = x->g;
  Node *idx = x_in(x, "Index");
  memset(d, 0, sizeof *d);
  if (!ops_index(idx, "Index") || !ops_rank(idx, "Index", 1, KL_RANK)) return false;
  int64_t k = idx->dims[idx->rank - 1];
  if (k < 0 || k > in->rank) {
    err_set(E_SHP_006, "Index %s has %lld components for %d dimensions",
            dims_text(idx->rank, idx->dims), (long long)k, in->rank);
    err_help("The last dimension of Index must be known and at most the rank of the tensor.");
    return false;
  }
  d->k = (int)k;
  d->rows = ops_prod(idx->dims, 0, idx->rank - 1);
  d->all = ops_prod(in->dims, 0, d->k);
  d->rest = ops_prod(in->dims, d->k, in->rank);
  for (int i = 0; i < idx->rank - 1; i++) d->dims[d->rank++] = idx->dims[i];
  for (int i = d->k; i < in->rank; i++) d->dims[d->rank++] = in->dims[i];
  if (d->rank > KL_RANK) return err_set(E_SHP_002, "the result would have %d dimensions", d->rank);
  if (d->rows < 0 || !ops_known(in)) return true;
  Node *m = g_reshape(g, idx, 2, (int64_t[]){d->rows, k});
  Node *sum = g_full_int(g, idx->dtype, 0, 1, &d->rows);
  for (int i = 0; i < d->k && m; i++) {
    Node *part = g_reshape(g, ops_cut(g, m, 1, i, 1, 1), 1, &d->rows);
    part = g_check(g, part, 0, in->dims[i], false, 0, E_DAT_002);
    Node *n = g_full_int(g, idx->dtype, in->dims[i], 1, &d->rows);
    sum = g_map2(g, P_ADD, g_map2(g, P_MUL, sum, n), part);
  }
  d->idx = sum;
  return sum != NULL;
}

static Node *as_rows(Graph *g, Node *n, int64_t rows, int64_t rest) {
  return n ? g_reshape(g, n, 2, (int64_t[]){rows, rest}) : NULL;
}

static Node *nd_gather(Graph *g, Node *in, const NdIndex *d) {
  if (!d->idx) return ops_blank(g, in->dtype, d->rank, d->dims);
  Node *rows = ops_take(g, as_rows(g, in, d->all, d->rest), d->idx, 0);
  return rows ? g_reshape(g, rows, d->rank, d->dims) : NULL;
}

bool x_gather_nd(Expand *x) {
  Node *in = x_in(x, "X");
  NdIndex d;
  return in && nd_index(x, in, &d) && x_out(x, "Out", nd_gather(x->g, in, &d));
}

bool x_scatter_nd_add(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X"), *upd = x_in(x, "Updates");
  NdIndex d;
  if (!in || !upd || !nd_index(x, in, &d)) return false;
  if (!ops_rank(upd, "Updates", d.rank, d.rank)) return false;
  for (int i = 0; i < d.rank; i++)
    if (!ops_same("dimensions of Updates and of the indexed part of X", upd->dims[i], d.dims[i]))
      return false;
  if (!d.idx || !ops_known(upd)) return x_out(x, "Out", ops_blank_like(g, in));
  Node *idx = g_expand(g, ops_along(g, d.idx, 2, 0), 2, (int64_t[]){d.rows, d.rest});
  Node *out =
      g_scatter(g, as_rows(g, in, d.all, d.rest), idx, as_rows(g, upd, d.rows, d.rest), 0, false);
  return out && x_out(x, "Out", g_reshape(g, out, in->rank, in->dims));
}

bool x_scatter_nd_add_grad(Expand *x) {
  Node *gy = x_in(x, "Out@GRAD");
  NdIndex d;
  if (!gy || !nd_index(x, gy, &d)) return false;
  return (!x_wants(x, "X@GRAD") || x_out(x, "X@GRAD", gy)) &&
         (!x_wants(x, "Updates@GRAD") || x_out(x, "Updates@GRAD", nd_gather(x->g, gy, &d)));
}

/* ---- one index for each of the first dimensions ---- */

/* Indices that broadcast to `dims`, counted from the end if negative, as linear ones: [rows]. */
static Node *joined_index(Expand *x, const Node *in, int rank, const int64_t *dims, int64_t rows) {
  Graph *g = x->g;
  Node *sum = g_full_int(g, DT_INT64, 0, 1, &rows);
  for (int i = 0; i < x_n_in(x, "indices") && sum; i++) {
    int64_t n = in->dims[i];
    Node *idx = g_cast(g, x_in_at(x, "indices", i), DT_INT64);
    idx = g_check(g, idx, -n, n, false, 0, E_DAT_002);
    idx = g_select(g, g_map2c(g, P_LT, idx, 0), ops_plus(g, idx, (double)n), idx);
    idx = idx ? g_reshape(g, g_expand(g, idx, rank, dims), 1, &rows) : NULL;
    sum = ops_add(g, ops_mul(g, sum, g_full_int(g, DT_INT64, n, 1, &rows)), idx);
  }
  return sum;
}

bool x_index_put(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "x"), *v = x_in(x, "value"), *shape = NULL;
  int k = x_n_in(x, "indices");
  bool known = in && v && ops_known(in) && ops_known(v);
  if (!v || !ops_rank(in, "x", k, KL_RANK)) return false;
  for (int i = 0; i < k; i++) {
    Node *idx = x_in_at(x, "indices", i);
    if (!ops_index(idx, "indices")) return false;
    known = known && ops_known(idx);
    if (known) shape = shape ? ops_add(g, shape, g_cast(g, idx, shape->dtype)) : idx;
    if (known && !shape) return false; /* they do not broadcast */
  }
  if (!known || !shape) return x_out(x, "out", ops_blank_like(g, in));
  int64_t dims[2 * KL_RANK], rows = node_numel(shape), all = ops_prod(in->dims, 0, k),
                             rest = ops_prod(in->dims, k, in->rank);
  int rank = shape->rank + in->rank - k;
  if (rank > KL_RANK) return err_set(E_SHP_002, "value would have %d dimensions", rank);
  memcpy(dims, shape->dims, sizeof *dims * (size_t)shape->rank);
  memcpy(dims + shape->rank, in->dims + k, sizeof *dims * (size_t)(in->rank - k));
  v = as_rows(g, g_expand(g, v, rank, dims), rows, rest);
  Node *idx = joined_index(x, in, shape->rank, shape->dims, rows);
  idx = idx ? g_expand(g, ops_along(g, idx, 2, 0), 2, (int64_t[]){rows, rest}) : NULL;
  Node *out = g_scatter(g, as_rows(g, in, all, rest), idx, v, 0, !op_bool(x->op, "accumulate"));
  return out && x_out(x, "out", g_reshape(g, out, in->rank, in->dims));
}

/* ---- scatter ---- */

/* The checked row index broadcast to the shape of the updates. */
static Node *row_index(Expand *x, const Node *base, int64_t rows, Node **vector) {
  int64_t dims[KL_RANK];
  memcpy(dims, base->dims, sizeof dims);
  Node *ids = index_vector(x, "Ids", base->dims[0]);
  if (!ids || !ops_same("rows of Ids and Updates", ops_prod(ids->dims, 0, 1), rows)) return NULL;
  dims[0] = ids->dims[0];
  *vector = ids;
  for (int i = 0; i < base->rank; i++)
    if (dims[i] < 0) return ops_blank(x->g, ids->dtype, base->rank, dims);
  return g_expand(x->g, ops_along(x->g, ids, base->rank, 0), base->rank, dims);
}

static Node *rows_zeroed(Graph *g, Node *base, Node *idx) {
  return idx ? g_scatter(g, base, idx, g_full(g, base->dtype, 0, idx->rank, idx->dims), 0, true)
             : NULL;
}

bool x_scatter(Expand *x) {
  Graph *g = x->g;
  Node *in = x_in(x, "X"), *upd = x_in(x, "Updates"), *ids;
  bool overwrite = op_bool(x->op, "overwrite");
  if (!ops_rank(in, "X", 1, KL_RANK) || !ops_rank(upd, "Updates", in->rank, in->rank)) return false;
  Node *idx = row_index(x, in, upd->dims[0], &ids);
  if (!idx) return false;
  if (!ops_known(in) || !ops_known(idx) || !ops_known(upd))
    return x_out(x, "Out", ops_blank_like(g, in));
  if (!overwrite) in = rows_zeroed(g, in, idx);
  return x_out(x, "Out", g_scatter(g, in, idx, upd, 0, overwrite));
}

bool x_scatter_grad(Expand *x) {
  Graph *g = x->g;
  Node *gy = x_in(x, "Out@GRAD"), *upd = x_in(x, "Updates"), *ids;
  if (!ops_rank(gy, "Out@GRAD", 1, KL_RANK) || !upd) return false;
  Node *idx = row_index(x, gy, upd->rank ? upd->dims[0] : -1, &ids);
  if (!idx) return false;
  if (!ops_known(gy) || !ops_known(idx))
    return (!x_wants(x, "X@GRAD") || x_out(x, "X@GRAD", gy)) &&
           (!x_wants(x, "Updates@GRAD") || x_out(x, "Updates@GRAD", ops_blank_like(g, upd)));
  return (!x_wants(x, "X@GRAD") || x_out(x, "X@GRAD", rows_zeroed(g, gy, idx))) &&
         (!x_wants(x, "Updates@GRAD") || x_out(x, "Updates@GRAD", g_gather(g, gy, idx, 0)));
}
