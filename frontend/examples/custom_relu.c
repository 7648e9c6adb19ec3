/* ReLU as a custom operator in C: y = max(x, 0).
 *
 * In: X, a float32 or float64 tensor. Out: Out of the same shape and type. The same source serves two ways:
 *   linked into a program that calls kiln_plugin() once (see seed.c), or
 *   as a plug-in of the command line:  cc -shared -fPIC -o custom_relu.so custom_relu.c
 *                                      kiln --plugin ./custom_relu.so ops custom_relu */
#include <kiln.h>
#include <string.h>

/* Shapes while the network is built (dims may be -1) and when it runs. */
static bool infer(const kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                  kl_tensor *out) {
  (void)op, (void)n_in, (void)n_out;
  if (in[0].dtype != KL_FLOAT32 && in[0].dtype != KL_FLOAT64) return false;
  out[0].dtype = in[0].dtype;
  out[0].rank = in[0].rank;
  memcpy(out[0].dims, in[0].dims, sizeof in[0].dims);
  return true;
}

#define RELU(T)                                                                                    \
  for (int64_t i = 0; i < n; i++) ((T *)y)[i] = ((T *)x)[i] > 0 ? ((T *)x)[i] : 0;

static bool forward(const kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                    kl_tensor *out) {
  (void)op, (void)n_in, (void)n_out;
  int64_t n = kl_numel(&in[0]);
  void *x = in[0].data, *y = out[0].data;
  if (in[0].dtype == KL_FLOAT32)
    RELU(float)
  else
    RELU(double)
  return true;
}

#define RELU_GRAD(T)                                                                               \
  for (int64_t i = 0; i < n; i++) ((T *)gx)[i] = ((T *)y)[i] > 0 ? ((T *)gy)[i] : 0;

/* in: x, y, gradient of y; out: gradient of x */
static bool backward(const kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                     kl_tensor *out) {
  (void)op, (void)n_in, (void)n_out;
  int64_t n = kl_numel(&in[0]);
  void *y = in[1].data, *gy = in[2].data, *gx = out[0].data;
  if (in[0].dtype == KL_FLOAT32)
    RELU_GRAD(float)
  else
    RELU_GRAD(double)
  return true;
}

KL_API bool kiln_plugin(void);
bool kiln_plugin(void) {
  return kl_register(&(kl_custom_op){"custom_relu", "X -> Out", infer, forward, backward, NULL});
}
