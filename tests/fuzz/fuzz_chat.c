/* layer: text. Messages and tools as clients send them, through three chat templates.
 *
 * The bytes up to the first NUL are messages, those after it tools. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz/fuzz.h"
#include "text/jinja.h"

static const char *const templates[] = {
    "{%- if tools %}{{- tools | tojson }}{%- endif %}{%- for m in messages %}{{- '<|' + m.role + "
    "'|>' }}"
    "{%- if m.content is string %}{{- m.content | trim }}{%- endif %}{%- for c in m.tool_calls %}"
    "{{- c.function.name }}{{- c.function.arguments | tojson }}{%- for k, v in "
    "c.function.arguments.items() %}"
    "{{- k }}={{- v }}{%- endfor %}{%- endfor %}{%- endfor %}{%- if add_generation_prompt "
    "%}<|a|>{%- endif %}",
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m "
    "in messages %}"
    "{{ m['role'] + m['content'].split('</think>')[-1].lstrip('\\n') | trim + eos_token }}{{ "
    "loop.index0 % 2 }}{% endfor %}",
    "{% for m in messages %}{% for p in m.content %}{{ p.text | upper }}{{ p.text[:3] }}{{ p.text "
    "| length }}{% endfor %}"
    "{% for k, v in m | items %}{{ k }}{% endfor %}{% endfor %}{{ messages | selectattr('role', "
    "'equalto', 'user') | list "
    "| length }}",
};

const struct fuzz_ceiling fuzz_ceiling = { .base = 1000000, .per_byte = 5000 };

void fuzz_one(const uint8_t *data, size_t size)
{
    static nk_jinja *opened[3];
    char *text;

    if (size > 100000)
        return;
    for (int i = 0; i < 3 && !opened[i]; i++) {
        struct nk_error err = { 0 };

        if (nk_jinja_new(&opened[i], templates[i], "<s>", "</s>", &err)) {
            fprintf(stderr, "%s\n", err.msg);
            abort();
        }
        fuzz_prepared();
    }
    text = malloc(size + 2);
    if (!text)
        abort();
    memcpy(text, data, size);
    memset(text + size, 0, 2);
    for (int i = 0; i < 3; i++) {
        const char *tools = text + strlen(text) + 1;
        struct nk_jinja_input in = { .messages = text, .add_generation_prompt = true };
        struct nk_buf out = NK_BUF_INIT(1 << 20);
        struct nk_error err = { 0 };

        if (tools < text + size)
            in.tools = tools;
        if (nk_jinja_render(opened[i], &in, &out, &err) && out.size)
            abort();
        nk_buf_release(&out);
    }
    free(text);
}
