/* layer: gateway. The first byte chooses the format, the second where the text is cut; a cut must
 * change nothing. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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

static void run(const uint8_t *data, size_t size, size_t cut, struct trace *t)
{
    static const char *const tools[] = { "f" };
    struct nk_output_opts opts = {
        .think =
            nk__think_marks_detect(data[0] & 0x20 ? "<|channel|>analysis<|message|>" : "</think>"),
        .starts_thinking = data[0] & 0x80,
        .one_call = data[0] & 0x40,
        .tools = (enum nk_tool_format)(data[0] % 6),
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct trace whole, cut;

    if (size < 2 || size > 4096)
        return 0;
    run(data, size, size - 2, &whole);
    run(data, size, data[1] % (size - 1), &cut);
    if (whole.n != cut.n || memcmp(whole.text, cut.text, whole.n))
        abort();
    return 0;
}
