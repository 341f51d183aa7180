/* What a request asks for, in llama-server's words ("generation_settings"): as its replies and
 * /props show it. Pure. */
#ifndef NK_GATEWAY_LLAMA_SETTINGS_H
#define NK_GATEWAY_LLAMA_SETTINGS_H

#include "base/buf.h"
#include "gateway/request.h"

/* One JSON object, appended. n_predict_max: where the request says no limit; 0: none. grammar: what
 * it became, also of a schema; or NULL. EXHAUSTED no_memory. */
int nk__llama_settings_write(const struct nk_request *r, int n_predict_max, const char *grammar,
                             struct nk_buf *out, struct nk_error *err);

#endif
