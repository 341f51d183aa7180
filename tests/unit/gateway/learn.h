/* Learns a form from a template of tests/data/templates. */
#ifndef NK_TESTS_UNIT_GATEWAY_LEARN_H
#define NK_TESTS_UNIT_GATEWAY_LEARN_H

#include <stdio.h>
#include <stdlib.h>

#include "gateway/output.h"
#include "gateway/tool_form.h"
#include "text/template.h"

static inline char *read_template(const char *name)
{
    char path[4096];
    struct nk_buf text = NK_BUF_INIT(1 << 18);
    char piece[4096];
    size_t n;
    FILE *f;

    snprintf(path, sizeof path, "%s/tests/data/templates/%s.jinja",
             getenv("NK_SOURCE") ? getenv("NK_SOURCE") : "../..", name);
    f = fopen(path, "r");
    if (!f)
        fail_msg("%s cannot be read", path);
    while ((n = fread(piece, 1, sizeof piece, f)) > 0)
        nk_buf_add(&text, piece, n, NULL);
    fclose(f);
    return nk_buf_take(&text, NULL);
}

static inline int render(void *user, const char *messages, const char *tools, bool prompt,
                         struct nk_buf *out, struct nk_error *err)
{
    struct nk_jinja_input in = { .messages = messages,
                                 .tools = tools,
                                 .add_generation_prompt = prompt };

    return nk_template_render(user, &in, NULL, out, err);
}

static inline int learn_text(struct nk_tool_form *form, const char *text, struct nk_error *err)
{
    nk_template *t;
    int rc = nk_template_open(&t, NULL, text, "<s>", "</s>", err);

    if (rc)
        return rc;
    rc = nk__tool_form_learn(form, render, t, text, nk__think_marks_detect(text).close, err);
    nk_template_close(t);
    return rc;
}

#endif
