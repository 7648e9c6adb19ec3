/* GPUs: opening one by name, its memory, and copies. In: "cuda", "cuda:1"; out: a Device that all executors of the process
 * share. It is closed with its last user. */
#include "device.h"
#include <stdlib.h>
#include <string.h>

static struct {
  pthread_mutex_t lock;
  CudaDevice *first;
} devices = {.lock = PTHREAD_MUTEX_INITIALIZER};

static CudaDevice *of(Device *d) { return (CudaDevice *)d; }
static CUdeviceptr address(const void *p) { return (CUdeviceptr)(uintptr_t)p; }

bool device_enter(CudaDevice *d) {
  pthread_mutex_lock(&d->lock);
  if (CU(cuCtxSetCurrent, d->context)) return true;
  pthread_mutex_unlock(&d->lock);
  return false;
}

void device_leave(CudaDevice *d) { pthread_mutex_unlock(&d->lock); }

/* ---- opening and closing ---- */

static void close_device(CudaDevice *d) {
  if (d->context) CU_DROP(cuCtxSetCurrent, d->context);
  if (d->compute) CU_DROP(cuStreamSynchronize, d->compute);
  if (d->context) device_libraries_close(d);
  arena_free(d->choices);
  CUstream streams[] = {d->compute, d->copies, d->capture};
  for (size_t i = 0; i < sizeof streams / sizeof *streams; i++)
    if (streams[i]) CU_DROP(cuStreamDestroy, streams[i]);
  if (d->context) CU_DROP(cuCtxSetCurrent, NULL);
  if (d->retained) CU_DROP(cuDevicePrimaryCtxRelease, d->id);
  pthread_mutex_destroy(&d->lock);
  mem_free(d);
}

/* Architectures that code is generated for; a device runs that of the latest which is not later than its own. */
static const int generated[] = {75, 80, 90, 100};

static bool find_device(CudaDevice *d) {
  int n = 0, major = 0, minor = 0;
  if (!CU(cuDeviceGetCount, &n)) return false;
  if (d->ordinal >= n) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    err_set(E_DEV_003, "there is no device %s: the driver shows %d GPU%s", d->name, n,
            n == 1 ? "" : "s");
    if (visible) err_note("CUDA_VISIBLE_DEVICES is %s", quoted(visible));
    err_help("`kiln info` lists the devices; CUDA_VISIBLE_DEVICES may hide some or all of them.");
    return false;
  }
  if (!CU(cuDeviceGet, &d->id, d->ordinal) ||
      !CU(cuDeviceGetName, d->model, (int)sizeof d->model - 1, d->id) ||
      !CU(cuDeviceGetAttribute, &major, CU_COMPUTE_CAPABILITY_MAJOR, d->id) ||
      !CU(cuDeviceGetAttribute, &minor, CU_COMPUTE_CAPABILITY_MINOR, d->id))
    return false;
  d->sm = 10 * major + minor;
  for (size_t i = 0; i < sizeof generated / sizeof *generated; i++)
    if (generated[i] <= d->sm) snprintf(d->target, sizeof d->target, "cuda:sm_%d", generated[i]);
  if (*d->target) return true;
  err_set(E_DEV_004, "%s (%s) has compute capability %d.%d", d->name, d->model, major, minor);
  err_help("GPUs of compute capability 7.5 and later can be used; or run with --device cpu.");
  return false;
}

static bool start_device(CudaDevice *d) {
  if (!find_device(d)) return false;
  d->retained = CU(cuDevicePrimaryCtxRetain, &d->context, d->id);
  return d->retained && CU(cuCtxSetCurrent, d->context) &&
         CU(cuStreamCreate, &d->compute, CU_STREAM_NON_BLOCKING) &&
         CU(cuStreamCreate, &d->copies, CU_STREAM_NON_BLOCKING) &&
         CU(cuStreamCreate, &d->capture, CU_STREAM_NON_BLOCKING);
}

/* "cuda" is cuda:0. -1: no such name. */
static int ordinal_of(const char *name) {
  char *end;
  if (!strcmp(name, "cuda")) return 0;
  if (strncmp(name, "cuda:", 5) || name[5] < '0' || name[5] > '9') return -1;
  long n = strtol(name + 5, &end, 10);
  return *end || n > 4095 ? -1 : (int)n;
}

static const DeviceCalls device_calls;

static CudaDevice *find_or_start(int ordinal) {
  for (CudaDevice *d = devices.first; d; d = d->next)
    if (d->ordinal == ordinal) return d;
  CudaDevice *d = mem_table.alloc(sizeof *d);
  if (!d) {
    err_set(E_MEM_001, "out of memory: the system refused %zu bytes", sizeof *d);
    return NULL;
  }
  *d = (CudaDevice){.ordinal = ordinal};
  d->base = (Device){&device_calls, d->name, d->target};
  snprintf(d->name, sizeof d->name, "cuda:%d", ordinal);
  pthread_mutex_init(&d->lock, NULL);
  if (!start_device(d)) {
    close_device(d);
    return NULL;
  }
  d->next = devices.first;
  return devices.first = d;
}

Device *device_open(const char *name) {
  int ordinal = ordinal_of(name);
  if (ordinal < 0) {
    err_set(E_ARG_001, "unknown device %s", quoted(name));
    err_help("devices are cpu, cuda and cuda:N");
    return NULL;
  }
  if (!cuda_open()) return NULL;
  pthread_mutex_lock(&devices.lock);
  CudaDevice *d = find_or_start(ordinal);
  if (d) d->users++;
  pthread_mutex_unlock(&devices.lock);
  return d ? &d->base : NULL;
}

void device_hold(CudaDevice *d) {
  pthread_mutex_lock(&devices.lock);
  d->users++;
  pthread_mutex_unlock(&devices.lock);
}

void device_drop(CudaDevice *d) {
  pthread_mutex_lock(&devices.lock);
  bool last = --d->users == 0;
  for (CudaDevice **link = &devices.first; last && *link; link = &(*link)->next)
    if (*link == d) {
      *link = d->next;
      break;
    }
  if (last) close_device(d);
  pthread_mutex_unlock(&devices.lock);
}

/* ---- memory ---- */

static bool too_little(const CudaDevice *d, const char *what, size_t n) {
  size_t free = 0, total = 0;
  bool known = cuda.cuMemGetInfo(&free, &total) == 0;
  err_set(E_DEV_005, "%s (%s) has too little memory: %zu bytes of %s are needed", d->name, d->model,
          n, what);
  if (known) err_note("%zu of its %zu bytes are free", free, total);
  err_help("Take a smaller batch or --memory-budget, or free the device of other programs.");
  return false;
}

bool device_alloc(CudaDevice *d, size_t n, CUdeviceptr *p) {
  CUresult r = cuda.cuMemAlloc(p, n ? n : 1);
  return r == CU_OUT_OF_MEMORY ? too_little(d, "device memory", n) : cuda_check(CALL_cuMemAlloc, r);
}

bool device_pinned(CudaDevice *d, size_t n, void **p) {
  CUresult r = cuda.cuMemHostAlloc(p, n ? n : 1, 0);
  return r == CU_OUT_OF_MEMORY ? too_little(d, "pinned host memory", n)
                               : cuda_check(CALL_cuMemHostAlloc, r);
}

static void *take(Device *x, size_t n) {
  CudaDevice *d = of(x);
  CUdeviceptr p = 0;
  if (!device_enter(d)) return NULL;
  bool ok = device_alloc(d, n, &p);
  device_leave(d);
  if (ok) device_hold(d);
  return ok ? (void *)(uintptr_t)p : NULL;
}

static void give(Device *x, void *p) {
  CudaDevice *d = of(x);
  if (!p) return;
  pthread_mutex_lock(&d->lock);
  CU_DROP(cuCtxSetCurrent, d->context);
  CU_DROP(cuMemFree, address(p));
  pthread_mutex_unlock(&d->lock);
  device_drop(d);
}

static bool put(Device *x, void *to, const void *from, size_t n) {
  CudaDevice *d = of(x);
  if (n == 0) return true;
  if (!device_enter(d)) return false;
  bool ok = CU(cuMemcpyHtoDAsync, address(to), from, n, d->compute) &&
            CU(cuStreamSynchronize, d->compute);
  device_leave(d);
  return ok;
}

static bool get(Device *x, void *to, const void *from, size_t n) {
  CudaDevice *d = of(x);
  if (n == 0) return true;
  if (!device_enter(d)) return false;
  bool ok = CU(cuMemcpyDtoHAsync, to, address(from), n, d->compute) &&
            CU(cuStreamSynchronize, d->compute);
  device_leave(d);
  return ok;
}

static void close_base(Device *x) { device_drop(of(x)); }

static const DeviceCalls device_calls = {.close = close_base,
                                         .take = take,
                                         .give = give,
                                         .put = put,
                                         .get = get,
                                         .run = device_run,
                                         .finish = device_finish};

/* ---- for `kiln info` ---- */

static void describe_one(int ordinal, Str *out) {
  CUdevice id;
  char model[96] = "";
  int major = 0, minor = 0, processors = 0;
  size_t bytes = 0;
  bool ok = CU(cuDeviceGet, &id, ordinal) &&
            CU(cuDeviceGetName, model, (int)sizeof model - 1, id) &&
            CU(cuDeviceGetAttribute, &major, CU_COMPUTE_CAPABILITY_MAJOR, id) &&
            CU(cuDeviceGetAttribute, &minor, CU_COMPUTE_CAPABILITY_MINOR, id) &&
            CU(cuDeviceGetAttribute, &processors, CU_MULTIPROCESSOR_COUNT, id) &&
            CU(cuDeviceTotalMem, &bytes, id);
  if (!ok) return;
  str_fmt(out, "cuda:%d: %s, compute capability %d.%d, %d processors, %zu MiB%s\n", ordinal, model,
          major, minor, processors, bytes >> 20, 10 * major + minor < 75 ? " (not supported)" : "");
}

void device_describe(Str *out) {
  int n = 0;
  bool ok = !err_any() && cuda_open() && CU(cuDeviceGetCount, &n);
  if (ok)
    str_fmt(out, "cuda driver: CUDA %d.%d, %d device%s\n", cuda_version() / 1000,
            cuda_version() % 1000 / 10, n, n == 1 ? "" : "s");
  for (int l = 0; ok && l < LIBRARY_N; l++) {
    int64_t version = library_open((CudaLibrary)l);
    str_fmt(out, "%s: %s", library_name((CudaLibrary)l), library_file((CudaLibrary)l));
    if (version) str_fmt(out, ", version %lld", (long long)version);
    str_add(out, "\n");
  }
  for (int i = 0; ok && i < n; i++) describe_one(i, out);
  const Diag *why = err_get();
  if (why) str_fmt(out, "cuda driver: none (%s: %s)\n", err_name(why->code), why->summary);
  err_clear();
}
