/* compile: the program after the passes, in any of its forms. */
#include "tools.h"
#include <string.h>

typedef struct Options {
  const char *target, *fetch, *emit, *out, *plan;
  List shapes;
  ExecOptions exec; /* how algorithms are chosen, and the memory budget */
  PassOptions passes;
} Options;

/* Kernels as a page that needs nothing else: one foldable section each. */
static void emit_html(const Graph *g, Str *out) {
  str_add(out, "<!DOCTYPE html><meta charset=\"utf-8\"><title>Kiln graph</title>"
               "<style>body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}"
               "td,th{border:1px solid #bbb;padding:2px 8px;text-align:left}"
               "td.n{text-align:right}pre{background:#f4f4f4;padding:8px}</style>");
  str_fmt(out,
          "<h1>%d kernels, arena %lld bytes (lower bound %lld)</h1><table>"
          "<tr><th>kernel</th><th>operators</th><th>by</th><th>nodes</th><th>MFLOP</th><th>MB</"
          "th></tr>",
          g->kernels.n, (long long)g->arena_bytes, (long long)g->lower_bound);
  for (int i = 0; i < g->kernels.n; i++) {
    const Kernel *k = g->kernels.v[i];
    str_fmt(out, "<tr><td>%s</td><td>", k->name);
    const Op *last = NULL;
    for (int j = 0; j < k->nodes.n; j++) {
      const Op *op = k->nodes.v[j]->op;
      if (op && op != last) str_fmt(out, "%s ", op->type);
      last = op;
    }
    str_fmt(out,
            "</td><td>%s</td><td class=n>%d</td><td class=n>%.3f</td><td class=n>%.3f</td></tr>",
            k->by, k->nodes.n, (double)k->flops * 1e-6, (double)k->bytes * 1e-6);
  }
  str_add(out, "</table><h2>Graph</h2><pre>");
  Str text;
  str_init(&text, out->a);
  graph_print(g, &text);
  for (size_t i = 0; i < text.n; i++) {
    char c = text.s[i];
    if (c == '<')
      str_add(out, "&lt;");
    else if (c == '&')
      str_add(out, "&amp;");
    else
      str_addn(out, &c, 1);
  }
  str_add(out, "</pre>\n");
}

static bool emit(const Options *o, const Model *m, Executable *x, Str *s) {
  if (!strcmp(o->emit, "program")) return prog_print(m->prog, s), true;
  if (!strcmp(o->emit, "html")) return emit_html(executable_graph(x), s), true;
  return executable_emit(x, o->emit, s);
}

static bool write_plan(const Options *o, const Model *m, Executable *x) {
  Str s;
  str_init(&s, m->arena);
  if (!executable_graph(x)->buffers.n) return err_set(E_ARG_001, "--plan needs the pass memplan");
  plan_print(executable_graph(x), &s);
  return vfs_write(o->plan, s.s, s.n);
}

/* ---- programs that run in parts ---- */

typedef struct Parts {
  const Options *o;
  const Model *m;
  Str *out;
} Parts;

/* Where the section stands, and what goes in and out. */
static void print_section(const CompileRequest *r, Str *out) {
  const Section *s = &r->section;
  str_fmt(out, "# block %d, operators %d to %d", s->block->idx, s->from, s->to - 1);
  for (int i = 0; i < r->n_feeds; i++) str_fmt(out, "%s %s", i ? "," : "; reads", r->feeds[i].name);
  for (int i = 0; i < r->n_fetch; i++) str_fmt(out, "%s %s", i ? "," : "; leaves", r->fetch[i]);
  str_add(out, "\n");
}

static bool emit_section(void *user, const CompileRequest *r) {
  const Parts *p = user;
  for (int i = 0; i < r->n_feeds; i++)
    if (r->known[i]) {
      print_section(r, p->out);
      str_fmt(p->out, "# compiled for each value of %s when it is there\n\n", r->feeds[i].name);
      return true;
    }
  Executable *x = compile(r);
  if (!x) return false;
  print_section(r, p->out);
  bool ok = executable_emit(x, p->o->emit, p->out);
  str_add(p->out, "\n");
  executable_free(x);
  return ok;
}

/* All sections one after another. */
static bool emit_parts(const Options *o, const Model *m, CompileRequest *r) {
  Str s;
  str_init(&s, m->arena);
  if (!strcmp(o->emit, "program")) {
    prog_print(m->prog, &s);
    return vfs_write(o->out, s.s, s.n);
  }
  static const char *const forms[] = {"graph", "llvm", "asm", "ptx"};
  bool fits = false;
  for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) fits |= !strcmp(o->emit, forms[i]);
  if (!fits || o->plan) {
    err_set(E_OPR_006, "the program runs in parts: it has no single %s",
            o->plan ? "memory plan" : o->emit);
    err_help("--emit graph, llvm, asm and ptx show the parts one after another");
    return false;
  }
  Parts p = {o, m, &s};
  return each_section(r, emit_section, &p) && vfs_write(o->out, s.s, s.n);
}

static bool run(Options *o, const char *path) {
  Model m = {0};
  Str s;
  Executable *x = NULL;
  CompileRequest r = {.target = o->target,
                      .passes = &o->passes,
                      .memory_budget = o->exec.memory_budget};
  int n_fetch = 0;
  const char **fetch;
  bool ok = choose_by(&o->exec, &r) && model_open(&m, path, NULL) &&
            model_feed_shapes(&m, &o->shapes, &r.n_feeds, (Feed **)&r.feeds);
  if (ok) {
    if (o->fetch)
      split_names(m.arena, o->fetch, &n_fetch, &fetch);
    else
      n_fetch = model_fetches(&m, &fetch);
    r.prog = m.prog;
    r.n_fetch = n_fetch;
    r.fetch = fetch;
    bool code = !strcmp(o->emit, "llvm") || !strcmp(o->emit, "asm") || !strcmp(o->emit, "ptx") ||
                !strcmp(o->emit, "object");
    r.no_code = true; /* the text forms generate what they need */
    if (code && !strcmp(o->emit, "ptx") && !o->target)
      ok = err_set(E_ARG_001, "--emit ptx needs --target cuda:sm_NN");
  }
  bool parts = ok && program_has_host_ops(m.prog);
  if (ok && !parts && !(x = compile(&r))) {
    ok = parts = err_get() && err_get()->code == E_OPR_006;
    if (parts) err_clear();
  }
  if (ok && parts) ok = emit_parts(o, &m, &r);
  ok = ok && (!x || !o->plan || write_plan(o, &m, x));
  if (ok && x) {
    str_init(&s, m.arena);
    ok = emit(o, &m, x, &s) && vfs_write(o->out, s.s, s.n);
  }
  executable_free(x);
  model_close(&m);
  return ok;
}

int verb_compile(int argc, char **argv) {
  Options o = {.emit = "graph", .out = "-"};
  pass_options_from_env(&o.passes);
  if (err_any()) return report();
  Flag flags[] = {
      {"--target", FLAG_TEXT, &o.target, "T", "cpu (this machine), cpu:NAME or cuda:sm_NN"},
      {"--feed-shape", FLAG_LIST, &o.shapes, "NAME=DIMS", FEED_SHAPE_HELP},
      {"--fetch", FLAG_TEXT, &o.fetch, "A,B", "what to compute (the program's fetches)"},
      {"--emit", FLAG_TEXT, &o.emit, "FORM", "program|graph|dot|html|llvm|asm|ptx|object (graph)"},
      {"-o", FLAG_TEXT, &o.out, "FILE", "where to (stdout)"},
      {"--memory-budget", FLAG_BYTES, &o.exec.memory_budget, "BYTES",
       "compute values again until the plan fits; K, M, G"},
      ALGORITHM_FLAGS(o.exec),
      {"--plan", FLAG_TEXT, &o.plan, "FILE",
       "write the memory plan, with what its peak is made of"},
      {"--print-after", FLAG_TEXT, &o.passes.print_after, "PASS|all",
       "print the graph after a pass, on stderr"},
      {"--stop-after", FLAG_TEXT, &o.passes.stop_after, "PASS",
       "leave out the passes after this one"},
      {"--disable-pass", FLAG_TEXT, &o.passes.disable, "A,B", "leave these out"},
      {"--time-passes", FLAG_BOOL, &o.passes.time_passes, NULL, "what each phase took, on stderr"},
      {"--dump-dir", FLAG_TEXT, &o.passes.dump_dir, "DIR",
       "keep the graph after each pass, and generated code"},
      {0}};
  Usage u = {"MODEL [--target T] [--emit FORM] [-o FILE]",
             "The program after the passes: as text, a picture, or generated code.", 1, 1, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  static const char *const forms[] = {"program", "graph", "dot", "html",
                                      "llvm",    "asm",   "ptx", "object"};
  enum { N = sizeof forms / sizeof *forms };
  for (int i = 0; i < N; i++)
    if (!strcmp(o.emit, forms[i])) return run(&o, args.v[0]) ? 0 : report();
  const char *near = name_nearest(o.emit, N, forms);
  return usage_error(
      "compile: --emit %s is none of program, graph, dot, html, llvm, asm, ptx, object%s%s",
      quoted(o.emit), near ? "; did you mean " : "", near ? near : "");
}
