/* Products whose operands come from memory: while a tile is summed, all that the next one reads is fetched; results are those of
 * plain sums. And which tiles serve many positions. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include "../backends/cpu/conv.h"
#include "../backends/cpu/filter.h"

enum { POSITIONS = 40000, FEW = 2000 };

/* The contraction y = x w (or x' w) of m rows, n columns and k terms. */
typedef struct Case {
  Graph *g;
  Kernel *k;
  Plan *plan;
  int64_t m, n, terms;
  bool turned;
} Case;

static Case product(int64_t m, int64_t n, int64_t terms, bool turned) {
  Case c = {.g = graph_new(NULL, false), .m = m, .n = n, .terms = terms, .turned = turned};
  int64_t x[2] = {turned ? terms : m, turned ? m : terms}, w[2] = {terms, n};
  Node *in[2] = {g_feed(c.g, "x", DT_FLOAT32, 2, x), g_feed(c.g, "w", DT_FLOAT32, 2, w)};
  Node *y = g_matmul(c.g, in[0], in[1], turned, false);
  c.k = arena_new_of(c.g->arena, Kernel);
  *c.k = (Kernel){.kind = K_CONTRACT, .name = "k", .rank = 2, .ext = {m, n}, .core = y};
  for (int i = 0; i < 2; i++)
    vec_add(c.g->arena, &c.k->inputs, ((KernelInput){in[i], false, false}));
  vec_add(c.g->arena, &c.k->outputs, y);
  c.plan = contract_plan(c.g->arena, c.k, false);
  return c;
}

/* Runs it on one thread, and compares with sums in double precision. */
static void check_values(const Case *c) {
  Arena *a = c->g->arena;
  const Plan *p = c->plan;
  float *x = arena_array(a, float, c->m * c->terms), *w = arena_array(a, float, c->terms * c->n),
        *y = arena_array(a, float, c->m * c->n);
  for (int64_t i = 0; i < c->m * c->terms; i++) x[i] = (float)(i * 7 % 31) / 31 - 0.5f;
  for (int64_t i = 0; i < c->terms * c->n; i++) w[i] = (float)(i * 11 % 29) / 29 - 0.5f;
  CodeBatch *batch = code_batch(a);
  plan_micro(c->plan, batch);
  assert_true(code_make(batch, NULL));
  KernelCode code = {0};
  contract_code(c->plan, NULL, &code);
  RunCtx ctx = {.scratch = arena_alloc(a, (size_t)code.scratch_bytes + 64),
                .scratch_bytes = (size_t)code.scratch_bytes};
  void *bufs[4] = {x, w, y, arena_alloc(a, (size_t)p->work.workspace + 64)};
  for (int i = 0; i < code.n_phases; i++)
    code.phase[i].fn(code.phase[i].self, bufs, 0, code.phase[i].n_tasks, &ctx);
  for (int64_t i = 0; i < c->m * c->n; i += 13) {
    double sum = 0;
    for (int64_t k = 0; k < c->terms; k++)
      sum += (double)x[c->turned ? k * c->m + i / c->n : i / c->n * c->terms + k] *
             (double)w[k * c->n + i % c->n];
    if (!(fabs(sum - (double)y[i]) <= 1e-6 * (double)(c->terms + 8)))
      fail_msg("element %lld is %g, not %g", (long long)i, (double)y[i], sum);
  }
  code_free(batch);
}

/* Columns of two vectors: the tile of most rows has all of them. */
static int64_t two_vectors(void) {
  const TileRow *t = tile_of_form(DT_FLOAT32, FORM_ROWS);
  return t ? 2 * t->lanes : 0;
}

static void rows_from_memory(void **state) {
  (void)state;
  enum { TERMS = 32 };
  if (!two_vectors()) skip();
  Case far = product(POSITIONS, two_vectors(), TERMS, false),
       near = product(FEW, two_vectors(), TERMS, false);
  for (int i = 0; i < 2; i++) {
    const Case *c = i ? &near : &far;
    assert_int_equal(c->plan->kind, PLAN_CONV);
    const ConvPlan *p = c->plan->conv;
    const Part *q = &p->part[0];
    int64_t rows = q->rows.size + (q->rows.more > 0);
    if (i)
      assert_int_equal(p->more_lines, 0);
    else if (p->fetch_rows)
      assert_true(micro_fetched(p->more_lines) >= rows * FETCH_STEPS * 4);
    for (int s = 0; s < p->set.n; s++) assert_int_equal(p->set.spec[s].more_lines, p->more_lines);
    check_values(c);
    graph_free(c->g);
  }
}

static void blocks_from_memory(void **state) {
  (void)state;
  enum { CHANNELS = 32 };
  if (!two_vectors()) skip();
  Case far = product(CHANNELS, 32, POSITIONS, true), near = product(CHANNELS, 32, FEW, true);
  for (int i = 0; i < 2; i++) {
    const Case *c = i ? &near : &far;
    assert_int_equal(c->plan->kind, PLAN_FILTER);
    const FilterPlan *p = c->plan->filter;
    int64_t tiles = row_blocks(p->rows.size, &p->tile).n * vector_blocks(p->cols.size, &p->tile).n;
    if (i)
      assert_int_equal(p->more_lines, 0);
    else
      assert_true(tiles * micro_fetched(p->more_lines) >= (CHANNELS + 32) * FETCH_STEPS * 4);
    check_values(c);
    graph_free(c->g);
  }
}

/* The tile of one row is for a row: others read B once for each position. */
static void tiles_of_many_rows(void **state) {
  (void)state;
  static const char *const isas[] = {
#define ISA(id, here) #id,
#include "../backends/cpu/tiles.def"
      NULL};
  for (const char *const *isa = isas; *isa; isa++)
    for (int64_t n = 64; n <= 256; n *= 2) {
      micro_isa = *isa;
      Case c = product(784, n, 64, false);
      if (tile_isa() != ISA_NONE && c.plan->kind == PLAN_CONV)
        assert_true(c.plan->conv->tile.mr > 1);
      graph_free(c.g);
    }
  micro_isa = NULL;
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(rows_from_memory),
                                     cmocka_unit_test(blocks_from_memory),
                                     cmocka_unit_test(tiles_of_many_rows)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
