/* Graphs: what capturing streams record, and launches of it: nodes are executed in a random order that their edges allow. */
#include "driver.h"
#include <stdlib.h>
#include <string.h>

static Node *node_new(CUgraph g, const Work *w, int n_after, const int *after) {
  Node *n = host_alloc(sizeof *n);
  n->w = *w;
  n->graph = g;
  n->index = g->n;
  n->after = host_alloc((size_t)(n_after + 1) * sizeof(int));
  n->n_after = n_after;
  if (n_after) memcpy(n->after, after, (size_t)n_after * sizeof(int));
  g->node = host_grow(g->node, (size_t)(g->n + 1) * sizeof *g->node);
  return g->node[g->n++] = n;
}

CUresult graph_record(CUstream s, const Work *w) {
  if (w->kind == WORK_FREE || w->kind == WORK_GRAPH) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  Node *n = node_new(s->capture, w, s->n_tail, s->tail);
  s->tail = host_grow(s->tail, sizeof(int));
  s->tail[0] = n->index;
  s->n_tail = 1;
  return CUDA_SUCCESS;
}

static void nodes_free(CUgraph g) {
  for (int k = 0; k < g->n; k++) {
    work_free(&g->node[k]->w);
    free(g->node[k]->after);
    free(g->node[k]);
  }
  free(g->node);
}

void graph_free(CUgraph g) {
  nodes_free(g);
  free(g);
}

static void graph_hash(CUgraphExec x) {
  for (int k = 0; k < x->g.n; k++) work_hash(&x->g.node[k]->w);
}

CUresult graph_run(CUgraphExec x) {
  const struct CUgraph_st *g = &x->g;
  bool *done = host_alloc((size_t)g->n + 1);
  int *can = host_alloc((size_t)(g->n + 1) * sizeof *can);
  CUresult r = CUDA_SUCCESS;
  for (int left = g->n; left && !r; left--) {
    int m = 0;
    for (int k = 0; k < g->n; k++) {
      bool free_to_go = !done[k];
      for (int j = 0; j < g->node[k]->n_after && free_to_go; j++)
        free_to_go = done[g->node[k]->after[j]];
      if (free_to_go) can[m++] = k;
      if (m > 8) break;
    }
    int k = can[random_next() % (uint64_t)m];
    r = work_run(&g->node[k]->w);
    done[k] = true;
  }
  free(done);
  free(can);
  return r;
}

/* ---- capture ---- */

API cuStreamBeginCapture_v2(CUstream hStream, CUstreamCaptureMode mode) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  (void)mode;
  CUstream s = stream_of(hStream);
  if (!s) return CUDA_ERROR_INVALID_HANDLE;
  if (s == &context_now()->null_stream) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (s->capture) return CUDA_ERROR_INVALID_VALUE;
  s->capture = host_alloc(sizeof *s->capture);
  s->origin = true;
  s->n_tail = 0;
  s->invalid = false;
  return CUDA_SUCCESS;
}

/* Every node must come before the origin's last ones: else another stream's work was not joined. */
static bool joined(const struct CUgraph_st *g, const CUstream s) {
  bool *seen = host_alloc((size_t)g->n + 1);
  int *stack = host_alloc((size_t)(g->n + 1) * sizeof *stack), depth = 0, n = 0;
  for (int k = 0; k < s->n_tail; k++)
    if (!seen[s->tail[k]]) seen[s->tail[k]] = true, stack[depth++] = s->tail[k];
  while (depth) {
    const Node *x = g->node[stack[--depth]];
    n++;
    for (int k = 0; k < x->n_after; k++)
      if (!seen[x->after[k]]) seen[x->after[k]] = true, stack[depth++] = x->after[k];
  }
  free(seen);
  free(stack);
  return n == g->n;
}

API cuStreamEndCapture(CUstream hStream, CUgraph *phGraph) {
  ENTER(NEED_INIT | NEED_CONTEXT | RELEASES);
  CUstream s = stream_of(hStream);
  if (!s) return CUDA_ERROR_INVALID_HANDLE;
  if (!s->capture || !s->origin) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
  CUgraph g = s->capture;
  CUresult r = call_.result   ? call_.result
               : s->invalid   ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
               : joined(g, s) ? CUDA_SUCCESS
                              : CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
  for (Object *o = object_first(IS_STREAM); o; o = o->next) {
    CUstream t = (CUstream)o;
    if (t->capture == g) t->capture = NULL, t->n_tail = 0, t->origin = false;
  }
  for (Object *o = object_first(IS_EVENT); o; o = o->next)
    if (((CUevent)o)->capture == g) ((CUevent)o)->capture = NULL;
  *phGraph = NULL;
  if (r) {
    graph_free(g);
    return r;
  }
  object_add(&g->o, IS_GRAPH);
  *phGraph = g;
  return CUDA_SUCCESS;
}

API cuStreamIsCapturing(CUstream hStream, CUstreamCaptureStatus *captureStatus) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  CUstream s = stream_of(hStream);
  if (!s) return CUDA_ERROR_INVALID_HANDLE;
  *captureStatus = !s->capture  ? CU_STREAM_CAPTURE_STATUS_NONE
                   : s->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  return CUDA_SUCCESS;
}

API cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
  ENTER(NEED_INIT);
  (void)mode;
  return CUDA_SUCCESS;
}

/* ---- graphs ---- */

API cuGraphDestroy(CUgraph hGraph) {
  ENTER(NEED_INIT | RELEASES);
  if (!object_is(hGraph, IS_GRAPH)) return CUDA_ERROR_INVALID_HANDLE;
  object_remove(&hGraph->o);
  graph_free(hGraph);
  RELEASED;
}

static Work work_copy(const Work *w) {
  Work c = *w;
  bool kernel = w->kind == WORK_KERNEL;
  if (!kernel && w->kind != WORK_LIBRARY) return c;
  uint64_t n = kernel ? w->function->f->param_bytes : w->bytes;
  c.param = host_alloc(n + 16);
  memcpy(c.param, w->param, n);
  return c;
}

API cuGraphInstantiateWithFlags(CUgraphExec *phGraphExec, CUgraph hGraph,
                                unsigned long long flags) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  (void)flags;
  if (!object_is(hGraph, IS_GRAPH)) return CUDA_ERROR_INVALID_HANDLE;
  CUgraphExec x = host_alloc(sizeof *x);
  for (int k = 0; k < hGraph->n; k++) {
    const Node *n = hGraph->node[k];
    Work w = work_copy(&n->w);
    node_new(&x->g, &w, n->n_after, n->after);
  }
  object_add(&x->o, IS_EXEC);
  *phGraphExec = x;
  return CUDA_SUCCESS;
}

API cuGraphExecDestroy(CUgraphExec hGraphExec) {
  ENTER(NEED_INIT | RELEASES);
  if (!object_is(hGraphExec, IS_EXEC)) return CUDA_ERROR_INVALID_HANDLE;
  if (hGraphExec->pending && context_now()) stream_finish(NULL);
  object_remove(&hGraphExec->o);
  nodes_free(&hGraphExec->g);
  free(hGraphExec);
  RELEASED;
}

API cuGraphUpload(CUgraphExec hGraphExec, CUstream hStream) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  return object_is(hGraphExec, IS_EXEC) && stream_of(hStream) ? CUDA_SUCCESS
                                                              : CUDA_ERROR_INVALID_HANDLE;
}

API cuGraphLaunch(CUgraphExec hGraphExec, CUstream hStream) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (!object_is(hGraphExec, IS_EXEC) || !stream_of(hStream)) return CUDA_ERROR_INVALID_HANDLE;
  CUresult r = hGraphExec->pending ? stream_finish(NULL)
                                   : CUDA_SUCCESS; /* launches of one graph follow one another */
  if (r) return r;
  graph_hash(hGraphExec);
  hGraphExec->pending++;
  hGraphExec->launches++;
  r = stream_add(hStream, &(Work){.kind = WORK_GRAPH, .exec = hGraphExec});
  if (r) hGraphExec->pending--;
  return r;
}

API cuGraphGetNodes(CUgraph hGraph, CUgraphNode *nodes, size_t *numNodes) {
  ENTER(NEED_INIT);
  if (!object_is(hGraph, IS_GRAPH)) return CUDA_ERROR_INVALID_HANDLE;
  for (size_t k = 0; nodes && k < *numNodes; k++)
    nodes[k] = k < (size_t)hGraph->n ? hGraph->node[k] : NULL;
  if (!nodes || *numNodes > (size_t)hGraph->n) *numNodes = (size_t)hGraph->n;
  return CUDA_SUCCESS;
}

API cuGraphNodeGetType(CUgraphNode hNode, CUgraphNodeType *type) {
  ENTER(NEED_INIT);
  static const int types[] = {CU_GRAPH_NODE_TYPE_KERNEL, CU_GRAPH_NODE_TYPE_MEMCPY,
                              CU_GRAPH_NODE_TYPE_MEMSET, CU_GRAPH_NODE_TYPE_HOST,
                              CU_GRAPH_NODE_TYPE_EMPTY};
  if (!hNode || hNode->w.kind > WORK_EMPTY) return CUDA_ERROR_INVALID_VALUE;
  *type = (CUgraphNodeType)types[hNode->w.kind];
  return CUDA_SUCCESS;
}

API cuGraphKernelNodeGetParams_v2(CUgraphNode hNode, CUDA_KERNEL_NODE_PARAMS_v2 *nodeParams) {
  ENTER(NEED_INIT);
  if (!hNode || hNode->w.kind != WORK_KERNEL) return CUDA_ERROR_INVALID_VALUE;
  const Work *w = &hNode->w;
  *nodeParams = (CUDA_KERNEL_NODE_PARAMS_v2){.func = w->function,
                                             .gridDimX = w->grid[0],
                                             .gridDimY = w->grid[1],
                                             .gridDimZ = w->grid[2],
                                             .blockDimX = w->block[0],
                                             .blockDimY = w->block[1],
                                             .blockDimZ = w->block[2],
                                             .sharedMemBytes = w->shared};
  return CUDA_SUCCESS;
}

API cuGraphExecKernelNodeSetParams_v2(CUgraphExec hGraphExec, CUgraphNode hNode,
                                      const CUDA_KERNEL_NODE_PARAMS_v2 *nodeParams) {
  ENTER(NEED_INIT | NEED_CONTEXT);
  if (!object_is(hGraphExec, IS_EXEC)) return CUDA_ERROR_INVALID_HANDLE;
  if (!hNode || hNode->index >= hGraphExec->g.n) return CUDA_ERROR_INVALID_VALUE;
  Work *old = &hGraphExec->g.node[hNode->index]->w, w;
  const CUDA_KERNEL_NODE_PARAMS_v2 *p = nodeParams;
  if (old->kind != WORK_KERNEL) return CUDA_ERROR_INVALID_VALUE;
  if (hGraphExec->pending) stream_finish(NULL);
  CUresult r = kernel_work(&w, p->func, (uint32_t[]){p->gridDimX, p->gridDimY, p->gridDimZ},
                           (uint32_t[]){p->blockDimX, p->blockDimY, p->blockDimZ},
                           p->sharedMemBytes, p->kernelParams, p->extra);
  if (r) return r;
  work_free(old);
  *old = w;
  return CUDA_SUCCESS;
}
