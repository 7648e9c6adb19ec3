/* Writing ProgramDesc files: a Program in, bytes of the protobuf wire format out. The schema is kiln.proto.
 *
 * The whole message is built in a scratch arena and packed by protobuf-c. The bytes are deterministic: slots, attributes
 * and operator versions sorted by name, variables and operators in their order, one tag per element of a repeated field.
 * Reading them (unproto.c) and writing again gives the same bytes. */
#include "proto.h"
#include <inttypes.h>
#include <string.h>

/* ---- attributes: where the value of each type is kept in the message ---- */

#define FIELD(m) offsetof(Pb__OpDesc__Attr, m)
#define ONE(m) FIELD(m), FIELD(has_##m)
#define MANY(m) FIELD(m), FIELD(n_##m)
const Place pb_places[AT_N] = {
    [AT_INT] = {M_I32, ONE(i)},
    [AT_FLOAT] = {M_F32, ONE(f)},
    [AT_STRING] = {M_BYTES, ONE(s)},
    [AT_INTS] = {M_I32, MANY(ints)},
    [AT_FLOATS] = {M_F32, MANY(floats)},
    [AT_STRINGS] = {M_BYTES, MANY(strings)},
    [AT_BOOL] = {M_BOOL, ONE(b)},
    [AT_BOOLS] = {M_BOOL, MANY(bools)},
    [AT_BLOCK] = {M_I32, ONE(block_idx)},
    [AT_LONG] = {M_I64, ONE(l)},
    [AT_BLOCKS] = {M_I32, MANY(blocks_idx)},
    [AT_LONGS] = {M_I64, MANY(longs)},
    [AT_FLOAT64S] = {M_F64, MANY(float64s)},
    [AT_VAR] = {M_BYTES, ONE(var_name)},
    [AT_VARS] = {M_BYTES, MANY(vars_name)},
    [AT_FLOAT64] = {M_F64, ONE(float64)},
    [AT_SCALAR] = {M_SCALAR, FIELD(scalar), 0},
    [AT_SCALARS] = {M_SCALAR, MANY(scalars)},
};

/* ---- variables: which description belongs to which kind ---- */

#define DESC(m) offsetof(Pb__VarType, m)
static const KindPlace kinds[] = {
    {PB__VAR_TYPE__TYPE__LOD_TENSOR, DESC(lod_tensor), true},
    {PB__VAR_TYPE__TYPE__SELECTED_ROWS, DESC(selected_rows), false},
    {PB__VAR_TYPE__TYPE__FEED_MINIBATCH, 0, false},
    {PB__VAR_TYPE__TYPE__FETCH_LIST, 0, false},
    {PB__VAR_TYPE__TYPE__STEP_SCOPES, 0, false},
    {PB__VAR_TYPE__TYPE__LOD_RANK_TABLE, 0, false},
    {PB__VAR_TYPE__TYPE__LOD_TENSOR_ARRAY, DESC(tensor_array), true},
    {PB__VAR_TYPE__TYPE__PLACE_LIST, 0, false},
    {PB__VAR_TYPE__TYPE__READER, 0, false},
    {PB__VAR_TYPE__TYPE__RAW, 0, false},
    {PB__VAR_TYPE__TYPE__TUPLE, 0, false},
    {PB__VAR_TYPE__TYPE__STRING, DESC(string), false},
    {PB__VAR_TYPE__TYPE__STRINGS, DESC(strings), false},
    {PB__VAR_TYPE__TYPE__VOCAB, DESC(vocab), false},
    {PB__VAR_TYPE__TYPE__FEED_LIST, 0, false},
    {PB__VAR_TYPE__TYPE__PSTRING, 0, false},
    {PB__VAR_TYPE__TYPE__SPARSE_COO, DESC(sparse_coo), false},
    {PB__VAR_TYPE__TYPE__SPARSE_CSR, DESC(sparse_csr), false},
};

const KindPlace *pb_find_kind(int kind) {
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
    if (kinds[i].kind == kind) return &kinds[i];
  return NULL;
}

/* ---- writing ---- */

static ProtobufCBinaryData bytes_of(const char *s) {
  return (ProtobufCBinaryData){strlen(s), (uint8_t *)s};
}

static bool fits_int32(const Attr *a, int64_t v) {
  if (v == (int32_t)v) return true;
  err_set(E_PRO_002, "attribute %s holds %" PRId64 ", which its type %s cannot", quoted(a->name), v,
          attr_info[a->type].name);
  err_help("Give it the type LONG or LONGS.");
  return false;
}

static Pb__Scalar *put_scalar(const Scalar *s, Arena *t) {
  Pb__Scalar *m = arena_new_of(t, Pb__Scalar);
  pb__scalar__init(m);
  m->type = (Pb__Scalar__Type)s->type;
  if (s->type == 1) m->has_b = true, m->b = s->i != 0;
  if (s->type == 2) m->has_i = true, m->i = s->i;
  if (s->type == 3) m->has_r = true, m->r = s->r;
  if (s->type == 4) {
    m->c = arena_new_of(t, Pb__Complex);
    pb__complex__init(m->c);
    m->c->r = s->r;
    m->c->i = s->im;
  }
  return m;
}

static bool put_element(const Attr *a, int i, Elem elem, void *to, Arena *t) {
  bool list = attr_info[a->type].list;
  const int64_t *is = list ? a->is : &a->i;
  const double *fs = list ? a->fs : &a->f;
  switch (elem) {
  case M_I32: ((int32_t *)to)[i] = (int32_t)is[i]; return fits_int32(a, is[i]);
  case M_I64: ((int64_t *)to)[i] = is[i]; return true;
  case M_BOOL: ((protobuf_c_boolean *)to)[i] = is[i] != 0; return true;
  case M_F32: ((float *)to)[i] = (float)fs[i]; return true;
  case M_F64: ((double *)to)[i] = fs[i]; return true;
  case M_BYTES: ((ProtobufCBinaryData *)to)[i] = bytes_of(list ? a->ss[i] : a->s); return true;
  default: ((Pb__Scalar **)to)[i] = put_scalar(&a->scalars[i], t); return true;
  }
}

static Pb__OpDesc__Attr *put_attr(const Attr *a, Arena *t) {
  Pb__OpDesc__Attr *m = arena_new_of(t, Pb__OpDesc__Attr);
  pb__op_desc__attr__init(m);
  m->name = bytes_of(a->name);
  m->type = (Pb__AttrType)a->type;
  const Place *place = &pb_places[a->type];
  bool list = attr_info[a->type].list;
  void *to = (char *)m + place->at;
  if (list) {
    *(size_t *)((char *)m + place->has) = (size_t)a->n;
    to = *(void **)to = arena_alloc(t, sizeof(ProtobufCBinaryData) * (size_t)a->n);
  } else if (place->has)
    *(protobuf_c_boolean *)((char *)m + place->has) = true;
  for (int i = 0; i < (list ? a->n : 1); i++)
    if (!put_element(a, i, place->elem, to, t)) return NULL;
  return m;
}

static Pb__OpDesc__Var **put_slots(const Slot *slots, size_t n_slots, Arena *t) {
  int n = (int)n_slots;
  Pb__OpDesc__Var **v = arena_array(t, Pb__OpDesc__Var *, n);
  const void **sorted = by_name(t, slots, n, sizeof(Slot));
  for (int i = 0; i < n; i++) {
    const Slot *s = sorted[i];
    v[i] = arena_new_of(t, Pb__OpDesc__Var);
    pb__op_desc__var__init(v[i]);
    v[i]->parameter = bytes_of(s->name);
    v[i]->n_arguments = (size_t)s->n;
    v[i]->arguments = arena_array(t, ProtobufCBinaryData, s->n);
    for (int k = 0; k < s->n; k++) v[i]->arguments[k] = bytes_of(s->args[k]);
  }
  return v;
}

static Pb__OpDesc *put_op(const Op *op, Arena *t) {
  Pb__OpDesc *m = arena_new_of(t, Pb__OpDesc);
  pb__op_desc__init(m);
  m->type = bytes_of(op->type);
  m->has_is_target = m->is_target = op->is_target;
  const Slot *ins = op_own_slots(op, t, &m->n_inputs);
  m->inputs = put_slots(ins, m->n_inputs, t);
  m->n_outputs = (size_t)op->outs.n;
  m->outputs = put_slots(op->outs.v, m->n_outputs, t);
  m->n_attrs = (size_t)op->attrs.n;
  m->attrs = arena_array(t, Pb__OpDesc__Attr *, op->attrs.n);
  const void **sorted = by_name(t, op->attrs.v, op->attrs.n, sizeof(Attr));
  for (int i = 0; i < op->attrs.n; i++)
    if (!(m->attrs[i] = put_attr(sorted[i], t))) {
      err_where("block %d, %s", op->block->idx, op_text(op));
      return NULL;
    }
  return m;
}

static Pb__VarType *put_type(const Var *v, Arena *t) {
  Pb__VarType *m = arena_new_of(t, Pb__VarType);
  pb__var_type__init(m);
  m->type = (Pb__VarType__Type)v->kind;
  const KindPlace *kind = pb_find_kind((int)v->kind);
  bool typed = v->dtype != DT_NONE || v->paddle_dtype >= 0;
  if (!kind || !kind->at || !typed || v->rank < 0) return m; /* not known: left to inference */
  Pb__VarType__TensorDesc *desc = arena_new_of(t, Pb__VarType__TensorDesc);
  pb__var_type__tensor_desc__init(desc);
  desc->data_type =
      (Pb__VarType__Type)(v->dtype == DT_NONE ? v->paddle_dtype : dtype_info[v->dtype].paddle);
  desc->n_dims = (size_t)v->rank;
  desc->dims = arena_dup(t, v->dims, desc->n_dims * sizeof *v->dims);
  void *place = desc;
  if (kind->lod) {
    Pb__VarType__LoDTensorDesc *lod = arena_new_of(t, Pb__VarType__LoDTensorDesc);
    pb__var_type__lo_dtensor_desc__init(lod);
    lod->tensor = desc;
    lod->has_lod_level = v->lod_level != 0;
    lod->lod_level = v->lod_level;
    place = lod;
  }
  *(void **)((char *)m + kind->at) = place;
  return m;
}

static Pb__VarDesc__Attr *put_var_attr(const Attr *a, Arena *t) {
  Pb__VarDesc__Attr *m = arena_new_of(t, Pb__VarDesc__Attr);
  pb__var_desc__attr__init(m);
  m->name = bytes_of(a->name);
  m->type = (Pb__AttrType)a->type;
  if (a->type == AT_INT) {
    m->has_i = true;
    m->i = (int32_t)a->i;
    if (!fits_int32(a, a->i)) return NULL;
  } else if (a->type == AT_STRING) {
    m->has_s = true;
    m->s = bytes_of(a->s);
  } else if (a->type == AT_INTS) {
    m->n_ints = (size_t)a->n;
    m->ints = arena_array(t, int32_t, a->n);
    for (int i = 0; i < a->n; i++) {
      if (!fits_int32(a, a->is[i])) return NULL;
      m->ints[i] = (int32_t)a->is[i];
    }
  } else {
    err_set(E_PRO_002,
            "attribute %s of a variable has type %s; only INT, STRING and INTS can be saved",
            quoted(a->name), attr_info[a->type].name);
    return NULL;
  }
  return m;
}

static Pb__VarDesc *put_var(const Var *v, Arena *t) {
  Pb__VarDesc *m = arena_new_of(t, Pb__VarDesc);
  pb__var_desc__init(m);
  m->name = bytes_of(v->name);
  m->type = put_type(v, t);
  m->has_persistable = true;
  m->persistable = v->persistable;
  m->has_need_check_feed = m->need_check_feed = v->need_check_feed;
  m->has_is_parameter = m->is_parameter = v->is_parameter;
  m->has_stop_gradient = m->stop_gradient = v->stop_gradient;
  m->n_attrs = (size_t)v->attrs.n;
  m->attrs = arena_array(t, Pb__VarDesc__Attr *, v->attrs.n);
  const void **sorted = by_name(t, v->attrs.v, v->attrs.n, sizeof(Attr));
  for (int i = 0; i < v->attrs.n; i++)
    if (!(m->attrs[i] = put_var_attr(sorted[i], t))) {
      err_where("block %d, variable %s", v->block->idx, quoted(v->name));
      return NULL;
    }
  return m;
}

static Pb__BlockDesc *put_block(const Block *b, Arena *t) {
  Pb__BlockDesc *m = arena_new_of(t, Pb__BlockDesc);
  pb__block_desc__init(m);
  m->idx = b->idx;
  m->parent_idx = b->parent;
  m->has_forward_block_idx = b->forward != -1;
  m->forward_block_idx = b->forward;
  m->n_vars = (size_t)b->vars.n;
  m->vars = arena_array(t, Pb__VarDesc *, b->vars.n);
  for (int i = 0; i < b->vars.n; i++)
    if (!(m->vars[i] = put_var(b->vars.v[i], t))) return NULL;
  m->n_ops = (size_t)b->ops.n;
  m->ops = arena_array(t, Pb__OpDesc *, b->ops.n);
  for (int i = 0; i < b->ops.n; i++)
    if (!(m->ops[i] = put_op(b->ops.v[i], t))) return NULL;
  return m;
}

static Pb__OpVersionMap *put_versions(const Program *p, Arena *t) {
  Pb__OpVersionMap *m = arena_new_of(t, Pb__OpVersionMap);
  pb__op_version_map__init(m);
  m->n_pair = (size_t)p->op_versions.n;
  m->pair = arena_array(t, Pb__OpVersionMap__OpVersionPair *, p->op_versions.n);
  const void **sorted = by_name(t, p->op_versions.v, p->op_versions.n, sizeof(OpVersion));
  for (int i = 0; i < p->op_versions.n; i++) {
    const OpVersion *v = sorted[i];
    Pb__OpVersionMap__OpVersionPair *pair = arena_new_of(t, Pb__OpVersionMap__OpVersionPair);
    pb__op_version_map__op_version_pair__init(pair);
    pair->op_name = bytes_of(v->name);
    pair->op_version = arena_new_of(t, Pb__OpVersion);
    pb__op_version__init(pair->op_version);
    pair->op_version->version = v->version;
    m->pair[i] = pair;
  }
  return m;
}

static bool put_program(const Program *p, Pb__ProgramDesc *m, Arena *t) {
  pb__program_desc__init(m);
  m->version = arena_new_of(t, Pb__Version);
  pb__version__init(m->version);
  m->version->has_version = true;
  m->version->version = p->version;
  if (p->op_versions.n) m->op_version_map = put_versions(p, t);
  m->n_blocks = (size_t)p->blocks.n;
  m->blocks = arena_array(t, Pb__BlockDesc *, p->blocks.n);
  for (int i = 0; i < p->blocks.n; i++)
    if (!(m->blocks[i] = put_block(p->blocks.v[i], t))) return false;
  return true;
}

bool prog_encode(const Program *p, Arena *a, uint8_t **bytes, size_t *n) {
  Arena *t = arena_new();
  MemGuard g;
  if (MEM_GUARD(g)) {
    arena_free(t);
    return false;
  }
  Pb__ProgramDesc m;
  bool ok = put_program(p, &m, t);
  if (ok) {
    *n = pb__program_desc__get_packed_size(&m);
    *bytes = arena_alloc(a, *n);
    pb__program_desc__pack(&m, *bytes);
  }
  mem_unguard(&g);
  arena_free(t);
  return ok;
}
