/* What needs the bits of numbers, as calls of plain C: neighbouring numbers, bytes packed in floats. */
#include "ops.h"

#include <math.h>
#include <string.h>

/* In: two tensors of one shape. */
static bool next_numbers(const CustomOp *op, int n_in, const Tensor *in, int n_out, Tensor *out) {
  (void)op, (void)n_in, (void)n_out;
  for (int64_t i = 0, n = tensor_numel(out); i < n; i++) {
    double a = tensor_get(&in[0], i), b = tensor_get(&in[1], i);
    tensor_set(out, i,
               out->dtype == DT_FLOAT64 ? nextafter(a, b) : (double)nextafterf((float)a, (float)b));
  }
  return true;
}
static const CustomOp next_call = {"nextafter", "X Y -> Out", NULL, next_numbers, NULL, NULL};

bool x_nextafter(Expand *x) {
  Graph *g = x->g;
  Node *v[] = {x_in(x, "x"), x_in(x, "y")};
  if (!ops_float(v[0], "x") || !ops_float(v[1], "y")) return false;
  if (v[0]->dtype != v[1]->dtype || (v[0]->dtype != DT_FLOAT32 && v[0]->dtype != DT_FLOAT64))
    return err_set(E_TYP_002, "x is %s and y %s, float32 or float64 is needed",
                   dtype_info[v[0]->dtype].name, dtype_info[v[1]->dtype].name);
  Node *both = ops_add(g, v[0], v[1]); /* its shape */
  if (!both || !ops_known(both)) return both && x_out(x, "out", ops_blank_like(g, both));
  for (int i = 0; i < 2; i++) v[i] = g_expand_to(g, v[i], both->rank, both->dims);
  if (!v[0] || !v[1]) return false;
  return x_out(x, "out", g_call(g, &next_call, false, 2, v, both->dtype, both->rank, both->dims));
}

/* In: rows of a least value, a largest, and the levels between, four bytes in each number; and the numbers of rows. */
static bool unpacked_rows(const CustomOp *op, int n_in, const Tensor *in, int n_out, Tensor *out) {
  const Tensor *w = &in[0], *ids = &in[1];
  int64_t cols = out->dims[1];
  (void)op, (void)n_in, (void)n_out;
  for (int64_t i = 0, n = tensor_numel(ids); i < n; i++) {
    int64_t row = (int64_t)tensor_get(ids, i) * w->dims[1];
    double least = tensor_get(w, row), step = (tensor_get(w, row + 1) - least) / 256;
    for (int64_t k = 0; k < cols; k++) {
      float four = (float)tensor_get(w, row + 2 + k / 4);
      uint8_t level[4];
      memcpy(level, &four, sizeof level);
      tensor_set(out, i * cols + k, least + step * level[k % 4]);
    }
  }
  return true;
}
static const CustomOp unpacked_call = {"unpack", "W Ids -> Out", NULL, unpacked_rows, NULL, NULL};

bool x_lookup_table_dequant(Expand *x) {
  Graph *g = x->g;
  Node *v[] = {x_in(x, "W"), x_in(x, "Ids")};
  int64_t pad = op_int(x->op, "padding_idx"), dims[KL_RANK];
  if (!ops_rank(v[0], "W", 2, 2) || !ops_float(v[0], "W") || !ops_index(v[1], "Ids") ||
      !ops_rank(v[1], "Ids", 1, KL_VAR_RANK) ||
      !ops_same("1 and the last dimension of Ids", 1, v[1]->dims[v[1]->rank - 1]))
    return false;
  DType t = v[0]->dtype;
  int rank = v[1]->rank;
  int64_t n = ops_prod(v[1]->dims, 0, rank), wide = v[0]->dims[1],
          cols = wide < 0 ? -1 : (wide - 2) * 4;
  if (wide == 0 || wide == 1) return err_set(E_SHP_006, "W has %lld columns", (long long)wide);
  memcpy(dims, v[1]->dims, sizeof *dims * (size_t)rank);
  dims[rank - 1] = cols;
  if (n < 0 || !ops_known(v[0])) return x_out(x, "Out", ops_blank(g, t, rank, dims));
  Node *ids = g_reshape(g, v[1], 1, &n), *none = NULL;
  if (pad != -1) {
    none = g_map2(g, P_EQ, ids, g_full_int(g, v[1]->dtype, pad, 0, NULL));
    ids = g_select(g, none, g_full_int(g, v[1]->dtype, 0, 0, NULL), ids);
  }
  v[1] = g_check(g, ids, 0, v[0]->dims[0], false, 0, E_DAT_002);
  if (!v[1]) return false;
  Node *rows = g_call(g, &unpacked_call, false, 2, v, t, 2, (int64_t[]){n, cols});
  if (none) rows = g_select(g, ops_along(g, none, 2, 0), g_const(g, t, 0), rows);
  return rows && x_out(x, "Out", g_reshape(g, rows, rank, dims));
}
