/* The text form of a Program: a Program in, `.kl` text out. The grammar stands in parse.c. The text is canonical: slots,
 * attributes and operator versions are sorted by name, numbers have the fewest digits that read back, and a name stands
 * in quotes only where it must, or where an operator does not know its attribute. */
#include "ir.h"
#include <inttypes.h>
#include <string.h>

const VarKindName var_kind_names[] = {{7, "tensor"},
                                      {8, "selected_rows"},
                                      {9, "feed_minibatch"},
                                      {10, "fetch_list"},
                                      {11, "step_scopes"},
                                      {12, "lod_rank_table"},
                                      {13, "tensor_array"},
                                      {14, "place_list"},
                                      {15, "reader"},
                                      {17, "raw"},
                                      {18, "tuple"},
                                      {25, "string"},
                                      {26, "strings"},
                                      {27, "vocab"},
                                      {28, "feed_list"},
                                      {29, "pstring"},
                                      {30, "sparse_coo"},
                                      {31, "sparse_csr"},
                                      {0, NULL}};

const char *var_kind_name(int kind) {
  for (const VarKindName *k = var_kind_names; k->name; k++)
    if (k->kind == kind) return k->name;
  return "unknown";
}

bool text_is_bare(const char *s) {
  if (!*s || strspn(s, "0123456789./-+$")) return false;
  return !s[strspn(s, TEXT_NAME_CHARS)] && strcmp(s, "var") && strcmp(s, "param");
}

static void print_name(const char *s, Str *out) {
  if (text_is_bare(s))
    str_add(out, s);
  else
    text_quote(out, s, '"');
}

/* def: of the operator; a name that it does not know stands in quotes. */
static void print_attrs(Arena *t, const OpDef *def, const Attr *attrs, int n, const char *skip,
                        Str *out) {
  const void **sorted = by_name(t, attrs, n, sizeof(Attr));
  const char *lead = " {";
  for (int i = 0; i < n; i++) {
    const Attr *a = sorted[i];
    if (skip && !strcmp(a->name, skip)) continue;
    str_add(out, lead);
    if (def && !opdef_knows(def, a->name))
      text_quote(out, a->name, '"');
    else
      print_name(a->name, out);
    str_add(out, "=");
    attr_print(a, out);
    lead = ", ";
  }
  if (*lead == ',') str_add(out, "}");
}

static void print_args(const Slot *s, Str *out) {
  if (s->n != 1) str_add(out, "[");
  for (int i = 0; i < s->n; i++) {
    if (i) str_add(out, ", ");
    print_name(s->args[i], out);
  }
  if (s->n != 1) str_add(out, "]");
}

/* A single output slot `Out` goes without its name. */
static void print_slots(Arena *t, const Slot *slots, int n, bool outputs, Str *out) {
  const void **sorted = by_name(t, slots, n, sizeof(Slot));
  for (int i = 0; i < n; i++) {
    const Slot *s = sorted[i];
    if (i) str_add(out, ", ");
    if (!outputs || n > 1 || strcmp(s->name, "Out")) {
      print_name(s->name, out);
      str_add(out, "=");
    }
    print_args(s, out);
  }
}

/* The place in the user's source, if that is all that the call stack holds. */
static const char *single_place(const Op *op) {
  for (int i = 0; i < op->attrs.n; i++) {
    const Attr *a = &op->attrs.v[i];
    if (!strcmp(a->name, "op_callstack") && a->type == AT_STRINGS && a->n == 1) return a->ss[0];
  }
  return NULL;
}

static void print_op(Arena *t, const Op *op, Str *out) {
  str_add(out, "  ");
  print_slots(t, op->outs.v, op->outs.n, true, out);
  if (op->outs.n) str_add(out, " = ");
  print_name(op->type, out);
  str_add(out, "(");
  size_t n;
  const Slot *ins = op_own_slots(op, t, &n);
  print_slots(t, ins, (int)n, false, out);
  str_add(out, ")");
  const char *place = single_place(op);
  print_attrs(t, op->def, op->attrs.v, op->attrs.n, place ? "op_callstack" : NULL, out);
  if (op->is_target) str_add(out, " target");
  if (place) {
    str_add(out, " at ");
    text_quote(out, place, '"');
  }
  str_add(out, "\n");
}

static void print_var(Arena *t, const Var *v, Str *out) {
  bool param = v->persistable && v->is_parameter;
  str_add(out, param ? "  param " : "  var ");
  print_name(v->name, out);
  if (v->kind != VK_TENSOR) str_fmt(out, " %s", var_kind_name((int)v->kind));
  if (v->dtype != DT_NONE || v->paddle_dtype >= 0 || v->rank > 0) {
    if (v->dtype == DT_NONE && v->paddle_dtype >= 0)
      str_fmt(out, " dtype %d", v->paddle_dtype);
    else
      str_fmt(out, " %s", dtype_info[v->dtype].name);
    if (v->rank >= 0) str_add(out, " [");
    for (int i = 0; i < v->rank; i++) str_fmt(out, "%s%" PRId64, i ? ", " : "", v->dims[i]);
    if (v->rank >= 0) str_add(out, "]");
  }
  if (v->lod_level) str_fmt(out, " lod %d", v->lod_level);
  if (v->persistable && !param) str_add(out, " persistable");
  if (v->is_parameter && !param) str_add(out, " parameter");
  if (v->need_check_feed) str_add(out, " feed");
  if (v->stop_gradient) str_add(out, " stop_gradient");
  print_attrs(t, NULL, v->attrs.v, v->attrs.n, NULL, out);
  str_add(out, "\n");
}

static void print_block(Arena *t, const Block *b, Str *out) {
  str_fmt(out, "block %d parent %d", b->idx, b->parent);
  if (b->forward != -1) str_fmt(out, " forward %d", b->forward);
  str_add(out, " {\n");
  for (int i = 0; i < b->vars.n; i++) print_var(t, b->vars.v[i], out);
  if (b->vars.n && b->ops.n) str_add(out, "\n");
  for (int i = 0; i < b->ops.n; i++) print_op(t, b->ops.v[i], out);
  str_add(out, "}\n");
}

/* As many to a line as fit. */
static void print_versions(Arena *t, const Program *p, Str *out) {
  const void **sorted = by_name(t, p->op_versions.v, p->op_versions.n, sizeof(OpVersion));
  size_t line = out->n;
  for (int i = 0; i < p->op_versions.n; i++) {
    const OpVersion *v = sorted[i];
    bool fits = i && out->n - line + strlen(v->name) < 90;
    if (!fits && i) str_add(out, "\n");
    if (!fits) line = out->n;
    str_add(out, fits ? ", " : "op_versions ");
    print_name(v->name, out);
    str_fmt(out, " %d", v->version);
  }
  if (p->op_versions.n) str_add(out, "\n");
}

void prog_print(const Program *p, Str *out) {
  Arena *t = arena_scratch();
  str_fmt(out, "program version %" PRId64, p->version);
  if (p->seed) str_fmt(out, " seed %" PRId64, p->seed);
  str_add(out, "\n");
  print_versions(t, p, out);
  for (int i = 0; i < p->blocks.n; i++) print_block(t, p->blocks.v[i], out);
  arena_free(t);
}
