/* The routes that take a request for text or about text, by name. */
#ifndef NK_GATEWAY_API_H
#define NK_GATEWAY_API_H

#include <stdbool.h>

/* clang-format off */
#define NK_API_MAP(XX)                                                   \
    XX(CHAT,            "/v1/chat/completions", true,  "messages")       \
    XX(COMPLETION,      "/v1/completions",      true,  "prompt")         \
    XX(OLLAMA_CHAT,     "/api/chat",            false, "messages")       \
    XX(OLLAMA_GENERATE, "/api/generate",        false, "prompt")         \
    XX(OLLAMA_SHOW,     "/api/show",            false, "model")          \
    XX(TOKENIZE,        "/tokenize",            true,  "content")        \
    XX(DETOKENIZE,      "/detokenize",          true,  "tokens")         \
    XX(APPLY_TEMPLATE,  "/apply-template",      true,  "messages")
/* clang-format on */
enum nk_api {
#define XX(name, path, openai, input) NK_API_##name,
    NK_API_MAP(XX)
#undef XX
};
const char *nk__api_path(enum nk_api api);
bool nk__api_is_openai(enum nk_api api);
/* The field that a too long input is in. */
const char *nk__api_input(enum nk_api api);
/* Is about text alone: answered without the workers. */
bool nk__api_is_text(enum nk_api api);

#endif
