/* Operators that cut, fill and sum the rows of sequences: see sequence.c. Which rows is known where the program is compiled. */
#include "sequence.h"

#include <string.h>

/* The numbers of each sequence, in rows of new_dim. */
bool x_sequence_reshape(Expand *x) {
  Graph *g = x->g;
  Node *v;
  const Lod *l;
  int64_t width = op_int(x->op, "new_dim");
  if (!seq_read(x, "X", &v, &l) || !ops_rank(v, "X", 2, 2)) return false;
  if (width < 1) return err_set(E_OPR_003, "new_dim is %lld", (long long)width);
  if (!l) return x_out(x, "Out", ops_blank(g, v->dtype, 2, (int64_t[]){-1, width}));
  int64_t *len = arena_array(g->arena, int64_t, l->n + 1);
  for (int64_t i = 0; i < l->n; i++) {
    int64_t all;
    if (!mul_ok(seq_length(l, i), v->dims[1], &all) || all % width) {
      err_set(E_SHP_006, "sequence %lld has %lld rows of %lld numbers, new_dim is %lld",
              (long long)i, (long long)seq_length(l, i), (long long)v->dims[1], (long long)width);
      err_help("new_dim must divide the numbers of every sequence.");
      return false;
    }
    len[i] = all / width;
  }
  const Lod *out = seq_lod(g, l->n, len);
  return out && x_out_lod(x, "Out", g_reshape(g, v, 2, (int64_t[]){seq_n_rows(out), width}), out);
}

/* Rows Offset[i] .. Offset[i] + Length[i] - 1 of sequence i. */
bool x_sequence_slice(Expand *x) {
  Graph *g = x->g;
  Node *v;
  const Lod *l;
  if (!seq_read(x, "X", &v, &l)) return false;
  if (!l) return seq_unknown(x, "Out", v);
  int64_t *from = arena_array(g->arena, int64_t, l->n + 1),
          *len = arena_array(g->arena, int64_t, l->n + 1), n = 0;
  int n_from = ops_list(x, NULL, "Offset", NULL, from, (int)l->n),
      n_len = n_from < 0 ? -1 : ops_list(x, NULL, "Length", NULL, len, (int)l->n);
  if (n_len < 0 || !ops_same("sequences and elements of Offset", l->n, n_from) ||
      !ops_same("sequences and elements of Length", l->n, n_len))
    return false;
  for (int64_t i = 0; i < l->n; i++)
    if (from[i] < 0 || len[i] < 0 || from[i] > seq_length(l, i) ||
        len[i] > seq_length(l, i) - from[i])
      return err_set(E_DAT_002, "%lld rows from row %lld on, of sequence %lld, which has %lld",
                     (long long)len[i], (long long)from[i], (long long)i,
                     (long long)seq_length(l, i));
  const Lod *out = seq_lod(g, l->n, len);
  if (!out) return false;
  int64_t *at = arena_array(g->arena, int64_t, seq_n_rows(out) + 1);
  for (int64_t i = 0; i < l->n; i++)
    for (int64_t k = 0; k < len[i]; k++) at[n++] = l->offset[i] + from[i] + k;
  return x_out_lod(x, "Out", seq_rows(g, v, n, at), out);
}

/* Of each row of Ids its place among the elements of a matrix, whose row i belongs to sequence i. */
static Node *seq_places(Expand *x, const Lod *l, Node *ids, const Node *matrix) {
  Graph *g = x->g;
  int64_t rows = seq_n_rows(l), width = ops_prod(matrix->dims, 1, matrix->rank);
  if (!ops_same("rows of X and sequences of Ids", matrix->dims[0], l->n) ||
      !ops_same("elements and rows of Ids", ops_prod(ids->dims, 0, ids->rank), rows))
    return NULL;
  int64_t *first = arena_array(g->arena, int64_t, rows + 1);
  for (int64_t i = 0; i < l->n; i++)
    for (int64_t k = l->offset[i]; k < l->offset[i + 1]; k++) first[k] = i * width;
  Node *at = g_check(g, g_reshape(g, ids, 1, &rows), 0, width, false, 0, E_DAT_002);
  return ops_add(g, g_cast(g, at, DT_INT64), g_data(g, DT_INT64, 1, &rows, first, "first"));
}

static Node *flat(Graph *g, Node *v) {
  int64_t all = v ? node_numel(v) : 0;
  return g_reshape(g, v, 1, &all);
}

/* Row i of X, with sequence i of Updates added where sequence i of Ids says. */
bool x_sequence_scatter(Expand *x) {
  Graph *g = x->g;
  Node *v = x_in(x, "X"), *ids, *add = x_in(x, "Updates");
  const Lod *l;
  if (!ops_rank(v, "X", 2, KL_RANK) || !seq_read(x, "Ids", &ids, &l) || !ops_index(ids, "Ids") ||
      !add)
    return false;
  if (!l || !ops_known(v)) return x_out(x, "Out", ops_blank_like(g, v));
  if (!ops_same("rows of Ids and elements of Updates", seq_n_rows(l),
                ops_prod(add->dims, 0, add->rank)))
    return false;
  Node *sum = g_scatter(g, flat(g, v), seq_places(x, l, ids, v), flat(g, add), 0, false);
  return x_out_lod(x, "Out", g_reshape(g, sum, v->rank, v->dims), &lod_none);
}

bool x_sequence_scatter_grad(Expand *x) {
  Graph *g = x->g;
  Node *gy = x_in(x, "Out@GRAD"), *ids, *add = x_in(x, "Updates");
  const Lod *l;
  if (!ops_rank(gy, "Out@GRAD", 2, KL_RANK) || !seq_read(x, "Ids", &ids, &l) || !add) return false;
  if (!x_out_lod(x, "X@GRAD", gy, &lod_none)) return false;
  if (!x_wants(x, "Updates@GRAD")) return true;
  if (!l || !ops_known(gy)) return x_out(x, "Updates@GRAD", ops_blank_like(g, add));
  Node *part = ops_take(g, flat(g, gy), seq_places(x, l, ids, gy), 0);
  return x_out_lod(x, "Updates@GRAD", g_reshape(g, part, add->rank, add->dims), l);
}

/* Rows of W, chosen by each column of Ids [T, K], summed over each sequence: [N, K * D]. */
bool x_fused_embedding_seq_pool(Expand *x) {
  Graph *g = x->g;
  Node *w = x_in(x, "W"), *ids;
  const Lod *l;
  int64_t skip = op_int(x->op, "padding_idx");
  static const char *const words[] = {"sum"};
  if (op_word(x->op, "combiner", 1, words) < 0 || !ops_rank(w, "W", 2, 2) ||
      !seq_read(x, "Ids", &ids, &l) || !ops_rank(ids, "Ids", 1, 2) || !ops_index(ids, "Ids"))
    return false;
  int64_t k = ids->rank == 2 ? ids->dims[1] : 1, d = w->dims[1], wide = -1;
  if (k >= 0 && d >= 0 && !mul_ok(k, d, &wide))
    return err_set(E_MEM_002, "rows of %lld times %lld numbers", (long long)k, (long long)d);
  if (!l || wide < 0 || w->dims[0] < 0)
    return x_out(x, "Out", ops_blank(g, w->dtype, 2, (int64_t[]){-1, wide}));
  int64_t rows = seq_n_rows(l), n = rows * k, width = seq_longest(l);
  if (n == 0 || width == 0)
    return x_out_lod(x, "Out", g_full(g, w->dtype, 0, 2, (int64_t[]){l->n, wide}), &lod_none);
  Node *at = g_check(g, g_reshape(g, ids, 1, &n), 0, w->dims[0], false, 0, E_DAT_002);
  Node *v = ops_take(g, w, at, 0);
  if (skip >= 0 && at) {
    Node *hit = g_map2(g, P_EQ, at, g_full_int(g, at->dtype, skip, 0, NULL));
    v = g_select(g, ops_along(g, hit, 2, 0), g_const(g, w->dtype, 0), v);
  }
  v = seq_wide(g, g_reshape(g, v, 2, (int64_t[]){rows, wide}), l, width);
  return v && x_out_lod(x, "Out", g_reduce(g, P_RSUM, v, 2, false), &lod_none);
}

/* Shapes only: the executor does it (executor/control_tags.c). */
bool x_sequence_erase(Expand *x) {
  Node *v = x_in(x, "X");
  return ops_rank(v, "X", 1, 2) && ops_index(v, "X") && seq_unknown(x, "Out", v);
}
