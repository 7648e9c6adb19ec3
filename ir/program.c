/* The Program: building, editing, reading.
 *
 * Everything a Program owns lies in its arena, so removal only unlinks. Every edit counts in `edits`, by which
 * executors know that what they compiled is stale. Looking up a variable walks the enclosing blocks, then the forward
 * blocks of those, as PaddlePaddle does; indices that point nowhere end the walk. */
#include "ir.h"
#include <stdatomic.h>
#include <string.h>

static const char empty_name[] = "@EMPTY@";

/* ---- programs and blocks ---- */

/* In a scratch arena, which the caller keeps when the Program is complete. */
static Program *program_raw(void) {
  static atomic_uint_fast64_t serial;
  Arena *a = arena_scratch();
  Program *p = arena_new_of(a, Program);
  p->arena = a;
  p->names = map_new(a);
  p->id = ++serial;
  return p;
}

Program *prog_new(void) {
  Program *p = program_raw();
  prog_add_block(p, -1, -1);
  arena_keep(p->arena);
  return p;
}

void prog_free(Program *p) {
  if (p) arena_free(p->arena);
}

Block *prog_add_block(Program *p, int parent, int forward) {
  Block *b = arena_new_of(p->arena, Block);
  b->prog = p;
  b->idx = p->blocks.n;
  b->parent = parent;
  b->forward = forward;
  b->by_name = map_new(p->arena);
  vec_add(p->arena, &p->blocks, b);
  p->edits++;
  return b;
}

static Attr attr_dup(Arena *a, const Attr *from);

static void var_dup(Block *b, const Var *v) {
  Arena *a = b->prog->arena;
  Var *c = arena_dup(a, v, sizeof *v);
  c->name = arena_str(a, v->name);
  c->block = b;
  if (v->param) c->param = arena_dup(a, v->param, sizeof *v->param);
  memset(&c->attrs, 0, sizeof c->attrs);
  for (int i = 0; i < v->attrs.n; i++) vec_add(a, &c->attrs, attr_dup(a, &v->attrs.v[i]));
  vec_add(a, &b->vars, c);
  map_put(b->by_name, c->name, c);
}

Program *prog_clone(const Program *p) {
  Program *c = program_raw();
  for (int i = 0; i < p->blocks.n; i++) {
    const Block *from = p->blocks.v[i];
    Block *to = prog_add_block(c, from->parent, from->forward);
    for (int k = 0; k < from->vars.n; k++) var_dup(to, from->vars.v[k]);
    for (int k = 0; k < from->ops.n; k++) op_copy(to, -1, from->ops.v[k]);
  }
  c->version = p->version;
  for (int i = 0; i < p->op_versions.n; i++) {
    OpVersion v = p->op_versions.v[i];
    v.name = arena_str(c->arena, v.name);
    vec_add(c->arena, &c->op_versions, v);
  }
  for (int i = 0; i < map_n(p->names); i++) {
    void *n;
    const char *key = map_at(p->names, i, &n);
    map_put(c->names, key, arena_dup(c->arena, n, sizeof(int)));
  }
  c->file = arena_str(c->arena, p->file);
  c->seed = p->seed;
  arena_keep(c->arena);
  return c;
}

const char *prog_unique(Program *p, const char *key) {
  int *n = map_get(p->names, key);
  if (!n) map_put(p->names, key, n = arena_new_of(p->arena, int));
  for (;;) {
    const char *name = arena_fmt(p->arena, "%s_%d", key, (*n)++);
    bool taken = false;
    for (int i = 0; i < p->blocks.n && !taken; i++) taken = block_var(p->blocks.v[i], name);
    if (!taken) return name;
  }
}

/* ---- variables ---- */

Var *block_add_var(Block *b, const char *name, VarKind kind, DType t, int rank,
                   const int64_t *dims) {
  Arena *a = b->prog->arena;
  if (block_var(b, name)) {
    err_set(E_PRO_002, "variable %s is declared twice", quoted(name));
    err_where("block %d", b->idx);
    return NULL;
  }
  if (rank > KL_VAR_RANK) {
    err_set(E_SHP_002, "variable %s has rank %d; at most %d is allowed", quoted(name), rank,
            KL_VAR_RANK);
    return NULL;
  }
  Var *v = arena_new_of(a, Var);
  v->name = arena_str(a, name);
  v->kind = kind;
  v->dtype = t;
  v->paddle_dtype = -1;
  v->rank = rank;
  for (int i = 0; i < rank; i++) v->dims[i] = dims ? dims[i] : -1;
  v->block = b;
  vec_add(a, &b->vars, v);
  map_put(b->by_name, name, v);
  b->prog->edits++;
  return v;
}

Var *block_var(const Block *b, const char *name) { return map_get(b->by_name, name); }

static const Block *block_at(const Program *p, int i) {
  return i >= 0 && i < p->blocks.n ? p->blocks.v[i] : NULL;
}

/* In b and the blocks around it; the steps are bounded, since an unverified program may have cycles. */
static Var *find_upwards(const Block *b, const char *name, bool *forward) {
  const Program *p = b->prog;
  for (int steps = 0; b && steps <= p->blocks.n; steps++, b = block_at(p, b->parent)) {
    Var *v = block_var(b, name);
    if (v) return v;
    *forward |= b->forward >= 0;
  }
  return NULL;
}

Var *block_find_var(const Block *b, const char *name) {
  const Program *p = b->prog;
  bool forward = false;
  Var *v = find_upwards(b, name, &forward);
  for (int tries = 0; !v && forward && tries < p->blocks.n; tries++) {
    /* the innermost enclosing block with a forward block goes on there */
    int steps = 0;
    while (b && b->forward < 0 && steps++ <= p->blocks.n) b = block_at(p, b->parent);
    b = b ? block_at(p, b->forward) : NULL;
    if (!b) break;
    forward = false;
    v = find_upwards(b, name, &forward);
  }
  return v;
}

const Op *block_writer(const Block *b, const char *name) {
  for (int i = 0; i < b->ops.n; i++)
    for (int s = 0; s < b->ops.v[i]->outs.n; s++)
      for (int k = 0; k < b->ops.v[i]->outs.v[s].n; k++)
        if (!strcmp(b->ops.v[i]->outs.v[s].args[k], name)) return b->ops.v[i];
  return NULL;
}

void block_suggest(const Block *b, const char *name) {
  Arena *a = arena_scratch();
  const char **names = arena_array(a, const char *, b->vars.n + 1);
  for (int i = 0; i < b->vars.n; i++) names[i] = b->vars.v[i]->name;
  const char *near = name_nearest(name, b->vars.n, names);
  if (near) err_help("Did you mean %s?", quoted(near));
  arena_free(a);
}

int block_results(const Block *b, int from, int to, const bool *skip, Arena *a,
                  const char ***names) {
  Map *seen = map_new(a);
  VEC(const char *) all = {0};
  for (int i = from; i < to; i++)
    for (int s = 0; s < b->ops.v[i]->outs.n && !(skip && skip[i]); s++)
      for (int k = 0; k < b->ops.v[i]->outs.v[s].n; k++) {
        const char *name = b->ops.v[i]->outs.v[s].args[k];
        Var *v = block_find_var(b, name);
        if (!v || v->kind != VK_TENSOR || v->persistable || map_get(seen, name)) continue;
        map_put(seen, name, v);
        vec_add(a, &all, name);
      }
  *names = all.v;
  return all.n;
}

void block_remove_var(Block *b, const char *name) {
  for (int i = 0; i < b->vars.n; i++) {
    if (strcmp(b->vars.v[i]->name, name)) continue;
    memmove(&b->vars.v[i], &b->vars.v[i + 1], (size_t)(--b->vars.n - i) * sizeof *b->vars.v);
    map_put(b->by_name, name, NULL);
    b->prog->edits++;
    return;
  }
}

/* ---- operators ---- */

Op *block_add_op(Block *b, const char *type) { return block_insert_op(b, b->ops.n, type); }

Op *block_insert_op(Block *b, int at, const char *type) {
  Arena *a = b->prog->arena;
  Op *op = arena_new_of(a, Op);
  op->type = arena_str(a, type);
  op->def = opdef_find(type);
  op->block = b;
  if (at < 0 || at > b->ops.n) at = b->ops.n;
  vec_add(a, &b->ops, op);
  memmove(&b->ops.v[at + 1], &b->ops.v[at], (size_t)(b->ops.n - 1 - at) * sizeof *b->ops.v);
  b->ops.v[at] = op;
  b->prog->edits++;
  return op;
}

void block_remove_op(Block *b, int at) {
  memmove(&b->ops.v[at], &b->ops.v[at + 1], (size_t)(--b->ops.n - at) * sizeof *b->ops.v);
  b->prog->edits++;
}

Op *op_copy(Block *to, int at, const Op *op) {
  Op *c = block_insert_op(to, at < 0 ? to->ops.n : at, op->type);
  Arena *a = to->prog->arena;
  for (int i = 0; i < op->ins.n; i++)
    op_set_ins(c, op->ins.v[i].name, op->ins.v[i].n, op->ins.v[i].args);
  for (int i = 0; i < op->outs.n; i++)
    op_set_outs(c, op->outs.v[i].name, op->outs.v[i].n, op->outs.v[i].args);
  for (int i = 0; i < op->attrs.n; i++) vec_add(a, &c->attrs, attr_dup(a, &op->attrs.v[i]));
  c->is_target = op->is_target;
  return c;
}

static Slot *slot_find(const SlotVec *s, const char *name) {
  for (int i = 0; i < s->n; i++)
    if (!strcmp(s->v[i].name, name)) return &s->v[i];
  return NULL;
}

static void slot_set(Op *op, SlotVec *slots, const char *name, int n, const char *const *args) {
  Arena *a = op->block->prog->arena;
  const char **copy = arena_array(a, const char *, n);
  for (int i = 0; i < n; i++) copy[i] = arena_str(a, args[i]);
  Slot *s = slot_find(slots, name);
  if (!s) {
    vec_add(a, slots, ((Slot){.name = arena_str(a, name)}));
    s = &slots->v[slots->n - 1];
  }
  s->n = n;
  s->args = copy;
  op->block->prog->edits++;
}

static void slot_append(Op *op, SlotVec *slots, const char *name, const char *arg) {
  Slot *s = slot_find(slots, name);
  int n = s ? s->n : 0;
  const char **args = arena_array(op->block->prog->arena, const char *, n + 1);
  if (n) memcpy(args, s->args, (size_t)n * sizeof *args);
  args[n] = arg;
  slot_set(op, slots, name, n + 1, args);
}

void op_set_ins(Op *op, const char *slot, int n, const char *const *args) {
  slot_set(op, &op->ins, slot, n, args);
}
void op_set_outs(Op *op, const char *slot, int n, const char *const *args) {
  slot_set(op, &op->outs, slot, n, args);
}
void op_add_in(Op *op, const char *slot, const char *arg) { slot_append(op, &op->ins, slot, arg); }
void op_add_out(Op *op, const char *slot, const char *arg) {
  slot_append(op, &op->outs, slot, arg);
}

void op_rename(Op *op, const char *from, const char *to) {
  Arena *a = op->block->prog->arena;
  for (int side = 0; side < 2; side++) {
    SlotVec *s = side ? &op->outs : &op->ins;
    for (int i = 0; i < s->n; i++)
      for (int k = 0; k < s->v[i].n; k++)
        if (!strcmp(s->v[i].args[k], from)) s->v[i].args[k] = arena_str(a, to);
  }
  op->block->prog->edits++;
}

const Slot *op_ins(const Op *op, const char *slot) { return slot_find(&op->ins, slot); }
const Slot *op_outs(const Op *op, const char *slot) { return slot_find(&op->outs, slot); }

static const char *slot_arg(const Slot *s, int i) {
  return s && i >= 0 && i < s->n && strcmp(s->args[i], empty_name) ? s->args[i] : NULL;
}

const char *op_in(const Op *op, const char *slot, int i) { return slot_arg(op_ins(op, slot), i); }
const char *op_out(const Op *op, const char *slot, int i) { return slot_arg(op_outs(op, slot), i); }

int op_index(const Op *op) {
  for (int i = 0; op->block && i < op->block->ops.n; i++)
    if (op->block->ops.v[i] == op) return i;
  return -1;
}

/* ---- attributes ---- */

static Attr attr_dup(Arena *a, const Attr *from) {
  Attr c = *from;
  c.name = arena_str(a, from->name);
  const AttrInfo *t = &attr_info[c.type];
  size_t n = (size_t)(c.n > 0 ? c.n : 0);
  if (t->elem == 'c')
    c.scalars = arena_dup(a, from->scalars, n * sizeof *c.scalars);
  else if (t->elem == 's' && !t->list)
    c.s = arena_str(a, from->s ? from->s : "");
  else if (t->elem == 's') {
    c.ss = arena_array(a, const char *, n);
    for (size_t i = 0; i < n; i++) c.ss[i] = arena_str(a, from->ss[i]);
  } else if (t->list)
    c.is = arena_dup(a, from->is, n * sizeof *c.is); /* fs has the same size */
  return c;
}

static Attr *attr_find(const Op *op, const char *name) {
  for (int i = 0; i < op->attrs.n; i++)
    if (!strcmp(op->attrs.v[i].name, name)) return &op->attrs.v[i];
  return NULL;
}

void op_set_attr(Op *op, const Attr *from) {
  Arena *a = op->block->prog->arena;
  Attr copy = attr_dup(a, from), *old = attr_find(op, from->name);
  if (old)
    *old = copy;
  else
    vec_add(a, &op->attrs, copy);
  op->block->prog->edits++;
  op_link_attrs(op);
}

static bool by_variables(const Attr *a) { return a->type == AT_VAR || a->type == AT_VARS; }

void op_link_attrs(Op *op) {
  for (int i = 0; i < op->attrs.n; i++) {
    const Attr *a = &op->attrs.v[i];
    if (!by_variables(a) || op_ins(op, a->name)) continue;
    if (a->type == AT_VAR)
      op_add_in(op, a->name, a->s);
    else
      op_set_ins(op, a->name, a->n, a->ss);
  }
}

bool op_slot_is_attr(const Op *op, const char *slot) {
  const SlotDef *d = op->def ? opdef_in(op->def, slot) : NULL;
  for (int i = 0; i < op->attrs.n && !d; i++)
    if (by_variables(&op->attrs.v[i]) && !strcmp(op->attrs.v[i].name, slot)) return true;
  return false;
}

const Slot *op_own_slots(const Op *op, Arena *a, size_t *n) {
  Slot *own = arena_array(a, Slot, op->ins.n + 1);
  *n = 0;
  for (int i = 0; i < op->ins.n; i++)
    if (!op_slot_is_attr(op, op->ins.v[i].name)) own[(*n)++] = op->ins.v[i];
  return own;
}

/* Sets the attribute with the type of its row, if it has one and the value can take it. */
static void set_typed(Op *op, Attr a) {
  const AttrDef *d = op->def ? opdef_attr(op->def, a.name) : NULL;
  if (d) attr_coerce(&a, d->dflt.type, op->block->prog->arena);
  op_set_attr(op, &a);
}

void op_set_int(Op *op, const char *name, int64_t v) {
  set_typed(op, (Attr){.name = name, .type = v == (int32_t)v ? AT_INT : AT_LONG, .i = v});
}
void op_set_float(Op *op, const char *name, double v) {
  const AttrDef *d = op->def ? opdef_attr(op->def, name) : NULL;
  bool wide = d && d->dflt.type == AT_FLOAT64;
  set_typed(op, (Attr){.name = name,
                       .type = wide ? AT_FLOAT64 : AT_FLOAT,
                       .f = wide ? v : (double)(float)v});
}
void op_set_bool(Op *op, const char *name, bool v) {
  set_typed(op, (Attr){.name = name, .type = AT_BOOL, .i = v});
}
void op_set_str(Op *op, const char *name, const char *v) {
  op_set_attr(op, &(Attr){.name = name, .type = AT_STRING, .s = v});
}
void op_set_ints(Op *op, const char *name, int n, const int64_t *v) {
  AttrType t = AT_INTS;
  for (int i = 0; i < n; i++)
    if (v[i] != (int32_t)v[i]) t = AT_LONGS;
  set_typed(op, (Attr){.name = name, .type = t, .n = n, .is = (int64_t *)v});
}

const Attr *op_attr(const Op *op, const char *name) {
  const Attr *a = attr_find(op, name);
  if (a) return a;
  const AttrDef *d = op->def ? opdef_attr(op->def, name) : NULL;
  return d && !d->required ? &d->dflt : NULL;
}

const Attr *op_list(const Op *op, const char *name, Arena *arena) {
  const Attr *a = op_attr(op, name);
  const AttrDef *d = op->def ? opdef_attr(op->def, name) : NULL;
  if (!a || !d || a->type == d->dflt.type) return a;
  Attr *copy = arena_dup(arena, a, sizeof *a);
  return attr_coerce(copy, d->dflt.type, arena) ? copy : a;
}

static int64_t to_int(double f) {
  return f >= 0x1p63 ? INT64_MAX : f <= -0x1p63 ? INT64_MIN : f == f ? (int64_t)f : 0;
}

int64_t op_int(const Op *op, const char *name) {
  const Attr *a = op_attr(op, name);
  if (!a) return 0;
  const AttrInfo *t = &attr_info[a->type];
  if (t->list || t->elem == 's') return 0;
  if (t->elem == 'c') return a->scalars->type >= 3 ? to_int(a->scalars->r) : a->scalars->i;
  return t->elem == 'f' ? to_int(a->f) : a->i;
}

double op_float(const Op *op, const char *name) {
  const Attr *a = op_attr(op, name);
  if (!a) return 0;
  const AttrInfo *t = &attr_info[a->type];
  if (t->list || t->elem == 's') return 0;
  if (t->elem == 'c') return a->scalars->type >= 3 ? a->scalars->r : (double)a->scalars->i;
  return t->elem == 'f' ? a->f : (double)a->i;
}

bool op_bool(const Op *op, const char *name) { return op_float(op, name) != 0; }

const char *op_str(const Op *op, const char *name) {
  const Attr *a = op_attr(op, name);
  return a && a->type == AT_STRING && a->s ? a->s : "";
}

const int64_t *op_intlist(const Op *op, const char *name, Arena *arena, int *n) {
  const Attr *a = op_attr(op, name);
  *n = 0;
  if (!a) return NULL;
  const AttrInfo *t = &attr_info[a->type];
  if (t->list && t->elem == 'f') { /* PaddlePaddle reads FLOATS as LONGS */
    int64_t *v = arena_array(arena, int64_t, a->n);
    for (int i = 0; i < a->n; i++) v[i] = to_int(a->fs[i]);
    *n = a->n;
    return v;
  }
  if (t->elem != 'i' && t->elem != 'b') return NULL;
  *n = t->list ? a->n : 1;
  return t->list ? a->is : &a->i;
}

int op_role(const Op *op) {
  const Attr *a = attr_find(op, "op_role");
  int64_t v = a ? op_int(op, "op_role") : ROLE_FORWARD;
  return v == 0x1000 ? ROLE_FORWARD : (int)v; /* PaddlePaddle's NotSpecified */
}

/* The user's place: the first entry of op_callstack, without the blanks around it. */
static int callstack_text(const Op *op, const char **text) {
  const Attr *a = attr_find(op, "op_callstack");
  if (!a || a->type != AT_STRINGS || a->n < 1) return 0;
  const char *s = a->ss[0] + strspn(a->ss[0], " \t\n");
  size_t n = strcspn(s, "\n");
  *text = s;
  return n > 120 ? 120 : (int)n;
}

const char *op_text(const Op *op) {
  static _Thread_local char buffers[4][768];
  static _Thread_local unsigned next;
  char *b = buffers[next++ % 4], place[128] = "";
  const char *type = quoted(op->type), *at = NULL;
  int n =
      snprintf(b, sizeof buffers[0], "op %d `%.*s`", op_index(op), (int)strlen(type) - 2, type + 1);
  int len = callstack_text(op, &at);
  if (!len) return b;
  memcpy(place, at, (size_t)len);
  const char *q = quoted(place);
  snprintf(b + n, sizeof buffers[0] - (size_t)n, " (%.*s)", (int)strlen(q) - 2, q + 1);
  return b;
}
