#include "text/guard.h"

#include <exception>
#include <new>
#include <vector>

#include <llama.h>

namespace
{

/* Runs call() and turns what it throws into an error. */
template <typename Call> int guarded(struct nk_error *err, const char *what, Call call)
{
    try {
        call();
        return 0;
    } catch (const std::bad_alloc &) {
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "%s: no memory", what);
    } catch (const std::exception &e) {
        return nk_fail(err, NK_E_INTERNAL, "engine_failed", "%s: llama.cpp says: %s", what,
                       e.what());
    } catch (...) {
        return nk_fail(err, NK_E_INTERNAL, "engine_failed", "%s: llama.cpp threw something unknown",
                       what);
    }
}

} // namespace

int nk__guard_tokenize(const struct llama_vocab *vocab, const char *text, int32_t size,
                       int32_t *ids, int32_t n_max, bool add_special, bool parse_special,
                       int32_t *n, struct nk_error *err)
{
    return guarded(err, "tokenizing", [&] {
        *n = llama_tokenize(vocab, text, size, ids, n_max, add_special, parse_special);
    });
}

int nk__guard_piece(const struct llama_vocab *vocab, int32_t id, char *out, int32_t size,
                    bool special, int32_t *n, struct nk_error *err)
{
    return guarded(err, "the text of a token",
                   [&] { *n = llama_token_to_piece(vocab, id, out, size, 0, special); });
}

int nk__guard_chat(const char *tmpl, const char *const *roles, const char *const *contents,
                   size_t n_messages, bool add_assistant, char *out, int32_t size, int32_t *n,
                   struct nk_error *err)
{
    return guarded(err, "the chat template", [&] {
        std::vector<llama_chat_message> messages;
        for (size_t i = 0; i < n_messages; i++)
            messages.push_back({ roles[i], contents[i] });
        *n = llama_chat_apply_template(tmpl, messages.data(), n_messages, add_assistant, out, size);
    });
}

int nk__guard_init_dry(struct llama_sampler **out, const struct llama_vocab *vocab,
                       float multiplier, float base, int allowed_length, int last_n,
                       const char **breakers, size_t n_breakers, struct nk_error *err)
{
    return guarded(err, "the DRY sampler", [&] {
        *out = llama_sampler_init_dry(vocab, multiplier, base, allowed_length, last_n, breakers,
                                      n_breakers);
    });
}

int nk__guard_apply(struct llama_sampler *s, struct llama_token_data_array *candidates,
                    struct nk_error *err)
{
    return guarded(err, "sampling", [&] { llama_sampler_apply(s, candidates); });
}

int nk__guard_accept(struct llama_sampler *s, int32_t id, struct nk_error *err)
{
    return guarded(err, "accepting a token", [&] { llama_sampler_accept(s, id); });
}
