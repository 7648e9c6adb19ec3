/* oneDNN through its C interface, of which the declarations needed here are written out below, so that building needs none of
 * its headers. Values are those of version 3. */
#include "onednn.h"
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef struct Arg {
  int arg;
  void *memory;
} Arg;
enum { F32 = 3, ANY = 1, CPU = 1, IN_ORDER = 1, INFERENCE = 96, TRAINING = 64, DIRECT = 1 };
enum { SRC = 1, DST = 17, WEIGHTS = 33, DIFF_SRC = 129, DIFF_DST = 145, DIFF_WEIGHTS = 161 };
enum { Q_SRC = 129, Q_DIFF_SRC, Q_WEIGHTS, Q_DIFF_WEIGHTS, Q_DST, Q_DIFF_DST };
typedef const int64_t *Dims;

static struct {
  int (*sgemm)(char, char, int64_t, int64_t, int64_t, float, const float *, int64_t, const float *,
               int64_t, float, float *, int64_t);
  int (*engine_create)(void **, int, size_t);
  int (*stream_create)(void **, void *, unsigned);
  int (*memory_desc_create_with_tag)(void **, int, Dims, int, int);
  int (*memory_desc_destroy)(void *);
  int (*convolution_forward_primitive_desc_create)(void **, void *, int, int, void *, void *,
                                                   void *, void *, Dims, Dims, Dims, Dims, void *);
  int (*convolution_backward_data_primitive_desc_create)(void **, void *, int, void *, void *,
                                                         void *, Dims, Dims, Dims, Dims, void *,
                                                         void *);
  int (*convolution_backward_weights_primitive_desc_create)(void **, void *, int, void *, void *,
                                                            void *, void *, Dims, Dims, Dims, Dims,
                                                            void *, void *);
  const void *(*primitive_desc_query_md)(void *, int, int);
  int (*primitive_desc_destroy)(void *);
  int (*primitive_create)(void **, void *);
  int (*primitive_destroy)(void *);
  int (*memory_create)(void **, const void *, void *, void *);
  int (*memory_destroy)(void *);
  int (*memory_get_data_handle)(const void *, void **);
  size_t (*memory_desc_get_size)(const void *);
  int (*primitive_execute)(void *, void *, int, const Arg *);
  int (*stream_wait)(void *);
} f;
static void *engine, *stream;
static const char *failure = "it was not opened";

bool onednn_open(void) {
  static const struct {
    void *to;
    const char *name;
  } names[] = {
#define NAME(x) {&f.x, "dnnl_" #x}
      NAME(sgemm),
      NAME(engine_create),
      NAME(stream_create),
      NAME(memory_desc_create_with_tag),
      NAME(memory_desc_destroy),
      NAME(convolution_forward_primitive_desc_create),
      NAME(convolution_backward_data_primitive_desc_create),
      NAME(convolution_backward_weights_primitive_desc_create),
      NAME(primitive_desc_query_md),
      NAME(primitive_desc_destroy),
      NAME(primitive_create),
      NAME(primitive_destroy),
      NAME(memory_create),
      NAME(memory_destroy),
      NAME(memory_get_data_handle),
      NAME(memory_desc_get_size),
      NAME(primitive_execute),
      NAME(stream_wait)};
  void *lib = dlopen("libdnnl.so.3", RTLD_NOW);
  if (!lib) return failure = dlerror(), false;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    void *at = dlsym(lib, names[i].name);
    if (!at) return failure = names[i].name, false;
    memcpy(names[i].to, &at, sizeof at);
  }
  if (!f.engine_create(&engine, CPU, 0) && !f.stream_create(&stream, engine, IN_ORDER)) return true;
  return failure = "it has no CPU engine", false;
}

const char *onednn_failure(void) { return failure; }

bool onednn_sgemm(int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c) {
  return !f.sgemm('N', 'N', m, n, k, 1, a, k, b, n, 0, c, n);
}

struct OnednnConv {
  void *pd, *hint, *primitive;
  Arg arg[3];
};

/* Images, filters and results with any layout; false: one could not be made. */
static bool descriptors(void *md[3], const int64_t d[8], int64_t out) {
  int64_t n = d[0], c = d[1], o = d[2], size = d[3], k = d[4], groups = d[7];
  int64_t x[4] = {n, c, size, size}, y[4] = {n, o, out, out},
          w[5] = {groups, o / groups, c / groups, k, k};
  return !f.memory_desc_create_with_tag(&md[0], 4, x, F32, ANY) &&
         !f.memory_desc_create_with_tag(&md[1], groups > 1 ? 5 : 4, groups > 1 ? w : w + 1, F32,
                                        ANY) &&
         !f.memory_desc_create_with_tag(&md[2], 4, y, F32, ANY);
}

/* Memory that nobody has written is one page of zeros, which would be read from the nearest cache: so it is written. */
static bool add_memory(OnednnConv *p, int i, int arg, int query) {
  const void *md = f.primitive_desc_query_md(p->pd, query, 0);
  void *at = NULL;
  p->arg[i].arg = arg;
  if (!md || f.memory_create(&p->arg[i].memory, md, engine, (void *)(intptr_t)-1)) return false;
  if (f.memory_get_data_handle(p->arg[i].memory, &at) || !at) return false;
  float *v = at;
  for (size_t k = 0; k < f.memory_desc_get_size(md) / sizeof *v; k++) v[k] = (float)(k % 17) / 17;
  return true;
}

static bool make(OnednnConv *p, OnednnPart part, void *md[3], int64_t stride, int64_t pad) {
  int64_t s[2] = {stride, stride}, dense[2] = {0, 0}, l[2] = {pad, pad};
  void *x = md[0], *w = md[1], *y = md[2];
  bool forward = part == ONEDNN_FORWARD;
  if (f.convolution_forward_primitive_desc_create(&p->hint, engine, forward ? INFERENCE : TRAINING,
                                                  DIRECT, x, w, NULL, y, s, dense, l, l, NULL))
    return false;
  if (forward) {
    p->pd = p->hint;
    return add_memory(p, 0, SRC, Q_SRC) && add_memory(p, 1, WEIGHTS, Q_WEIGHTS) &&
           add_memory(p, 2, DST, Q_DST);
  }
  if (part == ONEDNN_INPUT)
    return !f.convolution_backward_data_primitive_desc_create(&p->pd, engine, DIRECT, x, w, y, s,
                                                              dense, l, l, p->hint, NULL) &&
           add_memory(p, 0, DIFF_DST, Q_DIFF_DST) && add_memory(p, 1, WEIGHTS, Q_WEIGHTS) &&
           add_memory(p, 2, DIFF_SRC, Q_DIFF_SRC);
  return !f.convolution_backward_weights_primitive_desc_create(&p->pd, engine, DIRECT, x, w, NULL,
                                                               y, s, dense, l, l, p->hint, NULL) &&
         add_memory(p, 0, SRC, Q_SRC) && add_memory(p, 1, DIFF_DST, Q_DIFF_DST) &&
         add_memory(p, 2, DIFF_WEIGHTS, Q_DIFF_WEIGHTS);
}

OnednnConv *onednn_conv(OnednnPart part, int64_t n, int64_t c, int64_t o, int64_t size, int64_t k,
                        int64_t stride, int64_t pad, int64_t groups) {
  OnednnConv *p = calloc(1, sizeof *p);
  void *md[3] = {0};
  int64_t out = (size + 2 * pad - k) / stride + 1;
  bool ok = p && descriptors(md, (int64_t[8]){n, c, o, size, k, stride, pad, groups}, out) &&
            make(p, part, md, stride, pad) && !f.primitive_create(&p->primitive, p->pd);
  for (int i = 0; i < 3; i++)
    if (md[i]) f.memory_desc_destroy(md[i]);
  if (ok) return p;
  onednn_free(p);
  return NULL;
}

bool onednn_run(OnednnConv *p, int times) {
  bool ok = true;
  for (int i = 0; ok && i < times; i++) ok = !f.primitive_execute(p->primitive, stream, 3, p->arg);
  return !f.stream_wait(stream) && ok;
}

void onednn_free(OnednnConv *p) {
  if (!p) return;
  for (int i = 0; i < 3; i++)
    if (p->arg[i].memory) f.memory_destroy(p->arg[i].memory);
  if (p->primitive) f.primitive_destroy(p->primitive);
  if (p->pd && p->pd != p->hint) f.primitive_desc_destroy(p->pd);
  if (p->hint) f.primitive_desc_destroy(p->hint);
  free(p);
}
