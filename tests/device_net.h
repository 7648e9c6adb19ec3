/* Small networks in training: what the tests on the simulated GPU share. */
#ifndef KILN_TESTS_DEVICE_NET_H
#define KILN_TESTS_DEVICE_NET_H
#include "../frontend/internal.h"

typedef kl_var *Build(kl_var *x);
Build net_mlp, net_lenet;
/* Updates of many small parameters become kernels of as many buffers as one may have. */
Build net_deep;
/* Running statistics are written at the exit, dropout needs the same random numbers. */
Build net_mixed;
/* Has an operator made of C functions, which fails from call net_bad_call on; net_made_calls counts them. */
Build net_calls;
extern int net_made_calls, net_bad_call;

typedef struct Net {
  kl_net *net;
  kl_var *rate;
  int batch, image; /* of image x image pixels; 0: 48 numbers */
  float *x;
  int64_t *y;
} Net;

Net net_new(Build *build, bool adam, int batch, int image);
void net_free(Net *n);
/* An executor that has run the startup program; NULL: an error. */
kl_exec *net_start(const Net *n, const char *device, kl_exec_options o);
bool net_step(kl_exec *exe, const Net *n, float *loss); /* loss NULL: nothing is fetched */
/* The same, started only; exec_finish ends it. out: the loss. */
bool net_start_step(kl_exec *exe, const Net *n, Tensor *out);
void net_check(bool ok); /* fails the test with the error's text */
/* All variables of both, relative to the largest element of each. */
void expect_same_state(kl_exec *a, kl_exec *b, double most);
#endif
