/* Convolution layers of ResNet-50 and MobileNetV1, batch 1, forward and both gradients, on one thread, beside oneDNN:
 * layer_bench [WORD]: those whose name holds WORD.
 *
 * Ours are programs of one convolution or one gradient, compiled and run as any other. What they are fed is brought into the
 * layout that the convolution wants by a kernel of its own, which does not count: inside networks there is none. The result is
 * state. The gradient of a filter has the forward pass beside it, which does not count either. So the time is that which the profile has for the kernel with most arithmetic. oneDNN has its operands in
 * the layouts that it asks for. In rounds, ours, oneDNN and the peak loop follow one another. Out: a line of JSON each: medians of microseconds, least and greatest, of all three. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../executor/executor.h"
#include "../../frontend/kiln.h"
#include "../../passes/passes.h"
#include "../../tools/peak.h"
#include "peers/onednn.h"
#include "timing.h"

enum { ROUNDS = 9 };

typedef struct Layer {
  const char *name;
  int64_t c, o, size, k, stride, groups;
} Layer;

static const Layer layers[] = {{"7x7/2 3-64 224", 3, 64, 224, 7, 2, 1},
                               {"3x3 64-64 56", 64, 64, 56, 3, 1, 1},
                               {"3x3 128-128 28", 128, 128, 28, 3, 1, 1},
                               {"3x3 256-256 14", 256, 256, 14, 3, 1, 1},
                               {"3x3 512-512 7", 512, 512, 7, 3, 1, 1},
                               {"1x1 256-64 56", 256, 64, 56, 1, 1, 1},
                               {"1x1 64-256 56", 64, 256, 56, 1, 1, 1},
                               {"1x1 1024-256 14", 1024, 256, 14, 1, 1, 1},
                               {"1x1 512-2048 7", 512, 2048, 7, 1, 1, 1},
                               {"depthwise 3x3 32 112", 32, 32, 112, 3, 1, 32},
                               {"depthwise 3x3 512 14", 512, 512, 14, 3, 1, 512}};
static const char *const parts[] = {"forward", "input", "filter"};

static void die(void) {
  fprintf(stderr, "%s", kl_error());
  exit(1);
}

/* The program of a layer writes one state: from x and the filter w, g and w, or x and g. */
static kl_net *program(const Layer *l, int part) {
  kl_net *net = kl_net_new();
  int64_t out = (l->size + l->k / 2 * 2 - l->k) / l->stride + 1, cg = l->c / l->groups;
  int64_t w_dims[4] = {l->o, cg, l->k, l->k};
  int64_t x_dims[4] = {1, l->c, l->size, l->size};
  kl_var *x = part == ONEDNN_INPUT
                  ? kl_parameter(net, "x", KL_FLOAT32, 4, x_dims, (kl_param){.name = "x"}, false)
                  : kl_data_at(KL_HERE, net, "x", KL_FLOAT32, 4, x_dims);
  kl_var *w = kl_parameter(net, "w", KL_FLOAT32, 4, w_dims, (kl_param){.name = "w"}, false);
  char attrs[200];
  snprintf(attrs, sizeof attrs,
           "strides=[%d,%d] paddings=[%d,%d] groups=%d dilations=[1,1] data_format='NCHW' "
           "padding_algorithm='EXPLICIT'",
           (int)l->stride, (int)l->stride, (int)l->k / 2, (int)l->k / 2, (int)l->groups);
  kl_var *y = kl_op(net, "conv2d", attrs, "Input", x, "Filter", w);
  if (part != ONEDNN_FORWARD) { /* the gradient of sum(y g): that of y is g */
    kl_var *g = kl_data(net, "g", KL_FLOAT32, 1, l->o, out, out);
    kl_backward(kl_unary("reduce_sum", "reduce_all=true", kl_mul(y, g)));
    if (part == ONEDNN_FILTER)
      y->persistable = true; /* as in networks, the forward pass decides the layout */
    y = kl_find(net, part == ONEDNN_INPUT ? "x@GRAD" : "w@GRAD");
  }
  if (!y) die();
  y->persistable = true;
  return net;
}

typedef struct Ours {
  kl_net *net;
  Executor *e;
  Scope *s;
  Tensor value[2];
  Feed feeds[2];
  double flops;
} Ours;

static void ours_open(Ours *o, const Layer *l, int part) {
  ExecOptions options = {.threads = 1, .profile = true};
  *o = (Ours){.net = program(l, part), .e = exec_new(&options), .s = scope_new()};
  int64_t out = (l->size + l->k / 2 * 2 - l->k) / l->stride + 1;
  o->value[0] = (Tensor){.dtype = DT_FLOAT32, .rank = 4, .dims = {1, l->c, l->size, l->size}};
  o->value[1] = (Tensor){.dtype = DT_FLOAT32, .rank = 4, .dims = {1, l->o, out, out}};
  for (int i = 0; i < 2; i++) {
    o->feeds[i] = (Feed){i ? "g" : "x", &o->value[i]};
    float *v = o->value[i].data = mem_alloc(tensor_bytes(&o->value[i]));
    for (int64_t k = 0; k < tensor_numel(&o->value[i]); k++) v[k] = (float)(k % 17) / 17;
  }
  if (!exec_run(o->e, o->s, (Program *)kl_startup(o->net), 0, NULL, 0, NULL, NULL)) die();
  o->flops = 2.0 * (double)(out * out * l->o * (l->c / l->groups) * l->k * l->k);
}

/* Microseconds of a run of the kernel with most arithmetic, of those whose name has the word. */
static double busiest(const Executor *e, const char *word) {
  char *text = NULL;
  size_t n;
  FILE *to = open_memstream(&text, &n);
  exec_profile_print(e, NULL, to, true);
  fclose(to);
  double most = 0, us = 0, runs, ms, flops;
  for (char *at = strstr(text, "\"kernels\""); (at = strstr(at, "{\"name\"")); at++) {
    const char *end = strchr(at, '}'), *named = strstr(at, word), *data = strstr(at, "\"runs\"");
    if (end && named && named < end && data &&
        sscanf(data, "\"runs\": %lf, \"ms\": %lf, \"flops\": %lf", &runs, &ms, &flops) == 3 &&
        flops / runs > most)
      most = flops / runs, us = ms * 1e3 / runs;
  }
  free(text);
  return us;
}

static double ours_run(Ours *o, int part, int times) {
  exec_profile_clear(o->e);
  for (int i = 0; i < times; i++)
    if (!exec_run(o->e, o->s, (Program *)kl_main(o->net), part == ONEDNN_FILTER ? 2 : 1,
                  &o->feeds[part == ONEDNN_INPUT], 0, NULL, NULL))
      die();
  return busiest(o->e, part == ONEDNN_FORWARD ? "conv2d" : "conv2d_grad");
}

static void ours_close(Ours *o) {
  for (int i = 0; i < 2; i++) mem_free(o->value[i].data);
  exec_free(o->e);
  scope_free(o->s);
  kl_net_free(o->net);
}

static void print(const char *name, double v[ROUNDS], double scale) {
  sort_rounds(v, ROUNDS);
  printf(", \"%s\": {\"median\": %.3f, \"min\": %.3f, \"max\": %.3f}", name, v[ROUNDS / 2] * scale,
         v[0] * scale, v[ROUNDS - 1] * scale);
}

static void measure(const Layer *l, int part, Pool *pool, bool with_onednn) {
  Ours o;
  ours_open(&o, l, part);
  OnednnConv *peer = with_onednn ? onednn_conv((OnednnPart)part, 1, l->c, l->o, l->size, l->k,
                                               l->stride, l->k / 2, l->groups)
                                 : NULL;
  double t[3][ROUNDS];
  int times = 1 + (int)(10e6 / (1e5 + o.flops) * 40); /* some ten milliseconds */
  ours_run(&o, part, 3);
  if (peer) onednn_run(peer, 3);
  for (int r = 0; r < ROUNDS; r++) {
    t[0][r] = ours_run(&o, part, times);
    double begin = now();
    if (peer && !onednn_run(peer, times)) peer = NULL;
    t[1][r] = (now() - begin) * 1e-3 / times;
    t[2][r] = peak_flops(pool, 2e-3);
  }
  printf("{\"name\": \"%s\", \"part\": \"%s\", \"flops\": %.0f", l->name, parts[part], o.flops);
  print("kiln_us", t[0], 1);
  if (peer) print("onednn_us", t[1], 1);
  print("peak_gflops", t[2], 1e-9);
  printf(", \"kernels\": %d}\n", exec_last_plan(o.e).kernels);
  fflush(stdout);
  onednn_free(peer);
  ours_close(&o);
}

int main(int argc, char **argv) {
  layout_always = true; /* a program of one gradient is no reason for the pass to choose layouts */
  bool peer = onednn_open();
  if (!peer) fprintf(stderr, "without oneDNN: %s\n", onednn_failure());
  Pool *pool = pool_new(1);
  for (int part = 0; part < 3; part++)
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++) {
      char name[64];
      snprintf(name, sizeof name, "%s %s", layers[i].name, parts[part]);
      if (argc < 2 || strstr(name, argv[1])) measure(&layers[i], part, pool, peer);
    }
  pool_free(pool);
  return 0;
}
