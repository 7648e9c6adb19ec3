/* The program at the head of kiln.h: a network learns exclusive or. */
#include <kiln.h>
#include <stdio.h>

int main(void) {
  kl_net *net = kl_net_new();
  kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 2), *y = kl_data(net, "y", KL_FLOAT32, -1, 1);
  kl_var *loss = kl_mse(kl_fc(kl_fc(x, 8, .act = "tanh"), 1), y);
  kl_minimize(loss, kl_adam(0.05));

  kl_exec *exe = kl_exec_new(kl_exec_defaults);
  kl_run(exe, kl_startup(net), NULL, NULL);
  float xs[4][2] = {{0, 0}, {0, 1}, {1, 0}, {1, 1}}, ys[4] = {0, 1, 1, 0}, l = 0;
  kl_tensor tx = kl_array(KL_FLOAT32, xs, 4, 2), ty = kl_array(KL_FLOAT32, ys, 4, 1);
  kl_tensor tl = kl_scalar(KL_FLOAT32, &l);
  for (int i = 0; i < 200 && !kl_failed(); i++)
    kl_run(exe, kl_main(net), kl_feeds({"x", &tx}, {"y", &ty}), kl_fetches({kl_name(loss), &tl}));
  if (kl_failed()) return fprintf(stderr, "%s", kl_error()), 1;
  printf("loss %g\n", l);
  kl_exec_free(exe), kl_net_free(net);
}
