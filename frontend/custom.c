/* Custom operators and plug-ins.
 *
 * In: C functions with a signature, from the program itself or a shared library. Out: an operator like any other, for the
 * rest of the process. */
#include "internal.h"
#include <dlfcn.h>

bool kl_register(const kl_custom_op *op) {
  API_GUARD(false);
  return !err_any() && NEED(op) && opdef_register((const CustomOp *)(const void *)op);
}

bool kl_load_plugin(const char *path) {
  if (err_any() || !NEED(path)) return false;
  void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!lib) {
    err_set(E_PLG_001, "the plug-in %s cannot be opened: %s", quoted(path), dlerror());
    err_help("give a path with a slash, such as ./my_ops.so");
    return false;
  }
  bool (*entry)(void) = NULL;
  *(void **)&entry = dlsym(lib, "kiln_plugin");
  if (!entry) {
    err_set(E_PLG_001, "the plug-in %s has no function kiln_plugin", quoted(path));
    err_help("define `bool kiln_plugin(void)` that calls kl_register");
    return false;
  }
  if (entry()) return true;
  err_set(E_PLG_001, "the plug-in %s said that it cannot be used", quoted(path));
  return false;
}
