/* layer: gateway. The first byte chooses the format, the second where the text is cut; a cut must
 * change nothing. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz/fuzz.h"
#include "gateway/output.h"

struct trace {
    char text[1 << 16];
    size_t n;
    int last;
};

static int record(void *user, enum nk_output_kind kind, const char *text, size_t size,
                  struct nk_error *err)
{
    struct trace *t = user;

    (void)err;
    if ((int)kind != t->last || kind == NK_OUTPUT_TOOL) {
        t->text[t->n++] = '\0';
        t->text[t->n++] = (char)('0' + (int)kind);
    }
    t->last = (int)kind;
    if (t->n + size + 2 > sizeof t->text)
        abort(); /* nothing can come out more than once */
    memcpy(t->text + t->n, text, size);
    t->n += size;
    return 0;
}

/* One of each body, and two whose calls have no mark. */
static const struct nk_tool_form forms[] = {
    { .body = NK_TOOL_JSON,
      .call_open = "<tool_call>\n",
      .call_close = "\n</tool_call>",
      .call_sep = "\n" },
    { .body = NK_TOOL_JSON, .alt_open = "<|python_tag|>" },
    { .body = NK_TOOL_JSON,
      .section_open = "[TOOL_CALLS][",
      .section_close = "]",
      .call_sep = ", " },
    { .body = NK_TOOL_NAMED,
      .section_open = "<|calls|>",
      .section_close = "<|/calls|>",
      .call_open = "<|call|>functions.",
      .name_close = ":\2<|args|>",
      .call_close = "<|/call|>" },
    { .body = NK_TOOL_FIELDS,
      .call_open = "<tool_call>\n<function=",
      .name_close = ">\n",
      .key_open = "<parameter=",
      .value_open_text = " text>\n",
      .value_open = ">\n",
      .value_close = "\n</parameter>",
      .call_close = "\n</function>\n</tool_call>" },
    { .body = NK_TOOL_LITERAL,
      .section_open = "<|calls|>[",
      .section_close = "]",
      .call_sep = ", ",
      .name_close = "(",
      .value_open_text = "=",
      .value_open = "=",
      .field_sep = ", ",
      .quote = "<q>",
      .call_close = ")" },
    { .body = NK_TOOL_LITERAL,
      .section_open = "[",
      .section_close = "]",
      .name_close = "(",
      .value_open_text = "=",
      .value_open = "=",
      .call_close = ")" },
};
enum { N_FORMS = sizeof forms / sizeof forms[0] };

static void run(const uint8_t *data, size_t size, size_t cut, struct trace *t)
{
    static const char *const tools[] = { "f" };
    struct nk_output_opts opts = {
        .think =
            nk__think_marks_detect(data[0] & 0x20 ? "<|channel|>analysis<|message|>" : "</think>"),
        .starts_thinking = data[0] & 0x80,
        .one_call = data[0] & 0x40,
        .tools = data[0] % 8 < N_FORMS ? &forms[data[0] % 8] : NULL,
        .tool_names = tools,
        .n_tool_names = 1,
        .sink = record,
        .user = t
    };
    nk_output *o = nk__output_new(&opts);

    if (!o)
        abort();
    t->n = 0;
    t->last = -1;
    if (nk__output_feed(o, (const char *)data + 2, cut, NULL) ||
        nk__output_feed(o, (const char *)data + 2 + cut, size - 2 - cut, NULL) ||
        nk__output_finish(o, NULL))
        abort();
    nk__output_free(o);
}

const struct fuzz_ceiling fuzz_ceiling = { .base = 100000, .per_byte = 1000 };

void fuzz_one(const uint8_t *data, size_t size)
{
    static struct trace whole, cut;

    if (size < 2 || size > 4096)
        return;
    run(data, size, size - 2, &whole);
    run(data, size, data[1] % (size - 1), &cut);
    if (whole.n != cut.n || memcmp(whole.text, cut.text, whole.n))
        abort();
}
