/* The inside of the CUDA simulator: PTX modules as arrays of decoded instructions, warps of 32 lanes whose registers are arrays
 * of 32 values, device memory with a shadow bit per byte, launches. The driver calls on top of it: driver.h. */
#ifndef CUDASIM_SIM_H
#define CUDASIM_SIM_H
#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define LANES 32
#define FULL 0xffffffffu
#define MAX_WARPS 32
#define COUNT(a) ((int)(sizeof(a) / sizeof(a)[0]))

/* ---- memory.c: arenas, device memory ---- */

/* Blocks that are freed together. Out of host memory ends the process with a line on stderr. */
typedef struct Arena Arena;
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

/* ---- PTX types, operands, instructions ---- */

typedef enum Space {
  SPACE_GENERIC,
  SPACE_GLOBAL,
  SPACE_SHARED,
  SPACE_LOCAL,
  SPACE_PARAM,
  SPACE_CONST
} Space;

typedef enum TypeKind {
  KIND_BITS,
  KIND_UNSIGNED,
  KIND_SIGNED,
  KIND_FLOAT,
  KIND_BFLOAT,
  KIND_TF32,
  KIND_PRED
} TypeKind;
typedef struct Type {
  const char *name; /* as after the dot */
  TypeKind kind;
  int size;  /* bytes; .pred: 0 */
  int lanes; /* 2: packed pair */
} Type;
const Type *type_find(const char *name, size_t n); /* NULL: no type */

/* What an instruction counts as in reports. */
typedef enum Class {
  C_INT,
  C_FLOAT,
  C_DOUBLE,
  C_HALF,
  C_CONVERT,
  C_SPECIAL,
  C_MMA,
  C_GLOBAL,
  C_SHARED,
  C_LOCAL,
  C_PARAM,
  C_ATOMIC,
  C_WARP,
  C_BARRIER,
  C_BRANCH,
  C_N
} Class;

typedef struct Warp Warp;
typedef struct Insn Insn;
/* d, a, b, c: 32 values each. */
typedef void Alu(void *d, const void *a, const void *b, const void *c);
/* The lanes of `mask` execute i. */
typedef void Exec(Warp *w, const Insn *i, uint32_t mask);

/* What else an access to memory is. */
typedef enum Access { A_WRITE = 1, A_STRONG = 2, A_RELEASE = 4, A_CONSTANT = 8 } Access;

typedef enum Flow {
  FLOW_ALU,
  FLOW_TEST,
  FLOW_EXEC,
  FLOW_WRAP,
  FLOW_BRANCH,
  FLOW_TABLE,
  FLOW_CALL,
  FLOW_RETURN,
  FLOW_EXIT,
  FLOW_BARRIER
} Flow;

/* Modifiers that many forms share; the rest are words that a form's pattern names. */
typedef enum Mod { MOD_FTZ = 1, MOD_SAT = 2, MOD_RELU = 4, MOD_NAN = 8, MOD_ABS = 16 } Mod;
typedef enum Round {
  ROUND_NONE,
  ROUND_N,
  ROUND_Z,
  ROUND_M,
  ROUND_P,
  ROUND_NI,
  ROUND_ZI,
  ROUND_MI,
  ROUND_PI,
  ROUND_NA
} Round;

struct Insn {
  Flow flow;
  Class class;
  union {
    Alu *alu;
    Exec *exec;
  };
  uint32_t (*test)(const void *a, const void *b); /* the lanes where it holds */
  int32_t d, a, b, c;  /* byte offsets in the warp's registers; -1: none */
  int32_t guard;       /* of the predicate; -1: none */
  uint32_t guard_flip; /* FULL: the lanes where it is false */
  uint8_t size;        /* of a value, bytes: the result of ALU forms, an element in memory */
  uint8_t n;           /* elements of a vector access */
  uint8_t space, round, mods, wide; /* wide: bytes of a register of d (or of the stored value) */
  uint8_t kind, sub;                /* for the form's own use: a TypeKind, a comparison, a mode */
  uint8_t source_size, source_kind;
  bool address64, uniform, is_select;
  uint8_t access;   /* Access */
  int64_t imm;      /* offset of an address, an immediate */
  const int32_t *v; /* operands of forms with more than four, in order */
  int n_v;
  uint32_t target, join; /* where a branch goes and where its sides meet again */
  const struct Function *callee;
  const uint32_t *table;
  const struct Watch *watch; /* undefined.c */
  const void *form;          /* for the form's own use, in the module's arena */
  uint32_t line;
};

/* ---- parse.c, decode.c: a module from text ---- */

typedef struct Symbol Symbol;
typedef enum SymbolKind {
  SYM_REGISTER,
  SYM_VARIABLE,
  SYM_LABEL,
  SYM_FUNCTION,
  SYM_TABLE,
  SYM_PROTOTYPE
} SymbolKind;
typedef struct Function Function;
struct Symbol {
  const char *name;
  SymbolKind kind;
  const Type *type;
  Space space;
  uint64_t at;    /* register: offset; variable: address in its space; label: instruction */
  uint64_t bytes; /* of a variable; a dynamic array: 0 */
  int align;
  bool defined;
  Function *function;
  Symbol **table;
  int n_table;
  Symbol *next;  /* of its bucket */
  Symbol *alias; /* a label that an outer scope defines */
};

/* What a constant counts from: dynamic shared memory, the function's local variables, its .param variables. */
typedef enum Origin { FROM_ZERO, FROM_DYNAMIC, FROM_LOCAL, FROM_FRAME } Origin;
typedef struct Constant {
  int width; /* 2, 4, 8; 0: predicate */
  Origin from;
  uint64_t value;
  int32_t at;
} Constant;
typedef struct Special {
  int which, at;
} Special;

typedef struct Module Module;
struct Function {
  const char *name;
  Module *module;
  int index; /* in its module */
  bool entry, defined;
  bool open; /* it calls itself, or functions by address: how deep is not known */
  Symbol **param, **ret;
  int n_param, n_ret;
  Insn *code;
  int n, cap;
  int own;       /* bytes of its registers in a warp */
  int registers; /* with all callees */
  Constant *constant;
  int n_constant, cap_constant;
  Special *special;
  int n_special, cap_special;
  struct Use *use; /* undefined.c: while it is decoded */
  int n_use, cap_use;
  int undefined_at, n_undefined;     /* masks of registers that may be undefined */
  uint64_t param_bytes;              /* kernel parameters */
  uint64_t local_bytes, frame_bytes; /* of its .local and .param variables, a multiple of 16 */
  uint64_t local_most, frame_most;   /* with all callees */
  uint64_t shared_bytes;             /* without dynamic ones, which follow */
  int dynamic_align;                 /* 0: it names no dynamic shared memory */
  int granule;                       /* smallest access to shared memory, 1, 2 or 4 bytes */
  uint32_t max_threads, reqd[3];
  Function **callee;
  int n_callee;
  int mark; /* of the walk over callees */
  struct Report *report;
};
struct Module {
  Arena *arena;
  const char *text;
  int version, sm; /* 70 for 7.0; 80 for sm_80 */
  Function **function;
  int n;
  uint64_t shared_bytes; /* of variables that functions other than kernels use */
  Symbol **global;       /* its variables in device memory */
  int n_global, cap_global;
};

/* Loads a module: NULL with a text (line and what) in error. Its variables are allocated in device memory. */
Module *module_load(const char *text, char *error, size_t n);
void module_free(Module *m);
Function *module_function(const Module *m, const char *name);

typedef enum TokenKind { T_END, T_WORD, T_INT, T_FLOAT, T_STRING, T_CHAR } TokenKind;
typedef struct Token {
  TokenKind kind;
  const char *s;
  size_t n;
  uint64_t value; /* bits of T_FLOAT as double; float32: bits with width 4 */
  int width;
  uint32_t line;
} Token;
typedef struct Lexer {
  const char *s, *start;
  uint32_t line;
  Token t;
} Lexer;
typedef enum OperandKind {
  O_REGISTER,
  O_CONSTANT,
  O_ADDRESS,
  O_VECTOR,
  O_LABEL,
  O_SINK
} OperandKind;
typedef struct Operand {
  OperandKind kind;
  const Symbol *symbol; /* register, or base of an address, or label */
  bool flip;            /* !p */
  bool is_float;        /* constant */
  int float_width;      /* of a constant in hexadecimal: 4 or 8 */
  uint64_t value;       /* constant; offset of an address */
  int32_t special;      /* offset of a special register, else -1 */
  int special_width;
  const Symbol *pair; /* a|b */
  int n;              /* vector */
  struct Operand *v;
} Operand;
typedef struct Parser {
  Lexer lex;
  Module *m;
  Function *f;
  Symbol *bucket[4096];
  Symbol **scope; /* what the open scopes declare, in order */
  int n_scope, cap_scope;
  struct Fix {
    int insn;
    Symbol *label;
  } * fix; /* branches of the function */
  int n_fix, cap_fix;
  int *dynamic; /* instructions whose offset counts from dynamic shared memory */
  int n_dynamic, cap_dynamic;
  char *error;
  size_t error_size;
  jmp_buf bail;
  /* the instruction being decoded */
  Token word; /* with modifiers */
  struct Part {
    const char *s;
    int n;
  } part[20];
  int n_part, at_part; /* at_part: the first one that is not matched */
  Operand operand[48];
  int n_operand;
  Insn *insn;
} Parser;

/* lex.c */
void lex_next(Lexer *l);
void lex_skip_line(Lexer *l);

/* parse.c */
_Noreturn void parse_fail(Parser *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static inline uint64_t up(uint64_t n, uint64_t align) { return (n + align - 1) / align * align; }
bool parse_is(const Parser *p, const char *text); /* the next token */
bool parse_accept(Parser *p, const char *text);   /* steps over it if it is */
void parse_expect(Parser *p, const char *text);
Token parse_kind(Parser *p, TokenKind kind, const char *what);
uint64_t parse_int(Parser *p);
const Type *parse_type(Parser *p);

/* declare.c */
void scope_end(Parser *p, int from); /* forgets what was declared since p->n_scope was `from` */
void declare_registers(Parser *p);
Symbol *declare_variable(Parser *p, Space space);
void declare_variables(Parser *p, Space space);
void frame_place(Parser *p, Symbol *s);
Symbol *symbol_find(const Parser *p, const char *name, size_t n);
Symbol *symbol_add(Parser *p, SymbolKind kind, const char *name, size_t n);
Symbol *symbol_label(Parser *p, const char *name, size_t n);
void variable_place(Parser *p, Symbol *s); /* shared memory: in the function's layout */

/* decode.c */
void decode(Parser *p); /* appends p->word, p->operand to p->f */
int32_t constant_at(Parser *p, int width, uint64_t value, Origin from);
int32_t special_at(Parser *p, const char *name, size_t n, int *width); /* -1: no special register */
Insn *insn_new(Parser *p);
/* Operand k as a register offset (a register or a constant) of this many bytes (0: predicate). wider: a wider register will do. */
int32_t operand_at(Parser *p, int k, int width, bool wider);
int32_t one_at(Parser *p, const Operand *o, const Type *t, int width, bool wider);
void decode_join(Function *f);              /* flow.c: Insn.join of every branch */
bool match(Parser *p, const char *pattern); /* of the whole word; sets round, mods of p->insn */
int take(
    Parser *p,
    const char *alternatives); /* "a|b": which one the next part is, and steps over it; -1: none */
const Type *take_type(Parser *p); /* the next part is a type */
void decode_address(Parser *p, int k, Space space);
typedef struct Form {
  const char
      *pattern; /* words of the instruction: .x?; a|b; what is in front of ? may be missing */
  void (*decode)(Parser *p, const struct Form *f);
  Class class;
  Exec *exec;
  int sub;
} Form;
/* Tables, ended by a pattern NULL. */
extern const Form forms_basic[], forms_memory[], forms_atomic[], forms_copy[], forms_warp[],
    forms_mma[], forms_wmma[], forms_convert[], forms_flow[];
/* alu.c: rows of ptx_ops.def. */
typedef struct AluForm {
  const char *pattern;
  Class class;
  Alu *alu;
  int8_t d, a, b, c; /* bytes; -1: no operand */
} AluForm;
extern const AluForm forms_alu[];
typedef uint32_t TestFn(const void *a, const void *b);
extern const char test_words[]; /* alternatives, in the order of test_find's cmp */
TestFn *test_find(const Type *t, int cmp);
void alu_wrap(const Insn *i, void *d, const void *a, const void *b, const void *c);

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

typedef struct
    Order { /* of a block: the launch's clock at its last fence, strong write behind one, strong access */
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
  const Function *prepared;
  char *registers;
  size_t registers_size, local_size, frame_size;
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
_Noreturn void call_missing(Warp *w, const Insn *i,
                            uint32_t mask); /* of a function that only CUDA defines */
bool call_known(const char *name);          /* CUDA defines it */
uint64_t function_address(const Function *f);
const Function *function_at(const Module *m, uint64_t at); /* NULL: none */
/* The launch ends with this CUresult; the text is what the one line on stderr says after kernel, block, thread and line. */
_Noreturn void fault(Warp *w, uint32_t lanes, int result, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* mem.c */
void lane_addresses(const Warp *w, const Insn *i, uint64_t at[LANES]);
/* Host address of bytes at `at` of a lane; checks allocation, alignment and, for reads, that it was written. */
char *lane_access(Warp *w, const Insn *i, int lane, Space space, uint64_t at, uint32_t bytes,
                  bool write);
char *global_lane(Warp *w, int lane, uint64_t at, uint32_t bytes, bool write);
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
Space take_space(Parser *p);
void take_hints(Parser *p, const char *words);
void note_shared(Parser *p, Space s, int bytes);
_Noreturn void misaligned(Warp *w, int lane, uint64_t at, uint32_t bytes);
_Noreturn void out_of_space(Warp *w, int lane, const char *space, uint64_t at, uint32_t bytes,
                            uint64_t size);

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
double fma_odd(double a, double b,
               double c); /* a * b + c rounded to odd, so that rounding again is exact */

#define PRED(w, at) (*(uint32_t *)((w)->r + (at)))
#define REG32(w, at) ((uint32_t *)((w)->r + (at)))
#define REG64(w, at) ((uint64_t *)((w)->r + (at)))
#define FOR_LANES(l, mask)                                                                         \
  for (uint32_t rest_ = (mask), l; rest_ && (l = (uint32_t)__builtin_ctz(rest_), 1);               \
       rest_ &= rest_ - 1)
void clock_tick(Warp *w, const Insn *i, uint32_t mask);
void registers_put(Warp *w, int32_t at, int width, uint32_t mask, const void *values);
uint64_t register_get(const Warp *w, int32_t at, int width, int lane);
void register_set(Warp *w, int32_t at, int width, int lane, uint64_t value);
#endif
