/* The driver itself: its settings from the environment, the calls' bookkeeping, devices, contexts, error names, the look-up of
 * functions. What is alive at the end can be reported as a leak. */
#include "driver.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const Chip chips[] = {
    {70, 80, 2048, 98304, 98304, 1380000, 877000, 4096, 6291456, "Tesla V100"},
    {75, 40, 1024, 65536, 65536, 1590000, 5001000, 256, 4194304, "Tesla T4"},
    {80, 108, 2048, 167936, 166912, 1410000, 1215000, 5120, 41943040, "A100-SXM4-40GB"},
    {86, 84, 1536, 102400, 101376, 1740000, 7251000, 384, 6291456, "A10"},
    {89, 142, 1536, 102400, 101376, 2520000, 9001000, 384, 100663296, "L40"},
    {90, 132, 2048, 233472, 232448, 1980000, 2619000, 5120, 52428800, "H100 80GB HBM3"},
    {100, 148, 2048, 233472, 232448, 1965000, 3996000, 8192, 132644864, "B200"},
};
const Chip *chip;
int driver_version = 13000;
static bool initialised, closed;
static int devices = 1;
static pthread_mutex_t mutex;
static uint64_t calls, fail_at, state = 1;
static CUresult fail_with = CUDA_ERROR_OUT_OF_MEMORY;
static FILE *call_list;
static Object *objects[IS_N];
static CUcontext primary;
static _Thread_local struct {
  CUcontext c[16];
  int n;
} current;

/* ---- settings ---- */

static uint64_t setting(const char *name, uint64_t otherwise) {
  const char *s = getenv(name);
  char *end;
  if (!s || !*s) return otherwise;
  uint64_t n = strtoull(s, &end, 10);
  for (const char *unit = "KMG", *u = strchr(unit, *end); *end && u; u = NULL)
    n <<= 10 * (u - unit + 1);
  return n;
}

/* How many of n devices a list shows: the first number that is no device ends it; one that is named twice leaves none. */
static int visible_devices(const char *s, int n) {
  uint64_t seen = 0;
  int count = 0;
  for (char *end; *s >= '0' && *s <= '9'; s = end + 1) {
    unsigned long k = strtoul(s, &end, 10);
    if (k >= (unsigned long)n || k > 63 || (*end && *end != ',')) break;
    if (seen >> k & 1) return 0;
    seen |= UINT64_C(1) << k;
    count++;
    if (!*end) break;
  }
  return count;
}

static void read_checks(void) {
  const char *s = getenv("CUDASIM_CHECK");
  if (s && strstr(s, "-race")) checks.race = false;
  if (s && strstr(s, "-init")) checks.init = false;
  checks.budget = setting("CUDASIM_BUDGET", checks.budget);
  long cores = sysconf(_SC_NPROCESSORS_ONLN);
  checks.threads = (int)setting("CUDASIM_THREADS", cores > 1 ? 2 : 1);
  counting = getenv("CUDASIM_REPORT") != NULL;
}

static __attribute__((constructor)) void open_library(void) {
  pthread_mutexattr_t a;
  pthread_mutexattr_init(&a);
  pthread_mutexattr_settype(&a, PTHREAD_MUTEX_RECURSIVE);
  pthread_mutex_init(&mutex, &a);
  pthread_mutexattr_destroy(&a);
  int sm = (int)setting("CUDASIM_SM", 80);
  chip = &chips[2];
  for (int k = 0; k < COUNT(chips); k++)
    if (chips[k].sm == sm) chip = &chips[k];
  driver_version = (int)setting("CUDASIM_DRIVER", 13000);
  devices = (int)setting("CUDASIM_DEVICES", 1);
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  if (visible) devices = visible_devices(visible, devices);
  state = setting("CUDASIM_SEED", 1) * UINT64_C(0x9e3779b97f4a7c15) + 1;
  const char *fail = getenv("CUDASIM_FAIL");
  fail_at = setting("CUDASIM_FAIL", 0);
  if (fail && strchr(fail, ':')) fail_with = (CUresult)atoi(strchr(fail, ':') + 1);
  const char *list = getenv("CUDASIM_CALLS");
  if (list && *list) call_list = fopen(list, "w");
  read_checks();
  memory_open(setting("CUDASIM_MEMORY", UINT64_C(8) << 30));
}

uint64_t random_next(void) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state * UINT64_C(0x2545f4914f6cdd1d) >> 32;
}

/* ---- what is alive ---- */

void object_add(Object *o, Kind kind) {
  o->kind = kind;
  o->context = context_now();
  o->prev = NULL;
  o->next = objects[kind];
  if (o->next) o->next->prev = o;
  objects[kind] = o;
}

void object_remove(Object *o) {
  if (o->next) o->next->prev = o->prev;
  if (o->prev)
    o->prev->next = o->next;
  else
    objects[o->kind] = o->next;
}

bool object_is(const void *p, Kind kind) {
  for (const Object *o = objects[kind]; o; o = o->next)
    if (o == p) return true;
  return false;
}

Object *object_first(Kind kind) { return objects[kind]; }

static int report_leaks(void) {
  static const char *const names[] = {"context",       "memory",           "pinned memory",
                                      "module",        "stream",           "event",
                                      "graph",         "executable graph", "link state",
                                      "library object"};
  int n = 0;
  for (int k = 0; k < IS_N; k++)
    for (const Object *o = objects[k]; o; o = o->next, n++)
      fprintf(stderr, "cudasim: leak: %s%s", names[k],
              k == IS_MEMORY || k == IS_PINNED ? "" : "\n"),
          k == IS_MEMORY || k == IS_PINNED
              ? fprintf(stderr, " of %llu bytes\n", (unsigned long long)o->bytes)
              : 0;
  return n;
}

static __attribute__((destructor)) void close_library(void) {
  report_write();
  if (call_list) {
    fprintf(call_list, "%llu calls\n", (unsigned long long)calls);
    fclose(call_list);
  }
  const char *leaks = getenv("CUDASIM_LEAKS");
  if (leaks && *leaks && report_leaks()) {
    fflush(NULL);
    _exit(97);
  }
  launch_close();
  memory_close();
  closed = true;
}

/* ---- calls ---- */

static bool is_sticky(CUresult r) { return (r >= 700 && r <= 702) || (r >= 710 && r <= 720); }

Call call_enter(const char *name, int need) {
  Call c = {closed ? CUDA_ERROR_DEINITIALIZED : CUDA_SUCCESS};
  pthread_mutex_lock(&mutex);
  if (closed) return c;
  CUcontext now = context_now();
  if (!(need & NO_COUNT)) {
    calls++;
    if (call_list)
      fprintf(call_list, "%llu %s\n", (unsigned long long)calls, name), fflush(call_list);
    if (calls == fail_at) {
      c.result = fail_with;
      if (is_sticky(fail_with) && now) now->sticky = fail_with;
      return c;
    }
  }
  if (need & NEED_INIT && !initialised)
    c.result = CUDA_ERROR_NOT_INITIALIZED;
  else if (need & NEED_CONTEXT && !now)
    c.result = CUDA_ERROR_INVALID_CONTEXT;
  else if (need & NEED_CONTEXT && !(need & ANY_STATE))
    c.result = now->sticky;
  return c;
}

void call_leave(Call *c) {
  (void)c;
  pthread_mutex_unlock(&mutex);
}

/* ---- the driver, devices ---- */

API cuInit(unsigned int flags) {
  ENTER(0);
  if (flags) return CUDA_ERROR_INVALID_VALUE;
  if (!devices) return CUDA_ERROR_NO_DEVICE;
  initialised = true;
  return CUDA_SUCCESS;
}

API cuDriverGetVersion(int *version) {
  ENTER(0);
  if (!version) return CUDA_ERROR_INVALID_VALUE;
  *version = driver_version;
  return CUDA_SUCCESS;
}

API cuDeviceGetCount(int *count) {
  ENTER(NEED_INIT);
  *count = devices;
  return CUDA_SUCCESS;
}

API cuDeviceGet(CUdevice *device, int ordinal) {
  ENTER(NEED_INIT);
  if (ordinal < 0 || ordinal >= devices) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}

#define CHECK_DEVICE(d)                                                                            \
  if ((d) < 0 || (d) >= devices) return CUDA_ERROR_INVALID_DEVICE

API cuDeviceGetName(char *name, int len, CUdevice dev) {
  ENTER(NEED_INIT);
  CHECK_DEVICE(dev);
  const char *given = getenv("CUDASIM_NAME");
  snprintf(name, (size_t)len, "%s%s", given ? "" : "cudasim ", given ? given : chip->name);
  return CUDA_SUCCESS;
}

API cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice dev) {
  ENTER(NEED_INIT);
  CHECK_DEVICE(dev);
  memset(uuid, 0, sizeof *uuid);
  memcpy(uuid->bytes, "cudasim", 7);
  uuid->bytes[15] = (char)dev;
  return CUDA_SUCCESS;
}

API cuDeviceTotalMem_v2(size_t *bytes, CUdevice dev) {
  ENTER(NEED_INIT);
  CHECK_DEVICE(dev);
  *bytes = memory.total;
  return CUDA_SUCCESS;
}

API cuDeviceGetAttribute(int *pi, CUdevice_attribute attrib, CUdevice dev) {
  ENTER(NEED_INIT);
  CHECK_DEVICE(dev);
  const int values[][2] = {{1, 1024},
                           {2, 1024},
                           {3, 1024},
                           {4, 64},
                           {5, 2147483647},
                           {6, 65535},
                           {7, 65535},
                           {8, 49152},
                           {9, 65536},
                           {10, LANES},
                           {11, 2147483647},
                           {12, 65536},
                           {13, chip->clock},
                           {15, 1},
                           {16, chip->processors},
                           {17, 0},
                           {18, 0},
                           {19, 1},
                           {20, 0},
                           {31, 1},
                           {32, 1},
                           {33, dev + 1},
                           {34, 0},
                           {36, chip->memory_clock},
                           {37, chip->bus},
                           {38, chip->l2},
                           {39, chip->threads},
                           {40, 2},
                           {41, 1},
                           {50, 0},
                           {75, chip->sm / 10},
                           {76, chip->sm % 10},
                           {78, 1},
                           {79, 1},
                           {80, 1},
                           {81, chip->shared_sm},
                           {82, 65536},
                           {83, 0},
                           {84, 0},
                           {88, 0},
                           {89, 0},
                           {90, 0},
                           {91, 1},
                           {95, 1},
                           {97, chip->shared_block},
                           {106, chip->sm == 75   ? 16
                                 : chip->sm == 86 ? 16
                                                  : 32},
                           {111, chip->sm >= 80 ? 1024 : 0},
                           {115, 1},
                           {120, 0}};
  for (int k = 0; k < COUNT(values); k++)
    if (values[k][0] == (int)attrib) {
      *pi = values[k][1];
      return CUDA_SUCCESS;
    }
  return CUDA_ERROR_INVALID_VALUE;
}

/* ---- contexts ---- */

CUcontext context_now(void) { return current.n ? current.c[current.n - 1] : NULL; }

static CUcontext context_new(bool is_primary) {
  CUcontext c = host_alloc(sizeof *c);
  object_add(&c->o, IS_CONTEXT);
  c->o.context = c;
  c->primary = is_primary;
  c->null_stream.blocking = true;
  c->null_stream.o.context = c;
  return c;
}

/* What the context still owns is released with it; as the program did not do it, it is reported. */
static void context_free(CUcontext c) {
  streams_drop(c);
  object_remove(&c->o);
  for (int k = 0; k < current.n; k++)
    if (current.c[k] == c) current.c[k] = NULL;
  free(c);
}

API cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev) {
  ENTER(NEED_INIT);
  CHECK_DEVICE(dev);
  if (!primary) primary = context_new(true);
  primary->references++;
  *pctx = primary;
  return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(CUdevice dev) {
  ENTER(NEED_INIT | RELEASES);
  CHECK_DEVICE(dev);
  if (!primary) return CUDA_ERROR_INVALID_CONTEXT;
  if (--primary->references == 0) context_free(primary), primary = NULL;
  RELEASED;
}

API cuDevicePrimaryCtxGetState(CUdevice dev, unsigned int *flags, int *active) {
  ENTER(NEED_INIT);
  CHECK_DEVICE(dev);
  *flags = 0;
  *active = primary != NULL;
  return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxSetFlags_v2(CUdevice dev, unsigned int flags) {
  ENTER(NEED_INIT);
  CHECK_DEVICE(dev);
  (void)flags;
  return CUDA_SUCCESS;
}

API cuCtxCreate_v2(CUcontext *pctx, unsigned int flags, CUdevice dev) {
  ENTER(NEED_INIT);
  CHECK_DEVICE(dev);
  (void)flags;
  if (current.n == COUNT(current.c)) return CUDA_ERROR_OUT_OF_MEMORY;
  *pctx = context_new(false);
  current.c[current.n++] = *pctx;
  return CUDA_SUCCESS;
}

API cuCtxDestroy_v2(CUcontext ctx) {
  ENTER(NEED_INIT | RELEASES);
  if (!object_is(ctx, IS_CONTEXT) || ctx->primary) return CUDA_ERROR_INVALID_CONTEXT;
  if (current.n && current.c[current.n - 1] == ctx) current.n--;
  context_free(ctx);
  RELEASED;
}

API cuCtxSetCurrent(CUcontext ctx) {
  ENTER(NEED_INIT);
  if (ctx && !object_is(ctx, IS_CONTEXT)) return CUDA_ERROR_INVALID_CONTEXT;
  if (current.n) current.n--;
  if (ctx) current.c[current.n++] = ctx;
  return CUDA_SUCCESS;
}

API cuCtxGetCurrent(CUcontext *pctx) {
  ENTER(NEED_INIT);
  *pctx = context_now();
  return CUDA_SUCCESS;
}

API cuCtxPushCurrent_v2(CUcontext ctx) {
  ENTER(NEED_INIT);
  if (!object_is(ctx, IS_CONTEXT)) return CUDA_ERROR_INVALID_CONTEXT;
  if (current.n == COUNT(current.c)) return CUDA_ERROR_INVALID_VALUE;
  current.c[current.n++] = ctx;
  return CUDA_SUCCESS;
}

API cuCtxPopCurrent_v2(CUcontext *pctx) {
  ENTER(NEED_INIT);
  if (!current.n) return CUDA_ERROR_INVALID_CONTEXT;
  current.n--;
  if (pctx) *pctx = current.c[current.n];
  return CUDA_SUCCESS;
}

API cuCtxGetDevice(CUdevice *device) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  *device = 0;
  return CUDA_SUCCESS;
}

API cuCtxSynchronize(void) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (capturing()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return stream_finish(NULL);
}

/* ---- errors ---- */

static const struct {
  CUresult r;
  const char *name, *text;
} errors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {34, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {36, "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER", "API call requires newer CUDA driver"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU",
     "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {218, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
     "the provided PTX was compiled with an unsupported toolchain."},
    {301, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {304, "CUDA_ERROR_OPERATING_SYSTEM", "OS call failed or operation not supported on this OS"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {710, "CUDA_ERROR_ASSERT", "device-side assert triggered"},
    {715, "CUDA_ERROR_ILLEGAL_INSTRUCTION", "an illegal instruction was encountered"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {717, "CUDA_ERROR_INVALID_ADDRESS_SPACE",
     "operation not supported on global/shared address space"},
    {718, "CUDA_ERROR_INVALID_PC", "invalid program counter"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
     "system has unsupported display driver / cuda driver combination"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not initiated in this stream"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
    {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"}};

API cuGetErrorName(CUresult error, const char **pStr) {
  ENTER(NO_COUNT);
  *pStr = NULL;
  for (int k = 0; k < COUNT(errors); k++)
    if (errors[k].r == error) *pStr = errors[k].name;
  return *pStr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API cuGetErrorString(CUresult error, const char **pStr) {
  ENTER(NO_COUNT);
  *pStr = NULL;
  for (int k = 0; k < COUNT(errors); k++)
    if (errors[k].r == error) *pStr = errors[k].text;
  return *pStr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
