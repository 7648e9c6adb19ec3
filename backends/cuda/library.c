/* NVIDIA's libraries: opening them, and their statuses as errors. In: library.def; out: the table `cuda_library`. What is
 * absent, too old for Kiln or too new for the driver is not used, and says why in `kiln info`. */
#include "library.h"
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

CudaLibraries cuda_library;
_Static_assert(sizeof(CublasResult) == 96 && sizeof(CudnnResult) == 48,
               "as the libraries have them");

static const struct {
  CudaLibrary library;
  const char *symbol;
  size_t at; /* of the function in CudaLibraries */
} calls[] = {
#define CALL(library, result, name, params)                                                        \
  {LIBRARY_##library, #name, offsetof(CudaLibraries, name)},
#include "library.def"
#undef CALL
};
enum { N_CALLS = sizeof calls / sizeof *calls, MOST_FILES = 3 };

static const struct {
  const char *name;
  int64_t oldest;
  struct {
    const char *name;
    int driver; /* that it needs, as cuda_version() says it */
  } file[MOST_FILES];
} about[LIBRARY_N] = {
    [LIBRARY_CUBLAS] = {"cuBLASLt",
                        110000,
                        {{"libcublasLt.so.13", 13000},
                         {"libcublasLt.so.12", 12000},
                         {"libcublasLt.so.11", 11000}}},
    [LIBRARY_CUDNN] = {"cuDNN", 8000, {{"libcudnn.so.9", 12000}, {"libcudnn.so.8", 11000}}},
};

static struct {
  pthread_mutex_t lock;
  struct {
    bool tried;
    int64_t version;
    char text[200]; /* file, or why not */
  } of[LIBRARY_N];
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

const char *library_name(CudaLibrary l) { return about[l].name; }
const char *library_file(CudaLibrary l) { return state.of[l].text; }

static void *open_file(CudaLibrary l) {
  char *text = state.of[l].text;
  size_t size = sizeof state.of[l].text;
  for (int i = 0; i < MOST_FILES && about[l].file[i].name; i++) {
    const char *name = about[l].file[i].name;
    if (about[l].file[i].driver > cuda_version()) continue;
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    snprintf(text, size, "%s", name);
    if (library) return library;
    dlerror(); /* frees the text */
  }
  snprintf(text, size, "not found");
  return NULL;
}

/* Its functions, all or none. */
static bool find_calls(CudaLibrary l, void *library) {
  const char *missing = NULL;
  for (int i = 0; i < N_CALLS; i++) {
    if (calls[i].library != l) continue;
    void *f = dlsym(library, calls[i].symbol);
    memcpy((char *)&cuda_library + calls[i].at, &f, sizeof f);
    if (!f && !missing) missing = calls[i].symbol;
  }
  if (missing)
    snprintf(state.of[l].text, sizeof state.of[l].text, "%s has no %s", library_name(l), missing);
  return !missing;
}

/* Once opened a library stays. */
static int64_t open_library(CudaLibrary l) {
  void *library = open_file(l);
  if (!library || !find_calls(l, library)) return 0;
  int64_t version = (int64_t)(l == LIBRARY_CUDNN ? cuda_library.cudnnGetVersion()
                                                 : cuda_library.cublasLtGetVersion());
  if (version >= about[l].oldest) return version;
  snprintf(state.of[l].text, sizeof state.of[l].text, "version %lld, %lld is needed",
           (long long)version, (long long)about[l].oldest);
  return 0;
}

int64_t library_open(CudaLibrary l) {
  pthread_mutex_lock(&state.lock);
  if (!state.of[l].tried) {
    state.of[l].tried = true;
    state.of[l].version = open_library(l);
  }
  int64_t version = state.of[l].version;
  pthread_mutex_unlock(&state.lock);
  return version;
}

bool library_check(const char *call, int status) {
  if (!status) return true;
  err_set(E_DEV_007, "%s gives status %d", call, status);
  err_help("--deterministic runs Kiln's own kernels; or run with --device cpu.");
  return false;
}
