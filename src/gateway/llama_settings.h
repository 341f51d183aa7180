/* What a request asks for, in llama-server's words ("generation_settings"): as its replies and
 * /props show it. Pure. */
#ifndef NK_GATEWAY_LLAMA_SETTINGS_H
#define NK_GATEWAY_LLAMA_SETTINGS_H

#include "base/buf.h"
#include "gateway/request.h"

/* One JSON object, appended. n_predict: as many tokens as it may get; -1: as many as fit. EXHAUSTED
 * no_memory. */
int nk__llama_settings_write(const struct nk_request *r, int n_predict, struct nk_buf *out,
                             struct nk_error *err);

#endif
