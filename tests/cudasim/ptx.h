/* PTX as the simulator has it: modules of functions, which are arrays of decoded instructions whose operands are offsets in a warp's
 * registers; and the parser that makes them, with a table of forms for each family of instructions. */
#ifndef CUDASIM_PTX_H
#define CUDASIM_PTX_H
#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Arena Arena; /* sim.h */

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
int32_t special_at(Parser *p, const char *name, size_t n, int *width); /* -1: no special register */
Insn *insn_new(Parser *p);
/* Operand k as a register offset (a register or a constant) of this many bytes (0: predicate). wider: a wider register will do. */
int32_t operand_at(Parser *p, int k, int width, bool wider);
int32_t one_at(Parser *p, const Operand *o, const Type *t, int width, bool wider);
void decode_join(Function *f);              /* flow.c: Insn.join of every branch */
bool match(Parser *p, const char *pattern); /* of the whole word; sets round, mods of p->insn */
/* Alternatives "a|b": which one the next part is, and steps over it; -1: none. */
int take(Parser *p, const char *alternatives);
const Type *take_type(Parser *p); /* the next part is a type */
void decode_address(Parser *p, int k, Space space);
typedef struct Form {
  /* words of the instruction: .x?; a|b; what is in front of ? may be missing */
  const char *pattern;
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
/* cmp: the place among the words that setp takes (basic.c). */
TestFn *test_find(const Type *t, int cmp);
void alu_wrap(const Insn *i, void *d, const void *a, const void *b, const void *c);
#endif
