/* Damage to files in protobuf's wire format, in ways that a fixed generator draws. */
#ifndef KILN_TESTS_DAMAGE_H
#define KILN_TESTS_DAMAGE_H
#include "../ir/ir.h"

void damage_seed(uint64_t seed);
uint32_t damage_draw(uint32_t below);

/* The number at *at, moved behind it; false: it does not end before `end`. */
bool damage_varint(const uint8_t *b, size_t *at, size_t end, uint64_t *v);
/* A field. */
typedef struct Piece {
  size_t tag, body, end; /* offsets; body: behind the tag and, if there is one, the length */
  int type, parent;      /* -1: the file */
} Piece;
typedef VEC(Piece) Pieces;
/* All fields, those inside after the one that holds them. */
void damage_find(Arena *a, const Str *file, Pieces *v);
/* The file with a drawn field removed (kind 0), doubled (1), replaced by another one (2), given a hostile value (3 to 5), a hostile tag or
 * length (6), or the file cut there (7). */
enum { DAMAGE_KINDS = 8 };
Str damage_file(Arena *a, const Str *file, const Pieces *v, int kind);
#endif
