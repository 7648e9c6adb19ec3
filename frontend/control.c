/* Control flow in the builder: loops, branches, lists of tensors.
 *
 * In: the user's begin and end calls. Out: blocks, and the operators that run them, as PaddlePaddle's while_loop and cond
 * make them. Between begin and end, operators go to the block. What a block reads and writes of the variables around it
 * becomes the operator's inputs and outputs. */
#include "internal.h"
#include <string.h>

struct kl_block {
  Block *block, *outer, *other; /* other: the block of a branch's `else` */
  const char *cond;
  const char *at;
  kl_net *net;
  bool loop;
};

static kl_net *block_net(const kl_block *b) { return b ? b->net : NULL; }

static kl_block *open_block(const char *at, kl_var *cond, bool loop) {
  kl_net *net = net_of(at, cond);
  if (!net) return NULL;
  bool one = cond->dtype == DT_BOOL;
  for (int i = 0; i < cond->rank; i++) one = one && cond->dims[i] == 1;
  if (!one) {
    err_set(E_TYP_002, "the condition %s is %s; it must be one bool", quoted(cond->name),
            shape_text(cond->dtype, cond->rank, cond->dims));
    return at_where(at), NULL;
  }
  Program *p = net->main;
  kl_block *b = arena_new_of(p->arena, kl_block);
  *b = (kl_block){.outer = net_block(net), .cond = cond->name, .at = at, .net = net, .loop = loop};
  b->block = net->block = prog_add_block(p, b->outer->idx, -1);
  return b;
}

/* Is it the block that operators go to now? */
static bool is_open(const kl_block *b, bool loop) {
  if (err_any()) return false;
  if (b && b->loop == loop && b->net->block == (b->other ? b->other : b->block)) return true;
  err_set(E_ARG_002,
          b ? "the block is not the innermost open one of its kind" : "the block is NULL");
  return false;
}

/* Names of variables around the block that its operators use, on one side. */
static void add_outer(const Block *b, bool written, const char *but, Map *names) {
  for (int i = 0; i < b->ops.n; i++) {
    const SlotVec *s = written ? &b->ops.v[i]->outs : &b->ops.v[i]->ins;
    for (int k = 0; k < s->n; k++)
      for (int j = 0; j < s->v[k].n; j++) {
        const Var *v = block_find_var(b, s->v[k].args[j]);
        if (v && v->block != b && !(but && !strcmp(v->name, but))) map_put(names, v->name, b->prog);
      }
  }
}

static void set_slot(Op *op, bool out, const char *slot, const Map *names) {
  void *unused;
  for (int i = 0; i < map_n(names); i++)
    if (out)
      op_add_out(op, slot, map_at(names, i, &unused));
    else
      op_add_in(op, slot, map_at(names, i, &unused));
}

static Op *run_op(kl_block *b, const char *type, Block *block, const char *scope_slot) {
  Op *op = begin_op(b->at, b->net, type);
  if (!op) return NULL;
  op_set_attr(op, &(Attr){.name = "sub_block", .type = AT_BLOCK, .i = block->idx});
  const char *scopes = prog_unique(b->net->main, "step_scopes");
  if (!block_add_var(op->block, scopes, VK_STEP_SCOPES, DT_NONE, 0, NULL)) return NULL;
  op_add_out(op, scope_slot, scopes);
  return op;
}

/* ---- loops ---- */

kl_block *kl_while_at(const char *at, kl_var *cond) {
  BUILD_GUARD(var_net(cond), false, NULL);
  return err_any() ? NULL : open_block(at, cond, true);
}

bool kl_end_while_at(const char *at, kl_block *b, kl_var *next) {
  BUILD_GUARD(block_net(b), false, false);
  if (!is_open(b, true)) return at_where(at), false;
  if (!kl_assign_at(at, block_find_var(b->outer, b->cond), next)) return false;
  Arena *a = arena_scratch();
  Map *used = map_new(a), *written = map_new(a);
  add_outer(b->block, false, b->cond, used);
  add_outer(b->block, true, b->cond, used);
  add_outer(b->block, true, NULL, written);
  b->net->block = b->outer;
  Op *op = run_op(b, "while", b->block, "StepScopes");
  if (op) {
    op_add_in(op, "Condition", b->cond);
    set_slot(op, false, "X", used);
    set_slot(op, true, "Out", written);
    op_set_bool(op, "is_test", false);
  }
  arena_free(a);
  return op != NULL;
}

kl_var *kl_assign_at(const char *at, kl_var *to, kl_var *value) {
  BUILD_GUARD(var_net(to), false, NULL);
  kl_net *net = net_of_both(at, to, value);
  if (net && to->dtype != value->dtype) {
    err_set(E_TYP_001, "%s is %s and takes no %s", quoted(to->name), dtype_info[to->dtype].name,
            dtype_info[value->dtype].name);
    return at_where(at), NULL;
  }
  Op *op = begin_op(at, net, "assign");
  if (!op) return NULL;
  op_add_in(op, "X", value->name);
  op_add_out(op, "Out", to->name);
  if (!infer_op(op)) return at_where(at), NULL;
  return to;
}

kl_var *kl_vary(kl_var *v, int axis) {
  if (!v || err_any()) return NULL;
  if (axis >= 0 && axis < v->rank) {
    v->dims[axis] = -1;
    return v;
  }
  err_set(E_SHP_003, "axis %d of %s, which has %d dimensions", axis, quoted(v->name), v->rank);
  return NULL;
}

kl_var *kl_fill_at(const char *at, kl_net *net, kl_dtype dtype, double value, int rank,
                   const int64_t *dims) {
  BUILD_GUARD(net, false, NULL);
  if (err_any() || !net) return NULL;
  if (!shape_declared("kl_fill", dtype, rank, dims, true)) return at_where(at), NULL;
  Op *op = begin_op(at, net, "fill_constant");
  if (!op) return NULL;
  op_set_attr(op, &(Attr){.name = "shape", .type = AT_LONGS, .n = rank, .is = (int64_t *)dims});
  op_set_int(op, "dtype", dtype_info[(DType)dtype].paddle);
  op_set_float(op, "value", value);
  kl_var *v = end_op(op);
  return v ? v : (at_where(at), NULL);
}

/* ---- branches ---- */

kl_block *kl_if_at(const char *at, kl_var *cond) {
  BUILD_GUARD(var_net(cond), false, NULL);
  return err_any() ? NULL : open_block(at, cond, false);
}

bool kl_else_at(const char *at, kl_block *b) {
  BUILD_GUARD(block_net(b), false, false);
  if (!is_open(b, false) || b->other) {
    if (!err_any()) err_set(E_ARG_002, "the branch has an else already");
    return at_where(at), false;
  }
  b->other = b->net->block = prog_add_block(b->net->main, b->outer->idx, -1);
  return true;
}

/* The variable around both branches that takes the result of either. */
static kl_var *result_var(const kl_block *b, const kl_var *yes, const kl_var *no) {
  int64_t dims[KL_VAR_RANK];
  if (yes->dtype != no->dtype || yes->rank != no->rank) {
    err_set(yes->dtype != no->dtype ? E_TYP_001 : E_SHP_002, "the branches give %s and %s",
            shape_text(yes->dtype, yes->rank, yes->dims),
            shape_text(no->dtype, no->rank, no->dims));
    return NULL;
  }
  for (int i = 0; i < yes->rank; i++) dims[i] = yes->dims[i] == no->dims[i] ? yes->dims[i] : -1;
  const char *name = prog_unique(b->net->main, "branch");
  return block_add_var(b->outer, name, VK_TENSOR, yes->dtype, yes->rank, dims);
}

/* One operator for one branch; its results are assigned to `to` at the end of its block. */
static bool end_branch(kl_block *b, kl_var *cond, Block *block, int n, kl_var *const *from,
                       kl_var **to) {
  b->net->block = block;
  for (int i = 0; i < n; i++)
    if (!kl_assign_at(b->at, to[i], from[i])) return false;
  Arena *a = arena_scratch();
  Map *used = map_new(a), *written = map_new(a);
  add_outer(block, false, NULL, used);
  add_outer(block, true, NULL, written);
  b->net->block = b->outer;
  Op *op = run_op(b, "conditional_block", block, "Scope");
  if (op) {
    op_add_in(op, "Cond", cond->name);
    set_slot(op, false, "Input", used);
    set_slot(op, true, "Out", written);
    op_set_bool(op, "is_scalar_condition", true);
  }
  arena_free(a);
  return op != NULL;
}

static bool select_results(const char *at, kl_block *b, kl_var *cond, int n, kl_var **yes,
                           kl_var **no, kl_var **out) {
  kl_var *mask = kl_op_at(at, b->net, "cast", "in_dtype=0 out_dtype=2", "X", cond, (const char *)0);
  for (int i = 0; mask && i < n; i++) {
    Op *op = begin_op(at, b->net, "select_input");
    if (!op) return false;
    op_add_in(op, "X", no[i]->name);
    op_add_in(op, "X", yes[i]->name);
    op_add_in(op, "Mask", mask->name);
    out[i] = end_op(op);
    if (!out[i]) return false;
    memcpy(out[i]->dims, yes[i]->dims, sizeof yes[i]->dims);
  }
  return mask != NULL;
}

bool kl_end_if_at(const char *at, kl_block *b, int n, kl_var *const *yes, kl_var *const *no,
                  kl_var **out) {
  BUILD_GUARD(block_net(b), false, false);
  if (!is_open(b, false)) return at_where(at), false;
  if (n > 0 && !(NEED(yes) && NEED(no) && NEED(out))) return at_where(at), false;
  if (!b->other && n > 0) {
    err_set(E_ARG_002, "a branch with results needs kl_else");
    return at_where(at), false;
  }
  Arena *a = arena_scratch();
  kl_var **to[2] = {arena_array(a, kl_var *, n + 1), arena_array(a, kl_var *, n + 1)};
  kl_var *cond = block_find_var(b->outer, b->cond);
  bool ok = true;
  for (int i = 0; i < n && ok; i++) {
    ok = net_of_both(at, yes[i], no[i]) && (to[0][i] = result_var(b, yes[i], no[i])) &&
         (to[1][i] = result_var(b, yes[i], no[i]));
  }
  ok = ok && end_branch(b, cond, b->block, n, yes, to[0]);
  if (ok && b->other) {
    b->net->block = b->outer;
    kl_var *not_cond = kl_op_at(at, b->net, "logical_not", "", "X", cond, (const char *)0);
    ok = not_cond && end_branch(b, not_cond, b->other, n, no, to[1]);
  }
  ok = ok && (!n || select_results(at, b, cond, n, to[0], to[1], out));
  b->net->block = b->outer;
  arena_free(a);
  return ok || (at_where(at), false);
}

kl_var *kl_choose_at(const char *at, kl_block *b, kl_var *yes, kl_var *no) {
  kl_var *out = NULL;
  return kl_end_if_at(at, b, 1, &yes, &no, &out) ? out : NULL;
}

/* ---- lists ---- */

kl_var *kl_list_at(const char *at, kl_net *net, kl_dtype dtype) {
  BUILD_GUARD(net, false, NULL);
  if (err_any() || !net) return NULL;
  Var *v = block_add_var(net_block(net), prog_unique(net->main, "list"), VK_ARRAY, (DType)dtype, -1,
                         NULL);
  return v ? v : (at_where(at), NULL);
}

static bool is_list(const char *at, const kl_var *list) {
  if (list->kind == VK_ARRAY) return true;
  err_set(E_ARG_002, "%s is no list", quoted(list->name));
  return at_where(at), false;
}

bool kl_list_set_at(const char *at, kl_var *list, kl_var *i, kl_var *x) {
  BUILD_GUARD(var_net(list), false, false);
  kl_net *net = net_of_both(at, x, i) ? net_of_both(at, list, x) : NULL;
  if (!net || !is_list(at, list)) return false;
  Op *op = begin_op(at, net, "write_to_array");
  if (!op) return false;
  op_add_in(op, "X", x->name);
  op_add_in(op, "I", i->name);
  op_add_out(op, "Out", list->name);
  return infer_op(op) || (at_where(at), false);
}

static kl_var *of_list(const char *at, kl_var *list, kl_var *i, const char *type,
                       const char *attrs) {
  BUILD_GUARD(var_net(list), false, NULL);
  kl_net *net = net_of(at, list);
  if (!net || !is_list(at, list) || (i && !net_of_both(at, list, i))) return NULL;
  if (list->rank < 0) {
    err_set(E_ARG_002, "nothing has been put into the list %s yet", quoted(list->name));
    return at_where(at), NULL;
  }
  return i ? kl_op_at(at, net, type, attrs, "X", list, "I", i, (const char *)0)
           : kl_op_at(at, net, type, attrs, "X", list, (const char *)0);
}

kl_var *kl_list_get_at(const char *at, kl_var *list, kl_var *i) {
  return of_list(at, list, i, "read_from_array", "");
}

kl_var *kl_list_length_at(const char *at, kl_var *list) {
  return of_list(at, list, NULL, "lod_array_length", "");
}

kl_var *kl_list_join_at(const char *at, kl_var *list, int axis, bool stack) {
  char attrs[64];
  snprintf(attrs, sizeof attrs, "axis=%d use_stack=%s", axis, stack ? "true" : "false");
  return of_list(at, list, NULL, "tensor_array_to_tensor", attrs);
}
