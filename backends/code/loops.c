/* Requests for generated kernels. In: a kernel, or a microkernel's spec; out: a canonical key, a byte string of all that the
 * generated code depends on (operands numbered, names left out). */
#include "../llvm/codegen.h"
#include "../llvm/micro.h"
#include <string.h>

typedef struct Key {
  Str s;
  Kernel *k;
  LoopPart part;
  VEC(Node *) seen; /* place = Node.mark */
} Key;

static void put(Key *key, const void *p, size_t n) { str_addn(&key->s, p, n); }
static void put_int(Key *key, int64_t v) { put(key, &v, sizeof v); }

/* Operands first, then the node with their numbers. */
static void put_node(Key *key, Node *n) {
  if (n->mark >= 0 && n->mark < key->seen.n && key->seen.v[n->mark] == n) return;
  bool leaf = n == key->k->core && loop_is_epilogue(key->part);
  int input = -1;
  for (int i = 0; i < key->k->inputs.n; i++)
    if (key->k->inputs.v[i].node == n) input = i;
  leaf |= input >= 0;
  for (int i = 0; i < n->n_in && !leaf; i++) put_node(key, n->in[i]);
  n->mark = key->seen.n;
  vec_add(key->s.a, &key->seen, n);
  int64_t head[] = {
      leaf ? -1 - input : (int64_t)n->prim, n->dtype, n->rank, n->i, n->n_in, n->n_ia, n->n_loops,
      n->prim == P_CHECK ? n->id : 0};
  if (leaf) memset(head + 3, 0, 5 * sizeof *head);
  put(key, head, sizeof head);
  put(key, n->dims, (size_t)n->rank * sizeof *n->dims);
  if (leaf) return;
  for (int i = 0; i < n->n_in; i++) put_int(key, n->in[i]->mark);
  put(key, &n->f, sizeof n->f);
  put(key, n->ia, (size_t)n->n_ia * sizeof *n->ia);
  put(key, n->ext, (size_t)n->n_loops * sizeof *n->ext);
  for (int i = 0; i < 2; i++)
    for (int d = 0; n->map[i] && d < n->in[i]->rank; d++) {
      const AffDim *m = &n->map[i][d];
      int64_t v[] = {m->l0, m->l1, m->c0, m->c1, m->off, m->div};
      put(key, v, sizeof v);
    }
}

static void put_kernel(Key *key) {
  Kernel *k = key->k;
  int64_t head[] = {key->part, k->kind, k->rank, k->reduce, k->inputs.n, k->outputs.n};
  put(key, head, sizeof head);
  put(key, k->ext, (size_t)k->rank * sizeof *k->ext);
  for (int i = 0; i < k->inputs.n; i++) put_int(key, k->inputs.v[i].aligned);
  for (int i = 0; i < k->inputs.n; i++) put_node(key, k->inputs.v[i].node);
  for (int i = 0; i < k->nodes.n; i++) put_node(key, k->nodes.v[i]);
  if (k->core) put_node(key, k->core);
  for (int i = 0; i < k->outputs.n; i++) {
    put_node(key, k->outputs.v[i]);
    put_int(key, k->outputs.v[i]->mark);
    if (k->core) put_int(key, stored_in_memory(k->outputs.v[i])); /* what stencils fetch */
  }
}

void loop_key(Kernel *k, LoopPart part, Str *key) {
  Key own = {.k = k, .part = part};
  str_init(&own.s, key->a);
  put_kernel(&own);
  *key = own.s;
}

void loop_code(CodeBatch *b, Kernel *k, LoopPart part, KernelFn **fn) {
  LoopJob job = {k, part};
  *fn = NULL;
  if (loop_is_empty(k, part)) return;
  Arena *a = arena_scratch();
  Str key;
  str_init(&key, a);
  loop_key(k, part, &key);
  code_want(b, CODE_LOOP, k->name, &job, sizeof job, &key, fn);
  arena_free(a);
}

enum { SPEC_KEY = 11 };

/* All fields. */
static void spec_key(const MicroSpec *s, int64_t v[SPEC_KEY]) {
  _Static_assert(sizeof *s == 48, "a field that is not in the key");
  int64_t all[SPEC_KEY] = {s->dtype, s->lanes, s->mr,  s->nv,   s->tail,      s->dot,
                           s->keep,  s->pitch, s->run, s->jump, s->more_lines};
  memcpy(v, all, sizeof all);
}

bool micro_same(const MicroSpec *a, const MicroSpec *b) {
  int64_t x[SPEC_KEY], y[SPEC_KEY];
  spec_key(a, x);
  spec_key(b, y);
  return !memcmp(x, y, sizeof x);
}

void micro_code(CodeBatch *b, const MicroSpec *s, MicroFn **fn) {
  char name[96];
  int64_t v[SPEC_KEY];
  Arena *a = arena_scratch();
  Str key;
  spec_key(s, v);
  str_init(&key, a);
  str_addn(&key, (char *)v, sizeof v);
  const char *any = s->pitch == ANY_PITCH ? "_any" : "";
  snprintf(name, sizeof name, "micro_%s_%dx%dx%d%s%s%s%s_%lld_%d_%lld_%d",
           dtype_info[s->dtype].name, s->mr, s->nv, s->lanes, s->tail ? "_tail" : "",
           s->dot ? "_dot" : "", s->keep ? "_keep" : "", any, *any ? 0LL : (long long)s->pitch,
           s->run, (long long)s->jump, s->more_lines);
  code_want(b, CODE_MICRO, name, s, sizeof *s, &key, fn);
  arena_free(a);
}
