#include "gateway/text.h"

#include <stdlib.h>

#include "base/json.h"
#include "base/json_writer.h"
#include "base/utf8.h"

enum {
    WANTED_EVERY = 256
}; /* after so many tokens it is asked whether the reply is still wanted */

/* A token's text, or its bytes where they are no text by themselves. */
static int add_piece(const nk_vocab *v, int32_t id, struct nk_buf *out, struct nk_error *err)
{
    struct nk_buf piece = NK_BUF_INIT(1 << 20);
    int rc = nk_vocab_piece(v, id, true, &piece, err);
    size_t at;

    if (!rc && nk_utf8_valid(nk_buf_str(&piece), piece.size, &at))
        rc = nk_json_strn(out, nk_buf_str(&piece), piece.size, err);
    else if (!rc) {
        rc = nk_buf_adds(out, "[", err);
        for (size_t i = 0; i < piece.size && !rc; i++)
            rc = nk_buf_addf(out, err, "%s%d", i ? "," : "", (unsigned char)piece.data[i]);
        if (!rc)
            rc = nk_buf_adds(out, "]", err);
    }
    nk_buf_release(&piece);
    return rc;
}

static int tokenize(const nk_vocab *v, const struct nk_request *r, struct nk_work *work,
                    struct nk_buf *out, struct nk_error *err)
{
    struct nk_tokens t = { NULL, 0 };
    int rc = nk_vocab_tokenize(v, r->prompts[0].text, r->prompts[0].size, r->add_special,
                               r->parse_special, NK_TEXT_BYTES_MAX, work, &t, err);

    if (!rc)
        rc = nk_buf_adds(out, "{\"tokens\":[", err);
    for (size_t i = 0; i < t.n && !rc; i++) {
        rc = i % WANTED_EVERY ? 0 : nk_work_spend(work, 1, "the text", err);
        if (rc)
            break;
        rc = nk_buf_addf(out, err, r->with_pieces ? "%s{\"id\":%d,\"piece\":" : "%s%d",
                         i ? "," : "", (int)t.ids[i]);
        if (!rc && r->with_pieces)
            rc = add_piece(v, t.ids[i], out, err);
        if (!rc && r->with_pieces)
            rc = nk_buf_adds(out, "}", err);
    }
    free(t.ids);
    return rc ? rc : nk_buf_adds(out, "]}\n", err);
}

static int detokenize(const nk_vocab *v, const struct nk_request *r, struct nk_work *work,
                      struct nk_buf *out, struct nk_request_error *e)
{
    const struct nk_prompt *ids = &r->prompts[0];
    struct nk_buf text = NK_BUF_INIT(out->max);
    int rc = 0;

    for (size_t i = 0; i < ids->n_ids && !rc; i++) {
        rc = i % WANTED_EVERY ? 0 : nk_work_spend(work, 1, "the tokens", &e->err);
        if (rc)
            break;
        rc = nk_vocab_piece(v, ids->ids[i], true, &text, &e->err);
        if (rc == NK_E_INVALID) {
            snprintf(e->param, sizeof e->param, "tokens");
            nk_fail(&e->err, rc, "bad_value", "tokens: token id %d; this model has 0 to %d",
                    (int)ids->ids[i], nk_vocab_size(v) - 1);
        }
    }
    if (!rc)
        rc = nk_buf_adds(out, "{\"content\":", &e->err);
    if (!rc)
        rc = nk_json_strn(out, nk_buf_str(&text), text.size, &e->err);
    nk_buf_release(&text);
    return rc ? rc : nk_buf_adds(out, "}\n", &e->err);
}

static int apply_template(const nk_prompter *p, const struct nk_request *r, struct nk_work *work,
                          struct nk_buf *out, struct nk_request_error *e)
{
    struct nk_buf text = NK_BUF_INIT(out->max);
    int rc = nk__prompt_render(p, r, work, &text, e);

    if (!rc)
        rc = nk_buf_adds(out, "{\"prompt\":", &e->err);
    if (!rc)
        rc = nk_json_strn(out, nk_buf_str(&text), text.size, &e->err);
    nk_buf_release(&text);
    return rc ? rc : nk_buf_adds(out, "}\n", &e->err);
}

/* Of the prompt that a chat becomes. */
static int count_tokens(const nk_prompter *p, const struct nk_request *r, struct nk_work *work,
                        struct nk_buf *out, struct nk_request_error *e)
{
    struct nk_json_writer w = NK_JSON_WRITER(out, &e->err);
    struct nk_prepared prepared;
    int rc = nk__prepare(&prepared, p, r, NK_TEXT_BYTES_MAX, work, e);

    if (rc)
        return rc;
    nk_json_begin(&w, NULL, '{');
    nk_json_put_int(&w, "input_tokens", (int64_t)prepared.prompts[0].n);
    nk_json_end(&w, '}');
    nk__prepared_release(&prepared);
    return w.rc ? w.rc : nk_buf_adds(out, "\n", &e->err);
}

int nk__text_answer(const nk_prompter *p, const nk_vocab *v, const struct nk_request *r,
                    struct nk_work *work, struct nk_buf *out, struct nk_request_error *e)
{
    int rc;

    e->param[0] = '\0';
    switch (r->api) {
    case NK_API_TOKENIZE:
        rc = tokenize(v, r, work, out, &e->err);
        break;
    case NK_API_DETOKENIZE:
        rc = detokenize(v, r, work, out, e);
        break;
    case NK_API_COUNT_TOKENS:
        rc = count_tokens(p, r, work, out, e);
        break;
    default:
        rc = apply_template(p, r, work, out, e);
        break;
    }
    if (rc == NK_E_EXHAUSTED && !e->param[0])
        snprintf(e->param, sizeof e->param, "%s", nk__api_input(r->api));
    return rc;
}
