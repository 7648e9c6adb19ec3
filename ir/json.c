/* A Program as JSON: a Program in, one JSON object out, with the fields of ProgramDesc under their names.
 *
 *   {"version": 2006002, "blocks": [{"idx": 0, "parent": -1, "forward": -1,
 *     "vars": [{"name", "kind", "dtype", "shape", "lod_level", "persistable", ...}],
 *     "ops":  [{"type", "inputs": {slot: [names]}, "outputs": {...}, "attrs": {name: {"type", "value"}}}]}]}
 *
 * JSON is UTF-8 without infinities: bytes that are not well-formed become U+FFFD, and inf, -inf and nan are strings. */
#include "ir.h"
#include <inttypes.h>
#include <math.h>
#include <string.h>

void str_json(const char *s, Str *out) {
  str_add(out, "\"");
  for (const unsigned char *p = (const unsigned char *)s; *p;) {
    int n = utf8_len(p);
    if (*p == '"' || *p == '\\')
      str_fmt(out, "\\%c", *p++);
    else if (*p < 0x20 || *p == 0x7f)
      str_fmt(out, "\\u%04x", *p++);
    else if (!n)
      str_add(out, "\\ufffd"), p++;
    else
      str_addn(out, (const char *)p, (size_t)n), p += n;
  }
  str_add(out, "\"");
}

static void json_number(double v, bool single, Str *out) {
  bool quote = isnan(v) || isinf(v);
  if (quote) str_add(out, "\"");
  text_float(out, v, single);
  if (quote) str_add(out, "\"");
}

static void json_scalar(const Scalar *s, Str *out) {
  if (s->type == 1) str_add(out, s->i ? "true" : "false");
  if (s->type == 2) str_fmt(out, "%" PRId64, s->i);
  if (s->type == 4) str_add(out, "[");
  if (s->type >= 3) json_number(s->r, false, out);
  if (s->type != 4) return;
  str_add(out, ", ");
  json_number(s->im, false, out);
  str_add(out, "]");
}

static void json_element(const Attr *a, int i, Str *out) {
  const AttrInfo *t = &attr_info[a->type];
  switch (t->elem) {
  case 'f':
    json_number(t->list ? a->fs[i] : a->f, a->type == AT_FLOAT || a->type == AT_FLOATS, out);
    break;
  case 's': str_json(t->list ? a->ss[i] : a->s, out); break;
  case 'c': json_scalar(&a->scalars[i], out); break;
  case 'b': str_add(out, (t->list ? a->is[i] : a->i) ? "true" : "false"); break;
  default: str_fmt(out, "%" PRId64, t->list ? a->is[i] : a->i);
  }
}

static void json_attrs(Arena *t, const Attr *attrs, int n, Str *out) {
  const void **sorted = by_name(t, attrs, n, sizeof(Attr));
  str_add(out, "{");
  for (int i = 0; i < n; i++) {
    const Attr *a = sorted[i];
    bool list = attr_info[a->type].list;
    if (i) str_add(out, ", ");
    str_json(a->name, out);
    str_fmt(out, ": {\"type\": \"%s\", \"value\": %s", attr_info[a->type].name, list ? "[" : "");
    for (int k = 0; k < (list ? a->n : 1); k++) {
      if (k) str_add(out, ", ");
      json_element(a, k, out);
    }
    str_add(out, list ? "]}" : "}");
  }
  str_add(out, "}");
}

static void json_slots(Arena *t, const SlotVec *slots, Str *out) {
  const void **sorted = by_name(t, slots->v, slots->n, sizeof(Slot));
  str_add(out, "{");
  for (int i = 0; i < slots->n; i++) {
    const Slot *s = sorted[i];
    if (i) str_add(out, ", ");
    str_json(s->name, out);
    str_add(out, ": [");
    for (int k = 0; k < s->n; k++) {
      if (k) str_add(out, ", ");
      str_json(s->args[k], out);
    }
    str_add(out, "]");
  }
  str_add(out, "}");
}

static void json_op(Arena *t, const Op *op, Str *out) {
  str_add(out, "{\"type\": ");
  str_json(op->type, out);
  str_add(out, ", \"inputs\": ");
  json_slots(t, &op->ins, out);
  str_add(out, ", \"outputs\": ");
  json_slots(t, &op->outs, out);
  str_add(out, ", \"attrs\": ");
  json_attrs(t, op->attrs.v, op->attrs.n, out);
  str_fmt(out, "%s}", op->is_target ? ", \"is_target\": true" : "");
}

static void json_var(Arena *t, const Var *v, Str *out) {
  static const char *const words[] = {"false", "true"};
  str_add(out, "{\"name\": ");
  str_json(v->name, out);
  str_fmt(out, ", \"kind\": \"%s\", \"dtype\": ", var_kind_name((int)v->kind));
  if (v->dtype != DT_NONE)
    str_fmt(out, "\"%s\", \"shape\": ", dtype_info[v->dtype].name);
  else
    str_fmt(out, v->paddle_dtype >= 0 ? "%d, \"shape\": " : "null, \"shape\": ", v->paddle_dtype);
  bool shaped = v->rank >= 0 && (v->dtype != DT_NONE || v->paddle_dtype >= 0);
  str_add(out, shaped ? dims_text(v->rank, v->dims) : "null");
  str_fmt(out, ", \"lod_level\": %d, \"persistable\": %s, \"need_check_feed\": %s", v->lod_level,
          words[v->persistable], words[v->need_check_feed]);
  str_fmt(out, ", \"is_parameter\": %s, \"stop_gradient\": %s", words[v->is_parameter],
          words[v->stop_gradient]);
  if (v->attrs.n) {
    str_add(out, ", \"attrs\": ");
    json_attrs(t, v->attrs.v, v->attrs.n, out);
  }
  str_add(out, "}");
}

static void json_block(Arena *t, const Block *b, Str *out) {
  str_fmt(out, "  {\"idx\": %d, \"parent\": %d, \"forward\": %d,\n   \"vars\": [", b->idx,
          b->parent, b->forward);
  for (int i = 0; i < b->vars.n; i++) {
    str_add(out, i ? ",\n    " : "\n    ");
    json_var(t, b->vars.v[i], out);
  }
  str_add(out, "],\n   \"ops\": [");
  for (int i = 0; i < b->ops.n; i++) {
    str_add(out, i ? ",\n    " : "\n    ");
    json_op(t, b->ops.v[i], out);
  }
  str_add(out, "]}");
}

void prog_json(const Program *p, Str *out) {
  Arena *t = arena_scratch();
  str_fmt(out, "{\"version\": %" PRId64 ", \"op_versions\": {", p->version);
  for (int i = 0; i < p->op_versions.n; i++) {
    if (i) str_add(out, ", ");
    str_json(p->op_versions.v[i].name, out);
    str_fmt(out, ": %d", p->op_versions.v[i].version);
  }
  str_add(out, "},\n \"blocks\": [\n");
  for (int i = 0; i < p->blocks.n; i++) {
    if (i) str_add(out, ",\n");
    json_block(t, p->blocks.v[i], out);
  }
  str_add(out, "]}\n");
  arena_free(t);
}
