/* K_CALL: the C function of a custom operator, called once on the calling thread with tensors over the kernel's buffers.
 * Outputs that nothing reads get a place in the workspace. A failure is left in the thread's diagnostic. */
#include "cpu.h"

typedef struct Call {
  const Node *node;
  int n_out;
  int *in, *out; /* slots; out -1: in the workspace */
  int64_t *at;   /* offset there */
  int ws;
} Call;

int call_output(const Kernel *k, int i) {
  const Node *call = k->core;
  for (int j = 0; j < k->outputs.n; j++) {
    const Node *n = k->outputs.v[j];
    bool is_call = n == call && i == 0, is_out = n->prim == P_OUT && n->in[0] == call && n->i == i;
    if (is_call || is_out) return j;
  }
  return -1;
}

bool call_function(const Node *call, void *const *in, void *const *out, Tensor *t) {
  const CustomOp *op = call->custom;
  int n_out = call_n_out(call);
  Tensor *to = t + call->n_in;
  for (int i = 0; i < call->n_in; i++) {
    const Node *n = call->in[i];
    t[i] = (Tensor){.dtype = n->dtype, .rank = n->rank, .data = in[i]};
    memcpy(t[i].dims, n->dims, sizeof *t[i].dims * (size_t)n->rank);
  }
  for (int i = 0; i < n_out; i++) {
    call_out(call, i, &to[i]);
    to[i].data = out[i];
    memset(to[i].data, 0, tensor_bytes(&to[i]));
  }
  bool ok = (call->i ? op->backward : op->forward)(op, call->n_in, t, n_out, to);
  if (!ok && !err_any())
    err_set(E_PLG_001, "custom operator %s: its %s function failed", quoted(op->name),
            call->i ? "backward" : "forward");
  return ok;
}

static int64_t out_bytes(const Node *call, int i) {
  Tensor t;
  call_out(call, i, &t);
  return ((int64_t)tensor_bytes(&t) + 63) / 64 * 64;
}

int64_t call_workspace(const Kernel *k) {
  int64_t bytes = 0;
  for (int i = 0; i < call_n_out(k->core); i++)
    if (call_output(k, i) < 0) bytes += out_bytes(k->core, i);
  return bytes;
}

static void call_task(const void *self, void *const *bufs, int64_t begin, int64_t end,
                      RunCtx *ctx) {
  const Call *c = self;
  const int n_in = c->node->n_in;
  (void)begin, (void)end;
  Tensor *t = ctx->scratch;
  void **in = (void **)(void *)(t + n_in + c->n_out), **out = in + n_in;
  for (int i = 0; i < n_in; i++) in[i] = bufs[c->in[i]];
  for (int i = 0; i < c->n_out; i++)
    out[i] = c->out[i] < 0 ? (char *)bufs[c->ws] + c->at[i] : bufs[c->out[i]];
  call_function(c->node, in, out, t);
}

bool call_code(Arena *a, const Kernel *k, KernelCode *code) {
  const Node *n = k->core;
  Call *c = arena_new_of(a, Call);
  c->node = n;
  c->n_out = call_n_out(n);
  c->ws = k->inputs.n + k->outputs.n;
  c->in = arena_array(a, int, n->n_in);
  c->out = arena_array(a, int, c->n_out);
  c->at = arena_array(a, int64_t, c->n_out);
  for (int i = 0; i < n->n_in; i++)
    if (n->in[i]->rank > KL_VAR_RANK || (c->in[i] = kernel_input(k, n->in[i])) < 0)
      return err_set(E_GEN_002, "%s: operand %d of the call is not stored", k->name, i);
  int64_t at = 0;
  for (int i = 0; i < c->n_out; i++) {
    c->out[i] = call_output(k, i);
    c->at[i] = at;
    if (c->out[i] < 0)
      at += out_bytes(n, i);
    else
      c->out[i] += k->inputs.n;
  }
  code->scratch_bytes = (int64_t)(sizeof(Tensor) + sizeof(void *)) * (n->n_in + c->n_out);
  code->n_phases = 1;
  code->phase[0].fn = call_task;
  code->phase[0].self = c;
  code->phase[0].n_tasks = 1;
  return true;
}
