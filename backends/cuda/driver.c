/* The CUDA driver: opening it, and one place where every result becomes an error. In: driver.def; out: the table `cuda`. */
#include "driver.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define LIBRARY "libcuda.so.1"
enum { OLDEST = 11040 };

CudaDriver cuda;

static const struct {
  const char *name, *symbol, *what;
  ErrCode code;
  size_t at; /* of the function in CudaDriver */
} calls[CALL_N] = {
#define CALL(name, symbol, code, what, params)                                                     \
  {#name, symbol, what, code, offsetof(CudaDriver, name)},
#include "driver.def"
#undef CALL
};

/* Results that mean the same whatever was called. */
static const struct {
  CUresult result;
  ErrCode code;
} results[] = {
    {2, E_DEV_005},                                       /* OUT_OF_MEMORY */
    {34, E_DEV_001},                                      /* STUB_LIBRARY */
    {36, E_DEV_002},                                      /* CALL_REQUIRES_NEWER_DRIVER */
    {46, E_DEV_003},  {100, E_DEV_003}, {101, E_DEV_003}, /* no such device */
    {209, E_DEV_004},                                     /* NO_BINARY_FOR_GPU */
    {222, E_DEV_002}, {803, E_DEV_002}, {804, E_DEV_002}, /* driver and device do not fit */
    {214, E_DEV_009}, {220, E_DEV_009}, {226, E_DEV_009}, /* memory and link errors */
    {700, E_DEV_009}, {702, E_DEV_009}, {709, E_DEV_009}, /* ILLEGAL_ADDRESS, ... */
    {710, E_DEV_009}, {714, E_DEV_009}, {715, E_DEV_009}, /* ASSERT, ... */
    {716, E_DEV_009}, {717, E_DEV_009}, {718, E_DEV_009}, {719, E_DEV_009}, /* ... LAUNCH_FAILED */
};

static const struct {
  ErrCode code;
  const char *help;
} helps[] = {
    {E_DEV_002, "Install a newer driver from NVIDIA, or run with --device cpu."},
    {E_DEV_003,
     "`kiln info` lists the devices; CUDA_VISIBLE_DEVICES may hide some or all of them."},
    {E_DEV_004, "GPUs of compute capability 7.5 and later can be used; or run with --device cpu."},
    {E_DEV_005, "Take a smaller batch or --memory-budget, or free the device of other programs."},
    {E_DEV_009,
     "What was stored on the device is lost. Start the program again, or go on with --device cpu."},
};

static const char *help_for(ErrCode c) {
  for (size_t i = 0; i < sizeof helps / sizeof *helps; i++)
    if (helps[i].code == c) return helps[i].help;
  return "Run with --device cpu if it stays like this.";
}

bool cuda_check(CudaCall call, CUresult r) {
  if (r == 0) return true;
  ErrCode code = calls[call].code;
  for (size_t i = 0; i < sizeof results / sizeof *results; i++)
    if (results[i].result == r) code = results[i].code;
  const char *name = NULL, *text = NULL;
  if (cuda.cuGetErrorName && cuda.cuGetErrorName(r, &name)) name = NULL;
  if (cuda.cuGetErrorString && cuda.cuGetErrorString(r, &text)) text = NULL;
  err_set(code, "%s: %s gives %s (%d)%s%s", calls[call].what, calls[call].name,
          name ? name : "an unknown error", r, text ? ": " : "", text ? text : "");
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  if (code == E_DEV_003 && visible) err_note("CUDA_VISIBLE_DEVICES is %s", quoted(visible));
  err_help("%s", help_for(code));
  return false;
}

/* ---- opening ---- */

static struct {
  pthread_mutex_t lock;
  bool open;
  int version;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

int cuda_version(void) { return state.version; }

static bool no_driver(const char *why) {
  err_set(E_DEV_001, "no CUDA driver: %.300s", why);
  err_help("Install NVIDIA's driver (it brings %s), or run with --device cpu.", LIBRARY);
  return false;
}

static bool too_old(const char *missing) {
  err_set(E_DEV_002, "the CUDA driver is too old: it is of CUDA %d.%d, 11.4 is needed",
          state.version / 1000, state.version % 1000 / 10);
  if (missing) err_note("it has no %s", missing);
  err_help("%s", help_for(E_DEV_002));
  return false;
}

/* Reads the table; *missing: the first symbol that is not there. */
static void find_calls(void *library, const char **missing) {
  *missing = NULL;
  for (int i = 0; i < CALL_N; i++) {
    void *f = dlsym(library, calls[i].symbol);
    memcpy((char *)&cuda + calls[i].at, &f, sizeof f);
    if (!f && !*missing) *missing = calls[i].symbol;
  }
}

/* Once opened the library stays, whatever it says. */
static bool open_driver(void) {
  static void *library;
  if (!library) library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char *why = dlerror();
    no_driver(why ? why : LIBRARY " cannot be opened");
    dlerror(); /* frees the text */
    return false;
  }
  const char *missing;
  find_calls(library, &missing);
  bool ok = cuda.cuInit && cuda.cuDriverGetVersion;
  if (!ok)
    no_driver(LIBRARY " is not the driver's library");
  else
    ok = CU(cuInit, 0) && CU(cuDriverGetVersion, &state.version);
  return ok && ((!missing && state.version >= OLDEST) || too_old(missing));
}

bool cuda_open(void) {
  pthread_mutex_lock(&state.lock);
  if (!state.open) state.open = open_driver();
  bool ok = state.open;
  pthread_mutex_unlock(&state.lock);
  return ok;
}
