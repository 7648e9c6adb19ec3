/* Reading ProgramDesc files: bytes of the protobuf wire format in, a Program out. The schema is kiln.proto.
 *
 * The fields of the program and of its blocks are walked here, and protobuf-c unpacks one variable or operator at a time
 * into a small scratch that is reused, so that the memory needed is that of the Program. What a file may make us
 * allocate is bounded by its size (48 MiB + twice the file): small fields that grow large in memory end in E-MEM-002.
 * A broken wire format is E-PRO-001, contents that break a rule are E-PRO-002. Attribute types are kept as they are in
 * the file; unknown fields are dropped. */
#include "proto.h"
#include <inttypes.h>
#include <string.h>

/* ---- the wire ---- */

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

typedef struct Wire {
  const uint8_t *base, *p, *end; /* base: of the file, for offsets */
} Wire;
typedef struct Field {
  uint32_t id;
  int type;
  uint64_t number; /* VARINT */
  Wire body;       /* BYTES */
  size_t at;       /* offset of the tag in the file */
} Field;

static bool read_varint(Wire *w, uint64_t *v) {
  *v = 0;
  for (int shift = 0; shift < 64 && w->p < w->end; shift += 7) {
    uint8_t b = *w->p++;
    if (shift == 63 && b > 1) return false;
    *v |= (uint64_t)(b & 0x7f) << shift;
    if (!(b & 0x80)) return true;
  }
  return false;
}

static bool bad_wire(const Field *f, const char *what) {
  err_set(E_PRO_001, "not a program: %s", what);
  err_where("byte %zu", f->at);
  err_help("The file is damaged, cut off, or of another format. Save or copy it again.");
  return false;
}

/* The next field of w; false at the end and on an error. */
static bool next_field(Wire *w, Field *f) {
  if (w->p == w->end) return false;
  uint64_t tag, n;
  f->at = (size_t)(w->p - w->base);
  if (!read_varint(w, &tag)) return bad_wire(f, "a field's tag is cut off or too long");
  if (tag >> 3 == 0 || tag >> 32) return bad_wire(f, "a field's number is 0 or too large");
  f->id = (uint32_t)(tag >> 3);
  f->type = (int)(tag & 7);
  size_t left = (size_t)(w->end - w->p);
  switch (f->type) {
  case VARINT: return read_varint(w, &f->number) || bad_wire(f, "a number is cut off or too long");
  case FIXED64:
  case FIXED32: n = f->type == FIXED64 ? 8 : 4; break;
  case BYTES:
    if (!read_varint(w, &n)) return bad_wire(f, "a length is cut off or too long");
    left = (size_t)(w->end - w->p);
    break;
  default: return bad_wire(f, "a field of a wire type that program files do not use");
  }
  if (n > left) {
    err_set(E_PRO_001, "not a program: a field needs %" PRIu64 " bytes, %zu are left", n, left);
    return bad_wire(f, "");
  }
  f->body = (Wire){w->base, w->p, w->p + n};
  w->p += n;
  return true;
}

/* ---- memory ---- */

typedef struct Scratch {
  uint8_t *buf;
  size_t used, cap;
  Arena *more; /* what does not fit into buf */
  size_t taken, limit;
  bool refused;
} Scratch;

typedef struct Decoder {
  Program *p;
  Arena *tmp;
  Map *names; /* strings already in the Program's arena */
  Scratch scratch;
  size_t cost, limit; /* bytes the Program has taken, about, and may take */
  ProtobufCAllocator allocator;
} Decoder;

static void *scratch_alloc(void *data, size_t n) {
  Scratch *s = data;
  n = (n + 15) & ~(size_t)15;
  if (n > s->limit || s->taken > s->limit - n) {
    s->refused = true;
    return NULL;
  }
  s->taken += n;
  if (n > s->cap - s->used) {
    if (!s->more) s->more = arena_new();
    return arena_alloc(s->more, n);
  }
  s->used += n;
  return s->buf + s->used - n;
}

static void scratch_free(void *data, void *p) { (void)data, (void)p; }

static void scratch_reset(Scratch *s) {
  arena_free(s->more);
  s->more = NULL;
  s->used = s->taken = 0;
}

static bool too_much(const Decoder *d) {
  err_set(E_MEM_002, "decoding needs more than %zu MiB", d->limit >> 20);
  err_help("Program files of this size do not need so much; the file is damaged or hostile.");
  return false;
}

/* Accounts for memory of the Program. */
static bool charge(Decoder *d, size_t n) {
  d->cost += n;
  return d->cost <= d->limit || too_much(d);
}

static void *unpack(Decoder *d, const ProtobufCMessageDescriptor *desc, const Field *f) {
  scratch_reset(&d->scratch);
  d->scratch.limit = d->limit - d->cost;
  if (f->type == BYTES) {
    void *m = protobuf_c_message_unpack(desc, &d->allocator, (size_t)(f->body.end - f->body.p),
                                        f->body.p);
    if (m) return m;
    if (d->scratch.refused) {
      too_much(d);
      err_where("byte %zu", f->at);
      return NULL;
    }
  }
  err_set(E_PRO_001,
          "not a program: this is not a %s (a field is cut off, of a wrong type, or missing)",
          desc->short_name);
  bad_wire(f, "");
  return NULL;
}

/* The string in the Program's arena, each distinct one once; cut at a NUL. */
static const char *keep(Decoder *d, ProtobufCBinaryData b) {
  size_t n = b.len ? strnlen((const char *)b.data, b.len) : 0;
  if (!n) return "";
  char *s = scratch_alloc(&d->scratch, n + 1);
  if (!s) {
    too_much(d);
    return NULL;
  }
  memcpy(s, b.data, n);
  s[n] = 0;
  char *kept = map_get(d->names, s);
  if (kept) return kept;
  if (!charge(d, 2 * n + 64)) return NULL;
  kept = arena_strn(d->p->arena, s, n);
  map_put(d->names, kept, kept);
  return kept;
}

/* The same for names, in which a NUL is an error. */
static const char *keep_name(Decoder *d, ProtobufCBinaryData b, const char *what) {
  const char *s = keep(d, b);
  if (!s || !b.len || strlen(s) == b.len) return s;
  err_set(E_PRO_002, "the name of %s has a NUL byte after %s", what, quoted(s));
  return NULL;
}

/* ---- operators ---- */

static bool take_scalars(Decoder *d, Pb__Scalar *const *from, Attr *a) {
  a->scalars = arena_array(d->p->arena, Scalar, a->n);
  for (int i = 0; i < a->n; i++) {
    const Pb__Scalar *s = from[i];
    Scalar *to = &a->scalars[i];
    if (!s) return err_set(E_PRO_002, "the attribute has type SCALAR, but no value");
    to->type = (int)s->type;
    if (to->type < 1 || to->type > 4)
      return err_set(E_PRO_002, "%d is not a type of scalars (1 to 4)", to->type);
    if (to->type == 1) to->i = s->b != 0;
    if (to->type == 2) to->i = s->i;
    if (to->type == 3) to->r = s->r;
    if (to->type == 4 && !s->c) return err_set(E_PRO_002, "a complex scalar has no value");
    if (to->type == 4) to->r = s->c->r, to->im = s->c->i;
  }
  return true;
}

static bool take_value(Decoder *d, const void *m, const Place *from, Attr *a) {
  const AttrInfo *t = &attr_info[a->type];
  const void *v = (const char *)m + from->at;
  size_t n = 1;
  if (t->list) {
    n = *(const size_t *)((const char *)m + from->has);
    v = *(const void *const *)v;
  }
  if (n > INT32_MAX || !charge(d, n * (from->elem == M_SCALAR ? sizeof(Scalar) : 8)))
    return too_much(d);
  a->n = t->list || t->elem == 'c' ? (int)n : 0;
  if (from->elem == M_SCALAR) return take_scalars(d, v, a);
  void *to = t->list ? arena_alloc(d->p->arena, n * 8) : (void *)&a->i;
  if (t->list) a->is = to;
  for (size_t i = 0; i < n; i++) switch (from->elem) {
    case M_I32: ((int64_t *)to)[i] = ((const int32_t *)v)[i]; break;
    case M_I64: ((int64_t *)to)[i] = ((const int64_t *)v)[i]; break;
    case M_BOOL: ((int64_t *)to)[i] = ((const protobuf_c_boolean *)v)[i] != 0; break;
    case M_F32: ((double *)to)[i] = (double)((const float *)v)[i]; break;
    case M_F64: ((double *)to)[i] = ((const double *)v)[i]; break;
    default: {
      ProtobufCBinaryData b = ((const ProtobufCBinaryData *)v)[i];
      bool name = a->type == AT_VAR || a->type == AT_VARS;
      const char *s = name ? keep_name(d, b, "a variable") : keep(d, b);
      if (!s) return false;
      ((const char **)to)[i] = s;
    }
    }
  return true;
}

static bool take_attrs(Decoder *d, const Pb__OpDesc *m, Op *op) {
  int n = (int)m->n_attrs;
  if (!charge(d, m->n_attrs * sizeof(Attr))) return false;
  op->attrs.v = arena_array(d->p->arena, Attr, n);
  for (int i = 0; i < n; i++) {
    const Pb__OpDesc__Attr *from = m->attrs[i];
    Attr *a = &op->attrs.v[i];
    a->name = keep_name(d, from->name, "an attribute");
    if (!a->name) return false;
    if ((int)from->type < 0 || (int)from->type >= AT_N)
      return err_set(E_PRO_002, "attribute %s has the unknown type %d", quoted(a->name),
                     (int)from->type);
    a->type = (AttrType)from->type;
    if (!take_value(d, from, &pb_places[a->type], a)) {
      err_where("attribute %s", quoted(a->name));
      return false;
    }
    op->attrs.n = op->attrs.cap = i + 1;
  }
  return true;
}

/* PaddlePaddle writes some attributes twice with one value (reshape2's mkldnn_data_type): one of them stays. */
static void drop_repeats(Op *op, Arena *tmp) {
  int n = op->attrs.n, kept = 0;
  if (!repeated_name(tmp, op->attrs.v, n, sizeof(Attr))) return;
  const void **sorted = by_name(tmp, op->attrs.v, n, sizeof(Attr));
  bool *drop = arena_array(tmp, bool, n);
  for (int i = 1; i < n; i++) {
    const Attr *a = sorted[i - 1], *b = sorted[i];
    if (!strcmp(a->name, b->name) && attr_equal(a, b)) drop[b - op->attrs.v] = true;
  }
  for (int i = 0; i < n; i++)
    if (!drop[i]) op->attrs.v[kept++] = op->attrs.v[i];
  op->attrs.n = kept;
}

static Slot *take_slots(Decoder *d, size_t n, Pb__OpDesc__Var *const *from) {
  if (!charge(d, n * sizeof(Slot))) return NULL;
  Slot *slots = arena_array(d->p->arena, Slot, n);
  for (size_t i = 0; i < n; i++) {
    slots[i].name = keep_name(d, from[i]->parameter, "a slot");
    if (!slots[i].name || !charge(d, from[i]->n_arguments * sizeof(char *))) return NULL;
    slots[i].args = arena_array(d->p->arena, const char *, from[i]->n_arguments);
    for (size_t k = 0; k < from[i]->n_arguments; k++) {
      slots[i].args[k] = keep_name(d, from[i]->arguments[k], "a variable");
      if (!slots[i].args[k]) return NULL;
    }
    slots[i].n = (int)from[i]->n_arguments;
  }
  return slots;
}

static bool take_op(Decoder *d, const Field *f, Block *b, int position) {
  const Pb__OpDesc *m = unpack(d, &pb__op_desc__descriptor, f);
  const char *type = m ? keep_name(d, m->type, "an operator type") : NULL;
  bool ok = type && charge(d, sizeof(Op) + 32);
  if (ok) {
    Op *op = block_add_op(b, type);
    op->is_target = m->is_target;
    op->ins.v = take_slots(d, m->n_inputs, m->inputs);
    op->outs.v = op->ins.v ? take_slots(d, m->n_outputs, m->outputs) : NULL;
    ok = op->outs.v && take_attrs(d, m, op);
    if (ok) op->ins.n = op->ins.cap = (int)m->n_inputs;
    if (ok) op->outs.n = op->outs.cap = (int)m->n_outputs;
    if (ok) drop_repeats(op, d->tmp);
    ok = ok && op_names_differ(op, d->tmp);
    if (ok) op_link_attrs(op);
  }
  if (ok) return true;
  if (type)
    err_where("op %d `%s`", position, type);
  else
    err_where("op %d", position);
  return false;
}

/* ---- variables ---- */

static bool take_var_attrs(Decoder *d, const Pb__VarDesc *m, Var *v) {
  if (!charge(d, m->n_attrs * sizeof(Attr))) return false;
  v->attrs.v = arena_array(d->p->arena, Attr, m->n_attrs);
  for (size_t i = 0; i < m->n_attrs; i++) {
    const Pb__VarDesc__Attr *from = m->attrs[i];
    Attr *a = &v->attrs.v[i];
    a->name = keep_name(d, from->name, "an attribute");
    if (!a->name) return false;
    a->type = (AttrType)from->type;
    if (a->type == AT_INT)
      a->i = from->i;
    else if (a->type == AT_STRING) {
      if (!(a->s = keep(d, from->s))) return false;
    } else if (a->type == AT_INTS) {
      if (!charge(d, 8 * from->n_ints)) return false;
      a->n = (int)from->n_ints;
      a->is = arena_array(d->p->arena, int64_t, a->n);
      for (int k = 0; k < a->n; k++) a->is[k] = from->ints[k];
    } else
      return err_set(E_PRO_002, "attribute %s has type %d, which variables cannot have",
                     quoted(a->name), (int)from->type);
    v->attrs.n = v->attrs.cap = (int)i + 1;
  }
  const char *twice = repeated_name(d->tmp, v->attrs.v, v->attrs.n, sizeof(Attr));
  return !twice || err_set(E_PRO_002, "attribute %s is there twice", quoted(twice));
}

/* The description of the tensor that belongs to the kind, NULL if there is none. */
static const Pb__VarType__TensorDesc *tensor_desc(const Pb__VarType *t, const KindPlace *k,
                                                  int *lod) {
  *lod = 0;
  const void *desc = k->at ? *(const void *const *)((const char *)t + k->at) : NULL;
  if (!desc || !k->lod) return desc;
  const Pb__VarType__LoDTensorDesc *lt = desc;
  *lod = lt->lod_level;
  return lt->tensor;
}

static bool add_var(Decoder *d, const Pb__VarDesc *m, Block *b, const char *name) {
  const KindPlace *kind = pb_find_kind((int)m->type->type);
  if (!kind) return err_set(E_PRO_002, "%d is not a kind of variables", (int)m->type->type);
  int lod;
  const Pb__VarType__TensorDesc *desc = tensor_desc(m->type, kind, &lod);
  if (desc && desc->n_dims > KL_VAR_RANK)
    return err_set(E_SHP_002, "%zu dimensions; Kiln takes at most %d", desc->n_dims, KL_VAR_RANK);
  int rank = desc ? (int)desc->n_dims : 0;
  if (desc && !check_var_dims(rank, desc->dims)) return false;
  int number = desc ? (int)desc->data_type : -1;
  if (desc && (number < 0 || number > PB__VAR_TYPE__TYPE__SPARSE_CSR))
    return err_set(E_PRO_002, "%d is not an element type", number);
  if (lod < 0) return err_set(E_PRO_002, "the LoD level is %d", lod);
  if (!charge(d, sizeof(Var) + 160)) return false;
  DType t = desc ? dtype_from_paddle(number) : DT_NONE;
  Var *v = block_add_var(b, name, (VarKind)kind->kind, t, rank, desc ? desc->dims : NULL);
  if (!v) return false;
  v->paddle_dtype = t == DT_NONE ? number : -1;
  v->lod_level = lod;
  v->persistable = m->persistable;
  v->need_check_feed = m->need_check_feed;
  v->is_parameter = m->is_parameter;
  v->stop_gradient = m->stop_gradient;
  return take_var_attrs(d, m, v);
}

static bool take_var(Decoder *d, const Field *f, Block *b, int position) {
  const Pb__VarDesc *m = unpack(d, &pb__var_desc__descriptor, f);
  const char *name = m ? keep_name(d, m->name, "a variable") : NULL;
  if (name && !*name) err_set(E_PRO_002, "a variable has no name");
  if (name && *name && add_var(d, m, b, name)) return true;
  if (name)
    err_where("variable %s", quoted(name));
  else
    err_where("variable %d", position);
  return false;
}

/* ---- blocks, program ---- */

typedef struct BlockHead {
  int64_t idx, parent, forward;
} BlockHead;

static bool scan_block(Wire body, BlockHead *h) {
  *h = (BlockHead){INT64_MIN, INT64_MIN, -1};
  Field f;
  while (next_field(&body, &f)) {
    int64_t *to = f.id == 1 ? &h->idx : f.id == 2 ? &h->parent : f.id == 5 ? &h->forward : NULL;
    bool list = f.id == 3 || f.id == 4;
    if ((to && f.type != VARINT) || (list && f.type != BYTES))
      return bad_wire(&f, "a field of a block has the wrong wire type");
    if (to) *to = (int32_t)f.number;
  }
  if (err_any()) return false;
  if (h->idx == INT64_MIN || h->parent == INT64_MIN)
    return err_set(E_PRO_001, "not a program: a block lacks its index or its parent");
  return true;
}

static bool take_block(Decoder *d, const Field *f, int position) {
  BlockHead h;
  if (f->type != BYTES) return bad_wire(f, "a block has the wrong wire type");
  bool ok = charge(d, 512) && scan_block(f->body, &h);
  if (h.forward == h.idx) h.forward = -1; /* as gradient merging leaves it */
  ok = ok && check_block_head(position, h.idx, h.parent, h.forward);
  if (ok) {
    Block *b = position ? prog_add_block(d->p, (int)h.parent, (int)h.forward) : d->p->blocks.v[0];
    Wire body = f->body;
    Field item;
    int vars = 0, ops = 0;
    while (ok && next_field(&body, &item)) {
      if (item.id == 3) ok = take_var(d, &item, b, vars++);
      if (item.id == 4) ok = take_op(d, &item, b, ops++);
    }
  }
  if (!ok) err_where("block %d", position);
  return ok;
}

static bool take_versions(Decoder *d, const Field *f) {
  const Pb__OpVersionMap *m = unpack(d, &pb__op_version_map__descriptor, f);
  if (!m || !charge(d, 2 * m->n_pair * sizeof(OpVersion))) return false;
  for (size_t i = 0; i < m->n_pair; i++) {
    const char *name = keep_name(d, m->pair[i]->op_name, "an operator type");
    if (!name) return false;
    vec_add(d->p->arena, &d->p->op_versions, ((OpVersion){name, m->pair[i]->op_version->version}));
  }
  return true;
}

static bool take_program(Decoder *d, Wire w) {
  Field f;
  int blocks = 0;
  while (next_field(&w, &f)) {
    if (f.id == 1 && !take_block(d, &f, blocks++)) return false;
    if (f.id == 4) {
      const Pb__Version *m = unpack(d, &pb__version__descriptor, &f);
      if (!m) return false;
      d->p->version = m->version;
    }
    if (f.id == 5 && !take_versions(d, &f)) return false;
  }
  if (err_any()) return false;
  if (!blocks) return err_set(E_PRO_002, "the program has no blocks");
  const char *twice =
      repeated_name(d->tmp, d->p->op_versions.v, d->p->op_versions.n, sizeof(OpVersion));
  if (twice) return err_set(E_PRO_002, "operator %s has two versions", quoted(twice));
  if (!prog_settle_dims(d->p, d->tmp) || !prog_check_blocks(d->p)) return false;
  prog_settle_grads(d->p, d->tmp);
  return true;
}

Program *prog_decode(const uint8_t *bytes, size_t n, const char *file) {
  Arena *tmp = arena_new();
  Decoder *volatile held = NULL;
  MemGuard g;
  if (MEM_GUARD(g)) {
    if (held) arena_free(held->scratch.more);
    if (held) prog_free(held->p);
    arena_free(tmp);
    return NULL;
  }
  Decoder *d = held = arena_new_of(tmp, Decoder);
  d->tmp = tmp;
  d->names = map_new(tmp);
  d->limit = ((size_t)48 << 20) + 2 * n;
  d->scratch.cap = 1 << 16;
  d->scratch.buf = arena_alloc(tmp, d->scratch.cap);
  d->allocator = (ProtobufCAllocator){scratch_alloc, scratch_free, &d->scratch};
  d->p = prog_new();
  d->p->file = file ? arena_str(d->p->arena, file) : NULL;
  err_clear();
  bool ok = n ? take_program(d, (Wire){bytes, bytes, bytes + n})
              : err_set(E_PRO_001, "not a program: the file is empty");
  if (!ok) {
    const char *kind = content_kind(bytes, n);
    if (err_get()->code == E_PRO_001 && kind) err_note("The file looks like %s.", kind);
    if (file) err_where("%s", file);
  }
  mem_unguard(&g);
  Program *p = d->p;
  arena_free(d->scratch.more);
  arena_free(tmp);
  if (ok) return p;
  prog_free(p);
  return NULL;
}
