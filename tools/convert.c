/* convert: a program and its parameters in another format. In: a program in any format. Out: the program in the one that the
 * extension says, and its parameters, if it has any with it, beside it. */
#include "tools.h"
#include <string.h>

static const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

int check_target(const char *verb, const char *path) {
  const char *dot = strrchr(base_name(path), '.');
  bool model = !strcmp(base_name(path), "__model__");
  if (model || (dot && (!strcmp(dot, ".kl") || !strcmp(dot, ".pdmodel")))) return -1;
  if (!dot || strcmp(dot, ".onnx"))
    return usage_error("%s: %s ends in neither .kl nor .pdmodel", verb, quoted(path));
  err_set(E_IO_003, "%s: ONNX files are not supported", quoted(path));
  err_help("write a .pdmodel file; paddle2onnx makes ONNX of it");
  return report();
}

/* Where the parameters of a program go that is saved under this name. */
static const char *params_target(Arena *a, const char *path, bool separate) {
  const char *base = base_name(path), *dot = strrchr(base, '.');
  int folder = (int)(base - path);
  if (separate) return folder ? arena_strn(a, path, (size_t)folder) : "./";
  if (!dot) return arena_fmt(a, "%.*s__params__", folder, path);
  return arena_fmt(a, "%.*s.pdiparams", (int)(dot - path), path);
}

bool model_save(Arena *a, const Program *p, Scope *values, const char *path, bool separate) {
  if (values && !scope_save_params(values, p, params_target(a, path, separate))) return false;
  return prog_save(p, path);
}

int verb_convert(int argc, char **argv) {
  const char *out = NULL, *params = NULL;
  bool separate = false;
  Flag flags[] = {{"-o", FLAG_TEXT, &out, "FILE", "FILE.kl, FILE.pdmodel or DIR/__model__"},
                  {"--params", FLAG_TEXT, &params, "FILE", "parameters (beside the program)"},
                  {"--separate", FLAG_BOOL, &separate, NULL, "a file for each parameter"},
                  {0}};
  Usage u = {"MODEL -o FILE.{kl,pdmodel} [--params FILE]",
             "Reads a program in any format and writes it in the one that FILE's extension says; "
             "parameters go along.",
             1, 1, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  if (!out) return usage_error("convert: -o FILE is missing");
  if ((rc = check_target("convert", out)) >= 0) return rc;
  Model m;
  Scope *s = scope_new();
  bool ok = model_open_any(&m, args.v[0], params);
  ok = ok && (!m.params || model_load_params(&m, s)) &&
       model_save(m.arena, m.prog, m.params ? s : NULL, out, separate);
  const char *dot = strrchr(base_name(out), '.');
  if (ok && m.prog->seed && !(dot && !strcmp(dot, ".kl")))
    fprintf(stderr, "note: %s does not hold the program's seed; run it with --seed %lld\n",
            quoted(out), (long long)m.prog->seed);
  scope_free(s);
  model_close(&m);
  return ok ? 0 : report();
}
