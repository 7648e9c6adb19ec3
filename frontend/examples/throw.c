/* A gradient through a simulation: which push makes a falling ball hit the target? The loop takes as many steps as the ball
 * needs to reach the ground, so its length depends on the push. */
#include <kiln.h>
#include <stdio.h>

int main(void) {
  kl_net *net = kl_net_new();
  int64_t one[] = {1};
  kl_var *push = kl_parameter(net, "push", KL_FLOAT32, 1, one,
                              (kl_param){.name = "push", .init = kl_constant(1)}, false);
  kl_var *dt = kl_fill(net, KL_FLOAT32, 0.02, 1), *zero = kl_fill(net, KL_FLOAT32, 0, 1);
  kl_var *fall = kl_fill(net, KL_FLOAT32, 9.81 * 0.02, 1), *target = kl_fill(net, KL_FLOAT32, 5, 1);

  kl_var *x = kl_copy(zero), *height = kl_fill(net, KL_FLOAT32, 2, 1), *up = kl_copy(push);
  kl_block *flight = kl_while(kl_less_than(zero, height));
  kl_assign(x, kl_add(x, kl_mul(push, dt)));
  kl_assign(height, kl_add(height, kl_mul(up, dt)));
  kl_assign(up, kl_sub(up, fall));
  kl_end_while(flight, kl_less_than(zero, height));
  kl_var *loss = kl_named(kl_mse(x, target), "loss");
  kl_minimize(loss, kl_sgd(0.1));

  kl_exec *exe = kl_exec_new(kl_exec_defaults);
  kl_run(exe, kl_startup(net), NULL, NULL);
  float l = 0;
  kl_tensor tl = kl_scalar(KL_FLOAT32, &l);
  for (int i = 0; i < 60 && !kl_failed(); i++)
    kl_run(exe, kl_main(net), NULL, kl_fetches({"loss", &tl}));
  if (kl_failed()) return fprintf(stderr, "%s", kl_error()), 1;
  printf("push %.2f m/s lands off the target by %.4f m^2\n", *(float *)kl_get(exe, "push")->data,
         l);
  kl_exec_free(exe), kl_net_free(net);
}
