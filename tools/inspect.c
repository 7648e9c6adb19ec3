/* The verbs that only look: info, ops, explain, dump, convert. */
#include "tools.h"
#include <string.h>
#include <unistd.h>

int verb_info(int argc, char **argv) {
  bool json = false;
  Flag flags[] = {{"--json", FLAG_BOOL, &json, NULL, "as JSON"}, {0}};
  Usage u = {"[--json]", "Version, CPU features, threads, libraries and targets.", 0, 0, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  Arena *a = arena_new();
  Str s;
  str_init(&s, a);
  str_fmt(&s, "version: %s\n", KILN_VERSION);
  str_fmt(&s, "operators: %d\n", opdef_n());
  str_fmt(&s, "cores: %ld\n", sysconf(_SC_NPROCESSORS_ONLN));
  backend_cpu.describe(&s);
  backend_cuda.describe(&s);
  if (!json)
    fputs(s.s, stdout);
  else {
    printf("{");
    const char *sep = "";
    for (char *line = strtok(s.s, "\n"); line; line = strtok(NULL, "\n")) {
      char *colon = strchr(line, ':');
      if (!colon) continue;
      printf("%s\n  \"%.*s\": \"%s\"", sep, (int)(colon - line), line,
             colon + 1 + (colon[1] == ' '));
      sep = ",";
    }
    printf("\n}\n");
  }
  arena_free(a);
  return 0;
}

/* ---- ops ---- */

static void add_slots(Str *s, int n, const SlotDef *d) {
  for (int i = 0; i < n; i++)
    str_fmt(s, "%s%s%s%s%s", i ? ", " : "", d[i].name, d[i].list ? "*" : "",
            d[i].optional ? "?" : "", d[i].intermediate ? "~" : "");
}

static void print_op_page(const OpDef *d) {
  Arena *a = arena_new();
  Str s;
  str_init(&s, a);
  str_fmt(&s, "%s: %s\n\n  inputs      ", d->name, d->meaning);
  add_slots(&s, d->n_ins, d->ins);
  str_add(&s, "\n  outputs     ");
  add_slots(&s, d->n_outs, d->outs);
  str_add(&s, "\n");
  for (int i = 0; i < d->n_attrs; i++) {
    const AttrDef *x = &d->attrs[i];
    str_fmt(&s, "  %-11s %s = ", i ? "" : "attributes", x->dflt.name);
    if (x->required)
      str_add(&s, "(required)");
    else
      attr_print(&x->dflt, &s);
    str_fmt(&s, "%s\n", x->extra ? "   (extra)" : "");
  }
  if (d->formula) str_fmt(&s, "  meaning     %s\n", d->formula);
  if (d->grad)
    str_fmt(&s, "  gradient    %s\n", d->grad->type);
  else if (!d->forward)
    str_add(&s, "  gradient    none\n");
  if (d->forward) str_fmt(&s, "  gradient of %s\n", d->forward->name);
  if (d->examples && *d->examples) str_fmt(&s, "  examples    %s\n", d->examples);
  fputs(s.s, stdout);
  arena_free(a);
}

static void print_op_json(const OpDef *d, bool first) {
  Arena *a = arena_new();
  Str s;
  str_init(&s, a);
  str_fmt(&s, "%s\n  {\"name\": \"%s\", \"inputs\": \"", first ? "" : ",", d->name);
  add_slots(&s, d->n_ins, d->ins);
  str_add(&s, "\", \"outputs\": \"");
  add_slots(&s, d->n_outs, d->outs);
  str_fmt(&s, "\", \"gradient\": \"%s\"}", d->grad ? d->grad->type : "");
  fputs(s.s, stdout);
  arena_free(a);
}

int verb_ops(int argc, char **argv) {
  bool json = false;
  Flag flags[] = {{"--json", FLAG_BOOL, &json, NULL, "as JSON"}, {0}};
  Usage u = {"[NAME] [--json]",
             "The operator reference, from the operator table. Slots: * a list, ? optional, ~ only "
             "for the gradient.",
             0, 1, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  if (args.n) {
    const OpDef *d = opdef_find(args.v[0]);
    if (d) return json ? (print_op_json(d, true), puts(""), 0) : (print_op_page(d), 0);
    err_set(E_OPR_001, "unknown operator %s", quoted(args.v[0]));
    const char *near = opdef_nearest(args.v[0]);
    if (near) err_help("did you mean %s?", near);
    return report();
  }
  if (json) printf("[");
  bool first = true;
  for (int i = 0; i < opdef_n(); i++) {
    const OpDef *d = opdef_at(i);
    if (json)
      print_op_json(d, first);
    else if (!d->forward)
      printf("%-36s %s\n", d->name, d->meaning);
    first = false;
  }
  if (json) printf("\n]\n");
  return 0;
}

int verb_explain(int argc, char **argv) {
  Flag flags[] = {{0}};
  Usage u = {"[CODE]",
             "What an error code means, its usual cause, and what to do. Without CODE: all codes.",
             0, 1, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  if (!args.n) {
    for (int c = E_NONE + 1; c < E_N; c++)
      printf("%-10s %s\n", err_name((ErrCode)c), err_summary((ErrCode)c));
    return 0;
  }
  ErrCode c = err_find(args.v[0]);
  if (c == E_NONE)
    return usage_error("there is no error code %s; `kiln explain` lists them", quoted(args.v[0]));
  printf("%s: %s\n\n%s\n", err_name(c), err_summary(c), err_text(c));
  return 0;
}

/* ---- dump, convert ---- */

int verb_dump(int argc, char **argv) {
  const char *format = "text", *out = "-";
  Flag flags[] = {{"--format", FLAG_TEXT, &format, "text|dot|json", "how (text)"},
                  {"-o", FLAG_TEXT, &out, "FILE", "where to (stdout)"},
                  {0}};
  Usage u = {"MODEL [--format text|dot|json] [-o FILE]", "The program as it is in the file.", 1, 1,
             flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  static const struct {
    const char *name;
    void (*print)(const Program *p, Str *out);
  } formats[] = {{"text", prog_print}, {"dot", prog_dot}, {"json", prog_json}};
  size_t f = 0, n_formats = sizeof formats / sizeof *formats;
  while (f < n_formats && strcmp(formats[f].name, format)) f++;
  if (f == n_formats)
    return usage_error("dump: --format %s is not text, dot or json", quoted(format));
  Model m;
  Str s;
  bool ok = model_open(&m, args.v[0], NULL);
  if (ok) {
    str_init(&s, m.arena);
    formats[f].print(m.prog, &s);
    ok = vfs_write(out, s.s, s.n);
  }
  model_close(&m);
  return ok ? 0 : report();
}

int verb_convert(int argc, char **argv) {
  const char *out = NULL;
  Flag flags[] = {{"-o", FLAG_TEXT, &out, "FILE", "FILE.kl, FILE.pdmodel or FILE.json"}, {0}};
  Usage u = {"MODEL -o FILE.{kl,pdmodel}",
             "Reads a program in any format and writes it in the one that FILE's extension says.",
             1, 1, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  if (!out) return usage_error("convert: -o FILE is missing");
  const char *dot = strrchr(out, '.');
  if (!dot || (strcmp(dot, ".kl") && strcmp(dot, ".pdmodel") && strcmp(out, "__model__")))
    return usage_error("convert: %s ends in neither .kl nor .pdmodel", quoted(out));
  Model m;
  bool ok = model_open(&m, args.v[0], NULL) && prog_save(m.prog, out);
  model_close(&m);
  return ok ? 0 : report();
}
