/* Dead code: nodes from which no written or fetched value is computed go. A check whose value nobody uses goes too: what
 * is not computed is not checked, as in the interpreter. In: any Graph. Out: the same, numbered. */
#include "rewrite.h"

void pass_dce(Graph *g) { graph_sweep(g); }
