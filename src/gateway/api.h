/* The routes that take a request for text or about text, by name, and whose words they speak. */
#ifndef NK_GATEWAY_API_H
#define NK_GATEWAY_API_H

#include <stdbool.h>

/* Whose replies, events and errors these are. */
enum nk_dialect {
    NK_DIALECT_OPENAI,    /* chat completions and completions; llama-server's extras */
    NK_DIALECT_OLLAMA,    /* lines of JSON, defaults of its own */
    NK_DIALECT_ANTHROPIC, /* messages */
    NK_DIALECT_LLAMA,     /* llama-server's own completions */
    NK_DIALECT_RESPONSES, /* OpenAI's responses: items in, items out */
};

/* clang-format off */
#define NK_API_MAP(XX)                                                        \
    XX(CHAT,            "/v1/chat/completions",      OPENAI,    "messages")   \
    XX(COMPLETION,      "/v1/completions",           OPENAI,    "prompt")     \
    XX(OLLAMA_CHAT,     "/api/chat",                 OLLAMA,    "messages")   \
    XX(OLLAMA_GENERATE, "/api/generate",             OLLAMA,    "prompt")     \
    XX(OLLAMA_SHOW,     "/api/show",                 OLLAMA,    "model")      \
    XX(TOKENIZE,        "/tokenize",                 OPENAI,    "content")    \
    XX(DETOKENIZE,      "/detokenize",               OPENAI,    "tokens")     \
    XX(APPLY_TEMPLATE,  "/apply-template",           OPENAI,    "messages")   \
    XX(MESSAGES,        "/v1/messages",              ANTHROPIC, "messages")   \
    XX(COUNT_TOKENS,    "/v1/messages/count_tokens", ANTHROPIC, "messages")   \
    XX(RESPONSES,       "/v1/responses",             RESPONSES, "input")       \
    XX(LLAMA_COMPLETION, "/completion",              LLAMA,     "prompt")     \
    XX(INFILL,          "/infill",                   LLAMA,     "prompt")     \
    XX(EMBEDDINGS,      "/v1/embeddings",            OPENAI,    "input")      \
    XX(LLAMA_EMBEDDING, "/embedding",                LLAMA,     "content")    \
    XX(OLLAMA_EMBED,    "/api/embed",                OLLAMA,    "input")      \
    XX(OLLAMA_EMBEDDINGS, "/api/embeddings",         OLLAMA,    "prompt")     \
    XX(RERANK,          "/v1/rerank",                OPENAI,    "documents")
/* clang-format on */
enum nk_api {
#define XX(name, path, dialect, input) NK_API_##name,
    NK_API_MAP(XX)
#undef XX
};
const char *nk__api_path(enum nk_api api);
enum nk_dialect nk__api_dialect(enum nk_api api);
/* Is a request read with OpenAI's rules for messages and its defaults? All but Ollama's are: what
 * Anthropic's and Responses' requests say is brought into OpenAI's shape when it is read. */
bool nk__api_is_openai(enum nk_api api);
/* The field that a too long input is in; the one that turns thinking on and off; the one that holds
 * the schema which the answer is to keep to. */
const char *nk__api_input(enum nk_api api);
const char *nk__api_think(enum nk_api api);
const char *nk__api_format(enum nk_api api);
/* Is it a chat: messages that a template makes a prompt of, and a reply that is taken apart? */
bool nk__api_is_chat(enum nk_api api);
/* Asks for vectors of texts, or for scores of them: what an embedding model or a reranker gives. */
bool nk__api_is_embed(enum nk_api api);
/* Is about text alone: answered without the workers. */
bool nk__api_is_text(enum nk_api api);

#endif
