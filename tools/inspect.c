/* The verbs that only look: info, ops, explain, dump. */
#include "tools.h"
#include <ctype.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

/* Lines "key: value" as an object; a value of digits alone is a number. */
static void print_object(char *text, Arena *a) {
  Str o;
  str_init(&o, a);
  for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
    char *colon = strstr(line, ": ");
    if (!colon) continue;
    *colon = 0;
    str_add(&o, o.n ? ",\n  " : "{\n  ");
    str_json(line, &o);
    str_add(&o, ": ");
    bool number = colon[2] && !colon[2 + strspn(colon + 2, "0123456789")];
    if (number)
      str_add(&o, colon + 2);
    else
      str_json(colon + 2, &o);
  }
  printf("%s\n}\n", o.s);
}

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
  CacheInfo cache = cache_info(a);
  str_fmt(&s, "cache: %s\n", cache.dir ? cache.dir : "off");
  backend_cuda.describe(&s);
  if (json)
    print_object(s.s, a);
  else
    fputs(s.s, stdout);
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

static const char *escaped(Arena *a, const char *text) {
  Str s;
  str_init(&s, a);
  for (; *text; text++) str_fmt(&s, "%s%c", *text == '"' || *text == '\\' ? "\\" : "", *text);
  return s.s;
}

/* Attributes with the default as a literal of the text form; null: required. */
static void add_attrs_json(Str *s, Arena *a, const OpDef *d) {
  for (int i = 0; i < d->n_attrs; i++) {
    const AttrDef *x = &d->attrs[i];
    Str v;
    str_init(&v, a);
    attr_print(&x->dflt, &v);
    str_fmt(s, "%s{\"name\": \"%s\", \"type\": \"%s\", \"default\": ", i ? ", " : "", x->dflt.name,
            attr_info[x->dflt.type].name);
    if (x->required)
      str_add(s, "null}");
    else
      str_fmt(s, "\"%s\"}", escaped(a, v.s));
  }
}

static void print_op_json(const OpDef *d, bool first) {
  Arena *a = arena_new();
  Str s;
  str_init(&s, a);
  str_fmt(&s, "%s\n  {\"name\": \"%s\", \"inputs\": \"", first ? "" : ",", d->name);
  add_slots(&s, d->n_ins, d->ins);
  str_add(&s, "\", \"outputs\": \"");
  add_slots(&s, d->n_outs, d->outs);
  str_add(&s, "\", \"attributes\": [");
  add_attrs_json(&s, a, d);
  str_fmt(&s, "], \"gradient\": \"%s\", \"forward\": \"%s\"", d->grad ? d->grad->type : "",
          d->forward ? d->forward->name : "");
  str_fmt(&s, ", \"examples\": \"%s\"", d->examples ? escaped(a, d->examples) : "");
  str_fmt(&s, ", \"meaning\": \"%s\"}", d->meaning ? escaped(a, d->meaning) : "");
  fputs(s.s, stdout);
  arena_free(a);
}

/* A table cell: bars would end it. */
static void add_cell(Str *s, const char *text) {
  for (; *text; text++) str_fmt(s, "%s%c", *text == '|' ? "\\" : "", *text);
}

static void add_gradient(Str *s, const OpDef *d) {
  if (!d->grad) {
    str_add(s, "none");
    return;
  }
  const OpDef *own = opdef_find(d->grad->type);
  bool derived = own && own->forward == d && !own->expand && !own->formula;
  str_fmt(s, "`%s`%s", d->grad->type, derived ? ", derived" : "");
}

static void add_op_row(Str *s, const OpDef *d) {
  str_fmt(s, "| <a id=\"%s\"></a>`%s` | ", d->name, d->name);
  add_slots(s, d->n_ins, d->ins);
  str_add(s, d->n_ins ? " → " : "→ ");
  add_slots(s, d->n_outs, d->outs);
  str_add(s, " | ");
  const char *sep = "";
  for (int i = 0; i < d->n_attrs; i++) {
    const AttrDef *x = &d->attrs[i];
    if (x->extra) continue;
    str_fmt(s, "%s`%s%s", sep, x->dflt.name, x->required ? "`!" : "=");
    if (!x->required) {
      attr_print(&x->dflt, s);
      str_add(s, "`");
    }
    sep = " ";
  }
  str_add(s, " | ");
  add_cell(s, d->meaning);
  str_add(s, " | ");
  add_gradient(s, d);
  str_add(s, " |\n");
}

/* docs/operators.md: a row for each operator that is not the gradient of another. */
static int print_ops_markdown(void) {
  Arena *a = arena_new();
  Str s;
  str_init(&s, a);
  int n = 0;
  for (int i = 0; i < opdef_n(); i++) n += !opdef_at(i)->forward;
  str_fmt(&s,
          "# Operators\n\nWritten by `make docs` from ir/ops.def: %d operators, in order of their "
          "names; %d more are gradients.\n\n"
          "Slots: `*` takes a list of variables, `?` is optional, `~` is an output that only the "
          "gradient reads.\nAttributes are written with their default, which fixes the type (`1` "
          "INT, `1L` LONG, `1.0` FLOAT, `1.0D` FLOAT64,\n`true` BOOLEAN, `'text'` STRING, lists in "
          "brackets); `!` marks required ones. Attributes that only old files carry are left "
          "out;\n`kiln ops NAME` lists them, with examples. A gradient that is \"derived\" comes "
          "from the operator's own expansion.\n\n"
          "| operator | inputs → outputs | attributes | meaning | gradient |\n"
          "|---|---|---|---|---|\n",
          n, opdef_n() - n);
  for (int i = 0; i < opdef_n(); i++)
    if (!opdef_at(i)->forward) add_op_row(&s, opdef_at(i));
  fputs(s.s, stdout);
  arena_free(a);
  return 0;
}

int verb_ops(int argc, char **argv) {
  bool json = false, markdown = false;
  const char *missing = NULL;
  Flag flags[] = {{"--json", FLAG_BOOL, &json, NULL, "as JSON"},
                  {"--missing", FLAG_TEXT, &missing, "MODEL",
                   "what the program needs and Kiln lacks; exit code 1 if anything"},
                  {"--markdown", FLAG_BOOL, &markdown, NULL, "the whole reference as a page"},
                  {0}};
  Usage u = {"[NAME|--missing MODEL] [--json|--markdown]",
             "The operator reference, from the operator table. Slots: * a list, ? optional, ~ only "
             "for the gradient.",
             0, 1, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  if (missing) return print_missing(missing, json);
  if (args.n) {
    const OpDef *d = opdef_find(args.v[0]);
    if (d) return json ? (print_op_json(d, true), puts(""), 0) : (print_op_page(d), 0);
    err_set(E_OPR_001, "unknown operator %s", quoted(args.v[0]));
    const char *near = opdef_nearest(args.v[0]);
    if (near) err_help("did you mean %s?", near);
    return report();
  }
  if (markdown) return print_ops_markdown();
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

/* docs/errors.md */
static int print_errors_markdown(void) {
  printf(
      "# Error codes\n\nWritten by `make docs` from ir/errors.def. `kiln explain CODE` prints one "
      "entry. The layout of a message: [cli.md](cli.md#errors).\n");
  for (int c = E_NONE + 1; c < E_N; c++)
    printf("\n## %s: %s\n\n%s\n", err_name((ErrCode)c), err_summary((ErrCode)c),
           err_text((ErrCode)c));
  return 0;
}

/* In either case, with or without E- in front. */
static ErrCode find_code(Arena *a, const char *text) {
  char *name = arena_fmt(a, "%s%s", strncasecmp(text, "E-", 2) ? "E-" : "", text);
  for (char *c = name; *c; c++) *c = (char)toupper((unsigned char)*c);
  return err_find(name);
}

int verb_explain(int argc, char **argv) {
  bool markdown = false;
  Flag flags[] = {{"--markdown", FLAG_BOOL, &markdown, NULL, "all codes as a page"}, {0}};
  Usage u = {"[CODE|--markdown]",
             "What an error code means, its usual cause, and what to do. Without CODE: all codes.",
             0, 1, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  if (markdown) return print_errors_markdown();
  if (!args.n) {
    for (int c = E_NONE + 1; c < E_N; c++)
      printf("%-10s %s\n", err_name((ErrCode)c), err_summary((ErrCode)c));
    return 0;
  }
  Arena *a = arena_new();
  ErrCode c = find_code(a, args.v[0]);
  arena_free(a);
  if (c == E_NONE)
    return usage_error("there is no error code %s; `kiln explain` lists them", quoted(args.v[0]));
  printf("%s: %s\n\n%s\n", err_name(c), err_summary(c), err_text(c));
  return 0;
}

/* ---- dump ---- */

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
  Model m = {.arena = arena_new(), .path = args.v[0], .stored = prog_load_any(args.v[0])};
  m.prog = m.stored;
  Str s;
  bool ok = m.prog;
  if (ok) {
    str_init(&s, m.arena);
    formats[f].print(m.prog, &s);
    ok = vfs_write(out, s.s, s.n);
  }
  model_close(&m);
  return ok ? 0 : report();
}
