/* See damage.h. Fields are found by walking the wire format. Where one is replaced, the lengths of those around it are put right, so that the
 * damage is found deep inside; heads and cuts leave them wrong. */
#include "damage.h"
#include <math.h>

static uint64_t drawn;

void damage_seed(uint64_t seed) { drawn = seed; }

uint32_t damage_draw(uint32_t below) {
  drawn = drawn * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(drawn >> 33) % below;
}

bool damage_varint(const uint8_t *b, size_t *at, size_t end, uint64_t *v) {
  *v = 0;
  for (int shift = 0; shift < 64 && *at < end; shift += 7) {
    *v |= (uint64_t)(b[*at] & 127) << shift;
    if (b[(*at)++] < 128) return true;
  }
  return false;
}

/* The field at *at, moved behind it; false: none of this format. */
static bool take_piece(const uint8_t *b, size_t *at, size_t end, Piece *p) {
  uint64_t tag, n = 0;
  p->tag = *at;
  if (!damage_varint(b, at, end, &tag) || tag < 8 || tag >> 3 > 21) return false;
  p->type = (int)(tag & 7);
  p->body = *at;
  if (p->type == 0 && !damage_varint(b, at, end, &n)) return false;
  if (p->type == 2 && !damage_varint(b, at, end, &n)) return false;
  if (p->type == 2) p->body = *at;
  size_t skip = p->type == 1 ? 8 : p->type == 5 ? 4 : p->type == 2 ? (size_t)n : 0;
  if (p->type > 5 || p->type == 3 || p->type == 4 || skip > end - *at) return false;
  *at += skip;
  p->end = *at;
  return true;
}

static bool is_message(const uint8_t *b, size_t from, size_t to) {
  Piece p;
  while (from < to)
    if (!take_piece(b, &from, to, &p)) return false;
  return true;
}

void damage_find(Arena *a, const Str *s, Pieces *v) {
  const uint8_t *b = (const uint8_t *)s->s;
  size_t from = 0, to = s->n;
  for (int of = -1; of < v->n; of++) {
    if (of >= 0) {
      from = v->v[of].body;
      to = v->v[of].type == 2 ? v->v[of].end : from;
    }
    if (!is_message(b, from, to)) continue;
    Piece p = {.parent = of};
    while (from < to && take_piece(b, &from, to, &p)) vec_add(a, v, p);
  }
}

static void add_varint(Str *s, uint64_t v) {
  for (; v > 127; v >>= 7) str_addn(s, (char[]){(char)(v | 128)}, 1);
  str_addn(s, (char[]){(char)v}, 1);
}

/* The file with [from, to) replaced; the lengths of the fields around it follow. */
static Str splice(Arena *a, const Str *file, const Pieces *v, int parent, size_t from, size_t to,
                  const char *by, size_t n) {
  Str mid;
  str_init(&mid, a);
  str_addn(&mid, by, n);
  for (int p = parent; p >= 0; p = v->v[p].parent) {
    const Piece *o = &v->v[p];
    Str out;
    size_t tag = o->tag;
    uint64_t unused;
    damage_varint((const uint8_t *)file->s, &tag, o->body, &unused);
    str_init(&out, a);
    str_addn(&out, file->s + o->tag, tag - o->tag);
    add_varint(&out, from - o->body + mid.n + (o->end - to));
    str_addn(&out, file->s + o->body, from - o->body);
    str_addn(&out, mid.s, mid.n);
    str_addn(&out, file->s + to, o->end - to);
    mid = out;
    from = o->tag;
    to = o->end;
  }
  Str out;
  str_init(&out, a);
  str_addn(&out, file->s, from);
  str_addn(&out, mid.s, mid.n);
  str_addn(&out, file->s + to, file->n - to);
  return out;
}

/* Another value for a field, with its tag. */
static Str hostile_value(Arena *a, const Str *file, const Piece *p) {
  static const uint64_t numbers[] = {0,
                                     1,
                                     7,
                                     99,
                                     INT32_MAX,
                                     (uint64_t)INT32_MIN,
                                     UINT64_MAX,
                                     INT64_MAX,
                                     (uint64_t)INT64_MIN,
                                     (uint64_t)1 << 32,
                                     24,
                                     8};
  static const struct {
    const char *s;
    size_t n;
  } texts[] = {
      {"", 0},        {"\xff\xfe\x80", 3}, {"a\0b", 3}, {"../../x", 7},         {"%n%s%n", 6},
      {"@EMPTY@", 7}, {"\x1b[2J", 4},      {"x", 1},    {"\x08\x01\x08\x01", 4}};
  static const float floats[] = {NAN, INFINITY, -INFINITY, -0.0f, 1e-45f, 3e38f};
  static const double doubles[] = {(double)NAN, (double)INFINITY, -1e308, 5e-324};
  uint64_t unused;
  size_t body = p->tag;
  Str s;
  str_init(&s, a);
  damage_varint((const uint8_t *)file->s, &body, p->end, &unused);
  str_addn(&s, file->s + p->tag, body - p->tag);
  if (p->type == 0) add_varint(&s, numbers[damage_draw(sizeof numbers / sizeof *numbers)]);
  if (p->type == 5) str_addn(&s, (const char *)&floats[damage_draw(6)], 4);
  if (p->type == 1) str_addn(&s, (const char *)&doubles[damage_draw(4)], 8);
  if (p->type != 2) return s;
  size_t t = damage_draw(sizeof texts / sizeof *texts);
  add_varint(&s, texts[t].n);
  str_addn(&s, texts[t].s, texts[t].n);
  return s;
}

/* The length, or the whole head, of a field overwritten; nothing else follows. */
static Str raw_head(Arena *a, const Str *file, const Piece *p) {
  static const uint64_t lengths[] = {0,         1,          0x7f,      0xffff,
                                     INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX};
  static const char *const heads[] = {"\x0b",
                                      "\x0c",
                                      "\x0e",
                                      "\x0f",
                                      "\xff\xff\xff\xff\xff\x01",
                                      "\x02",
                                      "\x7f",
                                      "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"};
  Str s;
  str_init(&s, a);
  str_addn(&s, file->s, p->tag);
  if (p->type == 2 && damage_draw(2)) {
    str_addn(&s, file->s + p->tag, 1);
    add_varint(&s, lengths[damage_draw(8)]);
  } else
    str_add(&s, heads[damage_draw(8)]);
  str_addn(&s, file->s + p->body, file->n - p->body);
  return s;
}

Str damage_file(Arena *a, const Str *file, const Pieces *v, int kind) {
  const Piece *p = &v->v[damage_draw((uint32_t)v->n)], *q = &v->v[damage_draw((uint32_t)v->n)];
  const char *own = file->s + p->tag;
  Str s, cut = *file;
  switch (kind) {
  case 0: return splice(a, file, v, p->parent, p->tag, p->end, "", 0);                /* removed */
  case 1: return splice(a, file, v, p->parent, p->end, p->end, own, p->end - p->tag); /* twice */
  case 2: /* another field in its place */
    return splice(a, file, v, p->parent, p->tag, p->end, file->s + q->tag, q->end - q->tag);
  case 3:
  case 4:
  case 5:
    s = hostile_value(a, file, p);
    return splice(a, file, v, p->parent, p->tag, p->end, s.s, s.n);
  case 6: return raw_head(a, file, p);
  default: cut.n = damage_draw(3) == 0 ? p->tag : damage_draw(2) ? p->body : p->end - 1; return cut;
  }
}
