/* einsum: "ij,jk->ik". Every letter is an index; "..." stands for the dimensions that are left, aligned at
 * their ends. Operands lose repeated letters (a diagonal: one VIEW) and those that nobody else
 * names (a sum); then they are contracted one after another, each time over the letters that are not needed
 * further. */
#include "ops.h"

#include <ctype.h>
#include <string.h>

enum {
  LETTERS = 52,
  MOST = LETTERS + KL_RANK
}; /* the dimensions of "..." have numbers from LETTERS, the last one first */

typedef struct Term {
  Node *node;
  int n;
  int label[KL_RANK];
} Term;

typedef struct Einsum {
  int n;
  Term *term, out;
  int64_t size[MOST]; /* of each label: 0 not seen, -1 unknown */
  int uses[MOST];     /* operands that name it, plus 1 for the result */
} Einsum;

static bool malformed(const char *equation) {
  err_set(E_OPR_003, "equation is %s", quoted(equation));
  err_help("Write one letter for each dimension, as in \"ij,jk->ik\".");
  return false;
}

static int letter(char c) { return c >= 'a' ? c - 'a' : 26 + c - 'A'; }

/* One term up to a comma, arrow or the end. rest: dimensions of "...". */
static bool term_parse(const char **p, Term *t, int rest) {
  t->n = 0;
  while (**p && **p != ',' && **p != '-') {
    if (isspace((unsigned char)**p)) {
      ++*p;
    } else if (!strncmp(*p, "...", 3)) {
      for (int i = rest - 1; i >= 0 && t->n < KL_RANK; i--) t->label[t->n++] = LETTERS + i;
      *p += 3;
    } else {
      if (!isalpha((unsigned char)**p) || t->n == KL_RANK) return false;
      t->label[t->n++] = letter(*(*p)++);
    }
  }
  return true;
}

static int letters_of(const char *p) {
  int n = 0;
  for (; *p && *p != ',' && *p != '-'; p++) n += isalpha((unsigned char)*p) != 0;
  return n;
}

static bool has_label(const Term *t, int label) {
  for (int i = 0; i < t->n; i++)
    if (t->label[i] == label) return true;
  return false;
}

/* Without "->": "..." and every letter that occurs once, in order. */
static void implicit_result(Einsum *e, int rest) {
  int count[LETTERS] = {0};
  for (int k = 0; k < e->n; k++)
    for (int i = 0; i < e->term[k].n; i++)
      if (e->term[k].label[i] < LETTERS) count[e->term[k].label[i]]++;
  for (int i = rest - 1; i >= 0; i--) e->out.label[e->out.n++] = LETTERS + i;
  for (int i = 0; i < LETTERS; i++) {
    int l = i < 26 ? 26 + i : i - 26; /* capitals first, as in ASCII */
    if (count[l] == 1 && e->out.n < KL_RANK) e->out.label[e->out.n++] = l;
  }
}

static bool einsum_sizes(Einsum *e) {
  for (int k = 0; k < e->n; k++) {
    Term *t = &e->term[k];
    for (int i = 0; i < t->n; i++) {
      int64_t *s = &e->size[t->label[i]], d = t->node->dims[i];
      bool spread = t->label[i] >= LETTERS; /* may be 1 in one operand */
      if (*s == 0 || (*s == -1 && d > 1) || (spread && *s == 1)) *s = d;
      if (!(spread && d == 1) && !ops_same("dimensions of one index", *s, d)) return false;
    }
    for (int l = 0; l < MOST; l++) e->uses[l] += has_label(t, l);
  }
  for (int i = 0; i < e->out.n; i++) e->uses[e->out.label[i]]++;
  return true;
}

static bool einsum_read(Expand *x, const char *slot, Einsum *e) {
  const char *equation = op_str(x->op, "equation"), *p = equation;
  int rest = 0;
  memset(e, 0, sizeof *e);
  e->n = x_n_in(x, slot);
  e->term = arena_array(x->g->arena, Term, e->n);
  for (int k = 0; k < e->n; k++) {
    Node *v = e->term[k].node = x_in_at(x, slot, k);
    if (!v) return false;
    int more = v->rank - letters_of(p), *at = &e->term[k].n;
    bool dots = memchr(p, '.', strcspn(p, ",-")) != NULL;
    if (more < 0 || (more > 0 && !dots) || !term_parse(&p, &e->term[k], dots ? more : 0) ||
        *at != v->rank || (k + 1 < e->n) != (*p == ','))
      return malformed(equation);
    if (dots && more > rest) rest = more;
    if (*p == ',') p++;
  }
  if (!*p) {
    implicit_result(e, rest);
  } else {
    if (strncmp(p, "->", 2) != 0) return malformed(equation);
    p += 2;
    if (!term_parse(&p, &e->out, rest) || *p) return malformed(equation);
  }
  if (!einsum_sizes(e)) return false;
  for (int i = 0; i < e->out.n; i++)
    if (e->size[e->out.label[i]] == 0 || e->uses[e->out.label[i]] < 2) return malformed(equation);
  return true;
}

/* Each label once; those used only here are summed. */
static void term_simplify(Graph *g, Einsum *e, Term *t) {
  Term u = {.n = 0};
  int64_t dims[KL_RANK];
  AffDim map[KL_RANK];
  uint32_t sum = 0;
  for (int i = 0; i < t->n; i++)
    if (!has_label(&u, t->label[i])) {
      dims[u.n] = t->node->dims[i];
      if (e->uses[t->label[i]] == 1) sum |= 1u << u.n;
      u.label[u.n++] = t->label[i];
    }
  for (int i = 0; i < t->n; i++)
    for (int k = 0; k < u.n; k++)
      if (u.label[k] == t->label[i]) map[i] = aff_loop(k);
  u.node = u.n == t->n ? t->node : g_view(g, t->node, u.n, dims, map, 0);
  if (sum) u.node = g_reduce(g, P_RSUM, u.node, sum, false);
  int n = 0;
  for (int k = 0; k < u.n; k++)
    if (!(sum >> k & 1)) u.label[n++] = u.label[k];
  u.n = n;
  *t = u;
}

static AffDim label_at(int label, int n, const int *loops, int64_t dim) {
  for (int i = 0; i < n; i++)
    if (loops[i] == label && dim != 1) return aff_loop(i);
  return aff_const(0);
}

/* a and b over all labels, summing those that neither the result nor a later operand names. */
static void term_contract(Graph *g, Einsum *e, Term *a, Term *b) {
  int loops[2 * KL_RANK], n = 0, rank = 0;
  for (int pass = 0; pass < 2; pass++) {
    for (int k = 0; k < a->n + b->n; k++) {
      int l = k < a->n ? a->label[k] : b->label[k - a->n];
      bool both = has_label(a, l) && has_label(b, l), seen = k >= a->n && both;
      bool summed = e->uses[l] - (both ? 2 : 1) == 0;
      if (!seen && summed == (pass == 1)) loops[n++] = l;
    }
    if (pass == 0) rank = n;
  }
  if (n > KL_LOOPS || rank > KL_RANK) {
    err_set(E_SHP_002, "%d indices at once", n);
    a->node = NULL;
    return;
  }
  int64_t ext[KL_LOOPS];
  AffDim ma[KL_RANK], mb[KL_RANK];
  for (int i = 0; i < n; i++) ext[i] = e->size[loops[i]];
  for (int i = 0; i < a->n; i++) ma[i] = label_at(a->label[i], n, loops, a->node->dims[i]);
  for (int i = 0; i < b->n; i++) mb[i] = label_at(b->label[i], n, loops, b->node->dims[i]);
  for (int i = 0; i < n; i++) e->uses[loops[i]] -= has_label(a, loops[i]) && has_label(b, loops[i]);
  a->node = g_contract(g, a->node, b->node, rank, n, ext, ma, mb);
  a->n = rank;
  memcpy(a->label, loops, sizeof *loops * (size_t)rank);
}

static Node *einsum(Graph *g, Einsum *e) {
  int64_t dims[KL_RANK];
  bool known = true;
  for (int i = 0; i < e->out.n; i++) dims[i] = e->size[e->out.label[i]];
  for (int k = 0; k < e->n; k++) known = known && ops_known(e->term[k].node);
  if (!known) return ops_blank(g, e->term[0].node->dtype, e->out.n, dims);
  Term *a = &e->term[0];
  for (int k = 0; k < e->n && a->node; k++) {
    term_simplify(g, e, &e->term[k]);
    if (k > 0 && e->term[k].node) term_contract(g, e, a, &e->term[k]);
  }
  if (!a->node) return NULL;
  AffDim map[KL_RANK];
  for (int i = 0; i < a->n; i++)
    map[i] = label_at(a->label[i], e->out.n, e->out.label, a->node->dims[i]);
  return g_view(g, a->node, e->out.n, dims, map, 0);
}

bool x_einsum(Expand *x) {
  Einsum e;
  if (!einsum_read(x, "Operands", &e)) return false;
  for (int k = 0; k < e.n; k++) {
    Node *v = e.term[k].node;
    int64_t dims[KL_RANK + 1] = {0};
    memcpy(dims + 1, v->dims, sizeof *dims * (size_t)v->rank);
    if (k < x_n_out(x, "InnerCache") && !x_out_at(x, "InnerCache", k, v)) return false;
    if (k < x_n_out(x, "XShape") && v->rank < KL_VAR_RANK &&
        !x_out_at(x, "XShape", k, ops_blank(x->g, v->dtype, v->rank + 1, dims)))
      return false;
  }
  return x_out(x, "Out", einsum(x->g, &e));
}

/* InnerCache holds the operands. */
bool x_einsum_grad(Expand *x) {
  Graph *g = x->g;
  Einsum e;
  if (!einsum_read(x, "InnerCache", &e)) return false;
  Node **of = arena_array(g->arena, Node *, e.n), **to = arena_array(g->arena, Node *, e.n);
  for (int k = 0; k < e.n; k++) of[k] = e.term[k].node = g_alias(g, e.term[k].node);
  Node *y = einsum(g, &e), *gy = x_in(x, "Out@GRAD");
  if (!y || !gy || !derive(g, 1, &y, &gy, e.n, of, to)) return false;
  for (int k = 0; k < x_n_out(x, "Operands@GRAD"); k++)
    if (!x_out_at(x, "Operands@GRAD", k, to[k] ? to[k] : ops_zeros(g, of[k]))) return false;
  return true;
}
