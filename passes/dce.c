/* Dead code: nodes from which no written, fetched or checked value is computed go. In: any Graph. Out: the same,
 * numbered. */
#include "rewrite.h"

void pass_dce(Graph *g) { graph_sweep(g); }
