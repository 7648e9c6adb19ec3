/* A closed reader of Python pickles: bytes in, a value of dictionaries, lists, texts, numbers and NumPy arrays out.
 *
 * The stack machine of the pickle protocols 2 to 4 with the opcodes that dictionaries of arrays are made of. Nothing can be
 * called but what pickle_call.c does itself; every other opcode is an error that names it. Data of arrays stays where it is
 * in the file. Values may refer to themselves, so whoever walks them goes down a fixed number of levels. */
#include "pickle.h"
#include <inttypes.h>
#include <string.h>

typedef struct Machine {
  PickleMaker make; /* first: what pickle_call.c knows of it */
  uint8_t *base, *p, *end;
  PickleValue **stack, **memo;
  size_t n_stack, cap_stack, n_memo, cap_memo;
} Machine;

/* ---- errors and memory ---- */

bool pickle_here(const PickleMaker *m) {
  err_where("byte %zu", m->at);
  return false;
}

bool pickle_malformed(const PickleMaker *m, const char *what) {
  err_set(E_PAR_001, "a malformed pickle: %s", what);
  return pickle_here(m);
}

bool pickle_refused(const PickleMaker *m, const char *what, const char *name) {
  err_set(E_PAR_005, "the pickle %s %s", what, name);
  err_help("Kiln reads dictionaries of NumPy arrays, and runs nothing that a pickle asks for.");
  return pickle_here(m);
}

void *pickle_take(PickleMaker *m, size_t n) {
  n = (n + 15) & ~(size_t)15;
  if (n > m->left) {
    err_set(E_MEM_002, "the pickle needs more memory than its size explains");
    pickle_here(m);
    return NULL;
  }
  m->left -= n;
  return arena_alloc(m->a, n);
}

PickleValue *pickle_make(PickleMaker *m, PickleKind kind) {
  PickleValue *v = pickle_take(m, sizeof *v);
  if (!v) return NULL;
  v->kind = kind;
  v->at = m->at;
  return v;
}

static bool malformed(const Machine *m, const char *what) {
  return pickle_malformed(&m->make, what);
}

static bool cut_off(const Machine *m) {
  err_set(E_PAR_004, "the pickle ends inside an opcode or before its end");
  err_help("The file was cut off. Save or copy it again.");
  return pickle_here(&m->make);
}

static PickleValue *make(Machine *m, PickleKind kind) { return pickle_make(&m->make, kind); }

/* ---- the stack ---- */

static bool grow(Machine *m, PickleValue ***v, size_t *cap, size_t want) {
  if (want <= *cap) return true;
  size_t n = *cap && 2 * *cap > want ? 2 * *cap : want;
  PickleValue **to = pickle_take(&m->make, n * sizeof *to);
  if (!to) return false;
  if (*cap) memcpy(to, *v, *cap * sizeof *to);
  *v = to;
  *cap = n;
  return true;
}

static bool push(Machine *m, PickleValue *v) {
  if (!v || !grow(m, &m->stack, &m->cap_stack, m->n_stack + 1)) return false;
  m->stack[m->n_stack++] = v;
  return true;
}

/* The topmost value, which is no mark; NULL: there is none. */
static PickleValue *top(Machine *m) {
  PickleValue *v = m->n_stack ? m->stack[m->n_stack - 1] : NULL;
  if (v && v->kind != PK_MARK) return v;
  malformed(m, "an opcode finds nothing on the stack");
  return NULL;
}

static PickleValue *pop(Machine *m) {
  PickleValue *v = top(m);
  if (v) m->n_stack--;
  return v;
}

/* The position behind the topmost mark; 0: there is none. */
static size_t behind_mark(Machine *m) {
  for (size_t i = m->n_stack; i > 0; i--)
    if (m->stack[i - 1]->kind == PK_MARK) return i;
  malformed(m, "an opcode finds no mark on the stack");
  return 0;
}

static bool append(Machine *m, PickleValue *to, PickleValue *const *from, size_t n) {
  size_t want = (size_t)to->n_items + n, cap = (size_t)to->cap;
  if (want > INT32_MAX / 2) return malformed(m, "too many elements");
  if (!grow(m, &to->items, &cap, want)) return false;
  to->cap = (int)cap;
  if (n) memcpy(to->items + to->n_items, from, n * sizeof *from);
  to->n_items = (int)want;
  return true;
}

/* ---- opcodes ---- */

/* What follows an opcode. LENn: a length of n bytes, then so many bytes. */
typedef enum ArgKind { NO, U1, U2, I4, U4, U8, F8, LEN1, LEN4, LEN8, LINES } ArgKind;
typedef struct Arg {
  uint64_t u;
  uint8_t *bytes;
  size_t n;
} Arg;
typedef bool OpFn(Machine *m, const Arg *arg);

static bool do_proto(Machine *m, const Arg *arg) {
  char text[8];
  snprintf(text, sizeof text, "%u", (unsigned)arg->u);
  return (arg->u >= 2 && arg->u <= 4) || pickle_refused(&m->make, "is of protocol", text);
}

static bool do_frame(Machine *m, const Arg *arg) {
  return arg->u <= (size_t)(m->end - m->p) || cut_off(m);
}

static bool do_mark(Machine *m, const Arg *arg) { return (void)arg, push(m, make(m, PK_MARK)); }
static bool do_none(Machine *m, const Arg *arg) { return (void)arg, push(m, make(m, PK_NONE)); }

static bool push_number(Machine *m, PickleKind kind, int64_t i) {
  PickleValue *v = make(m, kind);
  if (v) v->i = i;
  return push(m, v);
}

static bool do_true(Machine *m, const Arg *arg) { return (void)arg, push_number(m, PK_BOOL, 1); }
static bool do_false(Machine *m, const Arg *arg) { return (void)arg, push_number(m, PK_BOOL, 0); }
static bool do_int(Machine *m, const Arg *arg) { return push_number(m, PK_INT, (int64_t)arg->u); }

/* A two's complement number of any length, little-endian. */
static bool do_long(Machine *m, const Arg *arg) {
  if (arg->n > 8) return pickle_refused(&m->make, "has a number of more than", "64 bits");
  uint64_t v = arg->n && arg->bytes[arg->n - 1] & 0x80 ? UINT64_MAX : 0;
  for (size_t i = arg->n; i > 0; i--) v = v << 8 | arg->bytes[i - 1];
  return push_number(m, PK_INT, (int64_t)v);
}

static bool do_float(Machine *m, const Arg *arg) {
  uint64_t bits = __builtin_bswap64(arg->u);
  PickleValue *v = make(m, PK_FLOAT);
  if (v) memcpy(&v->f, &bits, sizeof bits);
  return push(m, v);
}

static bool push_bytes(Machine *m, PickleKind kind, const Arg *arg) {
  PickleValue *v = make(m, kind);
  if (v) v->bytes = arg->bytes, v->n = arg->n;
  return push(m, v);
}

static bool do_text(Machine *m, const Arg *arg) { return push_bytes(m, PK_TEXT, arg); }
static bool do_bytes(Machine *m, const Arg *arg) { return push_bytes(m, PK_BYTES, arg); }

/* Python 2 has one type for both: names and the data of arrays come as it. */
static bool do_string(Machine *m, const Arg *arg) {
  for (size_t i = 0; i < arg->n; i++)
    if (arg->bytes[i] >= 0x80 || !arg->bytes[i]) return do_bytes(m, arg);
  return do_text(m, arg);
}

static bool do_dict(Machine *m, const Arg *arg) { return (void)arg, push(m, make(m, PK_DICT)); }
static bool do_list(Machine *m, const Arg *arg) { return (void)arg, push(m, make(m, PK_LIST)); }

static bool push_tuple(Machine *m, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (m->n_stack <= i || m->stack[m->n_stack - 1 - i]->kind == PK_MARK)
      return malformed(m, "a tuple finds too few values on the stack");
  PickleValue *v = make(m, PK_TUPLE);
  if (!v || (n && !append(m, v, m->stack + m->n_stack - n, n))) return false;
  m->n_stack -= n;
  return push(m, v);
}

static bool do_tuple0(Machine *m, const Arg *arg) { return (void)arg, push_tuple(m, 0); }
static bool do_tuple1(Machine *m, const Arg *arg) { return (void)arg, push_tuple(m, 1); }
static bool do_tuple2(Machine *m, const Arg *arg) { return (void)arg, push_tuple(m, 2); }
static bool do_tuple3(Machine *m, const Arg *arg) { return (void)arg, push_tuple(m, 3); }

static bool do_tuple(Machine *m, const Arg *arg) {
  (void)arg;
  size_t from = behind_mark(m);
  if (!from || !push_tuple(m, m->n_stack - from)) return false;
  m->stack[m->n_stack - 2] = m->stack[m->n_stack - 1];
  m->n_stack--;
  return true;
}

/* What stands behind a mark goes into the container before it. */
static bool put_marked(Machine *m, PickleKind kind, size_t multiple) {
  size_t from = behind_mark(m), n = m->n_stack - from;
  if (!from) return false;
  PickleValue *to = from > 1 ? m->stack[from - 2] : NULL;
  if (!to || to->kind != kind || n % multiple)
    return malformed(m, "elements are put into something else than their container");
  m->n_stack = from - 1;
  return append(m, to, m->stack + from, n);
}

static bool put_one(Machine *m, PickleKind kind, size_t n) {
  if (m->n_stack < n + 1 || m->stack[m->n_stack - n - 1]->kind != kind)
    return malformed(m, "an element is put into something else than its container");
  m->n_stack -= n;
  return append(m, m->stack[m->n_stack - 1], m->stack + m->n_stack, n);
}

static bool do_appends(Machine *m, const Arg *arg) { return (void)arg, put_marked(m, PK_LIST, 1); }
static bool do_append(Machine *m, const Arg *arg) { return (void)arg, put_one(m, PK_LIST, 1); }
static bool do_setitems(Machine *m, const Arg *arg) { return (void)arg, put_marked(m, PK_DICT, 2); }
static bool do_setitem(Machine *m, const Arg *arg) { return (void)arg, put_one(m, PK_DICT, 2); }

static bool put_memo(Machine *m, uint64_t i) {
  PickleValue *v = top(m);
  /* numbers are given in order, so none is larger than the bytes so far */
  if (v && i >= (size_t)(m->p - m->base)) return malformed(m, "a memo's number is too large");
  if (!v || !grow(m, &m->memo, &m->cap_memo, (size_t)i + 1)) return false;
  m->memo[i] = v;
  if (i >= m->n_memo) m->n_memo = (size_t)i + 1;
  return true;
}

static bool do_put(Machine *m, const Arg *arg) { return put_memo(m, arg->u); }
static bool do_memoize(Machine *m, const Arg *arg) { return (void)arg, put_memo(m, m->n_memo); }

static bool do_get(Machine *m, const Arg *arg) {
  PickleValue *v = arg->u < m->n_memo ? m->memo[arg->u] : NULL;
  return v ? push(m, v) : malformed(m, "a memo is read that nothing was put into");
}

static bool push_global(Machine *m, const uint8_t *module, size_t n_module, const uint8_t *name,
                        size_t n_name) {
  const PickleGlobal *g = pickle_global(module, n_module, name, n_name);
  PickleValue *v = g ? make(m, PK_GLOBAL) : NULL;
  if (v) v->global = g;
  if (g) return push(m, v);
  char full[96];
  snprintf(full, sizeof full, "%.*s.%.*s", n_module < 64 ? (int)n_module : 64, (const char *)module,
           n_name < 24 ? (int)n_name : 24, (const char *)name);
  return pickle_refused(&m->make, "names the function or class", quoted(full));
}

static bool do_global(Machine *m, const Arg *arg) {
  const uint8_t *line = memchr(arg->bytes, '\n', arg->n);
  return push_global(m, arg->bytes, (size_t)(line - arg->bytes), line + 1,
                     arg->n - (size_t)(line + 1 - arg->bytes));
}

static bool do_stack_global(Machine *m, const Arg *arg) {
  (void)arg;
  PickleValue *name = pop(m), *module = name ? pop(m) : NULL;
  if (!module) return false;
  if (name->kind != PK_TEXT || module->kind != PK_TEXT)
    return malformed(m, "a global is named by something else than texts");
  return push_global(m, module->bytes, module->n, name->bytes, name->n);
}

static bool do_reduce(Machine *m, const Arg *arg) {
  (void)arg;
  PickleValue *args = pop(m), *f = args ? pop(m) : NULL;
  if (!f) return false;
  if (f->kind != PK_GLOBAL || args->kind != PK_TUPLE || !f->global->call)
    return pickle_refused(&m->make, "calls", pickle_kind_name(f->kind));
  return push(m, f->global->call(&m->make, args));
}

static bool do_build(Machine *m, const Arg *arg) {
  (void)arg;
  PickleValue *state = pop(m), *v = state ? top(m) : NULL;
  if (!v) return false;
  if (v->kind == PK_ARRAY) return pickle_fill(&m->make, v, state);
  if (v->kind == PK_DTYPE) return pickle_set_order(&m->make, state);
  return pickle_refused(&m->make, "sets the state of", pickle_kind_name(v->kind));
}

/* All opcodes; those without a function are refused by name. */
static const struct OpRow {
  uint8_t code;
  const char *name;
  ArgKind arg;
  OpFn *run;
} rows[] = {
    {0x80, "PROTO", U1, do_proto},
    {0x95, "FRAME", U8, do_frame},
    {'(', "MARK", NO, do_mark},
    {'N', "NONE", NO, do_none},
    {0x88, "NEWTRUE", NO, do_true},
    {0x89, "NEWFALSE", NO, do_false},
    {'J', "BININT", I4, do_int},
    {'K', "BININT1", U1, do_int},
    {'M', "BININT2", U2, do_int},
    {0x8a, "LONG1", LEN1, do_long},
    {0x8b, "LONG4", LEN4, do_long},
    {'G', "BINFLOAT", F8, do_float},
    {'X', "BINUNICODE", LEN4, do_text},
    {0x8c, "SHORT_BINUNICODE", LEN1, do_text},
    {0x8d, "BINUNICODE8", LEN8, do_text},
    {'B', "BINBYTES", LEN4, do_bytes},
    {'C', "SHORT_BINBYTES", LEN1, do_bytes},
    {0x8e, "BINBYTES8", LEN8, do_bytes},
    {'T', "BINSTRING", LEN4, do_string},
    {'U', "SHORT_BINSTRING", LEN1, do_string},
    {'}', "EMPTY_DICT", NO, do_dict},
    {']', "EMPTY_LIST", NO, do_list},
    {')', "EMPTY_TUPLE", NO, do_tuple0},
    {0x85, "TUPLE1", NO, do_tuple1},
    {0x86, "TUPLE2", NO, do_tuple2},
    {0x87, "TUPLE3", NO, do_tuple3},
    {'t', "TUPLE", NO, do_tuple},
    {'a', "APPEND", NO, do_append},
    {'e', "APPENDS", NO, do_appends},
    {'s', "SETITEM", NO, do_setitem},
    {'u', "SETITEMS", NO, do_setitems},
    {'q', "BINPUT", U1, do_put},
    {'r', "LONG_BINPUT", U4, do_put},
    {0x94, "MEMOIZE", NO, do_memoize},
    {'h', "BINGET", U1, do_get},
    {'j', "LONG_BINGET", U4, do_get},
    {'c', "GLOBAL", LINES, do_global},
    {0x93, "STACK_GLOBAL", NO, do_stack_global},
    {'R', "REDUCE", NO, do_reduce},
    {'b', "BUILD", NO, do_build},
    {'.', "STOP", NO, NULL},
    {'0', "POP", NO, NULL},
    {'1', "POP_MARK", NO, NULL},
    {'2', "DUP", NO, NULL},
    {'F', "FLOAT", NO, NULL},
    {'I', "INT", NO, NULL},
    {'L', "LONG", NO, NULL},
    {'P', "PERSID", NO, NULL},
    {'Q', "BINPERSID", NO, NULL},
    {'S', "STRING", NO, NULL},
    {'V', "UNICODE", NO, NULL},
    {'d', "DICT", NO, NULL},
    {'g', "GET", NO, NULL},
    {'i', "INST", NO, NULL},
    {'l', "LIST", NO, NULL},
    {'o', "OBJ", NO, NULL},
    {'p', "PUT", NO, NULL},
    {0x81, "NEWOBJ", NO, NULL},
    {0x82, "EXT1", NO, NULL},
    {0x83, "EXT2", NO, NULL},
    {0x84, "EXT4", NO, NULL},
    {0x8f, "EMPTY_SET", NO, NULL},
    {0x90, "ADDITEMS", NO, NULL},
    {0x91, "FROZENSET", NO, NULL},
    {0x92, "NEWOBJ_EX", NO, NULL},
    {0x96, "BYTEARRAY8", NO, NULL},
    {0x97, "NEXT_BUFFER", NO, NULL},
    {0x98, "READONLY_BUFFER", NO, NULL},
};

static const struct OpRow *find_row(uint8_t code) {
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    if (rows[i].code == code) return &rows[i];
  return NULL;
}

/* Two lines, without the end of the second. */
static bool read_lines(Machine *m, Arg *arg) {
  uint8_t *first = memchr(m->p, '\n', (size_t)(m->end - m->p));
  uint8_t *second = first ? memchr(first + 1, '\n', (size_t)(m->end - first - 1)) : NULL;
  if (!second) return cut_off(m);
  *arg = (Arg){0, m->p, (size_t)(second - m->p)};
  m->p = second + 1;
  return true;
}

static bool read_arg(Machine *m, ArgKind kind, Arg *arg) {
  static const uint8_t size[] = {[U1] = 1, [U2] = 2,   [I4] = 4,   [U4] = 4,   [U8] = 8,
                                 [F8] = 8, [LEN1] = 1, [LEN4] = 4, [LEN8] = 8, [LINES] = 0};
  *arg = (Arg){0};
  if (kind == LINES) return read_lines(m, arg);
  if ((size_t)(m->end - m->p) < size[kind]) return cut_off(m);
  memcpy(&arg->u, m->p, size[kind]); /* both are little-endian */
  m->p += size[kind];
  if (kind == I4) arg->u = (uint64_t)(int64_t)(int32_t)arg->u;
  if (kind < LEN1) return true;
  if (arg->u > (size_t)(m->end - m->p)) return cut_off(m);
  arg->bytes = m->p;
  arg->n = (size_t)arg->u;
  m->p += arg->n;
  return true;
}

static bool step(Machine *m, bool *stop) {
  m->make.at = (size_t)(m->p - m->base);
  if (m->p == m->end) return cut_off(m);
  uint8_t code = *m->p++;
  const struct OpRow *row = find_row(code);
  Arg arg;
  if (!m->make.at && code != 0x80) return malformed(m, "it does not begin with its protocol");
  if (code == '.') return *stop = true;
  if (row && row->run) return read_arg(m, row->arg, &arg) && row->run(m, &arg);
  char text[40];
  snprintf(text, sizeof text, "%s", row ? row->name : "");
  if (!row) snprintf(text, sizeof text, "0x%02x", code);
  return pickle_refused(&m->make, "uses the opcode", text);
}

PickleValue *pickle_parse(uint8_t *bytes, size_t n, Arena *a) {
  Machine m = {.base = bytes, .p = bytes, .end = bytes + n};
  m.make = (PickleMaker){.a = a, .left = ((size_t)24 << 20) + n};
  bool stop = false;
  while (!stop)
    if (!step(&m, &stop)) return NULL;
  PickleValue *v = pop(&m);
  if (!v) return NULL;
  if (!m.n_stack && m.p == m.end) return v;
  malformed(&m, m.n_stack ? "values are left over on its stack" : "bytes are left over at its end");
  return NULL;
}
