/* A Program as a picture: a Program in, Graphviz text out (`dot -Tsvg`).
 *
 * Operators are boxes and variables ellipses; parameters and other state are filled, fed variables have a double border.
 * A write makes a new ellipse, so that a variable that is updated in place does not close a cycle: ids are
 * "b<block>v<variable>w<write>". Each block is a cluster; an operator points at the blocks it runs with a dashed edge. */
#include "ir.h"
#include <string.h>

typedef struct Dot {
  Str *out;
  Arena *t;
  Map *state; /* variable name in the current block -> DotVar */
  int block, vars;
} Dot;
typedef struct DotVar {
  int id, writes;
} DotVar;

static void label(Str *out, const char *s) {
  for (const unsigned char *p = (const unsigned char *)s; *p;) {
    int n = utf8_len(p);
    if (!n || *p < 0x20 || *p == 0x7f)
      str_fmt(out, "\\\\x%02x", *p++);
    else {
      if (*p == '"' || *p == '\\') str_add(out, "\\");
      str_addn(out, (const char *)p, (size_t)n);
      p += n;
    }
  }
}

static void draw_var(Dot *d, const Block *b, const char *name, const DotVar *dv) {
  const Var *v = block_find_var(b, name);
  str_fmt(d->out, "    b%dv%dw%d [shape=ellipse, label=\"", d->block, dv->id, dv->writes);
  label(d->out, name);
  if (v && v->dtype != DT_NONE)
    str_fmt(d->out, "\\n%s", shape_text(v->dtype, v->rank < 0 ? 0 : v->rank, v->dims));
  str_fmt(d->out, "\"%s%s];\n", v && v->persistable ? ", style=filled, fillcolor=lightblue" : "",
          v && v->need_check_feed ? ", peripheries=2" : "");
}

/* The ellipse of the variable as it is now, drawn if it is new; a write makes the next one. */
static const DotVar *touch(Dot *d, const Block *b, const char *name, bool write) {
  DotVar *v = map_get(d->state, name);
  bool fresh = !v;
  if (fresh) {
    v = arena_new_of(d->t, DotVar);
    v->id = d->vars++;
    map_put(d->state, name, v);
  } else if (write)
    v->writes++;
  if (fresh || write) draw_var(d, b, name, v);
  return v;
}

static void draw_edges(Dot *d, const Op *op, int k, bool outputs) {
  const SlotVec *slots = outputs ? &op->outs : &op->ins;
  for (int i = 0; i < slots->n; i++)
    for (int j = 0; j < slots->v[i].n; j++) {
      const char *name = slots->v[i].args[j];
      if (!strcmp(name, "@EMPTY@")) continue;
      const DotVar *v = touch(d, op->block, name, outputs);
      if (outputs)
        str_fmt(d->out, "    b%do%d -> b%dv%dw%d", d->block, k, d->block, v->id, v->writes);
      else
        str_fmt(d->out, "    b%dv%dw%d -> b%do%d", d->block, v->id, v->writes, d->block, k);
      str_add(d->out, " [label=\"");
      label(d->out, slots->v[i].name);
      str_add(d->out, "\"];\n");
    }
}

static void draw_calls(Dot *d, const Op *op, int k) {
  for (int i = 0; i < op->attrs.n; i++) {
    const Attr *a = &op->attrs.v[i];
    if (a->type != AT_BLOCK && a->type != AT_BLOCKS) continue;
    for (int j = 0; j < (a->type == AT_BLOCK ? 1 : a->n); j++)
      str_fmt(d->out, "    b%do%d -> b%dentry [style=dashed];\n", d->block, k,
              (int)(a->type == AT_BLOCK ? a->i : a->is[j]));
  }
}

static void draw_block(Dot *d, const Block *b) {
  d->block = b->idx;
  d->vars = 0;
  d->state = map_new(d->t);
  str_fmt(d->out, "  subgraph cluster_%d {\n    label=\"block %d\";\n", b->idx, b->idx);
  if (b->idx) str_fmt(d->out, "    b%dentry [shape=point];\n", b->idx);
  for (int k = 0; k < b->ops.n; k++) {
    const Op *op = b->ops.v[k];
    str_fmt(d->out, "    b%do%d [shape=box, style=\"rounded,filled\", fillcolor=%s, label=\"",
            b->idx, k,
            op_role(op) & ROLE_BACKWARD   ? "mistyrose"
            : op_role(op) & ROLE_OPTIMIZE ? "lightyellow"
                                          : "white");
    label(d->out, op->type);
    str_add(d->out, "\"];\n");
    draw_edges(d, op, k, false);
    draw_edges(d, op, k, true);
    draw_calls(d, op, k);
  }
  str_add(d->out, "  }\n");
}

void prog_dot(const Program *p, Str *out) {
  Dot d = {.out = out, .t = arena_scratch()};
  str_add(out, "digraph program {\n  rankdir=TB;\n  node [fontname=\"Helvetica\", fontsize=10];\n");
  for (int i = 0; i < p->blocks.n; i++) draw_block(&d, p->blocks.v[i]);
  str_add(out, "}\n");
  arena_free(d.t);
}
