/* Which true box each prior box is for: bipartite_match, of a table of how near each true box (row) is to each prior box
 * (column), or of one for each image, whose rows are then a sequence. The largest entry goes first, and takes its row and its
 * column; with `per_prediction` the columns that are left get their largest entry, if it reaches dist_threshold (W. Liu et al.,
 * "SSD", 2016). */
#include "control.h"
#include <stdlib.h>
#include <string.h>

static const double nothing = 1e-6; /* smaller entries match nobody */

typedef struct Match {
  const Tensor *t;
  int64_t first, rows, columns; /* of an image */
  int32_t *row;                 /* of each column; -1: none */
  double *dist;
} Match;

static double entry(const Match *m, int64_t row, int64_t column) {
  return tensor_get(m->t, (m->first + row) * m->columns + column);
}

/* Among equals the first column, then the first row. */
static void match_pairs(const Match *m, bool *taken) {
  memset(taken, 0, sizeof *taken * (size_t)m->rows);
  for (int64_t done = 0; done < m->rows; done++) {
    int64_t row = -1, column = -1;
    double most = -1;
    for (int64_t j = 0; j < m->columns; j++)
      for (int64_t i = 0; m->row[j] < 0 && i < m->rows; i++) {
        double d = entry(m, i, j);
        if (!taken[i] && d >= nothing && d > most) most = d, row = i, column = j;
      }
    if (row < 0) return;
    taken[row] = true;
    m->row[column] = (int32_t)row, m->dist[column] = most;
  }
}

static void match_rest(const Match *m, double least) {
  for (int64_t j = 0; j < m->columns; j++) {
    double most = -1;
    if (m->row[j] >= 0) continue;
    for (int64_t i = 0; i < m->rows; i++) {
      double d = entry(m, i, j);
      if (d < nothing || d < least || d <= most) continue;
      most = d, m->row[j] = (int32_t)i, m->dist[j] = d;
    }
  }
}

HostResult run_bipartite_match(Control *c, Frame *f, Step *s) {
  static const char *const words[] = {"bipartite", "per_prediction", ""};
  int kind = op_word(s->op, "match_type", 3, words);
  Value *v = kind < 0 ? NULL : op_tensor(c, f, s, "DistMat");
  if (!v) return HOST_FAIL;
  if (v->t.rank != 2) return op_refuses(s, "DistMat", "must be [rows, columns]"), HOST_FAIL;
  int64_t whole[] = {0, v->t.dims[0]}, n = v->lod ? tensor_numel(&v->lod->t) - 1 : 1,
          columns = v->t.dims[1];
  const int64_t *offset = v->lod ? v->lod->t.data : whole;
  Value *row = value_tensor(c, DT_INT32, 2, (int64_t[]){n, columns}),
        *dist = value_tensor(c, v->t.dtype, 2, (int64_t[]){n, columns});
  Arena *a = arena_scratch();
  bool *taken = arena_array(a, bool, v->t.dims[0] + 1);
  double *near = arena_array(a, double, columns + 1);
  for (int64_t i = 0; i < n; i++) {
    Match m = {
        &v->t, offset[i], offset[i + 1] - offset[i], columns, (int32_t *)row->t.data + i * columns,
        near};
    for (int64_t j = 0; j < columns; j++) m.row[j] = -1, near[j] = 0;
    match_pairs(&m, taken);
    if (kind == 1) match_rest(&m, op_float(s->op, "dist_threshold"));
    for (int64_t j = 0; j < columns; j++) tensor_set(&dist->t, i * columns + j, near[j]);
  }
  arena_free(a);
  value_drop(c, v);
  bool ok = op_result(c, f, s, "ColToRowMatchIndices", 0, row);
  return op_result(c, f, s, "ColToRowMatchDist", 0, dist) && ok ? HOST_NEXT : HOST_FAIL;
}
