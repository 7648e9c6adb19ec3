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

static int output_slot(const Kernel *k, const Node *call, int i) {
  for (int j = 0; j < k->outputs.n; j++) {
    const Node *n = k->outputs.v[j];
    bool is_call = n == call && i == 0, is_out = n->prim == P_OUT && n->in[0] == call && n->i == i;
    if (is_call || is_out) return k->inputs.n + j;
  }
  return -1;
}

static int64_t out_bytes(const Node *call, int i) {
  Tensor t;
  call_out(call, i, &t);
  return ((int64_t)tensor_bytes(&t) + 63) / 64 * 64;
}

int64_t call_workspace(const Kernel *k) {
  int64_t bytes = 0;
  for (int i = 0; i < call_n_out(k->core); i++)
    if (output_slot(k, k->core, i) < 0) bytes += out_bytes(k->core, i);
  return bytes;
}

static Tensor tensor_of(const Node *n, void *data) {
  Tensor t = {.dtype = n->dtype, .rank = n->rank, .data = data};
  memcpy(t.dims, n->dims, sizeof *t.dims * (size_t)n->rank);
  return t;
}

static void call_task(const void *self, void *const *bufs, int64_t begin, int64_t end,
                      RunCtx *ctx) {
  const Call *c = self;
  const CustomOp *op = c->node->custom;
  (void)begin, (void)end;
  Tensor *in = ctx->scratch, *out = in + c->node->n_in;
  for (int i = 0; i < c->node->n_in; i++) in[i] = tensor_of(c->node->in[i], bufs[c->in[i]]);
  for (int i = 0; i < c->n_out; i++) {
    call_out(c->node, i, &out[i]);
    out[i].data = c->out[i] < 0 ? (char *)bufs[c->ws] + c->at[i] : bufs[c->out[i]];
    memset(out[i].data, 0, tensor_bytes(&out[i]));
  }
  bool ok = (c->node->i ? op->backward : op->forward)(op, c->node->n_in, in, c->n_out, out);
  if (!ok && !err_any())
    err_set(E_PLG_001, "custom operator %s: its %s function failed", quoted(op->name),
            c->node->i ? "backward" : "forward");
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
    c->out[i] = output_slot(k, n, i);
    c->at[i] = at;
    if (c->out[i] < 0) at += out_bytes(n, i);
  }
  code->scratch_bytes = (int64_t)sizeof(Tensor) * (n->n_in + c->n_out);
  code->n_phases = 1;
  code->phase[0].fn = call_task;
  code->phase[0].self = c;
  code->phase[0].n_tasks = 1;
  return true;
}
