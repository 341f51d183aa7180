/* The methods of the service other than Inference, and what every method needs. Internal to the
 * worker. */
#ifndef NK_WORKER_SERVICE_H
#define NK_WORKER_SERVICE_H

#include "worker/worker_int.h"

/* The method table, for nk_server_opts. */
const struct nk_method *nk__service_methods(int *n);
/* No session is active any more: a Sleep that waits for that goes on. [net thread] */
void nk__service_idle(nk_worker *w);

#endif
