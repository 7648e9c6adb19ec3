/* edit: cutting, renaming, dropping and fixing shapes in a program file.
 *
 * In: a program, perhaps with its parameters, and edits, done in this order: operators dropped, the program cut to outputs
 * and inputs, input shapes fixed (all other shapes follow), variables renamed. Names are those of the file that is read.
 * Out: the program, verified and its shapes inferred, and the parameters that it still has. */
#include "tools.h"
#include <string.h>

typedef struct Edit {
  const char *out, *params, *inputs, *outputs;
  List shapes, renames, drops;
  bool for_test, separate;
  Model m;
  Program *p;
  Scope *values;
} Edit;

/* ---- drop ---- */

static bool writes(const Op *op, const char *name) {
  for (int i = 0; i < op->outs.n; i++)
    for (int k = 0; k < op->outs.v[i].n; k++)
      if (!strcmp(op->outs.v[i].args[k], name)) return true;
  return false;
}

/* Operators of a type, or the one that writes a variable. A gradient operator may go with its own, so each search is new. */
static Op *find_op(const Program *p, const char *what) {
  for (int b = 0; b < p->blocks.n; b++)
    for (int i = 0; i < p->blocks.v[b]->ops.n; i++) {
      Op *op = p->blocks.v[b]->ops.v[i];
      if (!strcmp(op->type, what) || writes(op, what)) return op;
    }
  return NULL;
}

static bool drop(Edit *e, const char *what) {
  Op *op = find_op(e->p, what);
  if (!op) {
    err_set(E_ARG_001, "no operator has the type %s or writes a variable of that name",
            quoted(what));
    return false;
  }
  bool type = !strcmp(op->type, what), ok = true;
  while (ok && op) {
    ok = prog_drop_op(e->p, op);
    op = ok && type ? find_op(e->p, what) : NULL;
  }
  return ok;
}

/* ---- cut ---- */

static void end_list(Edit *e, const char *text, bool feed, int *n, const char ***names) {
  if (text) {
    split_names(e->m.arena, text, n, names);
    return;
  }
  Var **vars;
  *n = feed ? model_feeds(&e->m, &vars) : model_fetches(&e->m, names);
  if (feed) *names = arena_array(e->m.arena, const char *, *n + 1);
  for (int i = 0; feed && i < *n; i++) (*names)[i] = vars[i]->name;
}

/* What is cut off becomes an input. */
static bool make_inputs(Program *p, int n, const char *const *names) {
  for (int i = 0; i < n; i++) {
    Var *v = block_var(p->blocks.v[0], names[i]);
    if (!v) continue;
    v->persistable = v->is_parameter = false;
    v->need_check_feed = v->stop_gradient = true;
  }
  return true;
}

/* Inputs that are still needed, but not among those named. */
static bool covers(const Edit *e, int n, const char *const *names) {
  const Block *b = e->p->blocks.v[0];
  for (int i = 0; e->inputs && i < b->vars.n; i++) {
    int k = 0;
    while (k < n && strcmp(names[k], b->vars.v[i]->name)) k++;
    if (!b->vars.v[i]->need_check_feed || k < n) continue;
    err_set(E_VER_002, "the outputs need the input %s, which --inputs does not name",
            quoted(b->vars.v[i]->name));
    err_help("add it to --inputs, or cut behind all operators that read it");
    return false;
  }
  return true;
}

static bool cut(Edit *e) {
  int n_in, n_out;
  const char **in, **out;
  end_list(e, e->inputs, true, &n_in, &in);
  end_list(e, e->outputs, false, &n_out, &out);
  bool ends = prog_has_ends(e->p);
  for (int i = 0; i < n_in; i++)
    if (!prog_need_var(e->p, in[i])) return false;
  for (int i = 0; i < n_out; i++)
    if (!prog_need_var(e->p, out[i])) return false;
  prog_remove_ends(e->p);
  return prog_prune(e->p, n_in, in, n_out, out) && covers(e, n_in, in) &&
         (!e->inputs || make_inputs(e->p, n_in, in)) &&
         (!ends || prog_add_ends(e->p, n_in, in, n_out, out));
}

/* ---- shapes ---- */

static bool fix_shapes(Edit *e) {
  int n;
  Feed *feeds;
  List *l = &e->shapes;
  if (!model_feed_shapes(&e->m, l, &n, &feeds)) return false;
  for (int i = 0; i < l->n; i++)
    for (int k = 0; k < n; k++) {
      size_t len = strcspn(l->v[i], "=");
      if (strlen(feeds[k].name) != len || strncmp(feeds[k].name, l->v[i], len)) continue;
      Var *v = block_var(e->p->blocks.v[0], feeds[k].name);
      v->rank = feeds[k].value->rank;
      memcpy(v->dims, feeds[k].value->dims, sizeof *v->dims * (size_t)v->rank);
    }
  return infer_program(e->p, false);
}

/* ---- names ---- */

static bool rename_one(Edit *e, const char *spec) {
  const char *eq = strchr(spec, '=');
  if (!eq) return err_set(E_ARG_001, "--rename %s is not OLD=NEW", quoted(spec));
  const char *from = arena_strn(e->m.arena, spec, (size_t)(eq - spec));
  if (!prog_rename_var(e->p, from, eq + 1)) return false;
  const Tensor *t = scope_get(e->values, from);
  return !t || scope_set(e->values, eq + 1, t->dtype, t->rank, t->dims, t->data);
}

/* ---- all of it ---- */

/* A variable that the cut took away needs no value. */
static bool load_values(Edit *e) {
  return !e->m.params || scope_load_values(e->values, e->m.stored, e->p, e->m.params);
}

static bool edit(Edit *e, const char *path) {
  bool ok = model_open_any(&e->m, path, e->params);
  if (!ok) return false;
  e->p = e->for_test ? prog_clone_for_test(e->m.stored) : prog_clone(e->m.stored);
  if (!e->p) return false;
  e->m.prog = e->p;
  for (int i = 0; ok && i < e->drops.n; i++) ok = drop(e, e->drops.v[i]);
  if (ok && (e->inputs || e->outputs)) ok = cut(e);
  if (ok && e->drops.n) prog_drop_unused(e->p);
  if (ok && e->shapes.n) ok = fix_shapes(e);
  ok = ok && load_values(e);
  for (int i = 0; ok && i < e->renames.n; i++) ok = rename_one(e, e->renames.v[i]);
  ok = ok && prog_verify(e->p) && infer_program(e->p, true);
  return ok && model_save(e->m.arena, e->p, e->m.params ? e->values : NULL, e->out, e->separate);
}

int verb_edit(int argc, char **argv) {
  Edit e = {0};
  Flag flags[] = {
      {"-o", FLAG_TEXT, &e.out, "FILE", "FILE.pdmodel, FILE.kl or DIR/__model__"},
      {"--params", FLAG_TEXT, &e.params, "FILE", "parameters (beside the program)"},
      {"--outputs", FLAG_TEXT, &e.outputs, "A,B", "keep only what these variables need"},
      {"--inputs", FLAG_TEXT, &e.inputs, "X,Y", "where to cut: these variables are fed"},
      {"--feed-shape", FLAG_LIST, &e.shapes, "NAME=DIMS", "x=1x3x224x224; all others follow"},
      {"--rename", FLAG_LIST, &e.renames, "OLD=NEW", "a variable's name"},
      {"--drop", FLAG_LIST, &e.drops, "TYPE|NAME",
       "operators of a type, or the one that writes NAME; an input takes the output's place"},
      {"--for-test", FLAG_BOOL, &e.for_test, NULL, "without backward pass and updates"},
      {"--separate", FLAG_BOOL, &e.separate, NULL, "a file for each parameter"},
      {0}};
  Usage u = {"MODEL -o FILE [--outputs A,B] [--inputs X,Y] [--drop ...] [--rename ...]",
             "Cuts, renames, drops operators and fixes input shapes in a program; its parameters "
             "go along.",
             1, 1, flags};
  List args;
  int rc = parse_args(argc, argv, &u, &args);
  if (rc >= 0) return rc;
  if (!e.out) return usage_error("edit: -o FILE is missing");
  if ((rc = check_target("edit", e.out)) >= 0) return rc;
  e.values = scope_new();
  bool ok = edit(&e, args.v[0]);
  scope_free(e.values);
  model_close(&e.m);
  return ok ? 0 : report();
}
