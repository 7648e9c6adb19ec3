/* The inside of the CUDA simulator: device memory with a shadow bit per byte, warps of 32 lanes whose registers are arrays of 32
 * values, blocks, launches of what ptx.h has decoded. The driver calls on top of it: driver.h. */
#ifndef CUDASIM_SIM_H
#define CUDASIM_SIM_H
#include "ptx.h"
#include <stdio.h>

#define LANES 32
#define FULL 0xffffffffu
#define MAX_WARPS 32
#define COUNT(a) ((int)(sizeof(a) / sizeof(a)[0]))

/* ---- memory.c: arenas, device memory ---- */

/* Blocks that are freed together. Out of host memory ends the process with a line on stderr. */
Arena *arena_new(void);
void arena_free(Arena *a);
void *arena_alloc(Arena *a, size_t n); /* zeroed, aligned to 16 */
char *arena_text(Arena *a, const char *s, size_t n);
void *host_alloc(size_t n); /* zeroed; free() */
void *host_grow(void *p, size_t n);

/* Generic addresses: device memory, then the windows of shared, local and parameter memory. */
#define DEVICE_BASE UINT64_C(0x000000700000000)
#define SHARED_BASE UINT64_C(0x100000000000)
#define LOCAL_BASE UINT64_C(0x200000000000)
#define PARAM_BASE UINT64_C(0x400000000000)
#define CODE_BASE UINT64_C(0x800000000000) /* addresses of functions */
#define WINDOW UINT64_C(0x100000000)

typedef struct Range {
  uint64_t at, bytes;
  bool constant; /* kernels may not write it */
} Range;
typedef struct Memory {
  uint64_t total, used;
  char *host;             /* of DEVICE_BASE */
  uint8_t *set;           /* a bit per byte: written since the allocation */
  uint64_t *wrote, *read; /* blocks.c: a record per word */
  Range *live;            /* by address */
  int n, cap;
  Range *freed; /* the last ones, a ring */
  int n_freed;
  uint64_t next; /* where the search for a free place starts */
} Memory;
extern Memory memory;

void memory_open(uint64_t total);
void memory_close(void);
uint64_t memory_alloc(uint64_t bytes);  /* 0: does not fit */
bool memory_free(uint64_t at);          /* false: no allocation starts there */
const Range *memory_find(uint64_t at);  /* the allocation that holds this byte, or NULL */
const Range *memory_freed(uint64_t at); /* the freed one, or NULL */
static inline char *memory_at(uint64_t at) { return memory.host + (at - DEVICE_BASE); }
void memory_protect(uint64_t at);                /* the allocation is constant memory */
void memory_forget_order(void);                  /* of the blocks of launches */
void memory_mark(uint64_t at, uint64_t bytes);   /* as written */
bool memory_is_set(uint64_t at, uint64_t bytes); /* every byte was written */
void memory_unmark(uint64_t at, uint64_t bytes); /* as not written */
void memory_copy_marks(uint64_t to, uint64_t from, uint64_t bytes);

/* ---- exec.c: warps and blocks ---- */

typedef struct Level {
  uint32_t pc, join, mask;
} Level;
typedef struct Frame { /* of a call; the first one is the kernel's */
  const Function *f;
  uint64_t local_at, frame_at; /* of its variables in a thread's memory */
  const Insn *call;
  int depth;            /* of the stack when it was called */
  uint32_t active, all; /* lanes that have not returned; that were called */
} Frame;
typedef enum WarpState { WARP_READY, WARP_WAITS, WARP_DONE } WarpState;
typedef struct Pending { /* asynchronous copies of one instruction */
  uint32_t mask, group, bytes;
  bool dense; /* all lanes, one behind the other */
  uint32_t to[LANES];
  char data[LANES * 16];
} Pending;
#define MAX_DEPTH 256
#define MAX_CALLS 64
typedef struct Group Group;
struct Warp {
  Group *g;
  const Function *f;
  char *r; /* registers */
  int index;
  uint32_t all, live; /* lanes that exist, that have not exited */
  WarpState state;
  const Insn *barrier; /* that it waits at */
  Level stack[MAX_DEPTH];
  int depth;
  Frame call[MAX_CALLS];
  int n_call;
  uint64_t since; /* instructions since the last change of the stack */
  uint32_t carry; /* lanes with the carry flag */
  char *local;    /* LANES times local_most of the kernel */
  uint8_t *local_set;
  char *frame;                          /* LANES times frame_most */
  uint32_t clock[MAX_WARPS], clock_min; /* race.c */
  Pending *pending;
  int n_pending, cap_pending;
  uint32_t group[LANES];
};

typedef struct Records {  /* of shared memory, per granule: who touched it last; race.c */
  uint32_t *write, *read; /* epochs */
  uint32_t *readers;      /* warps */
  uint32_t *writer;       /* warp and flags */
  uint64_t n;
} Records;

typedef struct Barrier {
  uint32_t arrived, expected; /* threads */
  uint32_t warps, syncing;    /* masks: that have arrived, that wait */
  uint32_t votes;             /* threads whose predicate is true */
} Barrier;

/* What requests of a block ask for, by sector of global memory: traffic.c. */
typedef struct Asked Asked;
typedef struct AskedTable {
  Asked *v;
  uint64_t n, size; /* of this block; slots */
  uint32_t block;
} AskedTable;

/* Counters of a kernel. */
typedef struct Counters {
  uint64_t insns[C_N], lanes;
  uint64_t requests, sectors;             /* global memory */
  uint64_t ideal, reachable;              /* sectors: traffic.c */
  uint64_t shared, wavefronts, conflicts; /* shared memory */
  uint64_t branches, divergent, barriers;
  uint64_t fma, mma; /* lanes' multiplications and additions; of tensor cores */
} Counters;

/* Of a block: the launch's clock at its last fence, strong write behind one, strong access. */
typedef struct Order {
  uint32_t fenced, released, acquired;
} Order;

typedef struct Launch {
  const Function *f;
  uint32_t grid[3], block[3], dynamic_shared;
  const char *param;
  uint64_t seed;
  /* results */
  int result; /* CUresult */
  char fault[600];
  Counters counters;
  /* inside */
  uint64_t blocks, next;
  uint64_t insns;
  int n_warps;
  bool many; /* blocks.c looks at them */
  uint32_t stamp, clock;
  Order *order;
} Launch;

struct Group { /* a thread block in execution, reused for the next one */
  Launch *l;
  uint32_t id[3], block;
  Warp *warp;
  int n_warps, cap_warps;
  char *registers;
  char *local, *frame;
  uint8_t *local_set;
  char *shared;
  uint64_t shared_bytes, shared_cap;
  Records records;
  uint32_t granule_shift;
  uint32_t epoch, epoch_base; /* of this block: older records belong to blocks before it */
  Barrier barrier[16];
  Range hit; /* the allocation of the last access */
  uint64_t insns;
  Counters n;
  AskedTable asked;
  bool counting;
  jmp_buf fault;
  const Insn *at; /* the instruction in execution */
  Warp *running;
};

void launch_run(Launch *l); /* launch.c: result, fault, counters */
void group_run(Group *g);   /* exec.c: one block; faults go to g->fault */
void group_prepare(Group *g, Launch *l);
void group_free(Group *g);
void launch_close(void);
void special_fill(Group *g, Warp *w);
/* flow.c: parameters of a call go to the callee's frame, or its results back. */
void call_bind(Warp *w, const Insn *i, uint32_t mask, const Frame *caller, const Frame *callee,
               bool back);
/* Of a function that only CUDA defines. */
_Noreturn void call_missing(Warp *w, const Insn *i, uint32_t mask);
bool call_known(const char *name); /* CUDA defines it */
uint64_t function_address(const Function *f);
const Function *function_at(const Module *m, uint64_t at); /* NULL: none */
/* The launch ends with this CUresult; the text is what the one line on stderr says after kernel, block, thread and line. */
_Noreturn void fault(Warp *w, uint32_t lanes, int result, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* access.c */
void lane_addresses(const Warp *w, const Insn *i, uint64_t at[LANES]);
/* Host address of bytes at `at` of a lane; checks allocation, alignment and, for reads, that it was written. */
char *lane_access(Warp *w, const Insn *i, int lane, Space space, uint64_t at, uint32_t bytes,
                  bool write);
char *global_lane(Warp *w, int lane, uint64_t at, uint32_t bytes, bool write);
char *param_lane(Warp *w, const Insn *i, int lane, uint64_t at, uint32_t bytes, bool write);
Space space_of(uint64_t *at); /* of a generic address, which becomes one of that space */
/* The addresses of the lanes that take part; the others are made equal to one of these. */
typedef struct Shape {
  bool uniform, dense; /* all lanes the same address; each lane behind the one before */
  bool rising;         /* no two lanes overlap */
  uint64_t low, high;
} Shape;
/* Checks addresses of global or shared memory together, as an access of these lanes; what to add to an address for its bytes. */
char *lanes_access(Warp *w, Space space, uint64_t at[LANES], uint32_t mask, uint32_t bytes,
                   Shape *s, bool write);
_Noreturn void misaligned(Warp *w, int lane, uint64_t at, uint32_t bytes);
_Noreturn void out_of_space(Warp *w, int lane, const char *space, uint64_t at, uint32_t bytes,
                            uint64_t size);

/* mem.c */
Space take_space(Parser *p);
void take_hints(Parser *p, const char *words); /* steps over these words, and L1::.., L2::.. */
/* The function has an access of so many bytes: records of races are no coarser. */
void note_shared(Parser *p, Space s, int bytes);

/* traffic.c */
void count_shared(Group *g, const uint64_t at[LANES], uint32_t mask, uint32_t bytes);
void count_global(Group *g, const uint64_t at[LANES], uint32_t mask, uint32_t bytes, bool write);
void traffic_start(AskedTable *t); /* of a block */
void traffic_free(AskedTable *t);

/* race.c */
void race_prepare(Group *g, uint64_t bytes);
void race_start(Group *g);
void race_read(Warp *w, int lane, uint32_t at, uint32_t bytes);
void race_write(Warp *w, int lane, uint32_t at, uint32_t bytes);
void race_atomic(Warp *w, int lane, uint32_t at, uint32_t bytes);
void race_pending(Warp *w, int lane, uint32_t at, uint32_t bytes);
void race_arrived(Warp *w, uint32_t at, uint32_t bytes);
void race_barrier(Group *g, uint32_t warps, uint32_t syncing);

/* blocks.c */
void blocks_start(Launch *l);
void blocks_end(Launch *l);
void blocks_fence(Warp *w); /* of the device or the system */
/* An access of these lanes to global memory, before it is made. data: what lane l writes, at l * stride, or NULL. */
void blocks_lanes(Warp *w, const uint64_t at[LANES], uint32_t mask, uint32_t bytes, const Shape *s,
                  Access how, const char *data, uint32_t stride);
void blocks_atomic(Warp *w, int lane, uint64_t at, uint32_t bytes, bool release);
void blocks_constant(Warp *w, const uint64_t at[LANES], uint32_t mask, uint32_t bytes);

/* undefined.c */
void undefined_note(Parser *p, const Operand *guard);
void undefined_find(Parser *p);
void undefined_start(Warp *w, const Function *f);
void undefined_watch(Warp *w, const Insn *i, uint32_t all, uint32_t mask);

/* Checks that can be switched off: CUDASIM_CHECK=-race,-init. */
typedef struct Checks {
  bool race, init;
  uint64_t budget;
  int threads;
} Checks;
extern Checks checks;
extern bool counting; /* a report was asked for */

/* mma.c: an element as a number, and a sum as an element */
double mma_value(TypeKind kind, int size, uint64_t bits);
uint64_t mma_bits(TypeKind kind, int size, double v);

/* convert.c: a float of 2, 4 or 8 bytes in the low bits */
double float_of_bits(TypeKind kind, int size, uint64_t bits);
/* half.c: 16-bit floats as bits */
float half_to_float(uint16_t h);
uint16_t float_to_half(double x, Round r);
static inline float bf16_to_float(uint16_t h) {
  union {
    uint32_t u;
    float f;
  } x = {(uint32_t)h << 16};
  return x.f;
}
uint16_t float_to_bf16(double x, Round r);
/* a * b + c rounded to odd, so that rounding again is exact. */
double fma_odd(double a, double b, double c);

#define PRED(w, at) (*(uint32_t *)((w)->r + (at)))
#define REG32(w, at) ((uint32_t *)((w)->r + (at)))
#define REG64(w, at) ((uint64_t *)((w)->r + (at)))
#define FOR_LANES(l, mask)                                                                         \
  for (uint32_t rest_ = (mask), l; rest_ && (l = (uint32_t)__builtin_ctz(rest_), 1);               \
       rest_ &= rest_ - 1)
void registers_put(Warp *w, int32_t at, int width, uint32_t mask, const void *values);
uint64_t register_get(const Warp *w, int32_t at, int width, int lane);
void register_set(Warp *w, int32_t at, int width, int lane, uint64_t value);
#endif
