/* The verifier: everything that later stages take for granted about a Program. It runs after every load.
 *
 *   1. blocks and variables: one root, parents and forward blocks before their children, names, dims
 *   2. operators, block by block: slots, attributes, block references, declared variables, feed and fetch columns
 *   3. order: a walk in execution order, sub-blocks where their operator stands, with an explicit stack; a variable that
 *      some operator writes must have been written before it is read, unless it is fed or persistable
 *   4. unknown operators, as E-OPR-001. Since this comes last, a caller that gets this code and only wants to print or
 *      convert the program knows that everything else is in order. */
#include "ir.h"
#include <string.h>

enum { NESTING_MOST = 1000, COLUMN_MOST = 65535 };

enum { V_WRITTEN = 1, V_NOW = 2 }; /* by some operator; by an operator that has run in the walk */

typedef struct Verify {
  const Program *p;
  Arena *a;        /* scratch */
  const Op *op;    /* being checked */
  Map *columns[2]; /* used columns of feed and fetch */
  /* open-addressing table from Var to V_ flags */
  const Var **vars;
  uint8_t *flags;
  size_t mask;
  const Op *unknown; /* the first unknown operator, and how many there are */
  int n_unknown;
} Verify;

static uint8_t *flags_of(Verify *c, const Var *v) {
  size_t i = ((uintptr_t)v >> 4) * 0x9e3779b97f4a7c15u >> 20 & c->mask;
  while (c->vars[i] && c->vars[i] != v) i = (i + 1) & c->mask;
  c->vars[i] = v;
  return &c->flags[i];
}

static bool in_block(const Program *p, int block) {
  err_where("block %d", block);
  if (p->file) err_where("%s", p->file);
  return false;
}

static bool in_op(const Op *op) {
  err_where("%s", op_text(op));
  return in_block(op->block->prog, op->block->idx);
}

/* ---- 1. blocks and variables ---- */

static bool check_dims(const Var *v) {
  int64_t dims[KL_VAR_RANK], n;
  if (v->rank > KL_VAR_RANK)
    return err_set(E_SHP_002, "variable %s has rank %d; at most %d is allowed", quoted(v->name),
                   v->rank, KL_VAR_RANK);
  for (int i = 0; i < v->rank; i++) {
    if (v->dims[i] < -1)
      return err_set(E_PRO_002, "dimension %d of variable %s is %lld; it must be -1 or more", i,
                     quoted(v->name), (long long)v->dims[i]);
    dims[i] = v->dims[i] < 0 ? 1 : v->dims[i];
  }
  if (v->rank <= 0 || dims_numel(v->dtype, v->rank, dims, &n)) return true;
  err_where("variable %s", quoted(v->name));
  return false;
}

static bool check_vars(const Block *b) {
  for (int i = 0; i < b->vars.n; i++) {
    const Var *v = b->vars.v[i];
    if (!v->name || !*v->name) return err_set(E_PRO_002, "variable %d has an empty name", i);
    if (block_var(b, v->name) != v)
      return err_set(E_PRO_002, "variable %s is declared twice", quoted(v->name));
    if (!check_dims(v)) return false;
  }
  return true;
}

static bool check_block(const Program *p, int i, int *depth) {
  const Block *b = p->blocks.v[i];
  if (b->idx != i) return err_set(E_PRO_002, "block %d says that it is block %d", i, b->idx);
  if (i == 0 && b->parent >= 0)
    return err_set(E_PRO_002, "the root block has the parent %d", b->parent);
  if (i > 0 && (b->parent < 0 || b->parent >= i))
    return err_set(E_PRO_002, "the parent of block %d is %d; it must be in 0..%d", i, b->parent,
                   i - 1);
  if (b->forward >= i || b->forward < -1)
    return err_set(E_PRO_002,
                   "the forward block of block %d is %d; it must be -1 or an earlier block", i,
                   b->forward);
  depth[i] = i ? depth[b->parent] + 1 : 0;
  if (depth[i] > NESTING_MOST)
    return err_set(E_MEM_002, "blocks are nested deeper than %d levels", NESTING_MOST);
  return check_vars(b);
}

static bool check_blocks(Verify *c) {
  const Program *p = c->p;
  if (!p->blocks.n) {
    err_set(E_PRO_002, "the program has no block");
    if (p->file) err_where("%s", p->file);
    return false;
  }
  int *depth = arena_array(c->a, int, p->blocks.n);
  for (int i = 0; i < p->blocks.n; i++)
    if (!check_block(p, i, depth)) return in_block(p, i);
  return true;
}

/* ---- 2. operators ---- */

static void help_nearest(Verify *c, const char *name, int n, const SlotDef *slots) {
  const char **names = arena_array(c->a, const char *, n);
  for (int i = 0; i < n; i++) names[i] = slots[i].name;
  const char *near = name_nearest(name, n, names);
  if (near) err_help("Did you mean %s?", near);
}

static int connected(const Slot *s) {
  int n = 0;
  for (int i = 0; s && i < s->n; i++) n += strcmp(s->args[i], "@EMPTY@") != 0;
  return n;
}

static bool check_slots(Verify *c, const Op *op, const SlotVec *slots, int n_defs,
                        const SlotDef *defs, const char *side) {
  for (int i = 0; i < slots->n; i++) {
    const Slot *s = &slots->v[i];
    const SlotDef *d = NULL;
    for (int k = 0; k < n_defs && !d; k++)
      if (!strcmp(defs[k].name, s->name)) d = &defs[k];
    for (int k = 0; k < i; k++)
      if (!strcmp(slots->v[k].name, s->name))
        return err_set(E_OPR_002, "%s %s is given twice", side, quoted(s->name));
    if (!d && connected(s) && !(slots == &op->ins && op_slot_is_attr(op, s->name))) {
      err_set(E_OPR_002, "the operator has no %s %s", side, quoted(s->name));
      help_nearest(c, s->name, n_defs, defs);
      return false;
    }
    if (d && !d->list && s->n > 1)
      return err_set(E_OPR_002, "%s %s takes one variable, not %d", side, s->name, s->n);
  }
  for (int k = 0; k < n_defs; k++) {
    if (defs[k].optional || defs[k].intermediate) continue;
    const Slot *s = NULL;
    for (int i = 0; i < slots->n && !s; i++)
      if (!strcmp(slots->v[i].name, defs[k].name)) s = &slots->v[i];
    if (!connected(s))
      return err_set(E_OPR_002, "the required %s %s is missing", side, defs[k].name);
  }
  return true;
}

/* Operators with attributes in the file that the row gives another type to which they cannot be converted are refused;
 * attributes that the row does not know, or calls extra, are not looked at. */
static bool check_attr(Verify *c, const OpDef *def, const Attr *a) {
  const AttrDef *d = opdef_attr(def, a->name);
  if (!d || d->extra || d->dflt.type == a->type) return true;
  const char *want = attr_info[d->dflt.type].name, *have = attr_info[a->type].name;
  if (a->type == AT_VAR || a->type == AT_VARS) {
    if (!(def->flags & OF_HOST)) return true;
    err_set(E_OPR_004, "attribute %s is given by a variable", quoted(a->name));
    err_help("Give attribute %s as a constant of type %s.", quoted(a->name), want);
    return false;
  }
  Attr copy = *a;
  if (attr_coerce(&copy, d->dflt.type, c->a)) return true;
  Str value;
  str_init(&value, c->a);
  attr_print(a, &value);
  return err_set(E_OPR_003, "attribute %s has type %s (%s); the operator takes %s", quoted(a->name),
                 have, quoted(value.s), want);
}

static bool check_block_refs(const Program *p, const Op *op, const Attr *a) {
  int n = a->type == AT_BLOCK ? 1 : a->type == AT_BLOCKS ? a->n : 0;
  for (int k = 0; k < n; k++) {
    int64_t b = a->type == AT_BLOCK ? a->i : a->is[k];
    if (b < 1 || b >= p->blocks.n || b == op->block->idx)
      return err_set(E_PRO_002,
                     "attribute %s refers to block %lld; the operator is in block %d of %d blocks",
                     quoted(a->name), (long long)b, op->block->idx, p->blocks.n);
  }
  return true;
}

static bool check_attrs(Verify *c, const Op *op) {
  Map *seen = op->attrs.n > 16 ? map_new(c->a) : NULL;
  for (int i = 0; i < op->attrs.n; i++) {
    const Attr *a = &op->attrs.v[i];
    if (!a->name || !*a->name) return err_set(E_OPR_003, "attribute %d has an empty name", i);
    bool twice = seen && map_get(seen, a->name);
    for (int k = 0; !seen && k < i; k++) twice |= !strcmp(op->attrs.v[k].name, a->name);
    if (twice) return err_set(E_OPR_003, "attribute %s is given twice", quoted(a->name));
    if (seen) map_put(seen, a->name, c);
    if (!check_block_refs(c->p, op, a) || (op->def && !check_attr(c, op->def, a))) return false;
  }
  for (int k = 0; op->def && k < op->def->n_attrs; k++) {
    const AttrDef *d = &op->def->attrs[k];
    bool there = !d->required;
    for (int i = 0; i < op->attrs.n && !there; i++)
      there = !strcmp(op->attrs.v[i].name, d->dflt.name);
    if (!there)
      return err_set(E_OPR_003, "the required attribute %s (%s) is missing", d->dflt.name,
                     attr_info[d->dflt.type].name);
  }
  return true;
}

static bool check_declared(Verify *c, const Op *op, const char *name, const char *slot, bool out) {
  if (!*name) return err_set(E_PRO_002, "slot %s has a variable with an empty name", quoted(slot));
  if (!strcmp(name, "@EMPTY@")) return true;
  const Var *v = block_find_var(op->block, name);
  if (v) {
    if (out) *flags_of(c, v) |= V_WRITTEN;
    return true;
  }
  err_set(E_VER_001, "variable %s in slot %s is not declared", quoted(name), quoted(slot));
  block_suggest(op->block, name);
  return false;
}

static bool check_args(Verify *c, const Op *op) {
  for (int side = 0; side < 2; side++) {
    const SlotVec *s = side ? &op->outs : &op->ins;
    for (int i = 0; i < s->n; i++) {
      if (!s->v[i].name || !*s->v[i].name) return err_set(E_OPR_002, "a slot has an empty name");
      for (int k = 0; k < s->v[i].n; k++)
        if (!check_declared(c, op, s->v[i].args[k], s->v[i].name, side)) return false;
    }
  }
  return true;
}

/* The variable of that kind among the arguments, or NULL. */
static const Var *arg_of_kind(const Op *op, const SlotVec *s, VarKind kind) {
  for (int i = 0; i < s->n; i++)
    for (int k = 0; k < s->v[i].n; k++) {
      const Var *v = block_find_var(op->block, s->v[i].args[k]);
      if (v && v->kind == kind) return v;
    }
  return NULL;
}

/* A feed operator reads a variable of kind VK_FEED, a fetch operator writes one of kind VK_FETCH. */
static bool check_column(Verify *c, const Op *op) {
  static const char *const words[2] = {"feed", "fetch"};
  int which = arg_of_kind(op, &op->ins, VK_FEED)     ? 0
              : arg_of_kind(op, &op->outs, VK_FETCH) ? 1
                                                     : -1;
  if (which < 0) return true;
  int64_t col = op_int(op, "col");
  if (col < 0 || col > COLUMN_MOST)
    return err_set(E_PRO_002, "the column of a %s is %lld; it must be in 0..%d", words[which],
                   (long long)col, COLUMN_MOST);
  const char *key = arena_fmt(c->a, "%lld", (long long)col);
  if (map_get(c->columns[which], key))
    return err_set(E_PRO_002, "column %lld belongs to two %s operators", (long long)col,
                   words[which]);
  map_put(c->columns[which], key, c);
  for (int i = 0; which == 0 && i < op->outs.n; i++)
    for (int k = 0; k < op->outs.v[i].n; k++) {
      const Var *v = block_find_var(op->block, op->outs.v[i].args[k]);
      if (v && v->is_parameter)
        return err_set(E_PRO_002, "the parameter %s is fed", quoted(v->name));
    }
  return true;
}

static bool check_form(Verify *c, const Op *op) {
  const OpDef *d = op->def;
  return (!d || (check_slots(c, op, &op->ins, d->n_ins, d->ins, "input") &&
                 check_slots(c, op, &op->outs, d->n_outs, d->outs, "output"))) &&
         check_attrs(c, op);
}

static bool check_op(Verify *c, const Op *op) {
  if (!op->type || !*op->type) return err_set(E_PRO_002, "an operator has an empty type");
  if (!op->def && !c->n_unknown++) c->unknown = op;
  return check_form(c, op) && check_args(c, op) && check_column(c, op);
}

bool op_verify(const Op *op) {
  Verify c = {.p = op->block->prog, .a = arena_scratch()};
  bool ok = check_form(&c, op) || in_op(op);
  arena_free(c.a);
  return ok;
}

static bool check_ops(Verify *c) {
  for (int i = 0; i < c->p->blocks.n; i++)
    for (int o = 0; o < c->p->blocks.v[i]->ops.n; o++) {
      const Op *op = c->p->blocks.v[i]->ops.v[o];
      if (!check_op(c, op)) return in_op(op);
    }
  return true;
}

/* ---- 3. order ---- */

typedef struct Frame {
  const Block *b;
  int at;
} Frame;
typedef VEC(Frame) Frames;

/* A recurrent operator's gradient gives its block the gradients of outputs and states. */
static bool may_be_given(const Var *v) {
  return v->block->forward >= 0 && strstr(v->name, "@GRAD") != NULL;
}

static bool check_read(Verify *c, const Op *op) {
  for (int i = 0; i < op->ins.n; i++)
    for (int k = 0; k < op->ins.v[i].n; k++) {
      const char *name = op->ins.v[i].args[k];
      const Var *v = strcmp(name, "@EMPTY@") ? block_find_var(op->block, name) : NULL;
      if (!v || v->persistable || v->need_check_feed || v->kind == VK_ARRAY) continue;
      if (*flags_of(c, v) != V_WRITTEN || may_be_given(v)) continue;
      err_set(E_VER_002, "variable %s is read before an operator writes it", quoted(name));
      err_note("%s  %s  %s", op->ins.v[i].name, quoted(name),
               shape_text(v->dtype, v->rank, v->dims));
      err_help("Move the operator behind the one that writes %s, or feed it.", quoted(name));
      return false;
    }
  return true;
}

static void mark_written(Verify *c, const Op *op) {
  for (int i = 0; i < op->outs.n; i++)
    for (int k = 0; k < op->outs.v[i].n; k++) {
      const Var *v = block_find_var(op->block, op->outs.v[i].args[k]);
      if (v) *flags_of(c, v) |= V_NOW;
    }
}

/* Blocks that the operator refers to: on the stack, to be walked next. `state`: 1 on the stack, 2 done. */
static bool enter_blocks(Verify *c, const Op *op, Frames *stack, char *state) {
  for (int i = 0; i < op->attrs.n; i++) {
    const Attr *a = &op->attrs.v[i];
    int n = a->type == AT_BLOCK ? 1 : a->type == AT_BLOCKS ? a->n : 0;
    for (int k = n - 1; k >= 0; k--) {
      int64_t b = a->type == AT_BLOCK ? a->i : a->is[k];
      if (state[b] == 1)
        return err_set(E_PRO_002,
                       "block %lld contains itself: attribute %s of an operator in it refers to it",
                       (long long)b, quoted(a->name));
      if (state[b]) continue;
      state[b] = 1;
      vec_add(c->a, stack, ((Frame){c->p->blocks.v[b], 0}));
    }
  }
  return true;
}

static bool check_order(Verify *c) {
  Frames stack = {0};
  char *state = arena_array(c->a, char, c->p->blocks.n);
  state[0] = 1;
  vec_add(c->a, &stack, ((Frame){c->p->blocks.v[0], 0}));
  while (stack.n) {
    Frame *f = &stack.v[stack.n - 1];
    if (f->at == f->b->ops.n) {
      state[f->b->idx] = 2;
      stack.n--;
      continue;
    }
    const Op *op = f->b->ops.v[f->at++];
    if (!check_read(c, op)) return in_op(op);
    mark_written(c, op);
    if (!enter_blocks(c, op, &stack, state)) return in_op(op);
  }
  return true;
}

/* ---- 4. unknown operators ---- */

/* Types whose work is not in the file. */
static const struct {
  const char *type, *why;
} elsewhere[] = {
    {"py_func", "It calls a Python function, which a file does not hold: write it as operators, or "
                "register it as a custom operator."},
    {"run_program",
     "It belongs to PaddlePaddle's eager mode: save the program with paddle.jit.save."},
    {"pylayer", "It has a gradient of its own: save the layer without static_pylayer."}};

static bool check_known(Verify *c) {
  if (!c->unknown) return true;
  err_set(E_OPR_001, "operator %s is unknown", quoted(c->unknown->type));
  in_op(c->unknown);
  if (c->n_unknown > 1) err_note("%d more operators are unknown", c->n_unknown - 1);
  for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++)
    if (!strcmp(c->unknown->type, elsewhere[i].type)) {
      err_help("%s", elsewhere[i].why);
      return false;
    }
  const char *near = opdef_nearest(c->unknown->type);
  if (near)
    err_help("Did you mean %s? `kiln ops` lists all operators.", near);
  else
    err_help("`kiln ops` lists all operators.");
  return false;
}

bool prog_verify(const Program *p) {
  Arena *a = arena_scratch();
  Verify c = {.p = p, .a = a, .columns = {map_new(a), map_new(a)}};
  size_t n = 0, size = 16;
  for (int i = 0; i < p->blocks.n; i++) n += (size_t)p->blocks.v[i]->vars.n;
  while (size < 2 * n + 2) size *= 2;
  c.vars = arena_array(a, const Var *, size);
  c.flags = arena_array(a, uint8_t, size);
  c.mask = size - 1;
  bool ok = check_blocks(&c) && check_ops(&c) && check_order(&c) && check_known(&c);
  arena_free(a);
  return ok;
}
