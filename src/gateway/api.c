#include "gateway/api.h"

static const struct {
    const char *path, *input;
    enum nk_dialect dialect;
} apis[] = {
#define XX(name, path, dialect, input) { path, input, NK_DIALECT_##dialect },
    NK_API_MAP(XX)
#undef XX
};

static const struct {
    const char *think, *format;
} words[] = {
    [NK_DIALECT_OPENAI] = { "reasoning_effort", "response_format" },
    [NK_DIALECT_OLLAMA] = { "think", "format" },
    [NK_DIALECT_ANTHROPIC] = { "thinking", "output_config.format" },
    [NK_DIALECT_LLAMA] = { "reasoning_effort", "json_schema" },
    [NK_DIALECT_RESPONSES] = { "reasoning", "text.format" },
};

const char *nk__api_path(enum nk_api api)
{
    return apis[api].path;
}

enum nk_dialect nk__api_dialect(enum nk_api api)
{
    return apis[api].dialect;
}

bool nk__api_is_openai(enum nk_api api)
{
    return apis[api].dialect != NK_DIALECT_OLLAMA;
}

const char *nk__api_input(enum nk_api api)
{
    return apis[api].input;
}

const char *nk__api_think(enum nk_api api)
{
    return words[apis[api].dialect].think;
}

const char *nk__api_format(enum nk_api api)
{
    return words[apis[api].dialect].format;
}

bool nk__api_is_chat(enum nk_api api)
{
    return api == NK_API_CHAT || api == NK_API_OLLAMA_CHAT || api == NK_API_MESSAGES ||
           api == NK_API_COUNT_TOKENS || api == NK_API_RESPONSES;
}

bool nk__api_is_text(enum nk_api api)
{
    return api == NK_API_TOKENIZE || api == NK_API_DETOKENIZE || api == NK_API_APPLY_TEMPLATE ||
           api == NK_API_COUNT_TOKENS;
}

bool nk__api_is_embed(enum nk_api api)
{
    return api == NK_API_EMBEDDINGS || api == NK_API_LLAMA_EMBEDDING ||
           api == NK_API_OLLAMA_EMBED || api == NK_API_OLLAMA_EMBEDDINGS || api == NK_API_RERANK;
}
