/* Building calls that fail leave no trace: once the error is cleared, the net can be built on and run.
 *
 * In: a net before a building call, and after it. Out: the operators, variables and blocks that the call appended are gone if
 * it failed. Calls of layers call others: the outermost one decides. */
#include "internal.h"

static void mark_block(kl_net *net, const Block *b, bool inserts) {
  Arena *a = net->main->arena;
  BlockMark m = {.ops = b->ops.n, .vars = b->vars.n};
  if (inserts) {
    m.all = arena_dup(a, b->ops.v, sizeof *m.all * (size_t)m.ops);
    m.roles = arena_array(a, int, m.ops + 1);
    for (int i = 0; i < m.ops; i++) m.roles[i] = op_role(m.all[i]);
  }
  vec_add(a, &net->mark.blocks, m);
}

void step_begin(const Step *s, bool inserts) {
  kl_net *net = s->net;
  if (!net || net->mark.owner || err_any()) return;
  NetMark *m = &net->mark;
  m->block = net->block;
  m->layer = net->layer;
  m->at = net->at;
  m->prefix = net->prefix;
  m->n_tmp = net->n_tmp;
  m->blocks.n = 0;
  for (int i = 0; i < net->main->blocks.n; i++) mark_block(net, net->main->blocks.v[i], inserts);
  mark_block(net, net->startup->blocks.v[0], inserts);
  m->owner = s;
}

static void take_back(Block *b, const BlockMark *m) {
  for (int i = 0; m->all && i < m->ops; i++) {
    b->ops.v[i] = m->all[i];
    if (op_role(m->all[i]) != m->roles[i]) op_set_int(m->all[i], "op_role", m->roles[i]);
  }
  b->ops.n = m->ops;
  for (int i = m->vars; i < b->vars.n; i++) map_put(b->by_name, b->vars.v[i]->name, NULL);
  b->vars.n = m->vars;
  b->prog->edits++;
}

void step_end(Step *s) {
  kl_net *net = s->net;
  if (!net || net->mark.owner != s) return;
  NetMark *m = &net->mark;
  m->owner = NULL;
  if (!err_any()) return;
  net->block = m->block;
  net->layer = m->layer;
  net->at = m->at;
  net->prefix = m->prefix;
  net->n_tmp = m->n_tmp;
  int n = m->blocks.n - 1;
  for (int i = 0; i < n; i++) take_back(net->main->blocks.v[i], &m->blocks.v[i]);
  net->main->blocks.n = n;
  take_back(net->startup->blocks.v[0], &m->blocks.v[n]);
}
