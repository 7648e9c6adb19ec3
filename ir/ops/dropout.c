/* dropout: an element is kept where a uniform random number is at least dropout_prob; Mask remembers which. Operators with the
 * same variable Seed draw the same numbers: a forward pass that is computed again keeps the same elements. */
#include "ops.h"

#include <string.h>

typedef struct Dropout {
  double p;
  bool test, upscale;
} Dropout;

static bool dropout_read(Expand *x, Dropout *d) {
  static const char *const words[] = {"downgrade_in_infer", "upscale_in_train"};
  int i = op_word(x->op, "dropout_implementation", 2, words);
  d->p = op_float(x->op, "dropout_prob");
  d->test = op_bool(x->op, "is_test");
  d->upscale = i == 1;
  if (i < 0) return false;
  if (d->p >= 0 && d->p <= 1) return true;
  err_set(E_OPR_003, "dropout_prob is %g", d->p);
  err_help("A probability is a number from 0 to 1.");
  return false;
}

/* x where the mask is set, scaled as the implementation says. */
static Node *dropped(Graph *g, const Dropout *d, Node *x, Node *keep) {
  if (!x || !keep) return NULL;
  double scale = d->upscale && d->p < 1 ? 1 / (1 - d->p) : 1;
  return g_select(g, keep, g_map2c(g, P_MUL, x, scale), g_const(g, x->dtype, 0));
}

/* The seed: of the tensor Seed if there is one, else the attribute when fix_seed; 0 = the run's. */
static bool dropout_seed(Expand *x, int64_t *seed) {
  *seed = op_bool(x->op, "fix_seed") ? op_int(x->op, "seed") : 0;
  if (x_n_in(x, "Seed") == 0) return true;
  int n = ops_list(x, NULL, "Seed", NULL, seed, 1);
  if (n == 1 && *seed == OPS_UNKNOWN) *seed = 0;
  return n == 1 || (n == 0 && err_set(E_SHP_006, "Seed is empty"));
}

bool x_dropout(Expand *x) {
  Graph *g = x->g;
  Dropout d;
  Node *in = x_in(x, "X");
  int64_t seed;
  if (!ops_float(in, "X") || !dropout_read(x, &d)) return false;
  if (d.test)
    return x_out(x, "Out", d.upscale ? in : g_map2c(g, P_MUL, in, 1 - d.p)) &&
           x_out(x, "Mask", g_full_int(g, DT_UINT8, 1, in->rank, in->dims));
  if (!dropout_seed(x, &seed)) return false;
  DType t = in->dtype == DT_FLOAT64 ? DT_FLOAT64 : DT_FLOAT32;
  const char *by = op_in(x->op, "Seed", 0);
  int64_t stream = by ? stream_of(by, 0) : x_stream(x, 0);
  Node *u = g_random(g, t, in->rank, in->dims, seed, stream, seed != 0);
  Node *keep =
      u ? g_map2(g, P_LE, g_const(g, t, d.p < 1 ? d.p : 2), u) : NULL; /* u may be rounded to 1 */
  return keep && x_out(x, "Out", dropped(g, &d, in, keep)) &&
         x_out(x, "Mask", g_cast(g, keep, DT_UINT8));
}

bool x_dropout_grad(Expand *x) {
  Graph *g = x->g;
  Dropout d;
  Node *gy = x_in(x, "Out@GRAD");
  if (!gy || !dropout_read(x, &d)) return false;
  if (d.test) return x_out(x, "X@GRAD", d.upscale ? gy : g_map2c(g, P_MUL, gy, 1 - d.p));
  return x_out(x, "X@GRAD", dropped(g, &d, gy, g_cast(g, x_in(x, "Mask"), DT_BOOL)));
}

/* Noise is what X is multiplied by. */
bool x_rrelu(Expand *x) {
  Graph *g = x->g;
  Node *n = x_in(x, "X");
  double lo = op_float(x->op, "lower"), hi = op_float(x->op, "upper");
  if (!ops_float(n, "X")) return false;
  if (!(lo >= 0 && lo <= hi && hi <= 1)) {
    err_set(E_OPR_003, "lower is %g, upper is %g", lo, hi);
    err_help("0 <= lower <= upper <= 1 is needed.");
    return false;
  }
  Node *a = g_const(g, n->dtype, (lo + hi) / 2), *zero = g_const(g, n->dtype, 0);
  if (!op_bool(x->op, "is_test"))
    a = ops_plus(g,
                 ops_times(g, g_random(g, n->dtype, n->rank, n->dims, 0, x_stream(x, 0), false),
                           hi - lo),
                 lo);
  Node *noise = g_select(g, g_map2(g, P_LT, n, zero), a, g_const(g, n->dtype, 1));
  return x_out(x, "Out", ops_mul(g, n, noise)) && x_out(x, "Noise", noise);
}
