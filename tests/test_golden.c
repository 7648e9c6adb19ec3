/* Golden tests: every tests/golden/NAME.kl holds an action, an input and what must come out:
 *
 *   # run: simplify,fuse        passes over a Graph, which is then printed; or
 *   # run: expand,simplify      a Program whose `feed` variables are fed (-1 becomes 2), as a Graph; the last output is fetched
 *   # run: print                a Program, parsed and printed; or
 *   # run: verify               a Program, verified: "ok" or the diagnostic; or
 *   # run: infer                a Program, its declarations filled in and printed
 *   ...input...
 *   # expect:
 *   ...output...
 *
 * KILN_BLESS=1 rewrites the part behind "# expect:". KILN_GOLDEN names another folder. */
#include "../passes/passes.h"
#include <dirent.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const char run_mark[] = "# run:", expect_mark[] = "# expect:\n";

typedef struct Golden {
  const char *path, *action, *input, *expected;
  size_t n_input;
} Golden;

static bool split_file(Arena *a, const char *path, Golden *out) {
  uint8_t *data;
  size_t n;
  if (!vfs_read(a, path, &data, &n)) return false;
  const char *text = (const char *)data, *expect = strstr(text, expect_mark);
  if (strncmp(text, run_mark, sizeof run_mark - 1) || !expect)
    return err_set(E_TXT_001, "%s: needs `# run:` on the first line and `# expect:`", path);
  const char *action = text + sizeof run_mark - 1, *end = strchr(action, '\n');
  while (*action == ' ') action++;
  *out = (Golden){.path = path, .expected = expect + sizeof expect_mark - 1, .input = end + 1};
  out->action = arena_strn(a, action, (size_t)(end - action));
  out->n_input = (size_t)(expect - out->input);
  return true;
}

static void add_diag(Str *out) {
  const Diag *d = err_get();
  str_fmt(out, "error[%s]: %s\n", err_name(d->code), d->summary);
  if (*d->where) str_fmt(out, "  --> %s\n", d->where);
  for (const char *p = d->notes; *p;) {
    size_t n = strcspn(p, "\n");
    str_fmt(out, "      %.*s\n", (int)n, p);
    p += n + (p[n] != 0);
  }
  if (*d->help) str_fmt(out, "  help: %s\n", d->help);
  err_clear();
}

/* ---- Programs ---- */

static void run_program(const Golden *t, Str *out) {
  Program *p = prog_parse(t->input, t->n_input, "input");
  bool ok = p != NULL;
  if (ok && strcmp(t->action, "print")) ok = prog_verify(p) && infer_program(p, true);
  if (!ok)
    add_diag(out);
  else if (!strcmp(t->action, "verify"))
    str_add(out, "ok\n");
  else
    prog_print(p, out);
  prog_free(p);
}

/* ---- Graphs ---- */

static GraphPass *find_pass(const char *name, size_t n) {
  for (int i = 0; i < pass_n; i++)
    if (strlen(pass_info[i].name) == n && !memcmp(pass_info[i].name, name, n))
      return pass_info[i].run;
  return NULL;
}

static bool dims_of(void *user, const Var *v, bool fed, DType *t, int *rank, int64_t *dims) {
  (void)user, (void)fed;
  *t = v->dtype;
  *rank = v->rank;
  for (int d = 0; d < v->rank; d++) dims[d] = v->dims[d] < 0 ? 2 : v->dims[d];
  return true;
}

static Graph *expanded(const Program *p) {
  const Block *b = p->blocks.v[0];
  const char *feeds[16], *fetch[1];
  int n = 0;
  for (int i = 0; i < b->vars.n && n < 16; i++)
    if (b->vars.v[i]->need_check_feed) feeds[n++] = b->vars.v[i]->name;
  if (b->ops.n == 0) return graph_new(p, false);
  fetch[0] = b->ops.v[b->ops.n - 1]->outs.v[0].args[0];
  return expand_program(p, n, feeds, 1, fetch, dims_of, NULL);
}

static void run_graph(const Golden *t, Str *out) {
  static const char expand[] = "expand";
  const char *s = t->action;
  Program *p = NULL;
  Graph *g = NULL;
  if (!strncmp(s, expand, sizeof expand - 1)) {
    p = prog_parse(t->input, t->n_input, "input");
    s += sizeof expand - 1;
    if (p && prog_verify(p) && infer_program(p, true)) g = expanded(p);
  } else
    g = graph_parse(t->input, t->n_input, "input");
  bool ok = g != NULL;
  while (ok && *s) {
    size_t n = strcspn(s, ", ");
    GraphPass *pass = find_pass(s, n);
    if (n && !pass)
      ok = err_set(E_ARG_001, "there is no pass %.*s", (int)n, s);
    else if (n) {
      pass(g);
      graph_number(g);
      ok = graph_verify(g);
    }
    s += n + (s[n] != 0);
  }
  if (ok)
    graph_print(g, out);
  else
    add_diag(out);
  graph_free(g);
  prog_free(p);
}

static bool bless(const Golden *t, const Str *got) {
  Arena *a = arena_new();
  Str s;
  str_init(&s, a);
  str_fmt(&s, "%s %s\n", run_mark, t->action);
  str_addn(&s, t->input, t->n_input);
  str_add(&s, expect_mark);
  str_addn(&s, got->s, got->n);
  bool ok = vfs_write(t->path, s.s, s.n);
  arena_free(a);
  return ok;
}

static int line_of_difference(const char *a, const char *b) {
  int line = 1;
  for (; *a && *a == *b; a++, b++) line += *a == '\n';
  return line;
}

static void run_file(void **state) {
  const char *path = *state;
  Arena *a = arena_new();
  Golden t;
  Str got;
  if (!split_file(a, path, &t)) {
    err_print(stderr, false);
    err_clear();
    arena_free(a);
    fail();
  }
  str_init(&got, a);
  str_add(&got, "");
  bool program =
      !strcmp(t.action, "print") || !strcmp(t.action, "verify") || !strcmp(t.action, "infer");
  (program ? run_program : run_graph)(&t, &got);
  bool same = !strcmp(got.s, t.expected), blessed = false;
  if (!same && getenv("KILN_BLESS")) blessed = bless(&t, &got);
  if (!same && !blessed)
    print_error("%s: differs from line %d of what is expected; got:\n%s", path,
                line_of_difference(got.s, t.expected), got.s);
  arena_free(a);
  if (!same && !blessed) fail();
}

static int by_text(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

int main(void) {
  enum { MAX_FILES = 512 };
  static struct CMUnitTest tests[MAX_FILES];
  static char *paths[MAX_FILES];
  const char *folder = getenv("KILN_GOLDEN") ? getenv("KILN_GOLDEN") : "tests/golden";
  Arena *a = arena_new();
  int n = 0;
  DIR *d = opendir(folder);
  if (!d) return fprintf(stderr, "%s: no such folder\n", folder), 1;
  for (struct dirent *e; n < MAX_FILES && (e = readdir(d));) {
    size_t len = strlen(e->d_name);
    if (len > 3 && !strcmp(e->d_name + len - 3, ".kl"))
      paths[n++] = arena_fmt(a, "%s/%s", folder, e->d_name);
  }
  closedir(d);
  if (n == 0) return fprintf(stderr, "%s: no .kl files\n", folder), 1;
  qsort(paths, (size_t)n, sizeof *paths, by_text);
  for (int i = 0; i < n; i++)
    tests[i] =
        (struct CMUnitTest){.name = paths[i], .test_func = run_file, .initial_state = paths[i]};
  int failed = _cmocka_run_group_tests("golden", tests, (size_t)n, NULL, NULL);
  arena_free(a);
  return failed;
}
