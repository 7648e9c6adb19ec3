/* Tokens of PTX text: words (with their dots, so that an instruction with its modifiers is one), numbers, strings, single
 * characters. Comments are skipped. */
#include "sim.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static bool word_char(const char *s) {
  return isalnum((unsigned char)*s) || *s == '_' || *s == '$' || *s == '.' || *s == '%';
}

static void skip_space(Lexer *l) {
  for (;;) {
    if (*l->s == '\n') l->line++;
    if (isspace((unsigned char)*l->s)) {
      l->s++;
    } else if (l->s[0] == '/' && l->s[1] == '/') {
      while (*l->s && *l->s != '\n') l->s++;
    } else if (l->s[0] == '/' && l->s[1] == '*') {
      for (l->s += 2; *l->s && !(l->s[0] == '*' && l->s[1] == '/'); l->s++)
        if (*l->s == '\n') l->line++;
      if (*l->s) l->s += 2;
    } else {
      return;
    }
  }
}

/* 0f3F800000 and 0d3FF0000000000000 are bits. Otherwise C's numbers, with an optional U. */
static void number(Lexer *l) {
  Token *t = &l->t;
  char *end;
  t->kind = T_INT;
  if (l->s[0] == '0' && l->s[1] && strchr("fFdD", l->s[1]) && isxdigit((unsigned char)l->s[2])) {
    t->kind = T_FLOAT;
    t->width = tolower((unsigned char)l->s[1]) == 'f' ? 4 : 8;
    t->value = strtoull(l->s + 2, &end, 16);
  } else {
    t->value = strtoull(l->s, &end, 0);
    if (*end == '.' || ((*end == 'e' || *end == 'E') && l->s[1] != 'x')) {
      union {
        double f;
        uint64_t u;
      } x = {.f = strtod(l->s, &end)};
      t->kind = T_FLOAT;
      t->width = 8;
      t->value = x.u;
    } else {
      while (*end == 'U' || *end == 'u') end++;
    }
  }
  l->s = end;
}

void lex_next(Lexer *l) {
  skip_space(l);
  Token *t = &l->t;
  *t = (Token){.s = l->s, .line = l->line};
  if (!*l->s) {
    t->kind = T_END;
  } else if (isdigit((unsigned char)*l->s)) {
    number(l);
  } else if (*l->s == '"') {
    t->kind = T_STRING;
    for (l->s++; *l->s && *l->s != '"'; l->s++)
      if (*l->s == '\n') l->line++;
    if (*l->s) l->s++;
  } else if (!word_char(l->s)) {
    t->kind = T_CHAR;
    l->s++;
  } else {
    t->kind = T_WORD;
    bool directive = *l->s == '.'; /* .reg.b16 is two words */
    while (!(directive && *l->s == '.' && l->s > t->s) &&
           (word_char(l->s) || (l->s[0] == ':' && l->s[1] == ':' && word_char(l->s + 2))))
      l->s += *l->s == ':' ? 2 : 1;
  }
  t->n = (size_t)(l->s - t->s);
}

void lex_skip_line(Lexer *l) {
  while (*l->s && *l->s != '\n') l->s++;
  lex_next(l);
}
