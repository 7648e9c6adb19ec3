/* Simplification: rewrites that need no data, applied until none fires. In: any Graph. Out: an equal one.
 *
 * A rule is a row of the table: a name, a pattern and its replacement as s-expressions, or a C function where maps and
 * dimensions must be computed. The contract of a rule: type and shape stay; every element stays bit for bit, NaN,
 * infinities and -0 included (so x*0 and x-x are no rules, and x+0 is one only where x cannot be -0), except that a pow
 * becomes a product and nested reductions may be summed in another order; the result is not more work; no two rules
 * undo each other. Reshapes move towards the results, views into their users. */
#include "simplify.h"
#include <ctype.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { INTS = 1, FLOATS = 2, BOOLS = 4, NUMBERS = INTS | FLOATS, ANY = 7 }; /* types of the node */
enum { MAX_ROUNDS = 24, MAX_ARGS = 3 };

typedef struct Rule {
  const char *name, *from, *to; /* variables are single letters; numbers match constants exactly */
  int types;
  RewriteFn *fn; /* instead of from and to */
} Rule;

static const Rule rules[] = {
    /* x + 0 = x for integers; for floating types only -0 is neutral for every x */
    {"add-zero", "(add x 0)", "x", INTS | BOOLS, NULL},
    {"add-negative-zero", "(add x -0)", "x", FLOATS, NULL},
    /* x + 0 = x where x is never -0 */
    {"add-zero-float", NULL, NULL, FLOATS, rule_add_zero},
    /* x - 0 = x */
    {"sub-zero", "(sub x 0)", "x", ANY, NULL},
    /* x * 1 = x; x / 1 = x */
    {"mul-one", "(mul x 1)", "x", ANY, NULL},
    {"div-one", "(div x 1)", "x", NUMBERS, NULL},
    /* (x * -1) * -1 = x */
    {"mul-minus-twice", "(mul (mul x -1) -1)", "x", FLOATS, NULL},
    /* x ^ 1 = x; x ^ 2 = x * x */
    {"pow-one", "(pow x 1)", "x", NUMBERS, NULL},
    {"pow-two", "(pow x 2)", "(mul x x)", NUMBERS, NULL},
    /* max(x, x) = min(x, x) = x */
    {"max-self", "(max x x)", "x", ANY, NULL},
    {"min-self", "(min x x)", "x", ANY, NULL},
    /* c ? x : x = x; true ? x : y = x; false ? x : y = y */
    {"select-same", "(select c x x)", "x", ANY, NULL},
    {"select-true", "(select 1 x y)", "x", ANY, NULL},
    {"select-false", "(select 0 x y)", "y", ANY, NULL},
    /* f(constants) = constant */
    {"const-map", NULL, NULL, ANY, fold_const_map},
    /* cast(x, type of x) = x; cast(cast(x, a), b) = cast(x, b) where a holds every value of x */
    {"cast-same", NULL, NULL, ANY, rule_cast_same},
    {"cast-cast", NULL, NULL, ANY, rule_cast_cast},
    /* view by the identity map = x; a view of a constant = a constant; view of view = one view */
    {"view-identity", NULL, NULL, ANY, rule_view_identity},
    {"view-const", NULL, NULL, ANY, rule_view_const},
    {"view-view", NULL, NULL, ANY, rule_view_view},
    /* view of a reshape that only adds or drops ones = one view; reshape of a view = a view where loops regroup */
    {"view-reshape", NULL, NULL, ANY, rule_view_reshape},
    {"reshape-view", NULL, NULL, ANY, rule_reshape_view},
    /* reshape of reshape = one reshape; reshape to the same dims = x; reshape of a constant = a constant */
    {"reshape-reshape", NULL, NULL, ANY, rule_reshape_reshape},
    {"reshape-same", NULL, NULL, ANY, rule_reshape_same},
    {"reshape-const", NULL, NULL, ANY, rule_reshape_const},
    /* reduction over axes of size 1 = the reduction over the others; over none = x */
    {"reduce-ones", NULL, NULL, ANY, rule_reduce_ones},
    /* rsum(rsum(x, A), B) = rsum(x, A | B); likewise rmax and rprod */
    {"reduce-reduce", NULL, NULL, ANY, rule_reduce_reduce},
    /* reduction of a reshape that only adds or drops ones = a reshape of the reduction, behind a contraction or reduction */
    {"reduce-reshape", NULL, NULL, ANY, rule_reduce_reshape},
    /* f(reshape(c), y) = reshape(f(c, reshape(y))) where c is a contraction, a reduction or a map: f can then join it */
    {"map-reshape", NULL, NULL, ANY, rule_map_reshape},
    /* f(view(x), view(y), constants) = view(f(x, y, constants)), the view being the same and repeating elements */
    {"map-expand", NULL, NULL, ANY, rule_map_expand},
    /* f(concat(x, y), spread) = concat(f(x, part of spread), f(y, the rest)), which stores the parts once */
    {"map-concat", NULL, NULL, ANY, rule_map_concat},
    /* contraction of a permuted, sliced or zero-padded operand = contraction with another map */
    {"contract-view", NULL, NULL, ANY, rule_contract_view},
    /* sum over k of x[(k - i)/d] y[k] = sum over q of x[q] y[d*q + i], which has no terms that do not count */
    {"contract-divided", NULL, NULL, ANY, rule_contract_divided},
    /* permutation of a matrix product that leaves its rows whole = a product with another order of results */
    {"view-contract", NULL, NULL, ANY, rule_view_contract},
};
enum { N_RULES = sizeof rules / sizeof *rules };
static _Thread_local long fired[N_RULES];

long simplify_fired(const char *rule) {
  for (int i = 0; i < N_RULES; i++)
    if (!strcmp(rules[i].name, rule)) return fired[i];
  return -1;
}

const char *simplify_rule(int i) { return i >= 0 && i < N_RULES ? rules[i].name : NULL; }

/* ---- patterns ---- */

bool const_is(const Node *n, double v) {
  if (n->prim != P_CONST) return false;
  if (!dtype_is_float(n->dtype)) return (double)n->i == v && !(v == 0 && 1 / v < 0);
  return !memcmp(&n->f, &v, sizeof v);
}

static Prim prim_find(const char *s, size_t n) {
  int p = 0;
  while (p < P_N && (strlen(prim_info[p].name) != n || memcmp(prim_info[p].name, s, n))) p++;
  return (Prim)p;
}

/* The end of the expression at s. */
static const char *skip(const char *s) {
  int depth = 0;
  do {
    depth += (*s == '(') - (*s == ')');
    s++;
  } while (*s && (depth > 0 || (*s != ' ' && *s != ')')));
  return s;
}

/* The head of "(prim a b c)"; args are the starts of the operands. */
static Prim split(const char *s, int *n, const char *args[MAX_ARGS]) {
  size_t len = strcspn(++s, " )");
  Prim p = prim_find(s, len);
  for (*n = 0, s += len; *s == ' '; s = skip(s)) args[(*n)++] = ++s;
  return p;
}

static bool has_head(const char *s, Prim p) {
  size_t n = strlen(prim_info[p].name);
  return !strncmp(s + 1, prim_info[p].name, n) && (s[n + 1] == ' ' || s[n + 1] == ')');
}

static bool commutes(Prim p) { return p == P_ADD || p == P_MUL || p == P_MAX || p == P_MIN; }

/* Depth is that of the table's patterns. */
static bool match(const char *pat, Node *n, Node *var[26]) {
  const char *args[MAX_ARGS];
  int n_args;
  if (islower((unsigned char)*pat)) {
    Node **v = &var[*pat - 'a'];
    if (!*v) *v = n;
    return *v == n;
  }
  if (*pat != '(') return const_is(n, text_double(pat, NULL));
  if (!has_head(pat, n->prim)) return false;
  split(pat, &n_args, args);
  if (n_args != n->n_in) return false;
  for (int swap = 0; swap <= commutes(n->prim); swap++) {
    Node *bound[26];
    bool ok = true;
    memcpy(bound, var, sizeof bound);
    for (int k = 0; ok && k < n_args; k++) ok = match(args[k], n->in[swap ? 1 - k : k], bound);
    if (!ok) continue;
    memcpy(var, bound, sizeof bound);
    return true;
  }
  return false;
}

static Node *build(Graph *g, const char *pat, const Node *like, Node *var[26]) {
  const char *args[MAX_ARGS];
  Node *in[MAX_ARGS];
  int n_args;
  if (*pat != '(') return var[*pat - 'a'];
  Prim p = split(pat, &n_args, args);
  for (int k = 0; k < n_args; k++) in[k] = build(g, args[k], like, var);
  return g_node(g, p, like->dtype, like->rank, like->dims, n_args, in);
}

/* Of the rules with patterns, the primitive that a node must have. */
static Prim heads[N_RULES];
static pthread_once_t heads_once = PTHREAD_ONCE_INIT;
static void find_heads(void) {
  const char *args[MAX_ARGS];
  int n;
  for (int i = 0; i < N_RULES; i++) heads[i] = rules[i].fn ? P_N : split(rules[i].from, &n, args);
}

static int type_bit(DType t) { return dtype_is_float(t) ? FLOATS : t == DT_BOOL ? BOOLS : INTS; }

static Node *apply_rule(Graph *g, const Rule *r, Node *n) {
  if (r->fn) return r->fn(g, n);
  Node *var[26] = {NULL};
  return match(r->from, n, var) ? build(g, r->to, n, var) : NULL;
}

static Node *apply_rules(Graph *g, Node *n, RewriteFn *except) {
  if (prim_info[n->prim].class == 'S') return NULL;
  int type = type_bit(n->dtype);
  for (int i = 0; i < N_RULES; i++) {
    const Rule *r = &rules[i];
    if (r->fn ? r->fn == except : heads[i] != n->prim) continue;
    Node *to = r->types & type ? apply_rule(g, r, n) : NULL;
    if (!to) continue;
    fired[i]++;
    return to;
  }
  return NULL;
}

static Node *apply(Graph *g, Node *n) { return apply_rules(g, n, NULL); }
static Node *apply_on_layouts(Graph *g, Node *n) { return apply_rules(g, n, rule_contract_view); }

/* ---- rounds ---- */

static uint64_t mix(uint64_t h, int64_t v) { return hash_bytes(h, &v, sizeof v); }

static uint64_t sum_node(uint64_t h, const Node *n) {
  h = mix(mix(mix(h, (int64_t)n->prim << 32 | n->dtype), n->i), n->rank);
  h = hash_bytes(hash_bytes(h, n->dims, (size_t)n->rank * sizeof *n->dims), &n->f, sizeof n->f);
  h = hash_bytes(h, n->ext, (size_t)n->n_loops * sizeof *n->ext);
  for (int k = 0; k < n->n_in; k++) h = mix(h, n->in[k]->id);
  for (int x = 0; x < 2; x++)
    for (int d = 0; n->map[x] && d < n->in[x]->rank; d++) {
      const AffDim *m = &n->map[x][d];
      h = mix(mix(mix(mix(h, m->l0), m->l1), m->c0), m->c1);
      h = mix(mix(h, m->off), m->div);
    }
  return h;
}

/* Of all that rules look at, and change. */
static uint64_t sum_graph(const Graph *g) {
  uint64_t h = 0;
  for (int i = 0; i < g->nodes.n; i++) h = sum_node(h, g->nodes.v[i]);
  for (int i = 0; i < g->writes.n; i++) h = mix(h, g->writes.v[i].node->id);
  for (int i = 0; i < g->fetches.n; i++) h = mix(h, g->fetches.v[i].node->id);
  return h;
}

/* Where two values of different shapes meet, neither of them free to reshape, map-reshape goes to and fro between the two. Once a
 * Graph comes back, the rounds from then on only repeat themselves: those that end where they began are left out. */
static void simplify(Graph *g, RewriteFn *fn) {
  uint64_t sum[MAX_ROUNDS];
  pthread_once(&heads_once, find_heads);
  for (int round = 0; round < MAX_ROUNDS; round++) {
    graph_sweep(g);
    sum[round] = sum_graph(g);
    int last = round - 1;
    while (last >= 0 && sum[last] != sum[round]) last--;
    bool back = last >= 0 && (MAX_ROUNDS - round) % (round - last) == 0;
    if (back || !graph_rewrite(g, fn)) break;
  }
  graph_sweep(g);
}

void pass_simplify(Graph *g) { simplify(g, apply); }

void simplify_layouts(Graph *g) { simplify(g, apply_on_layouts); }
