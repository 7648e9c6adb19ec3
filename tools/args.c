/* Flags and arguments from a table.
 *
 * In: argv and a Usage. Out: values stored where the table says, positional arguments, or the help. Numbers are checked
 * to the last character; unknown flags get a suggestion. */
#include "tools.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool error_json;

int report(void) {
  const Diag *d = err_get();
  int rc = d && d->code == E_ARG_001 ? 2 : 1;
  err_print(stderr, error_json);
  return rc;
}

int usage_error(const char *fmt, ...) {
  char text[512];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  err_set(E_ARG_001, "%s", text);
  return report();
}

/* Text of a manual page: hyphens and backslashes as they are. */
static void put_roff(const char *text) {
  for (; *text; text++) {
    if (*text == '-' || *text == '\\') putchar('\\');
    putchar(*text == '\\' ? 'e' : *text);
  }
}

bool help_as_manual;

static void print_manual(const char *verb, const Usage *u) {
  printf(".SS kiln %s ", verb);
  put_roff(u->args);
  putchar('\n');
  put_roff(u->about);
  putchar('\n');
  for (const Flag *f = u->flags; f && f->name; f++) {
    fputs(".TP\n\\fB", stdout);
    put_roff(f->name);
    fputs(f->value ? "\\fR \\fI" : "", stdout);
    put_roff(f->value ? f->value : "");
    fputs("\\fR\n", stdout);
    put_roff(f->help);
    printf("%s\n", f->kind == FLAG_LIST ? " (repeatable)" : "");
  }
}

static void print_usage(const char *verb, const Usage *u) {
  if (help_as_manual) {
    print_manual(verb, u);
    return;
  }
  printf("usage: kiln %s %s\n\n%s\n", verb, u->args, u->about);
  if (u->flags && u->flags->name) printf("\n");
  for (const Flag *f = u->flags; f && f->name; f++) {
    char left[64];
    snprintf(left, sizeof left, "%s%s%s", f->name, f->value ? " " : "", f->value ? f->value : "");
    printf("  %-28s %s%s\n", left, f->help, f->kind == FLAG_LIST ? " (repeatable)" : "");
  }
}

static const Flag *find_flag(const Usage *u, const char *arg, size_t n) {
  for (const Flag *f = u->flags; f && f->name; f++)
    if (strlen(f->name) == n && !strncmp(f->name, arg, n)) return f;
  return NULL;
}

static int unknown_flag(const char *verb, const Usage *u, const char *arg) {
  const char *names[LIST_MAX];
  int n = 0;
  for (const Flag *f = u->flags; f && f->name && n < LIST_MAX; f++) names[n++] = f->name;
  const char *near = name_nearest(arg, n, names);
  if (near) return usage_error("%s: unknown flag %s; did you mean %s?", verb, quoted(arg), near);
  return usage_error("%s: unknown flag %s; `kiln %s --help` lists them", verb, quoted(arg), verb);
}

/* 1500000, 900M, 1.5G */
static bool store_bytes(int64_t *to, const char *value) {
  static const char units[] = "KMG";
  char *end;
  double v = text_double(value, &end);
  const char *unit = *end ? strchr(units, *end & ~0x20) : NULL;
  for (int64_t i = unit ? unit - units + 1 : 0; i > 0; i--) v *= 1024;
  if (end == value || (*end && (!unit || end[1])) || !(v >= 1 && v < 0x1p62)) return false;
  *to = (int64_t)v;
  return true;
}

/* Stores one value; false if it does not parse. */
static bool store(const Flag *f, const char *value) {
  char *end = NULL;
  errno = 0;
  switch (f->kind) {
  case FLAG_BOOL: return *(bool *)f->to = true;
  case FLAG_INT:
  case FLAG_COUNT: *(int64_t *)f->to = strtoll(value, &end, 10); break;
  case FLAG_BYTES: return store_bytes(f->to, value);
  case FLAG_FLOAT:
  case FLAG_ERROR: *(double *)f->to = text_double(value, &end); break;
  case FLAG_TEXT: return *(const char **)f->to = value, true;
  case FLAG_LIST: {
    List *l = f->to;
    return l->v[l->n++] = value, true;
  }
  }
  if (f->kind == FLAG_COUNT && (*(int64_t *)f->to < 0 || *(int64_t *)f->to > INT32_MAX))
    return false;
  bool real = f->kind == FLAG_FLOAT || f->kind == FLAG_ERROR;
  if (real && !(*(double *)f->to >= 0 && *(double *)f->to < 1)) return false;
  if (f->kind == FLAG_ERROR && !*(double *)f->to) *(double *)f->to = -1;
  return end != value && !*end && errno == 0;
}

int global_flag(int argc, char **argv, int i, const char *name, const char *kind,
                const char **value) {
  size_t n = strlen(name);
  if (strncmp(argv[i], name, n) != 0 || (argv[i][n] && argv[i][n] != '=')) return 0;
  *value = argv[i][n] ? argv[i] + n + 1 : i + 1 < argc ? argv[i + 1] : NULL;
  if (!*value) return usage_error("%s needs a value: %s", name, kind), -1;
  return argv[i][n] ? 1 : 2;
}

int error_format(int argc, char **argv, int i) {
  const char *value;
  int took = global_flag(argc, argv, i, "--error-format", "text|json", &value);
  if (took <= 0) return took;
  error_json = !strcmp(value, "json");
  if (error_json || !strcmp(value, "text")) return took;
  return usage_error("--error-format: %s is not text or json", quoted(value)), -1;
}

void find_error_format(int argc, char **argv) {
  for (int i = 1; i < argc; i++)
    error_json |= !strcmp(argv[i], "--error-format=json") ||
                  (!strcmp(argv[i], "json") && !strcmp(argv[i - 1], "--error-format"));
}

int parse_args(int argc, char **argv, const Usage *u, List *args) {
  const char *verb = argv[0];
  args->n = 0;
  for (int i = 1; i < argc; i++) {
    const char *arg = argv[i];
    if (!strcmp(arg, "--help") || !strcmp(arg, "-h")) return print_usage(verb, u), 0;
    if (arg[0] != '-' || !arg[1]) {
      if (args->n == LIST_MAX) return usage_error("%s: too many arguments", verb);
      args->v[args->n++] = arg;
      continue;
    }
    int format = error_format(argc, argv, i);
    if (format < 0) return 2;
    i += format ? format - 1 : 0;
    if (format) continue;
    const char *eq = strchr(arg, '=');
    const Flag *f = find_flag(u, arg, eq ? (size_t)(eq - arg) : strlen(arg));
    if (!f) return unknown_flag(verb, u, arg);
    if (f->kind == FLAG_BOOL && eq) return usage_error("%s: %s takes no value", verb, f->name);
    const char *value = eq ? eq + 1 : f->kind == FLAG_BOOL ? "" : i + 1 < argc ? argv[++i] : NULL;
    if (!value) return usage_error("%s: %s needs a value: %s", verb, f->name, f->value);
    if (f->kind == FLAG_LIST && ((List *)f->to)->n == LIST_MAX)
      return usage_error("%s: %s is given more than %d times", verb, f->name, LIST_MAX);
    if (!store(f, value))
      return usage_error("%s: %s: %s is not a valid %s", verb, f->name, quoted(value), f->value);
  }
  if (args->n < u->min_args || args->n > u->max_args)
    return usage_error("%s: %s arguments; usage: kiln %s %s", verb,
                       args->n < u->min_args ? "missing" : "too many", verb, u->args);
  return -1;
}
