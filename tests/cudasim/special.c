/* Special registers: a table of names; those that a function reads are registers that are filled when a block starts. */
#include "sim.h"
#include <string.h>

typedef uint64_t Value(const Group *g, const Warp *w, uint32_t lane);

static uint32_t thread(const Warp *w, uint32_t lane) { return (uint32_t)w->index * LANES + lane; }

#define VALUE(name, value)                                                                         \
  static uint64_t name(const Group *g, const Warp *w, uint32_t l) {                                \
    (void)g, (void)w, (void)l;                                                                     \
    return value;                                                                                  \
  }

VALUE(tid_x, thread(w, l) % g->l->block[0])
VALUE(tid_y, thread(w, l) / g->l->block[0] % g->l->block[1])
VALUE(tid_z, thread(w, l) / g->l->block[0] / g->l->block[1])
VALUE(ntid_x, g->l->block[0])
VALUE(ntid_y, g->l->block[1])
VALUE(ntid_z, g->l->block[2])
VALUE(ctaid_x, g->id[0])
VALUE(ctaid_y, g->id[1])
VALUE(ctaid_z, g->id[2])
VALUE(nctaid_x, g->l->grid[0])
VALUE(nctaid_y, g->l->grid[1])
VALUE(nctaid_z, g->l->grid[2])
VALUE(laneid, l)
VALUE(warpid, (uint64_t)w->index)
VALUE(nwarpid, (uint64_t)g->n_warps)
VALUE(zero, 0)
VALUE(mask_eq, 1u << l)
VALUE(mask_lt, (1u << l) - 1)
VALUE(mask_le, (2u << l) - 1)
VALUE(mask_gt, ~((2u << l) - 1))
VALUE(mask_ge, ~((1u << l) - 1))
VALUE(dynamic_shared, g->l->dynamic_shared)
VALUE(total_shared, g->shared_bytes)
VALUE(clock_now, g->insns * 4)

static const struct {
  const char *name;
  int width;
  Value *value;
} specials[] = {{"%tid.x", 4, tid_x},
                {"%tid.y", 4, tid_y},
                {"%tid.z", 4, tid_z},
                {"%ntid.x", 4, ntid_x},
                {"%ntid.y", 4, ntid_y},
                {"%ntid.z", 4, ntid_z},
                {"%ctaid.x", 4, ctaid_x},
                {"%ctaid.y", 4, ctaid_y},
                {"%ctaid.z", 4, ctaid_z},
                {"%nctaid.x", 4, nctaid_x},
                {"%nctaid.y", 4, nctaid_y},
                {"%nctaid.z", 4, nctaid_z},
                {"%laneid", 4, laneid},
                {"%warpid", 4, warpid},
                {"%nwarpid", 4, nwarpid},
                {"%smid", 4, zero},
                {"%nsmid", 4, zero},
                {"%gridid", 8, zero},
                {"%lanemask_eq", 4, mask_eq},
                {"%lanemask_lt", 4, mask_lt},
                {"%lanemask_le", 4, mask_le},
                {"%lanemask_gt", 4, mask_gt},
                {"%lanemask_ge", 4, mask_ge},
                {"%dynamic_smem_size", 4, dynamic_shared},
                {"%total_smem_size", 4, total_shared},
                {"%clock", 4, clock_now},
                {"%clock64", 8, clock_now},
                {"%globaltimer", 8, clock_now}};

static void clock_tick(Warp *w, const Insn *i, uint32_t mask) {
  (void)mask;
  for (int l = 0; l < LANES; l++)
    register_set(w, i->d, i->size, l, clock_now(w->g, w, (uint32_t)l));
}

int32_t special_at(Parser *p, const char *name, size_t n, int *width) {
  Function *f = p->f;
  int k = 0;
  while (k < COUNT(specials) &&
         (strlen(specials[k].name) != n || memcmp(specials[k].name, name, n)))
    k++;
  if (k == COUNT(specials) || !f) return -1;
  *width = specials[k].width;
  int32_t at = -1;
  for (int j = 0; j < f->n_special; j++)
    if (f->special[j].which == k) at = f->special[j].at;
  if (at < 0) {
    if (f->n_special == f->cap_special)
      f->special = host_grow(f->special,
                             (size_t)(f->cap_special += f->cap_special + 8) * sizeof *f->special);
    f->own = (f->own + 63) / 64 * 64;
    at = f->own;
    f->own += *width * LANES;
    f->special[f->n_special++] = (Special){k, at};
  }
  if (specials[k].value == clock_now) { /* read anew */
    Insn *i = insn_new(p);
    i->flow = FLOW_EXEC;
    i->exec = clock_tick;
    i->d = at;
    i->size = (uint8_t)*width;
  }
  return at;
}

void special_fill(Group *g, Warp *w) {
  for (int k = 0; k < w->f->n_special; k++) {
    const Special *s = &w->f->special[k];
    for (int l = 0; l < LANES; l++)
      register_set(w, s->at, specials[s->which].width, l,
                   specials[s->which].value(g, w, (uint32_t)l));
  }
}
