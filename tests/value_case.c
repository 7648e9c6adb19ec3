/* See value_case.h. */
#include "value_case.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void read_values(Tensor *t, const char *rule) {
  bool list = *rule == '=';
  int64_t m = list ? 0 : strtoll(rule, NULL, 10);
  for (int64_t k = 0; k < tensor_numel(t); k++)
    if (list) {
      char *end;
      tensor_set(t, k, strtod(rule + 1, &end));
      rule = *end == ',' ? end : rule;
    } else {
      tensor_set(t, k, (double)((5 * k + 3) % m - m / 2) / 4);
    }
}

/* One "NAME dims[:type] rule": declares the variable in `text` and keeps its value. A dimension may be -1. */
static void read_input(ValueRun *r, const char *spec, Str *text) {
  char name[32], dims[64], rule[256] = "";
  assert_true(sscanf(spec, " %31s %63[^; ] %255[^;]", name, dims, rule) >= 2);
  Tensor *t = arena_new_of(r->a, Tensor);
  DType type = DT_FLOAT64;
  char *colon = strchr(dims, ':');
  if (colon) {
    type = dtype_find(colon + 1);
    *colon = 0;
  }
  int rank = 0;
  int64_t d[KL_VAR_RANK];
  for (char *p = dims; *p && strcmp(dims, "scalar"); p += *p == 'x') d[rank++] = strtoll(p, &p, 10);
  str_fmt(text, "  var %s %s %s\n", name, dtype_info[type].name, dims_text(rank, d));
  if (!*rule) return;
  assert_true(tensor_make(t, r->a, type, rank, d));
  read_values(t, rule);
  map_put(r->fed, name, t);
}

void value_start(ValueRun *r, const char *op, const char *in) {
  *r = (ValueRun){.a = arena_new(), .seed = 5, .step = 1};
  r->fed = map_new(r->a);
  Str text;
  str_init(&text, r->a);
  str_add(&text, "program version 0\nblock 0 {\n");
  for (const char *p = in; p; p = strchr(p, ';'), p += p != NULL) read_input(r, p, &text);
  const char *eq = strstr(op, " = ");
  for (const char *p = op; p < eq;) { /* "Slot=name, Slot=name" or "name" */
    size_t n = strcspn(p, ", ");
    const char *at = memchr(p, '=', n), *name = at ? at + 1 : p;
    str_fmt(&text, "  var %.*s none\n", (int)(n - (size_t)(name - p)), name);
    p += n + strspn(p + n, ", ");
  }
  str_fmt(&text, "  %s\n}\n", op);
  r->p = prog_parse(text.s, text.n, "case");
  if (!r->p) {
    err_print(stderr, false);
    fail_msg("%s", text.s);
  }
}

void value_end(ValueRun *r) {
  prog_free(r->p);
  arena_free(r->a);
}

static Tensor *look_up(void *user, const char *name, bool state) {
  (void)state;
  return map_get(((ValueRun *)user)->fed, name);
}

Tensor *value_fetch(ValueRun *r, const char *name) {
  const char *feeds[8];
  void *v;
  int n = map_n(r->fed);
  for (int i = 0; i < n; i++) feeds[i] = map_at(r->fed, i, &v);
  if (!infer_program(r->p, true)) return NULL;
  Graph *g = expand_program(r->p, n, feeds, 1, &name, NULL, NULL);
  if (!g) return NULL;
  EvalEnv env = {look_up, r, r->seed, r->step};
  Tensor **values = arena_array(r->a, Tensor *, g->nodes.n), *t = NULL;
  if (graph_eval(g, &env, r->a, values)) {
    t = values[g->fetches.v[0].node->id];
    t->data = arena_dup(r->a, t->data, tensor_bytes(t));
  }
  graph_free(g);
  return t;
}

void value_check(const ValueCase *c) {
  for (int o = 0; o < 5 && c->out[o].name; o++) {
    const ValueExpect *e = &c->out[o];
    ValueRun r;
    value_start(&r, c->op, c->in);
    Tensor *t = value_fetch(&r, e->name);
    if (!t) err_print(stderr, false);
    if (!t) fail_msg("%s", c->op);
    if (tensor_numel(t) != e->n)
      fail_msg("%s: %s has %d elements", c->op, e->name, (int)tensor_numel(t));
    for (int k = 0; k < e->n; k++) {
      double is = tensor_get(t, k), v = e->v[k];
      if (isnan(v) ? !isnan(is) : !(fabs(is - v) <= 1e-7 * (1 + fabs(v))))
        fail_msg("%s: %s[%d] is %.9g, not %.9g", c->op, e->name, k, is, v);
    }
    value_end(&r);
  }
}
