/* What is used of OpenBLAS, which blas.c opens: matrix products, and LAPACK, column-major (behind the arguments stand the
 * lengths of the texts). */
#ifndef KILN_BLAS_H
#define KILN_BLAS_H

#include <cblas.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct Blas {
  __typeof__(cblas_sgemv) *sgemv;
  __typeof__(cblas_dgemv) *dgemv;
  __typeof__(cblas_sgemm) *sgemm;
  __typeof__(cblas_dgemm) *dgemm;
  void (*dsyevd)(const char *jobz, const char *uplo, const int *n, double *a, const int *lda,
                 double *w, double *work, const int *lwork, int *iwork, const int *liwork,
                 int *info, size_t, size_t);
  void (*dgesdd)(const char *jobz, const int *m, const int *n, double *a, const int *lda, double *s,
                 double *u, const int *ldu, double *vt, const int *ldvt, double *work,
                 const int *lwork, int *iwork, int *info, size_t);
  void (*dgeqrf)(const int *m, const int *n, double *a, const int *lda, double *tau, double *work,
                 const int *lwork, int *info);
  void (*dorgqr)(const int *m, const int *n, const int *k, double *a, const int *lda,
                 const double *tau, double *work, const int *lwork, int *info);
  void (*dgetrf)(const int *m, const int *n, double *a, const int *lda, int *pivots, int *info);
  char *(*config)(void), *(*corename)(void);
  void (*set_threads)(int n);
} Blas;
extern Blas blas;      /* whoever calls it has called one of these */
bool blas_found(void); /* false: it is missing */
bool blas_setup(void); /* the same; sets an error */

#endif
