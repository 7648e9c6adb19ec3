/* Runs that a device works on while the host goes on. In: what was handed over; out: results, in the order of the runs. A failed
 * check is found when its run is looked at; the runs after it have changed nothing (see DeviceCalls.finish) and are dropped. */
#include "internal.h"
#include <string.h>

void late_reserve(Executor *e, int n_out, int n_fetch) {
  Late *l = &e->late[e->n_late];
  arena_free(l->arena);
  l->arena = NULL;
  l->arena = arena_new();
  l->out = arena_array(l->arena, DeviceCopy, n_out + 1);
  l->own = arena_array(l->arena, bool, n_fetch + 1);
}

void late_add(Executor *e, Executable *x, int n_out, const DeviceCopy *out, int n_fetch, Tensor *to,
              const bool *own, uint64_t step) {
  Late *l = &e->late[e->n_late++];
  l->x = x;
  l->n_out = n_out;
  l->n_fetch = n_fetch;
  l->to = to;
  l->step = step;
  memcpy(l->out, out, sizeof *out * (size_t)n_out);
  memcpy(l->own, own, sizeof *own * (size_t)n_fetch);
}

/* Waits for the oldest one. */
static bool take_oldest(Executor *e, CheckRecord *check) {
  Late l = e->late[0];
  DeviceRun r = {.n_out = l.n_out, .out = l.out};
  bool ok = e->device->calls->finish(l.x->module, &r, check);
  memmove(e->late, e->late + 1, sizeof *e->late * (DEVICE_LATE - 1));
  e->late[DEVICE_LATE - 1] = l; /* its memory is used again */
  e->n_late--;
  return ok;
}

/* Of one that was just taken and is worth nothing. */
static void drop_results(Executor *e) {
  Late *l = &e->late[DEVICE_LATE - 1];
  for (int i = 0; i < l->n_fetch; i++) {
    if (!l->own[i]) continue;
    mem_free(l->to[i].data);
    l->to[i].data = NULL;
  }
  l->x->seen[l->x->graph->buffers.n] = 0;
}

void late_forget(Executor *e) {
  CheckRecord check;
  bool clean = !err_any();
  while (e->n_late) {
    take_oldest(e, &check);
    drop_results(e);
  }
  if (clean) err_clear();
}

int exec_under_way(const Executor *e) { return e->n_late; }

bool exec_finish(Executor *e, int left) {
  while (e->n_late > left) {
    CheckRecord check = {.failed = 0};
    const Executable *x = e->late[0].x;
    uint64_t step = e->late[0].step;
    if (take_oldest(e, &check) && !check.failed) continue;
    if (check.failed) report_check(x, &check, step);
    drop_results(e);
    e->step = step;
    late_forget(e);
    return false;
  }
  return true;
}
