/* Structural rules of a Program that both of its file forms check while reading: block indices, names that may occur
 * only once, dimensions of variables, what a file that is not a program looks like; and what PaddlePaddle leaves out. */
#include "ir.h"
#include <inttypes.h>
#include <string.h>

bool op_names_differ(const Op *op, Arena *tmp) {
  const char *s = repeated_name(tmp, op->ins.v, op->ins.n, sizeof(Slot));
  if (!s) s = repeated_name(tmp, op->outs.v, op->outs.n, sizeof(Slot));
  if (s) return err_set(E_PRO_002, "slot %s is there twice", quoted(s));
  s = repeated_name(tmp, op->attrs.v, op->attrs.n, sizeof(Attr));
  return !s || err_set(E_PRO_002, "attribute %s is there twice", quoted(s));
}

static bool bad_dim(int i, int64_t dim) {
  return err_set(E_PRO_002, "dimension %d is %" PRId64 "; it must be -1 (unknown) or more", i, dim);
}

bool check_var_dims(int rank, const int64_t *dims) {
  int64_t known[KL_VAR_RANK], numel;
  if (rank > KL_VAR_RANK)
    return err_set(E_SHP_002, "%d dimensions; Kiln takes at most %d", rank, KL_VAR_RANK);
  for (int i = 0; i < rank; i++) {
    if (dims[i] < INT32_MIN) return bad_dim(i, dims[i]);
    known[i] = dims[i] < 0 ? 1 : dims[i];
  }
  return dims_numel(DT_UINT8, rank, known, &numel);
}

/* Names in operators' slots: &mark[0] those that an operator writes, &mark[1] those that are only read. */
static const char mark[2];

static Map *used_names(const Program *p, Arena *tmp) {
  Map *used = map_new(tmp);
  for (int side = 1; side >= 0; side--)
    for (int b = 0; b < p->blocks.n; b++)
      for (int i = 0; i < p->blocks.v[b]->ops.n; i++) {
        const Op *op = p->blocks.v[b]->ops.v[i];
        const SlotVec *slots = side ? &op->ins : &op->outs;
        for (int s = 0; s < slots->n; s++)
          for (int k = 0; k < slots->v[s].n; k++)
            map_put(used, slots->v[s].args[k], (void *)&mark[side]);
      }
  return used;
}

static bool settle(Program *p, Var *v, Map **used, Arena *tmp) {
  for (int d = 0; d < v->rank; d++) {
    if (v->dims[d] >= -1) continue;
    if (!*used) *used = used_names(p, tmp);
    if (v->persistable || v->need_check_feed || map_get(*used, v->name) == &mark[1]) {
      bad_dim(d, v->dims[d]);
      return err_where("block %d, variable %s", v->block->idx, quoted(v->name)), false;
    }
    v->dims[d] = -1;
  }
  return true;
}

bool prog_settle_dims(Program *p, Arena *tmp) {
  Map *used = NULL;
  for (int b = 0; b < p->blocks.n; b++)
    for (int i = 0; i < p->blocks.v[b]->vars.n; i++)
      if (!settle(p, p->blocks.v[b]->vars.v[i], &used, tmp)) return false;
  return true;
}

bool check_block_head(int position, int64_t idx, int64_t parent, int64_t forward) {
  if (idx != position)
    return err_set(E_PRO_002, "the block at position %d says it has index %" PRId64, position, idx);
  if (position == 0 ? parent != -1 : parent < 0 || parent >= position)
    return err_set(E_PRO_002, "the parent of block %d is %" PRId64 "; it must be %s", position,
                   parent, position ? "an earlier block" : "-1");
  if (forward < -1 || forward >= position)
    return err_set(E_PRO_002,
                   "the forward block of block %d is %" PRId64
                   "; it must be -1 or an earlier block",
                   position, forward);
  return true;
}

static bool check_block_attr(const Program *p, const Op *op, const Attr *a) {
  bool list = attr_info[a->type].list;
  for (int i = 0; i < (list ? a->n : 1); i++) {
    int64_t v = list ? a->is[i] : a->i;
    if (v > op->block->idx && v < p->blocks.n) continue;
    err_set(E_PRO_002, "attribute %s names block %" PRId64 " of %d", quoted(a->name), v,
            p->blocks.n);
    err_help("A sub-block comes after the block of its operator, which is block %d.",
             op->block->idx);
    err_where("block %d, %s", op->block->idx, op_text(op));
    return false;
  }
  return true;
}

bool prog_check_blocks(const Program *p) {
  for (int b = 0; b < p->blocks.n; b++)
    for (int i = 0; i < p->blocks.v[b]->ops.n; i++) {
      const Op *op = p->blocks.v[b]->ops.v[i];
      for (int k = 0; k < op->attrs.n; k++) {
        const Attr *a = &op->attrs.v[k];
        bool block = a->type == AT_BLOCK || a->type == AT_BLOCKS;
        if (block && !check_block_attr(p, op, a)) return false;
      }
    }
  return true;
}

/* ---- what a file looks like ---- */

typedef struct Magic {
  size_t at, n;
  const char *bytes, *what;
} Magic;
static const Magic magics[] = {
    {0, 4, "PK\3\4", "a zip archive (.npz, .pt)"},
    {0, 2, "\x80\2", "a Python pickle (.pdparams, .pdopt)"},
    {0, 2, "\x80\3", "a Python pickle (.pdparams, .pdopt)"},
    {0, 2, "\x80\4", "a Python pickle (.pdparams, .pdopt)"},
    {0, 2, "\x80\5", "a Python pickle (.pdparams, .pdopt)"},
    {0, 2, "\x1f\x8b", "gzip-compressed data"},
    {0, 6, "\x93NUMPY", "a NumPy array (.npy)"},
    {0, 4, "\x89HDF", "an HDF5 file"},
    {0, 4,
     "\x7f"
     "ELF",
     "an executable or library"},
    {0, 4, "GGUF", "a GGUF model"},
    {0, 4, "%PDF", "a PDF document"},
    {0, 4, "\x89PNG", "a PNG picture"},
    {0, 1, "{", "JSON text"},
    {0, 1, "<", "HTML or XML text"},
    {8, 1, "{", "a safetensors file"},
    {257, 5, "ustar", "a tar archive"},
    {0, 16, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "a parameter file (.pdiparams)"},
};

/* printable as far as the first 512 bytes tell */
static bool content_is_text(const uint8_t *bytes, size_t n) {
  for (size_t i = 0; i < n && i < 512; i++)
    if ((bytes[i] < 0x20 && !memchr("\t\n\r", bytes[i], 3)) || bytes[i] == 0x7f) return false;
  return n > 0;
}

const char *content_kind(const uint8_t *bytes, size_t n) {
  for (size_t i = 0; i < sizeof magics / sizeof *magics; i++) {
    const Magic *m = &magics[i];
    if (n >= m->at + m->n && !memcmp(bytes + m->at, m->bytes, m->n)) return m->what;
  }
  bool onnx = n > 2 && bytes[0] == 8 && bytes[1] < 32 && (bytes[2] == 0x12 || bytes[2] == 0x3a);
  if (onnx) return "an ONNX model";
  return content_is_text(bytes, n) ? "text" : NULL;
}

/* ---- gradients that nobody declares ---- */

/* The variables of all blocks by name; of several the one in the outermost block. */
static Map *declared_names(const Program *p, Arena *tmp) {
  Map *declared = map_new(tmp);
  for (int b = p->blocks.n - 1; b >= 0; b--)
    for (int i = 0; i < p->blocks.v[b]->vars.n; i++)
      map_put(declared, p->blocks.v[b]->vars.v[i]->name, p->blocks.v[b]->vars.v[i]);
  return declared;
}

/* An argument that no block in sight declares. It stays as it is if it is not the gradient of a variable. */
static void settle_grad(Block *b, const char **arg, const Map *used, const Map *declared,
                        Arena *tmp) {
  const char *end = strstr(*arg, "@GRAD");
  if (!end || block_find_var(b, *arg)) return;
  const char *base = arena_fmt(tmp, "%.*s", (int)(end - *arg), *arg);
  const Var *of = block_find_var(b, base);
  if (!of) of = map_get(declared, base);
  if (!of) return;
  if (b->idx == 0 && map_get(used, *arg) != &mark[0]) {
    *arg = "@EMPTY@";
    return;
  }
  Var *v = block_add_var(b, *arg, of->kind, of->dtype, of->rank, of->dims);
  v->lod_level = of->lod_level, v->paddle_dtype = of->paddle_dtype;
}

void prog_settle_grads(Program *p, Arena *tmp) {
  if (p->blocks.n == 1) return;
  const Map *used = used_names(p, tmp), *declared = declared_names(p, tmp);
  for (int b = 0; b < p->blocks.n; b++)
    for (int i = 0; i < p->blocks.v[b]->ops.n; i++)
      for (int side = 0; side < 2; side++) {
        Op *op = p->blocks.v[b]->ops.v[i];
        SlotVec *slots = side ? &op->outs : &op->ins;
        for (int s = 0; s < slots->n; s++)
          for (int k = 0; k < slots->v[s].n; k++)
            settle_grad(p->blocks.v[b], &slots->v[s].args[k], used, declared, tmp);
      }
}
