/* kiln.h: describe a network in C, train it, save it, run it.
 *
 *   #include <kiln.h>
 *   #include <stdio.h>
 *   int main(void) {
 *     kl_net *net = kl_net_new();
 *     kl_var *x = kl_data(net, "x", KL_FLOAT32, -1, 2), *y = kl_data(net, "y", KL_FLOAT32, -1, 1);
 *     kl_var *loss = kl_mse(kl_fc(kl_fc(x, 8, .act = "tanh"), 1), y);
 *     kl_minimize(loss, kl_adam(0.05));
 *
 *     kl_exec *exe = kl_exec_new(kl_exec_defaults);
 *     kl_run(exe, kl_startup(net), NULL, NULL);
 *     float xs[4][2] = {{0, 0}, {0, 1}, {1, 0}, {1, 1}}, ys[4] = {0, 1, 1, 0}, l = 0;
 *     kl_tensor tx = kl_array(KL_FLOAT32, xs, 4, 2), ty = kl_array(KL_FLOAT32, ys, 4, 1);
 *     kl_tensor tl = kl_scalar(KL_FLOAT32, &l);
 *     for (int i = 0; i < 200 && !kl_failed(); i++)
 *       kl_run(exe, kl_main(net), kl_feeds({"x", &tx}, {"y", &ty}), kl_fetches({kl_name(loss), &tl}));
 *     if (kl_failed()) return fprintf(stderr, "%s", kl_error()), 1;
 *     printf("loss %g\n", l);
 *     kl_exec_free(exe), kl_net_free(net);
 *   }
 *
 * A net holds two programs: the startup program initialises the parameters once, the main program is run per batch.
 * Layers append variables and operators to both. Errors: the first one of a thread is kept; building calls after it do
 * nothing and return NULL, so one check at the end suffices. Ownership: variables belong to their program, programs of a
 * net to the net; what a function returns `new` is freed by the function named after it. Threads: a net, program or
 * executor is used by one thread at a time; several executors may share a scope for inference.
 * Layers take their optional arguments by name after the required ones; a zero means the default. */
#ifndef KILN_H
#define KILN_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#define KL_API __attribute__((visibility("default")))
#define KL_STR_(x) #x
#define KL_STR(x) KL_STR_(x)
/* kept in op_callstack; errors and profiles name it */
#define KL_HERE __FILE__ ":" KL_STR(__LINE__)

typedef struct kl_net kl_net;         /* a network being built */
typedef struct kl_program kl_program; /* blocks of operators and variables */
typedef struct kl_var kl_var;         /* a variable of a program */
typedef struct kl_scope
    kl_scope;                   /* named tensors that outlive a run: parameters, optimiser state */
typedef struct kl_exec kl_exec; /* compiles and runs programs */

typedef enum kl_dtype {
  KL_BOOL,
  KL_UINT8,
  KL_INT8,
  KL_INT16,
  KL_INT32,
  KL_INT64,
  KL_FLOAT16,
  KL_BFLOAT16,
  KL_FLOAT32,
  KL_FLOAT64
} kl_dtype;

/* A dense array in row-major order. Rank at most 9. */
typedef struct kl_tensor {
  kl_dtype dtype;
  int rank;
  int64_t dims[9];
  void *data;
} kl_tensor;

/* kl_array(KL_FLOAT32, pointer, 64, 784): a tensor of these dims over the caller's memory. */
#define kl_array(dtype, pointer, ...)                                                              \
  kl_tensor_over((dtype), (pointer), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),    \
                 (const int64_t[]){__VA_ARGS__})
#define kl_scalar(dtype, pointer) kl_tensor_over((dtype), (pointer), 0, NULL)
KL_API kl_tensor kl_tensor_over(kl_dtype dtype, void *data, int rank, const int64_t *dims);
KL_API int64_t kl_numel(const kl_tensor *t); /* the product of its dims */
KL_API void kl_tensor_free(kl_tensor *t);    /* frees data that kl_run or kl_read_array allocated */

/* ---- errors ---- */

KL_API bool kl_failed(void); /* has a call of this thread failed? */
/* the whole message with place and help; "" if none; valid until the next call */
KL_API const char *kl_error(void);
KL_API const char *kl_error_code(void); /* "E-SHP-012", or "" */
KL_API void kl_clear_error(void);       /* after which building and running go on */
KL_API const char *kl_version(void);    /* "0.1.0" */

/* ---- building ---- */

KL_API kl_net *kl_net_new(void);
KL_API void kl_net_free(kl_net *net); /* frees both programs */
KL_API kl_program *kl_main(kl_net *net);
KL_API kl_program *kl_startup(kl_net *net);
/* of initialisers and dropout; call before building. 0: the executor's */
KL_API void kl_seed(kl_net *net, int64_t seed);
KL_API const char *kl_name(const kl_var *v); /* valid as long as the variable */
/* Renames a variable of the main program, such as a loss to be fetched by name; not a parameter. Returns v. */
#define kl_named(v, name) kl_named_at(KL_HERE, (v), (name))
KL_API kl_var *kl_named_at(const char *at, kl_var *v, const char *name);
/* in the main program; NULL if absent (no error) */
KL_API kl_var *kl_find(kl_net *net, const char *name);
/* No gradient flows through v into what made it, as none does into inputs. */
KL_API void kl_stop_gradient(kl_var *v, bool stop);

/* An input that is fed: kl_data(net, "x", KL_FLOAT32, -1, 784). -1 may have any size at run time. */
#define kl_data(net, name, dtype, ...)                                                             \
  kl_data_at(KL_HERE, (net), (name), (dtype),                                                      \
             (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),                            \
             (const int64_t[]){__VA_ARGS__})
KL_API kl_var *kl_data_at(const char *at, kl_net *net, const char *name, kl_dtype dtype, int rank,
                          const int64_t *dims);

/* Initial values. Fans: [in, out] for matrices; in*k*k and out*k*k for filters [out, in, k, k]. */
typedef struct kl_init {
  int kind;
  double a, b;
  const kl_tensor *value;
} kl_init;
KL_API kl_init kl_constant(double value);
KL_API kl_init kl_uniform(double low, double high);
KL_API kl_init kl_normal(double mean, double std);
KL_API kl_init kl_truncated_normal(double mean, double std); /* cut at two standard deviations */
/* Glorot & Bengio 2010; the default of weights */
KL_API kl_init kl_xavier_uniform(void);
KL_API kl_init kl_xavier_normal(void);
KL_API kl_init kl_kaiming_uniform(void); /* He et al. 2015 */
KL_API kl_init kl_kaiming_normal(void);
/* these numbers; copied when the layer is built */
KL_API kl_init kl_values(const kl_tensor *value);

typedef struct kl_decay {
  int kind;
  double coeff;
} kl_decay; /* weight decay added to the gradient */
KL_API kl_decay kl_l1(double coeff);
KL_API kl_decay kl_l2(double coeff);

/* How a layer's parameter is made. A name that exists already shares that parameter. */
typedef struct kl_param {
  const char *name;
  kl_init init;
  double lr;      /* factor on the learning rate; 0 = 1 */
  kl_decay decay; /* instead of the optimiser's */
  bool frozen;    /* not trained */
  bool no_clip;   /* left out of gradient clipping */
} kl_param;

/* Layers. x [N, ...]; `act` names any operator with one input and one output. Comments give what zeros stand for. Weights
 * begin as kl_xavier_uniform, biases as 0, scales of normalisations as 1. */
typedef struct kl_fc_args {
  kl_var *x;
  int64_t size;
  const char *act;
  int flatten; /* dims from here on are features; 0: 1 */
  bool no_bias;
  kl_param weight, bias; /* [in, size], [size] */
  const char *at_;
} kl_fc_args;
typedef struct kl_conv2d_args {
  kl_var *x;
  int64_t filters, kernel;
  /* those for w: as for h; stride, dilation, groups: 1 */
  int64_t kernel_w, stride, stride_w, pad, pad_w, dilation, dilation_w, groups;
  const char *padding; /* "SAME" or "VALID", instead of pad */
  const char *act;
  bool no_bias, nhwc;    /* nhwc: x [N, H, W, C] */
  kl_param weight, bias; /* [filters, C/groups, kernel, kernel_w], [filters] */
  const char *at_;
} kl_conv2d_args;
typedef struct kl_pool2d_args {
  kl_var *x;
  const char *type;                                       /* "max" or "avg" */
  int64_t kernel, stride, pad, kernel_w, stride_w, pad_w; /* stride: kernel */
  bool global, adaptive; /* over all of H, W; to kernel x kernel_w results */
  bool ceil_mode;        /* windows that begin inside count, though they end outside */
  bool inclusive;        /* means count padding */
  const char *at_;
} kl_pool2d_args;
typedef struct kl_batch_norm_args {
  kl_var *x;
  double momentum, epsilon; /* 0.9, of the running statistics; 1e-5 */
  const char *act;
  bool is_test, use_global_stats; /* by the running statistics; the latter in training, too */
  bool nhwc;
  kl_param weight, bias;                 /* [C] */
  const char *mean_name, *variance_name; /* of the running statistics; NULL: new ones */
  const char *at_;
} kl_batch_norm_args;
typedef struct kl_layer_norm_args {
  kl_var *x;
  int begin_axis; /* dims from here on are normalised together; 0: 1 */
  double epsilon; /* 1e-5 */
  bool no_weight, no_bias;
  kl_param weight, bias; /* [the product of those dims] */
  const char *at_;
} kl_layer_norm_args;
typedef struct kl_dropout_args {
  kl_var *x;
  double prob;  /* of an element to become 0 */
  bool upscale; /* training divides by 1 - prob; else inference multiplies by it */
  bool is_test;
  int64_t seed; /* 0: the net's */
  const char *at_;
} kl_dropout_args;
typedef struct kl_embedding_args {
  kl_var *ids;
  int64_t rows, columns;
  bool has_padding;
  int64_t padding; /* if it has: ids that give zeros, and no gradient */
  kl_param weight; /* [rows, columns] */
  kl_dtype dtype;  /* float32 */
  const char *at_;
} kl_embedding_args;

#define KL_ARGS_(type, ...) ((type){__VA_ARGS__, .at_ = KL_HERE})
/* x, size: act(x W + b), [N, size] */
#define kl_fc(...) kl_fc_at(KL_ARGS_(kl_fc_args, __VA_ARGS__))
/* x [N, C, H, W], filters, kernel: [N, filters, H', W'], H' = (H + 2 pad - dilation (kernel - 1) - 1) / stride + 1 */
#define kl_conv2d(...) kl_conv2d_at(KL_ARGS_(kl_conv2d_args, __VA_ARGS__))
/* x [N, C, H, W], type, kernel: [N, C, H', W'] */
#define kl_pool2d(...) kl_pool2d_at(KL_ARGS_(kl_pool2d_args, __VA_ARGS__))
/* x [N, C, ...]; x's shape */
#define kl_batch_norm(...) kl_batch_norm_at(KL_ARGS_(kl_batch_norm_args, __VA_ARGS__))
/* x, begin_axis; x's shape */
#define kl_layer_norm(...) kl_layer_norm_at(KL_ARGS_(kl_layer_norm_args, __VA_ARGS__))
/* x, prob; x's shape */
#define kl_dropout(...) kl_dropout_at(KL_ARGS_(kl_dropout_args, __VA_ARGS__))
/* ids (int64), rows, columns -> ids' shape + [columns] */
#define kl_embedding(...) kl_embedding_at(KL_ARGS_(kl_embedding_args, __VA_ARGS__))
KL_API kl_var *kl_fc_at(kl_fc_args a);
KL_API kl_var *kl_conv2d_at(kl_conv2d_args a);
KL_API kl_var *kl_pool2d_at(kl_pool2d_args a);
KL_API kl_var *kl_batch_norm_at(kl_batch_norm_args a);
KL_API kl_var *kl_layer_norm_at(kl_layer_norm_args a);
KL_API kl_var *kl_dropout_at(kl_dropout_args a);
KL_API kl_var *kl_embedding_at(kl_embedding_args a);

/* Any operator of the table (`kiln ops`): attributes as text, then slot and variable in pairs; a list slot is named once
 * for each variable. Returns the first output; kl_output names the others.
 *   kl_var *y = kl_op(net, "leaky_relu", "alpha=0.1", "X", x); */
#define kl_op(net, type, ...) kl_op_at(KL_HERE, (net), (type), __VA_ARGS__, (const char *)0)
KL_API kl_var *kl_op_at(const char *at, kl_net *net, const char *type, const char *attrs, ...);
/* another output of the operator that made `of` */
KL_API kl_var *kl_output(kl_var *of, const char *slot);
/* the n-th variable of a list output, from 0 */
KL_API kl_var *kl_output_n(kl_var *of, const char *slot, int n);
/* A parameter for operators that have no layer: named p.name, else by a new name that begins with key. is_bias: it begins as 0. */
KL_API kl_var *kl_parameter(kl_net *net, const char *key, kl_dtype dtype, int rank,
                            const int64_t *dims, kl_param p, bool is_bias);

/* Operators with one or two operands: the generic call with a short name. Of two, shapes are broadcast as in NumPy. */
#define kl_unary(type, attrs, x) kl_unary_at(KL_HERE, (type), (attrs), (x))
#define kl_binary(type, attrs, x, y) kl_binary_at(KL_HERE, (type), (attrs), (x), (y))
KL_API kl_var *kl_unary_at(const char *at, const char *type, const char *attrs, kl_var *x);
KL_API kl_var *kl_binary_at(const char *at, const char *type, const char *attrs, kl_var *x,
                            kl_var *y);
#define kl_relu(x) kl_unary("relu", "", x)
#define kl_sigmoid(x) kl_unary("sigmoid", "", x)
#define kl_tanh(x) kl_unary("tanh", "", x)
#define kl_gelu(x) kl_unary("gelu", "", x)
#define kl_softmax(x) kl_unary("softmax", "axis=-1", x)
#define kl_mean(x) kl_unary("mean", "", x)
#define kl_add(x, y) kl_binary("elementwise_add", "axis=-1", x, y)
#define kl_sub(x, y) kl_binary("elementwise_sub", "axis=-1", x, y)
#define kl_mul(x, y) kl_binary("elementwise_mul", "axis=-1", x, y)
#define kl_div(x, y) kl_binary("elementwise_div", "axis=-1", x, y)
#define kl_matmul(x, y) kl_binary("matmul_v2", "", x, y)
#define kl_reshape(x, ...)                                                                         \
  kl_reshape_at(KL_HERE, (x), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),           \
                (const int64_t[]){__VA_ARGS__})
#define kl_concat(axis, ...)                                                                       \
  kl_concat_at(KL_HERE, (axis), (int)(sizeof((kl_var *[]){__VA_ARGS__}) / sizeof(kl_var *)),       \
               (kl_var *[]){__VA_ARGS__})
/* 0 keeps a dim, one -1 is inferred */
KL_API kl_var *kl_reshape_at(const char *at, kl_var *x, int rank, const int64_t *dims);
KL_API kl_var *kl_concat_at(const char *at, int axis, int n, kl_var *const *x);

/* Losses per row [N, 1] unless said otherwise; take kl_mean before minimising. Labels int64 [N, 1]. */
#define kl_softmax_with_cross_entropy(logits, label)                                               \
  kl_softmax_ce_at(KL_HERE, (logits), (label), false)
#define kl_soft_label_cross_entropy(logits, probabilities)                                         \
  kl_softmax_ce_at(KL_HERE, (logits), (probabilities), true)
#define kl_cross_entropy(probabilities, label)                                                     \
  kl_cross_entropy_at(KL_HERE, (probabilities), (label))
#define kl_bce_with_logits(x, label) kl_bce_at(KL_HERE, (x), (label))
#define kl_huber(x, y, delta) kl_huber_at(KL_HERE, (x), (y), (delta))
/* already the mean: one number */
#define kl_mse(x, y) kl_mse_at(KL_HERE, (x), (y))
/* fraction with the label among the k best */
#define kl_accuracy(scores, label, k) kl_accuracy_at(KL_HERE, (scores), (label), (k))
KL_API kl_var *kl_softmax_ce_at(const char *at, kl_var *logits, kl_var *label, bool soft);
KL_API kl_var *kl_cross_entropy_at(const char *at, kl_var *p, kl_var *label);
KL_API kl_var *kl_bce_at(const char *at, kl_var *x, kl_var *label);
KL_API kl_var *kl_huber_at(const char *at, kl_var *x, kl_var *y, double delta);
KL_API kl_var *kl_mse_at(const char *at, kl_var *x, kl_var *y);
KL_API kl_var *kl_accuracy_at(const char *at, kl_var *scores, kl_var *label, int k);

/* ---- control flow ---- */

/* Loops. Layers between begin and end belong to the loop's block, which runs as long as the condition, one bool, holds. What
 * a step hands on to the next one it assigns to a variable from before the loop:
 *   kl_var *i = kl_fill(net, KL_INT64, 0, 1), *n = kl_fill(net, KL_INT64, 5, 1), *s = kl_copy(x);
 *   kl_block *loop = kl_while(kl_less_than(i, n));
 *   kl_assign(s, kl_tanh(kl_matmul(s, w)));
 *   kl_assign(i, kl_add(i, kl_fill(net, KL_INT64, 1, 1)));
 *   kl_end_while(loop, kl_less_than(i, n));
 * A variable whose size changes from step to step must be told so before it is used: kl_vary(s, 0). */
typedef struct kl_block kl_block;
#define kl_while(cond) kl_while_at(KL_HERE, (cond))
#define kl_end_while(block, next) kl_end_while_at(KL_HERE, (block), (next))
#define kl_assign(to, value) kl_assign_at(KL_HERE, (to), (value)) /* returns `to` */
#define kl_copy(x) kl_unary("assign", "", x)
#define kl_fill(net, dtype, value, ...)                                                            \
  kl_fill_at(KL_HERE, (net), (dtype), (value),                                                     \
             (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),                            \
             (const int64_t[]){__VA_ARGS__})
#define kl_less_than(x, y) kl_binary("less_than", "axis=-1", x, y)
#define kl_equal(x, y) kl_binary("equal", "axis=-1", x, y)
#define kl_logical_and(x, y) kl_binary("logical_and", "", x, y)
#define kl_logical_not(x) kl_unary("logical_not", "", x)
KL_API kl_block *kl_while_at(const char *at, kl_var *cond);
KL_API bool kl_end_while_at(const char *at, kl_block *b, kl_var *next);
KL_API kl_var *kl_assign_at(const char *at, kl_var *to, kl_var *value);
KL_API kl_var *kl_fill_at(const char *at, kl_net *net, kl_dtype dtype, double value, int rank,
                          const int64_t *dims);
KL_API kl_var *kl_vary(kl_var *v, int axis); /* the size of that axis is not known; returns v */

/* Branches, of which one runs:
 *   kl_block *b = kl_if(cond);
 *   kl_var *yes = kl_tanh(x);
 *   kl_else(b);
 *   kl_var *no = kl_mul(x, x), *y = kl_choose(b, yes, no);
 * kl_end_if ends a branch with n results, or with none; then kl_else may be left out. */
#define kl_if(cond) kl_if_at(KL_HERE, (cond))
#define kl_else(block) kl_else_at(KL_HERE, (block))
#define kl_choose(block, yes, no) kl_choose_at(KL_HERE, (block), (yes), (no))
#define kl_end_if(block, n, yes, no, out) kl_end_if_at(KL_HERE, (block), (n), (yes), (no), (out))
KL_API kl_block *kl_if_at(const char *at, kl_var *cond);
KL_API bool kl_else_at(const char *at, kl_block *b);
KL_API kl_var *kl_choose_at(const char *at, kl_block *b, kl_var *yes, kl_var *no);
KL_API bool kl_end_if_at(const char *at, kl_block *b, int n, kl_var *const *yes, kl_var *const *no,
                         kl_var **out);

/* Lists of tensors: element i, an int64 [1], is set before it is got. Joined, the elements lie one after another along an
 * axis, or along a new one. */
#define kl_list(net, dtype) kl_list_at(KL_HERE, (net), (dtype))
#define kl_list_set(list, i, x) kl_list_set_at(KL_HERE, (list), (i), (x))
#define kl_list_get(list, i) kl_list_get_at(KL_HERE, (list), (i))
#define kl_list_length(list) kl_list_length_at(KL_HERE, (list))
#define kl_list_concat(list, axis) kl_list_join_at(KL_HERE, (list), (axis), false)
#define kl_list_stack(list, axis) kl_list_join_at(KL_HERE, (list), (axis), true)
KL_API kl_var *kl_list_at(const char *at, kl_net *net, kl_dtype dtype);
KL_API bool kl_list_set_at(const char *at, kl_var *list, kl_var *i, kl_var *x);
KL_API kl_var *kl_list_get_at(const char *at, kl_var *list, kl_var *i);
KL_API kl_var *kl_list_length_at(const char *at, kl_var *list);
KL_API kl_var *kl_list_join_at(const char *at, kl_var *list, int axis, bool stack);

/* ---- optimisers ---- */

typedef struct kl_clip {
  int kind;
  double low, high;
} kl_clip;
KL_API kl_clip kl_clip_value(double low, double high);
KL_API kl_clip kl_clip_norm(double norm);        /* each gradient by itself */
KL_API kl_clip kl_clip_global_norm(double norm); /* all gradients together */

typedef struct kl_optim_args {
  double lr;
  double momentum; /* momentum (0.9), rmsprop (0) */
  bool nesterov, centered;
  double beta1, beta2, epsilon, rho; /* 0.9, 0.999, as in the operator's row, 0.95 */
  double weight_decay;               /* adamw's decoupled decay (0.01) */
  kl_decay decay;                    /* added to every gradient */
  kl_clip clip;
  int end_;
} kl_optim_args;
typedef struct kl_optimizer {
  const char *type;
  kl_optim_args a;
} kl_optimizer;
#define KL_OPTIM_(name, ...) ((kl_optimizer){(name), {__VA_ARGS__, .end_ = 0}})
#define kl_sgd(...) KL_OPTIM_("sgd", __VA_ARGS__) /* kl_sgd(0.01) */
/* kl_momentum(0.1, 0.9, .nesterov = true) */
#define kl_momentum(...) KL_OPTIM_("momentum", __VA_ARGS__)
#define kl_adam(...) KL_OPTIM_("adam", __VA_ARGS__)   /* Kingma & Ba 2015 */
#define kl_adamw(...) KL_OPTIM_("adamw", __VA_ARGS__) /* Loshchilov & Hutter 2019 */
#define kl_rmsprop(...) KL_OPTIM_("rmsprop", __VA_ARGS__)
#define kl_adagrad(...) KL_OPTIM_("adagrad", __VA_ARGS__)

/* Appends gradients and updates for all trainable parameters. Returns the learning-rate variable (a scalar). */
#define kl_minimize(loss, optimizer) kl_minimize_at(KL_HERE, (loss), (optimizer))
KL_API kl_var *kl_minimize_at(const char *at, kl_var *loss, kl_optimizer o);
/* Appends gradients only. The gradient of v is then the variable "<name of v>@GRAD". */
KL_API bool kl_backward(kl_var *loss);

/* Learning rates over time, on the host: before each run, kl_set_rate(exe, rate_var, kl_rate(&s, step)). */
typedef struct kl_schedule {
  int kind;
  double base, a, b;
  int64_t n, m;
  const int64_t *milestones;
  double (*fn)(int64_t step, void *user);
  void *user;
  double best, rate;
  int64_t bad, warm_steps;
  double warm_from;
} kl_schedule;
KL_API kl_schedule kl_rate_constant(double base);
/* times factor after each `every` steps */
KL_API kl_schedule kl_rate_step(double base, int64_t every, double factor);
/* times factor at each of n steps; keeps the pointer */
KL_API kl_schedule kl_rate_multi_step(double base, int n, const int64_t *milestones, double factor);
/* base * factor^step */
KL_API kl_schedule kl_rate_exponential(double base, double factor);
/* from base to low over so many steps, by half a cosine; Loshchilov & Hutter 2017 */
KL_API kl_schedule kl_rate_cosine(double base, double low, int64_t steps);
/* times factor when kl_rate_observe has seen no better metric more than `patience` times in a row */
KL_API kl_schedule kl_rate_plateau(double base, double factor, int64_t patience);
KL_API kl_schedule kl_rate_callback(double (*fn)(int64_t step, void *user), void *user);
/* linear from..base, then `after` */
KL_API kl_schedule kl_rate_warm_up(kl_schedule after, double from, int64_t steps);
KL_API double kl_rate(kl_schedule *s, int64_t step);
/* lower is better */
KL_API void kl_rate_observe(kl_schedule *s, double metric);
KL_API bool kl_set_rate(kl_exec *exe, const kl_var *rate, double value);

/* ---- programs and files ---- */

/* Kiln text if the path ends in .kl, else PaddlePaddle's ProgramDesc; recognised by content when loaded. */
KL_API bool kl_save(const kl_program *p, const char *path);
KL_API kl_program *kl_load(const char *path); /* new */
KL_API void kl_program_free(kl_program *p);   /* not for programs of a net */
KL_API char *kl_text(const kl_program *p);    /* Kiln text; free with kl_free */
KL_API void kl_free(void *p);
KL_API kl_program *kl_clone(const kl_program *p); /* new */
/* new: no backward, no updates, is_test set */
KL_API kl_program *kl_clone_for_test(const kl_program *p);
/* Keeps what the targets need, taking the feeds as given; NULL-ended lists. */
KL_API bool kl_prune(kl_program *p, const char *const *feeds, const char *const *targets);
/* All persistable variables of p. Saved is a file in the .pdiparams layout, or, if the path is a folder or ends with /, a
 * file for each variable in it. Loaded are these and dictionaries of arrays, as NAME.pdparams with NAME.pdopt beside it. */
KL_API bool kl_save_params(kl_exec *exe, const kl_program *p, const char *path);
KL_API bool kl_load_params(kl_exec *exe, const kl_program *p, const char *path);
/* PREFIX.pdmodel and PREFIX.pdiparams, pruned to the fetches; loading sets the parameters in the executor's scope. */
KL_API bool kl_save_inference(kl_exec *exe, const kl_program *p, const char *prefix,
                              const char *const *feeds, const char *const *fetches);
KL_API kl_program *kl_load_inference(kl_exec *exe, const char *prefix); /* new */
/* How many there are; the first `max` in column order. Names belong to p. */
KL_API int kl_feed_names(const kl_program *p, const char **names, int max);
KL_API int kl_fetch_names(const kl_program *p, const char **names, int max);

/* ---- running ---- */

typedef struct kl_exec_options {
  int threads;       /* 0: all cores. Results do not depend on it */
  bool interpret;    /* the plain interpreter instead of generated code */
  bool check_nan;    /* a NaN or infinity in a result: stop, and name the operator that made it */
  bool profile;      /* see kl_print_profile */
  const char *trace; /* a file for a Chrome trace, written by kl_exec_free */
  uint64_t seed;     /* of random operators without a seed of their own */
  kl_scope *scope;   /* shared with others; NULL: one of its own */
  /* bytes of intermediate values that one run may hold; 0: any. Values are computed again until they fit; same results */
  int64_t memory_budget;
  /* how far convolutions may be off, relative to the largest result of a layer; 0: 2e-6, as plain sums are, or plain sums
   * if deterministic; < 0: plain sums. From 2e-6 on Winograd's algorithm serves 3 x 3 filters and their gradients, on GPUs
   * from 1e-5 on whatever cuDNN suggests */
  double conv_error;
  int64_t max_steps;  /* of one loop, after which it counts as endless; 0: 100 million */
  const char *device; /* "cpu" (the default), "cuda" or "cuda:N": the first or another GPU */
  /* "exact" (the default); on a GPU also "tf32", "bf16": how matrix products round their inputs */
  const char *math;
  /* Which of several algorithms serves a matrix product or convolution is decided by a rule on its shape, or as `tune`
   * once measured on this machine and the disk cache remembers. deterministic: by the rule alone, so that results are the
   * same bits whatever the cache holds. tune: measured now where that has not been done. Not both. */
  bool deterministic, tune;
} kl_exec_options;
#define kl_exec_defaults ((kl_exec_options){.threads = 0})
/* NULL if there is no such device (see kl_error) */
KL_API kl_exec *kl_exec_new(kl_exec_options o);
KL_API void kl_exec_free(kl_exec *exe);       /* and its scope, unless that was given */
KL_API kl_scope *kl_exec_scope(kl_exec *exe); /* belongs to it, unless it was given */
KL_API void kl_print_profile(kl_exec *exe);   /* to stdout: times per operator and kernel */
KL_API kl_scope *kl_scope_new(void);
KL_API void kl_scope_free(kl_scope *s);

typedef struct kl_feed {
  const char *name;
  const kl_tensor *value;
} kl_feed;
typedef struct kl_fetch {
  const char *name;
  kl_tensor *to;
} kl_fetch;
#define kl_feeds(...) ((const kl_feed[]){__VA_ARGS__, {NULL, NULL}})
#define kl_fetches(...) ((const kl_fetch[]){__VA_ARGS__, {NULL, NULL}})
/* Runs a program once. `to` receives the value: into its data if that has the right type and size, otherwise into new
 * memory (kl_tensor_free). A program is compiled when it meets new shapes and kept. */
KL_API bool kl_run(kl_exec *exe, const kl_program *p, const kl_feed *feeds,
                   const kl_fetch *fetches);
/* The value of a persistable variable; it belongs to the scope. NULL if it has none (no error). After a run, ask again:
 * the executor may keep the variable in another layout. */
KL_API const kl_tensor *kl_get(kl_exec *exe, const char *name);
KL_API bool kl_set(kl_exec *exe, const char *name, const kl_tensor *value); /* copied */
/* Training state in a folder, complete or not there; `note` is kept verbatim. kl_resume returns the step, or -1. */
KL_API bool kl_checkpoint(kl_exec *exe, const kl_program *p, const char *folder, const char *note);
KL_API int64_t kl_resume(kl_exec *exe, const kl_program *p, const char *folder);
/* .npy, .npz or FILE.npz:MEMBER, IDX, each also gzipped; a tensor file of PaddlePaddle; bare numbers as
 * FILE:float32:64x784, whose first dimension may be -1. Memory is new: kl_tensor_free. */
KL_API bool kl_read_array(const char *path, kl_tensor *to);
/* Offsets of sequences that a tensor file of PaddlePaddle holds, at most `max`: levels[0] those of the rows, levels[1] those
 * of these sequences, ... Memory is new. How many levels there are, 0 in other files; -1: an error. */
KL_API int kl_read_lod(const char *path, kl_tensor *levels, int max);

/* ---- custom operators ---- */

/* An operator in C. Tensors of all slots in the order of the signature; the functions return false to fail the run.
 * backward: in = forward inputs, forward outputs, gradients of the outputs; out = gradients of the inputs. */
typedef struct kl_custom_op {
  const char *name;
  const char *signature; /* "X -> Out" */
  bool (*infer)(const struct kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                kl_tensor *out); /* dims may be -1 */
  bool (*forward)(const struct kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                  kl_tensor *out);
  bool (*backward)(const struct kl_custom_op *op, int n_in, const kl_tensor *in, int n_out,
                   kl_tensor *out);
  void *user;
} kl_custom_op;
/* For the whole process. Copied; what `user` points to is not. */
KL_API bool kl_register(const kl_custom_op *op);
/* opens the library and calls its `bool kiln_plugin(void)` */
KL_API bool kl_load_plugin(const char *path);

#ifdef __cplusplus
}
#endif
#endif
