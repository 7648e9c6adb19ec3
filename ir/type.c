/* Element types and tensors: the table of types, checked sizes, 16-bit floating-point conversions, element access. */
#include "ir.h"
#include <math.h>
#include <string.h>

const DTypeInfo dtype_info[DT_N + 1] = {
#define DTYPE(id, text, paddle, size, ctype, class) {text, paddle, size, class},
#include "dtypes.def"
#undef DTYPE
    {"none", -1, 0, 0}};

static const int64_t max_bytes = (int64_t)1 << 40;

DType dtype_find(const char *name) {
  for (int t = 0; t < DT_N; t++)
    if (!strcmp(dtype_info[t].name, name)) return (DType)t;
  return DT_NONE;
}

DType dtype_from_paddle(int number) {
  for (int t = 0; t < DT_N; t++)
    if (dtype_info[t].paddle == number) return (DType)t;
  return DT_NONE;
}

/* Zero dims are left out of the product that is checked, so that strides cannot overflow either. */
bool dims_numel(DType t, int rank, const int64_t *dims, int64_t *numel) {
  int64_t bytes = dtype_info[t].size > 0 ? dtype_info[t].size : 1, n = 1;
  for (int i = 0; i < rank; i++) {
    if (dims[i] < 0)
      return err_set(E_MEM_002, "dimension %d of %s is negative", i, shape_text(t, rank, dims));
    n = dims[i] ? n : 0;
    if (dims[i] && (!mul_ok(bytes, dims[i], &bytes) || bytes > max_bytes)) {
      err_set(E_MEM_002, "%s is too large", shape_text(t, rank, dims));
      err_help("A tensor may have at most 2^40 bytes.");
      return false;
    }
  }
  *numel = n ? numel_of(rank, dims) : 0;
  return true;
}

int64_t numel_of(int rank, const int64_t *dims) {
  int64_t n = 1;
  for (int i = 0; i < rank; i++) n *= dims[i];
  return n;
}

/* float16: 10 bits of mantissa, exponents -14..15; bfloat16: 7 bits, -126..127. */
typedef struct HalfFormat {
  int mant, bias;
} HalfFormat;

static HalfFormat half_format(DType t) {
  return t == DT_FLOAT16 ? (HalfFormat){10, 15} : (HalfFormat){7, 127};
}

double half_to_double(DType t, uint16_t bits) {
  HalfFormat f = half_format(t);
  int m = bits & ((1 << f.mant) - 1), e = (bits & 0x7fff) >> f.mant;
  double v;
  if (e == 2 * f.bias + 1)
    v = m ? NAN : INFINITY;
  else if (e)
    v = ldexp(m + (1 << f.mant), e - f.bias - f.mant);
  else
    v = ldexp(m, 1 - f.bias - f.mant);
  return bits & 0x8000 ? -v : v;
}

uint16_t double_to_half(DType t, double v) {
  HalfFormat f = half_format(t);
  unsigned sign = signbit(v) ? 0x8000 : 0, inf = (unsigned)(2 * f.bias + 1) << f.mant;
  if (isnan(v)) return (uint16_t)(sign | inf | 1u << (f.mant - 1));
  v = fabs(v);
  if (isinf(v)) return (uint16_t)(sign | inf);
  int e;
  frexp(v, &e);
  e--; /* v in [2^e, 2^(e+1)) */
  bool normal = v != 0 && e >= 1 - f.bias;
  if (!normal) e = 1 - f.bias;
  if (e > f.bias) return (uint16_t)(sign | inf);
  /* v in units of the last place, rounded to even; a carry moves on into the exponent */
  unsigned q = (unsigned)rint(ldexp(v, f.mant - e));
  unsigned bits = normal ? ((unsigned)(e + f.bias - 1) << f.mant) + q : q;
  return (uint16_t)(sign | (bits > inf ? inf : bits));
}

int64_t tensor_numel(const Tensor *t) { return numel_of(t->rank, t->dims); }

size_t tensor_bytes(const Tensor *t) {
  return (size_t)tensor_numel(t) * (size_t)dtype_info[t->dtype].size;
}

static bool is_half(DType t) { return t == DT_FLOAT16 || t == DT_BFLOAT16; }

double tensor_get(const Tensor *t, int64_t i) {
  if (is_half(t->dtype)) return half_to_double(t->dtype, ((const uint16_t *)t->data)[i]);
  switch (t->dtype) {
#define DTYPE(id, text, paddle, size, ctype, class)                                                \
  case DT_##id:                                                                                    \
    return (double)((const ctype *)t->data)[i];
#include "dtypes.def"
#undef DTYPE
  default: return 0;
  }
}

/* Truncated and saturated to an integer of `size` bytes; NaN gives 0. */
static int64_t saturate(double v, int size, bool is_signed) {
  if (isnan(v)) return 0;
  int bits = 8 * size - is_signed;
  double lim = ldexp(1, bits), least = is_signed ? -lim : 0;
  if (v >= lim) return (int64_t)(((uint64_t)1 << bits) - 1);
  return v <= least ? (is_signed ? (int64_t)(-lim) : 0) : (int64_t)v;
}

void tensor_set(Tensor *t, int64_t i, double v) {
  if (is_half(t->dtype)) {
    ((uint16_t *)t->data)[i] = double_to_half(t->dtype, v);
    return;
  }
  switch (t->dtype) {
#define DTYPE(id, text, paddle, size, ctype, class)                                                \
  case DT_##id:                                                                                    \
    ((ctype *)t->data)[i] = class == 'f'   ? (ctype)v                                              \
                            : class == 'b' ? (ctype)(v != 0)                                       \
                                           : (ctype)saturate(v, size, class == 'i');               \
    break;
#include "dtypes.def"
#undef DTYPE
  default: break;
  }
}

bool tensor_make(Tensor *t, Arena *a, DType d, int rank, const int64_t *dims) {
  int64_t n;
  if (rank < 0 || rank > KL_VAR_RANK)
    return err_set(E_SHP_002, "a tensor has rank %d; at most %d is allowed", rank, KL_VAR_RANK);
  if (!dims_numel(d, rank, dims, &n)) return false;
  Tensor made = {.dtype = d, .rank = rank}; /* dims may be t's */
  if (rank) memcpy(made.dims, dims, (size_t)rank * sizeof *dims);
  *t = made;
  t->data = arena_alloc(a, (size_t)n * (size_t)dtype_info[d].size);
  return true;
}
