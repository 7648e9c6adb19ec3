/* The Graph as text and as a picture. In: a graph before or after fusion; out: one node a line,
 *
 *   graph
 *   # op 3 `mul`
 *   %2 float32 [64, 10] = contract %0 %1 [i0, i2] [i2, i1] sum [100]
 *   %3 float32 [64, 5] = view %2 [i0, 2*i1-1] pad 0
 *   %4 float32 [64, 1] = rsum %3 {axes=[1]}
 *   write "w" %2
 *   fetch "loss" %4
 *
 *   graph   "graph" [shapes] line*         "shapes": dims may be -1
 *   node    %N type [dims] = primitive operand* payload {key=value, ...}
 *   payload feed and state "name" | const number | data "name" [numbers] or hex bytes | view [index, ...] pad number |
 *           contract [index, ...] [index, ...] sum [extents of the summed loops]
 *   index   a sum of c*iL terms (L: a loop) and a number, in (...)/div if it is divided
 * and comments from # to the end of a line. Kernels, buffers and copies are printed behind; the parser skips them, since
 * they follow from the graph. graph_dot writes Graphviz with a cluster for each kernel. */
#include "gtext.h"
#include <math.h>
#include <string.h>

const GraphField graph_field[] = {
    {P_IOTA, "axis", GF_I, 0},       {P_RANDOM, "seed", GF_IA, 0},
    {P_RANDOM, "stream", GF_IA, 1},  {P_RANDOM, "fixed", GF_IA, 2},
    {P_RSUM, "axes", GF_AXES, 0},    {P_RMAX, "axes", GF_AXES, 0},
    {P_RPROD, "axes", GF_AXES, 0},   {P_ARGMAX, "axes", GF_AXES, 0},
    {P_GATHER, "axis", GF_I, 0},     {P_SCATTER, "axis", GF_I, 0},
    {P_SCATTER, "assign", GF_IA, 0}, {P_CHECK, "lo", GF_IA, 0},
    {P_CHECK, "hi", GF_IA, 1},       {P_CHECK, "has_ignore", GF_IA, 2},
    {P_CHECK, "ignore", GF_IA, 3},   {P_CHECK, "code", GF_CODE, 4},
    {P_CONCAT, "axis", GF_I, 0},     {P_ARGSORT, "descending", GF_IA, 0},
    {P_CALL, "op", GF_CUSTOM, 0},    {P_CALL, "backward", GF_I, 0},
    {P_OUT, "output", GF_I, 0},
};
const int graph_field_n = sizeof graph_field / sizeof *graph_field;

static const char *const kernel_kind[] = {"loop", "contract", "scatter",   "concat",
                                          "sort", "call",     "attention", "attention_grad"};
static const char *const buffer_kind[] = {"arena", "feed", "state", "data", "kept", "local"};

static void add_string(Str *o, const char *s) {
  str_add(o, "\"");
  for (; *s; s++) {
    unsigned char c = (unsigned char)*s;
    if (c < 0x20 || c == 0x7f)
      str_fmt(o, "\\x%02x", c);
    else if (c == '"' || c == '\\')
      str_fmt(o, "\\%c", c);
    else
      str_addn(o, s, 1);
  }
  str_add(o, "\"");
}

static void add_dims(Str *o, int rank, const int64_t *dims) {
  str_add(o, "[");
  for (int d = 0; d < rank; d++) str_fmt(o, "%s%lld", d ? ", " : "", (long long)dims[d]);
  str_add(o, "]");
}

static void add_term(Str *o, int loop, int32_t c, bool first) {
  if (loop < 0) return;
  str_add(o, c < 0 ? "-" : first ? "" : "+");
  int64_t abs = c < 0 ? -(int64_t)c : c;
  if (abs != 1) str_fmt(o, "%lld*", (long long)abs);
  str_fmt(o, "i%d", loop);
}

static void add_index(Str *o, const AffDim *a) {
  if (a->div != 1) str_add(o, "(");
  add_term(o, a->l0, a->c0, true);
  add_term(o, a->l1, a->c1, false);
  if (a->l0 < 0)
    str_fmt(o, "%lld", (long long)a->off);
  else if (a->off)
    str_fmt(o, "%+lld", (long long)a->off);
  if (a->div != 1) str_fmt(o, ")/%d", (int)a->div);
}

static void add_map(Str *o, int rank, const AffDim *map) {
  str_add(o, " [");
  for (int d = 0; d < rank; d++) {
    if (d) str_add(o, ", ");
    add_index(o, &map[d]);
  }
  str_add(o, "]");
}

static void add_double(Str *o, DType t, double v) {
  if (isnan(v))
    str_add(o, "nan");
  else
    str_fmt(o, "%.*g", t == DT_FLOAT64 ? 17 : 9, v);
}

/* A list, unless it is long or holds a NaN, whose bits a number would lose. */
static void add_data(Str *o, const Node *n) {
  Tensor t = {.dtype = n->dtype, .data = (void *)(uintptr_t)n->data};
  int64_t count = node_numel(n);
  bool list = count <= GT_LIST;
  for (int64_t k = 0; list && k < count; k++) list = !isnan(tensor_get(&t, k));
  if (!list) {
    const unsigned char *p = n->data;
    str_add(o, " hex ");
    for (size_t k = 0; k < (size_t)count * (size_t)dtype_info[n->dtype].size; k++)
      str_fmt(o, "%02x", p[k]);
    return;
  }
  str_add(o, " [");
  for (int64_t k = 0; k < count; k++) {
    if (k) str_add(o, ", ");
    if (n->dtype == DT_INT64)
      str_fmt(o, "%lld", (long long)((const int64_t *)n->data)[k]);
    else
      add_double(o, n->dtype, tensor_get(&t, k));
  }
  str_add(o, "]");
}

static void add_field(Str *o, const Node *n, const GraphField *f) {
  str_fmt(o, "%s=", f->key);
  if (f->kind == GF_I)
    str_fmt(o, "%lld", (long long)n->i);
  else if (f->kind == GF_IA)
    str_fmt(o, "%lld", (long long)n->ia[f->at]);
  else if (f->kind == GF_CODE)
    str_add(o, err_name((ErrCode)n->ia[f->at]));
  else if (f->kind == GF_CUSTOM)
    add_string(o, n->s);
  else {
    int64_t axes[KL_RANK];
    int rank = 0;
    for (int d = 0; d < n->rank; d++)
      if (n->i >> d & 1) axes[rank++] = d;
    add_dims(o, rank, axes);
  }
}

static void add_fields(Str *o, const Node *n) {
  int k = 0;
  for (int i = 0; i < graph_field_n; i++)
    if (graph_field[i].prim == n->prim) {
      str_add(o, k++ ? ", " : " {");
      add_field(o, n, &graph_field[i]);
    }
  for (int i = 0; n->prim == P_CALL && i < call_n_out(n); i++) {
    Tensor t;
    call_out(n, i, &t);
    str_fmt(o, ", out=%s ", dtype_info[t.dtype].name);
    add_dims(o, t.rank, t.dims);
  }
  if (k) str_add(o, "}");
}

static void add_layout(Str *o, int rank, const int64_t *layout) {
  if (!layout || !rank) return;
  str_add(o, " layout ");
  add_dims(o, rank, layout);
}

static void add_node(Str *o, const Node *n) {
  str_fmt(o, "%%%d %s ", n->id, dtype_info[n->dtype].name);
  add_dims(o, n->rank, n->dims);
  str_fmt(o, " = %s", prim_info[n->prim].name);
  for (int k = 0; k < n->n_in; k++) str_fmt(o, " %%%d", n->in[k]->id);
  if (n->prim == P_FEED || n->prim == P_STATE || n->prim == P_DATA) {
    str_add(o, " ");
    add_string(o, n->s ? n->s : "");
  }
  if (n->prim == P_STATE) add_layout(o, n->n_ia, n->ia);
  if (n->prim == P_DATA) add_data(o, n);
  if (n->prim == P_CONST) {
    str_add(o, " ");
    if (dtype_is_float(n->dtype))
      add_double(o, DT_FLOAT64, n->f);
    else
      str_fmt(o, "%lld", (long long)n->i);
  }
  if (n->prim == P_VIEW) {
    add_map(o, n->in[0]->rank, n->map[0]);
    str_add(o, " pad ");
    add_double(o, DT_FLOAT64, n->f);
  }
  if (n->prim == P_CONTRACT) {
    for (int k = 0; k < 2; k++) add_map(o, n->in[k]->rank, n->map[k]);
    str_add(o, " sum ");
    add_dims(o, n->n_loops - n->rank, n->ext + n->rank);
  }
  add_fields(o, n);
  str_add(o, "\n");
}

static void add_place(Str *o, const Buffer *b) {
  if (!b) return;
  str_fmt(o, " buffer %d %s", b->id, buffer_kind[b->kind]);
  if (b->kind == B_ARENA || b->kind == B_LOCAL) str_fmt(o, "+%lld", (long long)b->offset);
}

static void add_kernel(Str *o, const Kernel *k) {
  int64_t axes[KL_RANK];
  int n_axes = 0;
  str_fmt(o, "kernel %s %s ", k->name, kernel_kind[k->kind]);
  add_dims(o, k->rank, k->ext);
  for (int d = 0; d < k->rank; d++)
    if (k->reduce >> d & 1) axes[n_axes++] = d;
  if (n_axes) {
    str_add(o, " reduce ");
    add_dims(o, n_axes, axes);
  }
  if (k->chain) str_fmt(o, " chain %d", k->chain);
  str_add(o, " {\n");
  for (int i = 0; i < k->inputs.n; i++) {
    str_fmt(o, "  in %%%d", k->inputs.v[i].node->id);
    add_place(o, k->inputs.v[i].node->buf);
    str_add(o, k->inputs.v[i].aligned ? " aligned\n" : "\n");
  }
  for (int i = 0; i < k->nodes.n; i++) {
    str_add(o, "  ");
    add_node(o, k->nodes.v[i]);
  }
  for (int i = 0; i < k->outputs.n; i++) {
    str_fmt(o, "  out %%%d", k->outputs.v[i]->id);
    add_place(o, k->outputs.v[i]->buf);
    str_add(o, "\n");
  }
  if (k->by[0]) str_fmt(o, "  by %s\n", k->by);
  if (k->workspace) {
    str_fmt(o, "  workspace %lld", (long long)k->workspace);
    add_place(o, k->ws);
    str_add(o, "\n");
  }
  str_add(o, "}\n");
}

static void add_plan(Str *o, const Graph *g) {
  for (int i = 0; i < g->buffers.n; i++) {
    const Buffer *b = g->buffers.v[i];
    str_fmt(o, "buffer %d %s", b->id, buffer_kind[b->kind]);
    if (b->kind == B_ARENA || b->kind == B_LOCAL)
      str_fmt(o, "+%lld", (long long)b->offset);
    else if (b->name) {
      str_add(o, " ");
      add_string(o, b->name);
    }
    str_fmt(o, " bytes %lld kernels %d..%d\n", (long long)b->bytes, b->first, b->last);
  }
  for (int i = 0; i < g->copies.n; i++)
    str_fmt(o, "copy buffer %d to buffer %d\n", g->copies.v[i].from->id, g->copies.v[i].to->id);
  if (g->buffers.n)
    str_fmt(o, "plan arena %lld lower_bound %lld\n", (long long)g->arena_bytes,
            (long long)g->lower_bound);
}

void graph_print(const Graph *g, Str *out) {
  const Op *op = NULL;
  str_add(out, g->shapes_only ? "graph shapes\n" : "graph\n");
  for (int i = 0; i < g->nodes.n; i++) g->nodes.v[i]->id = i;
  for (int i = 0; i < g->nodes.n; i++) {
    const Node *n = g->nodes.v[i];
    if (n->op && n->op != op) str_fmt(out, "# %s\n", op_text(n->op));
    op = n->op;
    add_node(out, n);
  }
  for (int w = 0; w < 2; w++) {
    int n = w ? g->fetches.n : g->writes.n;
    for (int i = 0; i < n; i++) {
      const NamedNode *x = w ? &g->fetches.v[i] : &g->writes.v[i];
      str_add(out, w ? "fetch " : "write ");
      add_string(out, x->name);
      str_fmt(out, " %%%d", x->node->id);
      add_layout(out, x->node->rank, x->layout);
      str_add(out, "\n");
    }
  }
  for (int i = 0; i < g->kernels.n; i++) add_kernel(out, g->kernels.v[i]);
  add_plan(out, g);
}

/* ---- Graphviz ---- */

/* A name inside a label that is a quoted string. */
static void dot_name(Str *o, const char *s) {
  for (; *s; s++) {
    unsigned char c = (unsigned char)*s;
    if (c < 0x20 || c == 0x7f)
      str_fmt(o, "\\\\x%02x", c);
    else if (c == '"' || c == '\\')
      str_fmt(o, "\\%c", c);
    else
      str_addn(o, s, 1);
  }
}

static void dot_node(Str *o, const Node *n) {
  bool source = prim_info[n->prim].class == 'S';
  str_fmt(o, "    n%d [label=\"%%%d %s", n->id, n->id, prim_info[n->prim].name);
  if (source && n->s) {
    str_add(o, " ");
    dot_name(o, n->s);
  }
  str_fmt(o, "\\n%s\"%s];\n", shape_text(n->dtype, n->rank, n->dims),
          source ? ", style=filled, fillcolor=lightgrey" : "");
}

/* A node that several kernels compute is drawn in the first. */
void graph_dot(const Graph *g, Str *out) {
  Arena *t = arena_scratch();
  bool *drawn = arena_array(t, bool, g->nodes.n);
  str_add(out, "digraph graph_ {\n  node [shape=box, fontname=\"monospace\"];\n");
  for (int i = 0; i < g->nodes.n; i++) g->nodes.v[i]->id = i;
  for (int i = 0; i < g->kernels.n; i++) {
    const Kernel *k = g->kernels.v[i];
    str_fmt(out, "  subgraph cluster_%d {\n    label=\"%s\";\n", i, k->name);
    for (int j = 0; j < k->nodes.n; j++) {
      if (!drawn[k->nodes.v[j]->id]) dot_node(out, k->nodes.v[j]);
      drawn[k->nodes.v[j]->id] = true;
    }
    str_add(out, "  }\n");
  }
  for (int i = 0; i < g->nodes.n; i++) {
    const Node *n = g->nodes.v[i];
    if (!drawn[i]) dot_node(out, n);
    for (int k = 0; k < n->n_in; k++) str_fmt(out, "    n%d -> n%d;\n", n->in[k]->id, i);
  }
  for (int w = 0; w < 2; w++) {
    int n = w ? g->fetches.n : g->writes.n;
    for (int i = 0; i < n; i++) {
      const NamedNode *x = w ? &g->fetches.v[i] : &g->writes.v[i];
      str_fmt(out, "    %s%d [shape=ellipse, label=\"%s ", w ? "f" : "w", i, w ? "fetch" : "write");
      dot_name(out, x->name);
      str_fmt(out, "\"];\n    n%d -> %s%d;\n", x->node->id, w ? "f" : "w", i);
    }
  }
  str_add(out, "}\n");
  arena_free(t);
}
