/* How kernels use memory, counted by the simulator of the CUDA driver: the sectors of 32 bytes that the requests of warps touch, and
 * conflicts of the banks of shared memory. Sectors are held against two figures (tests/cudasim/traffic.c): `strict`, the least that
 * so many bytes fill, and `least`, what is possible where the bytes lie, for rows that are not multiples of a sector. Each case
 * (cuda_traffic.def) is a process of its own, whose report holds a line for each kernel. KILN_TEST_SHOW=1 prints them. */
#include "opcase.h"
#include "simulator.h"
#include "util.h"
#include "../passes/passes.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* Passes over the banks that conflicts may cost, of all, outside of products: neighbours of rows that are copied lie anywhere. */
static const double CLASHES = 0.6;
static const double TRANSPOSE = 1.25; /* strictly, of kernels without arithmetic */

typedef struct Case {
  const char *group;
  double limit, strict;
  const char *op, *text, *math;
  double forward;
} Case;

static const Case cases[] = {
#define T(group_, limit_, strict_, op_, ...)                                                       \
  {.group = #group_, .limit = limit_, .strict = strict_, .op = op_, .text = __VA_ARGS__},
#include "cuda_traffic.def"
#undef T
};

/* How the cases of a group run, and what is looked at. */
typedef struct Suite {
  const char *name, *group;
  bool copies;   /* kernels without arithmetic too */
  bool products; /* tensors have the channel last wherever that can be */
  bool sums; /* kernels are sums, or products of one term: their banks may conflict as others' */
  bool parameter; /* the filter is a parameter, there are no gradients */
  bool forward;   /* the strict limit is that of a forward pass alone */
  int most;       /* cases, from the first on; 0: all */
  DType type;     /* of what the text does not say; DT_BOOL, which is 0: float32 */
  const char *sm; /* the architecture; NULL: 80 */
} Suite;

/* Converting transposes of bfloat16 count as products. */
static const Suite suites[] = {
    {"common", "common", .copies = true},
    {"odd_shapes", "odd", .copies = true},
    {"moves", "move", .copies = true},
    {"rows", "row", .copies = true},
    {"first_layers", "first_layer", .products = true},
    {"products", "product", .products = true},
    {"thin_products", "thin", .products = true},
    {"products_with_vectors", "vector", .products = true, .sums = true},
    {"convolutions", "convolution", .products = true},
    {"long_sums", "long_sum", .products = true},
    {"inference", "inference", .parameter = true},
    {"depthwise", "depthwise", .products = true, .sums = true},
    {"groups", "groups", .products = true},
    {"groups_forward", "groups", .products = true, .parameter = true, .forward = true},
    {"float16", "typed", .products = true, .type = DT_FLOAT16},
    {"bfloat16", "typed", .products = true, .most = 6, .type = DT_BFLOAT16, .sm = "90"},
    {"float16_sm_75", "typed", .products = true, .most = 6, .type = DT_FLOAT16, .sm = "75"},
    {"float32_sm_75", "typed", .products = true, .most = 8, .sm = "75"},
    {"float64", "typed", .products = true, .most = 6, .type = DT_FLOAT64},
    {"three_stages_float32", "three_stages", .products = true, .sm = "75"},
    {"three_stages_float16", "three_stages", .products = true, .most = 2, .type = DT_FLOAT16,
     .sm = "75"},
    {"convolutions_of_float64", "doubles", .products = true, .type = DT_FLOAT64},
    {"groups_of_float16", "groups_typed", .products = true, .type = DT_FLOAT16},
    {"groups_sm_75", "groups_typed", .products = true, .most = 2, .sm = "75"},
};

typedef struct Run {
  const Suite *s;
  const Case *c;
} Run;

/* Rows of every kind of length: in a text @ is replaced by each of these, & by twice as many, # by as many rows as make 5000 elements. */
static const int widths[] = {3, 7, 10, 17, 33, 50, 67, 100, 127, 129, 300, 1001};
enum { N_WIDTHS = sizeof widths / sizeof *widths };

/* What is fed as the filter becomes a parameter; -> feeds that are left. */
static int keep_filter(const OpCase *o, Scope *scope, int n, Feed *feeds) {
  const char *name = op_in(o->op, "Filter", 0);
  int left = 0;
  for (int i = 0; i < n; i++) {
    const Tensor *t = feeds[i].value;
    feeds[left] = feeds[i];
    if (strcmp(feeds[i].name, name)) {
      left++;
      continue;
    }
    Var *v = block_var(o->prog->blocks.v[0], name);
    v->persistable = true;
    v->need_check_feed = false;
    scope_set(scope, name, t->dtype, t->rank, t->dims, t->data);
  }
  return left;
}

/* The operator and its gradient on the device. */
static int run_text(const Run *r, const char *text) {
  const char *names[64];
  Tensor out[64];
  int n = 0, n_feeds;
  DType real = r->s->type == DT_BOOL ? DT_FLOAT32 : r->s->type;
  OpCase o;
  OpGrads g = {0};
  memset(out, 0, sizeof out);
  if (!opcase_text(&o, opdef_find(r->c->op), text, 7, real) || !infer_program(o.prog, true)) {
    err_print(stderr, false);
    return 1;
  }
  const Block *b = o.prog->blocks.v[0];
  for (int s = 0; s < o.op->outs.n; s++)
    for (int i = 0; i < o.op->outs.v[s].n; i++)
      if (block_var(b, o.op->outs.v[s].args[i])->dtype != DT_NONE)
        names[n++] = o.op->outs.v[s].args[i];
  bool backward = o.def->grad && !o.nograd && !r->s->parameter;
  if (backward && (!opcase_grads(&o, &g) || !infer_program(o.prog, true))) return 1;
  for (int i = 0; i < g.n_out && n < 64; i++) names[n++] = g.out[i];
  Feed *feeds = opcase_feeds(&o, &g, &n_feeds);
  Executor *e = exec_new(&(ExecOptions){.seed = 5, .device = "cuda", .math = r->c->math});
  Scope *scope = scope_new();
  if (r->s->parameter) n_feeds = keep_filter(&o, scope, n_feeds, feeds);
  bool ok = e && exec_run(e, scope, o.prog, n_feeds, feeds, n, names, out);
  if (!ok) err_print(stderr, false);
  for (int i = 0; i < n; i++) mem_free(out[i].data);
  scope_free(scope);
  exec_free(e);
  opcase_free(&o);
  return !ok;
}

static int run_case(const void *arg) {
  const Run *r = arg;
  const char *pattern = r->c->text;
  layout_always = r->s->products;
  if (!strpbrk(pattern, "@&#")) return run_text(r, pattern);
  for (int i = 0; i < N_WIDTHS; i++) {
    char text[256];
    size_t n = 0;
    int w = widths[i];
    for (const char *p = pattern; *p && n + 16 < sizeof text; p++)
      if (strchr("@&#", *p))
        n += (size_t)snprintf(text + n, 16, "%d", *p == '@' ? w : *p == '&' ? 2 * w : 5000 / w);
      else
        text[n++] = *p;
    text[n] = 0;
    if (run_text(r, text)) return 1;
  }
  return 0;
}

static double number(const char *line, const char *name) {
  const char *at = strstr(line, name);
  return at ? strtod(at + strlen(name), NULL) : 0;
}

/* Kernels of the report that go over the limit; *worst: most sectors over the least. */
static int check_report(const char *path, const Run *r, double *worst) {
  enum { FEW = 64 };
  const Case *c = r->c;
  bool product =
      !r->s->sums && (strncmp(c->op, "conv", 4) == 0 || strncmp(c->op, "matmul", 6) == 0);
  char line[4096];
  int bad = 0;
  FILE *f = fopen(path, "r");
  assert_non_null(f);
  while (fgets(line, sizeof line, f)) {
    double sectors = number(line, "\"sectors\": "), least = number(line, "\"ideal_sectors\": ");
    double conflicts = number(line, "\"bank_conflicts\": ");
    bool copy =
        number(line, "\"float\": ") + number(line, "\"double\": ") + number(line, "\"mma\": ") == 0;
    double shared = number(line, "\"wavefronts\": ");
    double reachable = number(line, "\"reachable_sectors\": "), most = least;
    double strict = r->s->forward ? c->forward : c->strict;
    if (copy && strict < TRANSPOSE) strict = TRANSPOSE;
    if (reachable > most) most = reachable;
    if (strncmp(line, "{\"name\"", 7)) continue;
    if (copy && !r->s->copies) continue;
    if (sectors > FEW && sectors > *worst * most) *worst = sectors / most;
    bool over = (sectors > c->limit * most || sectors > strict * least) && sectors > FEW;
    bool clash = conflicts > (product && !copy ? 0 : CLASHES * shared);
    bad += over || clash;
    if (over || clash || getenv("KILN_TEST_SHOW"))
      printf("%s %s %s: %.40s: %.0f sectors, %.3f of the least, %.3f strictly, %.0f conflicts%s\n",
             c->op, c->text, c->math ? c->math : "", line + 10, sectors, sectors / most,
             sectors / least, conflicts, over ? " OVER" : "");
  }
  fclose(f);
  return bad;
}

static void test_suite(void **state) {
  const Suite *s = *state;
  const char *folder = scratch_folder();
  char report[600], sm[32];
  double worst = 0;
  int bad = 0, n = 0;
  snprintf(report, sizeof report, "CUDASIM_REPORT=%s/report", folder);
  snprintf(sm, sizeof sm, "CUDASIM_SM=%s", s->sm ? s->sm : "80");
  const char *settings[] = {report, sm, NULL};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const Run r = {s, &cases[i]};
    if (strcmp(cases[i].group, s->group) || (s->most && n == s->most)) continue;
    n++;
    assert_int_equal(in_process(settings, run_case, &r), 0);
    bad += check_report(strchr(report, '=') + 1, &r, &worst);
  }
  printf("%d cases: at most %.3f of the least\n", n, worst);
  scratch_remove(folder);
  assert_true(worst > 0); /* kernels were counted */
  assert_int_equal(bad, 0);
}

int main(int argc, char *argv[]) {
  (void)argc;
  enum { N = sizeof suites / sizeof *suites };
  struct CMUnitTest tests[N];
  for (int i = 0; i < N; i++)
    tests[i] = (struct CMUnitTest){suites[i].name, test_suite, NULL, NULL, (void *)&suites[i]};
  if (!simulator(argv)) return 1;
  return cmocka_run_group_tests(tests, NULL, NULL);
}
