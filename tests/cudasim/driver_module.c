/* Modules: PTX text, or what the linker made of it (a "cubin": a header with the text and its checksum, for one architecture).
 * Functions, their attributes and limits, launches, occupancy. */
#include "driver.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

typedef struct Cubin {
  char magic[8];
  uint32_t sm, check;
  uint64_t n;
  char text[];
} Cubin;
static const char magic[8] = "\177ELFsim";

static uint32_t checksum(const char *s, uint64_t n) {
  uint32_t h = 2166136261u;
  for (uint64_t i = 0; i < n; i++) h = (h ^ (unsigned char)s[i]) * 16777619u;
  return h;
}

/* The options of the compiler that give a buffer for its log. */
static void put_log(unsigned int n, CUjit_option *options, void **values, const char *text) {
  char *buffer = NULL;
  size_t size = 0;
  for (unsigned k = 0; k < n; k++) {
    if ((int)options[k] == CU_JIT_ERROR_LOG_BUFFER) buffer = values[k];
    if ((int)options[k] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) {
      size = (size_t)(uintptr_t)values[k];
      values[k] = (void *)(uintptr_t)(strlen(text) + 1 < size ? strlen(text) + 1 : size);
    }
  }
  if (buffer && size) snprintf(buffer, size, "%s", text);
}

/* PTX of a newer version than the driver's, or for a newer device. */
static CUresult check_target(const char *text, char *error, size_t size) {
  static const int versions[][2] = {{13000, 90}, {12090, 88}, {12080, 87}, {12060, 85}, {12050, 85},
                                    {12040, 84}, {12030, 83}, {12020, 82}, {12010, 81}, {12000, 80},
                                    {11080, 78}, {11070, 77}, {11060, 76}, {11050, 75}, {11040, 74},
                                    {11030, 73}, {11020, 72}, {11010, 71}, {11000, 70}, {10020, 65},
                                    {10010, 64}, {10000, 63}};
  int newest = 60, major = 0, minor = 0, sm = 0;
  for (int k = COUNT(versions); k-- > 0;)
    if (driver_version >= versions[k][0]) newest = versions[k][1];
  const char *v = strstr(text, ".version"), *t = strstr(text, ".target");
  if (v) sscanf(v, ".version %d.%d", &major, &minor);
  if (t) sscanf(t, ".target sm_%d", &sm);
  if (major * 10 + minor > newest) {
    snprintf(error, size, "ptxas fatal: Unsupported .version %d.%d; current version is '%d.%d'",
             major, minor, newest / 10, newest % 10);
    return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
  }
  if (sm > chip->sm) {
    snprintf(error, size,
             "ptxas fatal: SM version specified by .target is higher than default SM version "
             "assumed: sm_%d on sm_%d",
             sm, chip->sm);
    return CUDA_ERROR_INVALID_PTX;
  }
  return CUDA_SUCCESS;
}

static CUresult load_text(Module **m, const char *text, char *error, size_t size) {
  CUresult r = check_target(text, error, size);
  if (r) return r;
  *m = module_load(text, error, size);
  if (*m) (*m)->text = arena_text((*m)->arena, text, strlen(text));
  return *m ? CUDA_SUCCESS : CUDA_ERROR_INVALID_PTX;
}

static CUresult load(CUmodule *module, const void *image, unsigned int n, CUjit_option *options,
                     void **values) {
  char error[1024] = "";
  const char *text = image;
  Cubin c;
  if (!module || !image) return CUDA_ERROR_INVALID_VALUE;
  if (!strncmp(image, magic, 4)) {
    memcpy(&c, image, sizeof c);
    text += sizeof c;
    if (memcmp(c.magic, magic, 8) || c.check != checksum(text, c.n))
      return CUDA_ERROR_INVALID_IMAGE;
    if ((int)c.sm / 10 != chip->sm / 10 || (int)c.sm > chip->sm)
      return CUDA_ERROR_NO_BINARY_FOR_GPU;
  }
  Module *m = NULL;
  CUresult r = load_text(&m, text, error, sizeof error);
  put_log(n, options, values, error);
  if (r) {
    fprintf(stderr, "cudasim: %s\n", error);
    return r;
  }
  CUmodule h = host_alloc(sizeof *h);
  h->m = m;
  object_add(&h->o, IS_MODULE);
  *module = h;
  return CUDA_SUCCESS;
}

API cuModuleLoadData(CUmodule *module, const void *image) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  return load(module, image, 0, NULL, NULL);
}

API cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int numOptions,
                       CUjit_option *options, void **optionValues) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  return load(module, image, numOptions, options, optionValues);
}

API cuModuleUnload(CUmodule hmod) {
  ENTER(NEED_INIT | NEED_CONTEXT | RELEASES);
  if (!object_is(hmod, IS_MODULE)) return CUDA_ERROR_INVALID_HANDLE;
  CUresult r = stream_finish(NULL);
  for (int k = 0; k < hmod->n; k++) free(hmod->function[k]);
  free(hmod->function);
  module_free(hmod->m);
  object_remove(&hmod->o);
  free(hmod);
  if (call_.result) RELEASED;
  return r;
}

API cuModuleGetFunction(CUfunction *hfunc, CUmodule hmod, const char *name) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (!object_is(hmod, IS_MODULE)) return CUDA_ERROR_INVALID_HANDLE;
  Function *f = module_function(hmod->m, name);
  if (!f) return CUDA_ERROR_NOT_FOUND;
  for (int k = 0; k < hmod->n; k++)
    if (hmod->function[k]->f == f) {
      *hfunc = hmod->function[k];
      return CUDA_SUCCESS;
    }
  CUfunction h = host_alloc(sizeof *h);
  *h = (struct CUfunc_st){f, hmod, f->shared_bytes < 49152 ? 49152 - f->shared_bytes : 0};
  hmod->function = host_grow(hmod->function, (size_t)(hmod->n + 1) * sizeof *hmod->function);
  hmod->function[hmod->n++] = *hfunc = h;
  return CUDA_SUCCESS;
}

API cuModuleGetGlobal_v2(CUdeviceptr *dptr, size_t *bytes, CUmodule hmod, const char *name) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (!object_is(hmod, IS_MODULE)) return CUDA_ERROR_INVALID_HANDLE;
  for (int k = 0; k < hmod->m->n_global; k++) {
    const Symbol *s = hmod->m->global[k];
    if (strcmp(s->name, name)) continue;
    if (dptr) *dptr = s->at;
    if (bytes) *bytes = s->bytes;
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_NOT_FOUND;
}

/* ---- the linker ---- */

API cuLinkCreate_v2(unsigned int numOptions, CUjit_option *options, void **optionValues,
                    CUlinkState *stateOut) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  (void)numOptions, (void)options, (void)optionValues;
  CUlinkState s = host_alloc(sizeof *s);
  object_add(&s->o, IS_LINK);
  *stateOut = s;
  return CUDA_SUCCESS;
}

API cuLinkAddData_v2(CUlinkState state, CUjitInputType type, void *data, size_t size,
                     const char *name, unsigned int numOptions, CUjit_option *options,
                     void **optionValues) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  (void)name;
  if (!object_is(state, IS_LINK)) return CUDA_ERROR_INVALID_HANDLE;
  if ((int)type != CU_JIT_INPUT_PTX || state->cubin)
    return CUDA_ERROR_NOT_SUPPORTED; /* one PTX text per link */
  char error[1024] = "";
  Cubin *c = host_alloc(sizeof *c + size + 1);
  memcpy(c->magic, magic, sizeof magic);
  memcpy(c->text, data, size);
  Module *m = NULL;
  CUresult r = load_text(&m, c->text, error, sizeof error);
  put_log(numOptions, options, optionValues, error);
  if (r) {
    fprintf(stderr, "cudasim: %s\n", error);
    free(c);
    return r;
  }
  module_free(m);
  c->n = strlen(c->text) + 1;
  c->sm = (uint32_t)chip->sm;
  c->check = checksum(c->text, c->n);
  state->cubin = (char *)c;
  state->size = sizeof *c + c->n;
  return CUDA_SUCCESS;
}

API cuLinkComplete(CUlinkState state, void **cubinOut, size_t *sizeOut) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (!object_is(state, IS_LINK)) return CUDA_ERROR_INVALID_HANDLE;
  if (!state->cubin) return CUDA_ERROR_INVALID_VALUE;
  *cubinOut = state->cubin;
  if (sizeOut) *sizeOut = state->size;
  return CUDA_SUCCESS;
}

API cuLinkDestroy(CUlinkState state) {
  ENTER(NEED_INIT | NEED_CONTEXT | RELEASES);
  if (!object_is(state, IS_LINK)) return CUDA_ERROR_INVALID_HANDLE;
  object_remove(&state->o);
  free(state->cubin);
  free(state);
  RELEASED;
}

/* ---- functions ---- */

static bool is_function(CUfunction f) {
  for (const Object *o = object_first(IS_MODULE); o; o = o->next)
    for (int k = 0; k < ((CUmodule)o)->n; k++)
      if (((CUmodule)o)->function[k] == f) return true;
  return false;
}

static int max_threads(CUfunction f) { return f->f->max_threads ? (int)f->f->max_threads : 1024; }

API cuFuncGetAttribute(int *pi, CUfunction_attribute attrib, CUfunction hfunc) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (!is_function(hfunc)) return CUDA_ERROR_INVALID_HANDLE;
  const int values[][2] = {{CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, max_threads(hfunc)},
                           {CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, (int)hfunc->f->shared_bytes},
                           {CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES, 0},
                           {CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, (int)hfunc->f->local_bytes},
                           {CU_FUNC_ATTRIBUTE_NUM_REGS, 32},
                           {CU_FUNC_ATTRIBUTE_PTX_VERSION, hfunc->f->module->version},
                           {CU_FUNC_ATTRIBUTE_BINARY_VERSION, chip->sm},
                           {CU_FUNC_ATTRIBUTE_CACHE_MODE_CA, 0},
                           {CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                            (int)hfunc->max_dynamic}};
  for (int k = 0; k < COUNT(values); k++)
    if (values[k][0] == (int)attrib) {
      *pi = values[k][1];
      return CUDA_SUCCESS;
    }
  return CUDA_ERROR_INVALID_VALUE;
}

API cuFuncSetAttribute(CUfunction hfunc, CUfunction_attribute attrib, int value) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (!is_function(hfunc)) return CUDA_ERROR_INVALID_HANDLE;
  if ((int)attrib == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) return CUDA_SUCCESS;
  if ((int)attrib != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0)
    return CUDA_ERROR_INVALID_VALUE;
  if ((uint64_t)value + hfunc->f->shared_bytes > (uint64_t)chip->shared_block)
    return CUDA_ERROR_INVALID_VALUE;
  hfunc->max_dynamic = (uint64_t)value;
  return CUDA_SUCCESS;
}

API cuFuncSetCacheConfig(CUfunction hfunc, CUfunc_cache config) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  (void)config;
  return is_function(hfunc) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* Blocks of a multiprocessor by threads, shared memory and blocks; registers are not known. */
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *numBlocks, CUfunction func, int blockSize,
                                                size_t dynamicSMemSize) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (!is_function(func) || blockSize < 1) return CUDA_ERROR_INVALID_VALUE;
  uint64_t shared = func->f->shared_bytes + dynamicSMemSize + (chip->sm >= 80 ? 1024 : 0);
  int most = chip->sm == 75 || chip->sm == 86 ? 16 : 32,
      by_threads = chip->threads / ((blockSize + 31) / 32 * 32),
      by_shared = (int)((uint64_t)chip->shared_sm / (shared ? shared : 1));
  *numBlocks = by_threads < most ? by_threads : most;
  if (shared && by_shared < *numBlocks) *numBlocks = by_shared;
  return CUDA_SUCCESS;
}

/* ---- launches ---- */

/* The parameters' bytes as the kernel sees them. */
static char *gather(const Function *f, void **params, void **extra, CUresult *r) {
  char *to = host_alloc(f->param_bytes + 16);
  *r = CUDA_SUCCESS;
  if (extra) {
    const char *from = NULL;
    size_t n = 0;
    for (; *extra; extra += 2) {
      if (*extra == (void *)1) from = extra[1];
      if (*extra == (void *)2) n = *(size_t *)extra[1];
    }
    if (!from || n < f->param_bytes)
      *r = CUDA_ERROR_INVALID_VALUE;
    else
      memcpy(to, from, f->param_bytes);
    return to;
  }
  if (f->n_param && !params) *r = CUDA_ERROR_INVALID_VALUE;
  for (int k = 0; k < f->n_param && !*r; k++) {
    if (!params[k])
      *r = CUDA_ERROR_INVALID_VALUE;
    else
      memcpy(to + f->param[k]->at, params[k], f->param[k]->bytes);
  }
  return to;
}

static CUresult refuse(const Function *f, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static CUresult refuse(const Function *f, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  fprintf(stderr, "cudasim: launch of kernel %s: ", f->name);
  vfprintf(stderr, fmt, args);
  fputc('\n', stderr);
  va_end(args);
  return CUDA_ERROR_INVALID_VALUE;
}

CUresult kernel_work(Work *w, CUfunction f, const uint32_t grid[3], const uint32_t block[3],
                     uint32_t shared, void **params, void **extra) {
  if (!is_function(f)) return CUDA_ERROR_INVALID_HANDLE;
  uint64_t threads = (uint64_t)block[0] * block[1] * block[2];
  if (!threads || threads > 1024 || block[0] > 1024 || block[1] > 1024 || block[2] > 64)
    return refuse(f->f, "a block of %u x %u x %u threads", block[0], block[1], block[2]);
  if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 2147483647u || grid[1] > 65535 ||
      grid[2] > 65535)
    return refuse(f->f, "a grid of %u x %u x %u blocks", grid[0], grid[1], grid[2]);
  if (threads > (uint64_t)max_threads(f))
    return refuse(f->f, "a block of %u threads, at most %d are allowed", (unsigned)threads,
                  max_threads(f));
  const uint32_t *need = f->f->reqd;
  if (need[0] && memcmp(need, block, sizeof f->f->reqd))
    return refuse(f->f, "blocks of %u x %u x %u threads are required", need[0], need[1], need[2]);
  if (shared > f->max_dynamic)
    return refuse(f->f, "%u bytes of dynamic shared memory, at most %u are allowed", shared,
                  (unsigned)f->max_dynamic);
  CUresult r;
  *w = (Work){.kind = WORK_KERNEL, .function = f, .shared = shared};
  memcpy(w->grid, grid, sizeof w->grid);
  memcpy(w->block, block, sizeof w->block);
  w->param = gather(f->f, params, extra, &r);
  if (r) free(w->param), refuse(f->f, "%d parameters are needed", f->f->n_param);
  return r;
}

API cuLaunchKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY,
                   unsigned int gridDimZ, unsigned int blockDimX, unsigned int blockDimY,
                   unsigned int blockDimZ, unsigned int sharedMemBytes, CUstream hStream,
                   void **kernelParams, void **extra) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (!stream_of(hStream)) return CUDA_ERROR_INVALID_HANDLE;
  Work w;
  CUresult r = kernel_work(&w, f, (uint32_t[]){gridDimX, gridDimY, gridDimZ},
                           (uint32_t[]){blockDimX, blockDimY, blockDimZ}, sharedMemBytes,
                           kernelParams, extra);
  return r ? r : stream_add(hStream, &w);
}

API cuLaunchHostFunc(CUstream hStream, CUhostFn fn, void *userData) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (!stream_of(hStream)) return CUDA_ERROR_INVALID_HANDLE;
  return stream_add(hStream, &(Work){.kind = WORK_HOST, .host = fn, .data = userData});
}
