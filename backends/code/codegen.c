/* The module of code generation, seen from here. It is opened by the first call: libkiln-codegen.so beside the program or
 * library that this is part of, in ../lib of that folder, in the folder above, or wherever the system finds libraries;
 * KILN_CODEGEN names another file. A call that the module refuses for want of memory is a refused allocation here. */
#include "../llvm/codegen.h"
#include "build_id.h"
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODULE "libkiln-codegen.so"
enum { PATH = 4096 };

const char *codegen_build(void) { return KILN_BUILD_ID; }

static struct {
  pthread_mutex_t lock;
  const Codegen *table;
} module = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* The folder of the file that this code is in, with a slash at the end. */
static bool own_folder(char path[PATH]) {
  Dl_info info;
  struct link_map *map = NULL;
  ssize_t n;
  if (!dladdr1((const void *)&module, &info, (void **)&map, RTLD_DL_LINKMAP) || !map) return false;
  if (*map->l_name) {
    if (strlen(map->l_name) >= PATH) return false;
    strcpy(path, map->l_name);
  } else {
    n = readlink("/proc/self/exe", path, PATH - 1);
    if (n <= 0) return false;
    path[n] = 0;
  }
  char *slash = strrchr(path, '/');
  if (slash) slash[1] = 0;
  return slash != NULL;
}

/* The system's own reason is kept from the file that exists. */
static void *open_file(const char *path, char why[512]) {
  if (strchr(path, '/') && access(path, F_OK)) return NULL;
  void *h = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
  const char *text = h ? NULL : dlerror();
  if (text && !*why) snprintf(why, 512, "%s", text);
  return h;
}

static void *open_any(char why[512]) {
  static const char *const places[] = {"", "../lib/", "../"};
  char own[PATH], path[PATH + 64];
  const char *named = getenv("KILN_CODEGEN");
  if (named && *named) {
    snprintf(path, sizeof path, "%s%.4000s", strchr(named, '/') ? "" : "./", named);
    return open_file(path, why);
  }
  void *h = NULL;
  for (size_t i = 0; !h && own_folder(own) && i < sizeof places / sizeof *places; i++) {
    snprintf(path, sizeof path, "%s%s%s", own, places[i], MODULE);
    h = open_file(path, why);
  }
  return h ? h : open_file(MODULE, why);
}

static bool open_module(void) {
  char why[512] = "";
  void *h = open_any(why), *symbol = h ? dlsym(h, CODEGEN_ENTRY) : NULL;
  CodegenEntry *entry;
  memcpy(&entry, &symbol, sizeof entry);
  if (entry) module.table = entry(KILN_BUILD_ID);
  if (module.table) return true;
  if (h)
    err_set(E_GEN_003, "%s was not built together with this program", MODULE);
  else
    err_set(E_GEN_003, "%s cannot be opened: %.300s", MODULE, *why ? why : "there is no such file");
  err_help("Install it beside the program or in the lib folder, or name it in KILN_CODEGEN.");
  if (h) dlclose(h);
  return false;
}

static const Codegen *codegen(void) {
  pthread_mutex_lock(&module.lock);
  bool ok = module.table || open_module();
  pthread_mutex_unlock(&module.lock);
  return ok ? module.table : NULL;
}

static bool done(CodegenStatus status, const Diag *why) {
  if (status == CODEGEN_OK) return true;
  if (!err_any()) err_put(why);
  if (status == CODEGEN_NO_MEMORY) mem_rethrow();
  return false;
}

static CodegenHost host(void) { return (CodegenHost){mem_table, vfs_table, mem_chunk}; }

bool codegen_compile(int n, CodegenJob *jobs, const CompileOptions *o) {
  const Codegen *c = codegen();
  Diag why;
  CodegenHost h = host();
  return c && done(c->compile(&h, n, jobs, o, &why), &why);
}

static void take(CodegenText *t, Str *out) {
  MemGuard guard;
  if (MEM_GUARD(guard)) {
    mem_free(t->bytes);
    mem_rethrow();
  }
  str_addn(out, (char *)t->bytes, t->n);
  mem_unguard(&guard);
  mem_free(t->bytes);
}

bool codegen_emit(int n, const CodegenJob *jobs, const CompileOptions *o, const char *what,
                  Str *out) {
  const Codegen *c = codegen();
  CodegenText t = {0};
  Diag why;
  CodegenHost h = host();
  if (!c || !done(c->emit(&h, n, jobs, o, what, &t, &why), &why)) return false;
  take(&t, out);
  return true;
}

bool cuda_emit_text(int n, Kernel *const *k, const CudaTarget *target, const char *what, Str *out) {
  const Codegen *c = codegen();
  CodegenText t = {0};
  Diag why;
  CodegenHost h = host();
  if (!c || !done(c->cuda(&h, n, k, target, what, &t, &why), &why)) return false;
  take(&t, out);
  return true;
}

void loops_describe(Str *out) {
  const Codegen *c = codegen();
  CodegenText t = {0};
  Diag why;
  CodegenHost h = host();
  if (c && done(c->describe(&h, &t, &why), &why)) {
    take(&t, out);
    return;
  }
  str_fmt(out, "llvm: none (%s)\n", err_get()->summary);
  err_clear();
}
