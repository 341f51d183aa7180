/* What llama-server tells of itself at /props and /slots, told of the chains. */
#include "gateway/routes_int.h"

#include <stdio.h>
#include <string.h>

#include "gateway/llama_settings.h"
#include "gateway/model.h"
#include "gateway/reply.h"

/* So many requests run side by side; 0: not known. */
static int n_places(nk_gateway *g)
{
    return nk__readiness_counts(&g->readiness).capacity;
}

static void write_piece(struct out *o, const char *name, const nk_vocab *v, int32_t id)
{
    struct nk_buf piece = NK_BUF_INIT(4096);

    key(o, name);
    if (id < 0 || nk_vocab_piece(v, id, true, &piece, NULL))
        nk_buf_reset(&piece);
    if (!o->rc)
        o->rc = nk_json_strn(o->b, nk_buf_str(&piece), piece.size, NULL);
    nk_buf_release(&piece);
}

/* Its clients look for the file's ending. */
static void write_path(struct out *o, const char *name)
{
    size_t n = strlen(name);
    char path[512];

    snprintf(path, sizeof path, "%.500s%s", name,
             n > 5 && !strcmp(name + n - 5, ".gguf") ? "" : ".gguf");
    str(o, "model_path", path);
}

NK__ANSWER(props)
{
    static const char empty[] = "{\"prompt\":\"\"}";
    const struct nk_request_limits limits = { .messages_max = 1,
                                              .n_max = 1,
                                              .defaults = g->defaults,
                                              .n_predict_max = g->opts.n_predict_max };
    const struct nk_prompter_caps caps = nk__prompter_caps(g->prompter);
    struct out o = { a->body, 0 };
    char fingerprint[96];
    struct nk_request_error e;
    struct nk_request r;

    (void)rest, (void)request;
    if (nk__request_parse(&r, NK_API_COMPLETION, empty, strlen(empty), &limits, &e)) {
        a->err = e.err;
        return;
    }
    nk__model_fingerprint(g, fingerprint);
    raw(&o, "{");
    key(&o, "default_generation_settings");
    raw(&o, "{");
    num(&o, "n_ctx", s && s->ok ? s->n_ctx : 0);
    key(&o, "params");
    if (!o.rc)
        o.rc = nk__llama_settings_write(
            &r,
            &(struct nk_llama_settings){ .n_predict_max = g->opts.n_predict_max,
                                         .grammar = r.sampling.grammar,
                                         .logit_bias = r.sampling.logit_bias,
                                         .n_logit_bias = r.sampling.n_logit_bias,
                                         .vocab = g->vocab },
            a->body, NULL);
    raw(&o, "}");
    nk__request_release(&r);
    num(&o, "total_slots", n_places(g));
    str(&o, "model_alias", nk__model_name(g));
    write_path(&o, g->names[0]);
    str(&o, "chat_template", caps.chat_template ? caps.chat_template : "");
    write_piece(&o, "bos_token", g->vocab, nk_vocab_bos(g->vocab));
    write_piece(&o, "eos_token", g->vocab, nk_vocab_eos(g->vocab));
    str(&o, "pooling", g->pooling[0] ? g->pooling : "none");
    key(&o, "modalities");
    raw(&o, "{\"vision\":false,\"audio\":false}");
    str(&o, "build_info", fingerprint);
    raw(&o, "}");
}

NK__ANSWER(slots)
{
    int running = nk__readiness_counts(&g->readiness).running, n = n_places(g);
    struct out o = { a->body, 0 };

    (void)rest, (void)request;
    raw(&o, "[");
    for (int i = 0; i < n; i++) {
        raw(&o, i ? ",{" : "{");
        num(&o, "id", i);
        num(&o, "n_ctx", s && s->ok ? s->n_ctx : 0);
        boolean(&o, "speculative", false);
        boolean(&o, "is_processing", i < running);
        raw(&o, "}");
    }
    raw(&o, "]");
}
