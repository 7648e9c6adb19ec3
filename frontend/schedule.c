/* Learning-rate schedules: the rate as a function of the step, on the host.
 *
 * In: a schedule and a step. Out: a number for kl_set_rate. Only reduce-on-plateau has a memory. */
#include "internal.h"
#include <math.h>

enum Kind { CONSTANT, STEP, MULTI_STEP, EXPONENTIAL, COSINE, PLATEAU, CALLBACK };

kl_schedule kl_rate_constant(double base) { return (kl_schedule){.kind = CONSTANT, .base = base}; }

kl_schedule kl_rate_step(double base, int64_t every, double factor) {
  return (kl_schedule){.kind = STEP, .base = base, .n = every > 0 ? every : 1, .a = factor};
}

kl_schedule kl_rate_multi_step(double base, int n, const int64_t *milestones, double factor) {
  return (
      kl_schedule){.kind = MULTI_STEP, .base = base, .n = n, .milestones = milestones, .a = factor};
}

kl_schedule kl_rate_exponential(double base, double factor) {
  return (kl_schedule){.kind = EXPONENTIAL, .base = base, .a = factor};
}

kl_schedule kl_rate_cosine(double base, double low, int64_t steps) {
  return (kl_schedule){.kind = COSINE, .base = base, .a = low, .n = steps > 0 ? steps : 1};
}

kl_schedule kl_rate_plateau(double base, double factor, int64_t patience) {
  return (kl_schedule){
      .kind = PLATEAU, .base = base, .a = factor, .n = patience, .best = INFINITY, .rate = base};
}

kl_schedule kl_rate_callback(double (*fn)(int64_t step, void *user), void *user) {
  return (kl_schedule){.kind = CALLBACK, .fn = fn, .user = user};
}

kl_schedule kl_rate_warm_up(kl_schedule after, double from, int64_t steps) {
  after.warm_steps = steps;
  after.warm_from = from;
  return after;
}

static double multi_step(const kl_schedule *s, int64_t step) {
  double rate = s->base;
  for (int64_t i = 0; i < s->n && NEED(s->milestones); i++)
    if (step >= s->milestones[i]) rate *= s->a;
  return rate;
}

static double cosine(const kl_schedule *s, int64_t step) {
  double t = step < s->n ? (double)step / (double)s->n : 1;
  return s->a + (s->base - s->a) * 0.5 * (1 + cos(3.14159265358979323846 * t));
}

static double after_warm_up(const kl_schedule *s, int64_t step) {
  switch ((enum Kind)s->kind) {
  case CONSTANT: return s->base;
  case STEP: return s->base * pow(s->a, (double)(step / s->n));
  case MULTI_STEP: return multi_step(s, step);
  case EXPONENTIAL: return s->base * pow(s->a, (double)step);
  case COSINE: return cosine(s, step);
  case PLATEAU: return s->rate;
  case CALLBACK: return NEED(s->fn) ? s->fn(step, s->user) : s->base;
  }
  return s->base;
}

double kl_rate(kl_schedule *s, int64_t step) {
  if (!NEED(s)) return 0;
  if (step >= s->warm_steps) return after_warm_up(s, step - s->warm_steps);
  double target = after_warm_up(s, 0);
  return s->warm_from + (target - s->warm_from) * (double)step / (double)s->warm_steps;
}

void kl_rate_observe(kl_schedule *s, double metric) {
  if (!NEED(s)) return;
  if (metric < s->best) {
    s->best = metric;
    s->bad = 0;
  } else if (++s->bad > s->n) {
    s->rate *= s->a;
    s->bad = 0;
  }
}
