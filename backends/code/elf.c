/* From an object file to an image: the linker. In: an ELF64 relocatable file as LLVM writes it for one function. Out: its code
 * and constants as one piece of bytes in which everything that lies inside is relocated, since distances inside do not
 * change; what is left are places for absolute addresses (image.c fills them in). A function outside is called through a
 * slot: 8 bytes of code that jump to the address in the 8 bytes after them. Relocations are rows of a table; sections that
 * are written to, and whatever else is not understood, are refused. (ELF, System V ABI; the processor supplements of AMD64 and
 * AArch64.) */
#include "code.h"
#include <elf.h>
#include <string.h>

typedef enum Value {
  V_ABS,
  V_REL,
  V_PAGE,
  V_LOW
} Value; /* S+A, S+A-P, pages between, low 12 bits */
typedef enum Field { F_64, F_32, F_26, F_PAGE, F_12 } Field;
typedef struct Reloc {
  uint32_t type;
  Value value;
  Field field;
  bool slot; /* of the slot that holds the symbol's address */
  int shift;
} Reloc;

#if defined(__x86_64__)
enum { MACHINE = EM_X86_64 };
static const Reloc relocs[] = {
    {R_X86_64_64, V_ABS, F_64, false, 0},           {R_X86_64_PC64, V_REL, F_64, false, 0},
    {R_X86_64_PC32, V_REL, F_32, false, 0},         {R_X86_64_PLT32, V_REL, F_32, false, 0},
    {R_X86_64_GOTPCREL, V_REL, F_32, true, 0},      {R_X86_64_GOTPCRELX, V_REL, F_32, true, 0},
    {R_X86_64_REX_GOTPCRELX, V_REL, F_32, true, 0},
};
/* jmp *2(%rip) */
static const uint8_t stub[8] = {0xff, 0x25, 2, 0, 0, 0, 0xcc, 0xcc};
#elif defined(__aarch64__)
enum { MACHINE = EM_AARCH64 };
static const Reloc relocs[] = {
    {R_AARCH64_ABS64, V_ABS, F_64, false, 0},
    {R_AARCH64_PREL64, V_REL, F_64, false, 0},
    {R_AARCH64_PREL32, V_REL, F_32, false, 0},
    {R_AARCH64_CALL26, V_REL, F_26, false, 2},
    {R_AARCH64_JUMP26, V_REL, F_26, false, 2},
    {R_AARCH64_ADR_PREL_PG_HI21, V_PAGE, F_PAGE, false, 12},
    {R_AARCH64_ADD_ABS_LO12_NC, V_LOW, F_12, false, 0},
    {R_AARCH64_LDST8_ABS_LO12_NC, V_LOW, F_12, false, 0},
    {R_AARCH64_LDST16_ABS_LO12_NC, V_LOW, F_12, false, 1},
    {R_AARCH64_LDST32_ABS_LO12_NC, V_LOW, F_12, false, 2},
    {R_AARCH64_LDST64_ABS_LO12_NC, V_LOW, F_12, false, 3},
    {R_AARCH64_LDST128_ABS_LO12_NC, V_LOW, F_12, false, 4},
    {R_AARCH64_ADR_GOT_PAGE, V_PAGE, F_PAGE, true, 12},
    {R_AARCH64_LD64_GOT_LO12_NC, V_LOW, F_12, true, 3},
};
/* ldr x16, 8; br x16 */
static const uint8_t stub[8] = {0x50, 0, 0, 0x58, 0, 2, 0x1f, 0xd6};
#else
enum { MACHINE = EM_NONE };
static const Reloc relocs[] = {{0}};
static const uint8_t stub[8];
#endif

typedef struct Link {
  Arena *a;
  const uint8_t *p;
  size_t n;
  Elf64_Ehdr head;
  Elf64_Shdr *section;
  int64_t *at; /* offset of each section in the image; -1: left out */
  const uint8_t *symbols;
  size_t n_symbols;
  const char *names;
  size_t n_names;
  int64_t *slot; /* offset of each symbol's slot; -1: none */
  uint8_t *bytes;
  size_t used, room; /* of the bytes; zeros come behind the room */
  Image *image;
  const char *why;
} Link;

static bool refuse(Link *l, const char *why) {
  l->why = why;
  return false;
}

/* A part of the file; NULL: not all of it is there. */
static const uint8_t *part(const Link *l, uint64_t at, uint64_t n) {
  return at <= l->n && n <= l->n - at ? l->p + at : NULL;
}

static bool read_sections(Link *l) {
  if (l->n < sizeof l->head) return refuse(l, "the file is cut off");
  memcpy(&l->head, l->p, sizeof l->head);
  const Elf64_Ehdr *h = &l->head;
  if (memcmp(h->e_ident, ELFMAG, SELFMAG) || h->e_ident[EI_CLASS] != ELFCLASS64 ||
      h->e_type != ET_REL || h->e_machine != MACHINE || h->e_shentsize != sizeof(Elf64_Shdr))
    return refuse(l, "it is no object file of this machine");
  size_t size = (size_t)h->e_shnum * sizeof(Elf64_Shdr);
  const uint8_t *s = part(l, h->e_shoff, size);
  if (!s || !size) return refuse(l, "the sections are cut off");
  l->section = arena_dup(l->a, s, size);
  l->at = arena_array(l->a, int64_t, h->e_shnum);
  for (int i = 0; i < h->e_shnum; i++) {
    const Elf64_Shdr *x = &l->section[i];
    l->at[i] = -1;
    if (x->sh_type != SHT_NOBITS && x->sh_type != SHT_NULL && !part(l, x->sh_offset, x->sh_size))
      return refuse(l, "a section is cut off");
    if (x->sh_type == SHT_REL || x->sh_type == SHT_SYMTAB_SHNDX)
      return refuse(l, "it has sections of an unknown type");
  }
  return true;
}

static bool read_symbols(Link *l) {
  for (int i = 0; i < l->head.e_shnum; i++) {
    const Elf64_Shdr *x = &l->section[i];
    if (x->sh_type != SHT_SYMTAB) continue;
    if (x->sh_link >= l->head.e_shnum || l->section[x->sh_link].sh_type != SHT_STRTAB) break;
    const Elf64_Shdr *t = &l->section[x->sh_link];
    l->symbols = l->p + x->sh_offset;
    l->n_symbols = x->sh_size / sizeof(Elf64_Sym);
    l->names = (const char *)l->p + t->sh_offset;
    l->n_names = t->sh_size;
    if (!l->n_names || l->names[l->n_names - 1]) break;
    l->slot = arena_array(l->a, int64_t, l->n_symbols + 1);
    for (size_t s = 0; s < l->n_symbols; s++) l->slot[s] = -1;
    return true;
  }
  return refuse(l, "it has no symbols");
}

static bool symbol_at(const Link *l, uint64_t i, Elf64_Sym *s) {
  if (i >= l->n_symbols) return false;
  memcpy(s, l->symbols + i * sizeof *s, sizeof *s);
  return s->st_name < l->n_names;
}

static bool is_pow2(uint64_t v) { return v && !(v & (v - 1)); }

/* The zeros of the sections that hold nothing else; they are not to be written to either. */
static bool place_zeros(Link *l) {
  size_t room = l->room;
  for (int i = 0; i < l->head.e_shnum; i++) {
    const Elf64_Shdr *x = &l->section[i];
    uint64_t align = x->sh_addralign ? x->sh_addralign : 1;
    if (!(x->sh_flags & SHF_ALLOC) || !x->sh_size || x->sh_type != SHT_NOBITS) continue;
    if (!is_pow2(align) || align > IMAGE_ALIGN || x->sh_size > IMAGE_MAX - room - IMAGE_ALIGN)
      return refuse(l, "a section is too large");
    room = (room + align - 1) & ~(size_t)(align - 1);
    l->at[i] = (int64_t)room;
    room += x->sh_size;
  }
  l->image->room = room;
  return true;
}

/* Code and constants one after the other; unwind tables and notes are left out. Slots come behind them. */
static bool place(Link *l) {
  size_t room = 0;
  for (int i = 0; i < l->head.e_shnum; i++) {
    const Elf64_Shdr *x = &l->section[i];
    uint64_t align = x->sh_addralign ? x->sh_addralign : 1;
    if (!(x->sh_flags & SHF_ALLOC) || !x->sh_size || x->sh_type == SHT_NOBITS ||
        x->sh_type == SHT_NOTE || x->sh_type == SHT_X86_64_UNWIND)
      continue;
    const char *name = "";
    if (l->head.e_shstrndx < l->head.e_shnum) {
      const Elf64_Shdr *t = &l->section[l->head.e_shstrndx];
      if (x->sh_name < t->sh_size && !l->p[t->sh_offset + t->sh_size - 1])
        name = (const char *)l->p + t->sh_offset + x->sh_name;
    }
    if (!strcmp(name, ".eh_frame")) continue;
    bool constant = !(x->sh_flags & SHF_WRITE) || !strncmp(name, ".data.rel.ro", 12);
    if (x->sh_type != SHT_PROGBITS || !constant) return refuse(l, "it has data of its own");
    if (!is_pow2(align) || align > IMAGE_ALIGN || x->sh_size > IMAGE_MAX - room - IMAGE_ALIGN)
      return refuse(l, "a section is too large");
    room = (room + align - 1) & ~(size_t)(align - 1);
    l->at[i] = (int64_t)room;
    room += x->sh_size;
  }
  l->used = (room + 15) & ~(size_t)15;
  l->room = l->used + 16 * l->n_symbols;
  if (l->room > IMAGE_MAX / 2) return refuse(l, "it is too large");
  l->bytes = arena_alloc(l->a, l->room + 1);
  for (int i = 0; i < l->head.e_shnum; i++)
    if (l->at[i] >= 0) /* no zeros yet */
      memcpy(l->bytes + l->at[i], l->p + l->section[i].sh_offset, l->section[i].sh_size);
  return place_zeros(l);
}

/* Where a symbol that is defined here lies. */
static bool defined(const Link *l, const Elf64_Sym *s, int64_t *at) {
  if (s->st_shndx >= l->head.e_shnum || l->at[s->st_shndx] < 0 ||
      s->st_value > l->section[s->st_shndx].sh_size)
    return false;
  *at = l->at[s->st_shndx] + (int64_t)s->st_value;
  return true;
}

/* Code that jumps to the symbol, then its address. */
static bool slot_of(Link *l, uint64_t i, const Elf64_Sym *s, int64_t *at) {
  if (l->slot[i] < 0) {
    int64_t to;
    ImageFix fix = {.at = (uint32_t)l->used + 8};
    memcpy(l->bytes + l->used, stub, sizeof stub);
    if (defined(l, s, &to)) {
      fix.to = (uint32_t)to;
      vec_add(l->a, &l->image->inside, fix);
    } else {
      int helper = s->st_shndx == SHN_UNDEF ? helper_find(l->names + s->st_name) : -1;
      if (helper < 0)
        return refuse(l, arena_fmt(l->a, "it calls %s", quoted(l->names + s->st_name)));
      fix.to = (uint32_t)helper;
      vec_add(l->a, &l->image->helpers, fix);
    }
    l->slot[i] = (int64_t)l->used;
    l->used += 16;
  }
  *at = l->slot[i];
  return true;
}

static void or_word(uint8_t *p, uint32_t clear, uint32_t set) {
  uint32_t w;
  memcpy(&w, p, sizeof w);
  w = (w & ~clear) | set;
  memcpy(p, &w, sizeof w);
}

static bool fits(int64_t v, int bits) {
  return v >= -((int64_t)1 << (bits - 1)) && v < (int64_t)1 << (bits - 1);
}

/* The value into the bytes at p, as the field wants it. */
static bool store(Link *l, uint8_t *p, const Reloc *r, int64_t v) {
  if (v & (((int64_t)1 << r->shift) - 1)) return refuse(l, "a relocation is not aligned");
  uint32_t w = (uint32_t)(v >>= r->shift);
  switch (r->field) {
  case F_64: memcpy(p, &v, 8); return true;
  case F_32:
    if (!fits(v, 32)) return refuse(l, "a relocation is out of reach");
    memcpy(p, &w, 4);
    return true;
  case F_26:
    if (!fits(v, 26)) return refuse(l, "a relocation is out of reach");
    or_word(p, 0x3ffffff, w & 0x3ffffff);
    return true;
  case F_PAGE:
    if (!fits(v, 21)) return refuse(l, "a relocation is out of reach");
    or_word(p, 0x60ffffe0, (w & 3) << 29 | (w >> 2 & 0x7ffff) << 5);
    return true;
  case F_12: or_word(p, 0xfff << 10, (w & 0xfff) << 10); return true;
  }
  return false;
}

static bool relocate(Link *l, int section, const Elf64_Rela *x) {
  const Reloc *r = NULL;
  for (size_t i = 0; i < sizeof relocs / sizeof *relocs; i++)
    if (relocs[i].type == ELF64_R_TYPE(x->r_info)) r = &relocs[i];
  if (!r)
    return refuse(l, arena_fmt(l->a, "it has relocations of type %u",
                               (unsigned)ELF64_R_TYPE(x->r_info)));
  Elf64_Sym s;
  uint64_t size = l->section[section].sh_size, i = ELF64_R_SYM(x->r_info), width = r->field ? 4 : 8;
  if (size < width || x->r_offset > size - width || !symbol_at(l, i, &s))
    return refuse(l, "a relocation is out of bounds");
  int64_t p = l->at[section] + (int64_t)x->r_offset, to;
  bool here = defined(l, &s, &to);
  if (r->value == V_ABS) {
    if (!here || x->r_addend < -to || x->r_addend > (int64_t)l->image->room - to)
      return refuse(l, "an address lies outside");
    vec_add(l->a, &l->image->inside, ((ImageFix){(uint32_t)p, (uint32_t)(to + x->r_addend)}));
    return true;
  }
  if ((!here || r->slot) && !slot_of(l, i, &s, &to)) return false;
  if (r->slot) to += 8;
  if (!fits(x->r_addend, 32)) return refuse(l, "a relocation is out of reach");
  to += x->r_addend;
  int64_t v = r->value == V_REL    ? to - p
              : r->value == V_PAGE ? (to & ~0xfffll) - (p & ~0xfffll)
                                   : (to & 0xfff);
  return store(l, l->bytes + p, r, v);
}

static bool relocate_all(Link *l) {
  for (int i = 0; i < l->head.e_shnum; i++) {
    const Elf64_Shdr *x = &l->section[i];
    if (x->sh_type != SHT_RELA || x->sh_info >= l->head.e_shnum || l->at[x->sh_info] < 0 ||
        l->section[x->sh_info].sh_type == SHT_NOBITS)
      continue;
    for (uint64_t at = 0; at + sizeof(Elf64_Rela) <= x->sh_size; at += sizeof(Elf64_Rela)) {
      Elf64_Rela r;
      memcpy(&r, l->p + x->sh_offset + at, sizeof r);
      if (!relocate(l, (int)x->sh_info, &r)) return false;
    }
  }
  return true;
}

static bool find_entry(Link *l, const char *symbol) {
  for (uint64_t i = 0; i < l->n_symbols; i++) {
    Elf64_Sym s;
    int64_t at;
    if (!symbol_at(l, i, &s) || strcmp(l->names + s.st_name, symbol) || !defined(l, &s, &at))
      continue;
    l->image->entry = (size_t)at;
    return true;
  }
  return refuse(l, "the function is not there");
}

bool image_of_object(Arena *a, const uint8_t *object, size_t n, const char *symbol, Image *image,
                     const char **why) {
  Link l = {.a = a, .p = object, .n = n, .image = image};
  *image = (Image){0};
  bool ok = read_sections(&l) && read_symbols(&l) && place(&l) && find_entry(&l, symbol) &&
            relocate_all(&l);
  image->bytes = l.bytes;
  image->n = l.used;
  *why = l.why;
  return ok;
}
