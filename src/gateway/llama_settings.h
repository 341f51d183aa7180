/* What a request asks for, in llama-server's words ("generation_settings"): as its replies and
 * /props show it. Pure. */
#ifndef NK_GATEWAY_LLAMA_SETTINGS_H
#define NK_GATEWAY_LLAMA_SETTINGS_H

#include "base/buf.h"
#include "gateway/request.h"
#include "text/vocab.h"

/* What a request became, and what is true where it says nothing. */
struct nk_llama_settings {
    int n_predict_max;   /* 0: none */
    const char *grammar; /* also of a schema; or NULL */
    const struct nk_logit_bias *logit_bias;
    int n_logit_bias;
    const nk_vocab *vocab; /* says which tokens ignore_eos bans; NULL: they are not shown */
};
/* One JSON object, appended. EXHAUSTED no_memory. */
int nk__llama_settings_write(const struct nk_request *r, const struct nk_llama_settings *of,
                             struct nk_buf *out, struct nk_error *err);

#endif
