#include "gateway/api.h"

const char *nk__api_path(enum nk_api api)
{
    static const char *const paths[] = {
#define XX(name, path, openai, input) path,
        NK_API_MAP(XX)
#undef XX
    };
    return paths[api];
}

bool nk__api_is_openai(enum nk_api api)
{
    static const bool openai_[] = {
#define XX(name, path, openai, input) openai,
        NK_API_MAP(XX)
#undef XX
    };
    return openai_[api];
}

const char *nk__api_input(enum nk_api api)
{
    static const char *const inputs[] = {
#define XX(name, path, openai, input) input,
        NK_API_MAP(XX)
#undef XX
    };
    return inputs[api];
}

bool nk__api_is_text(enum nk_api api)
{
    return api == NK_API_TOKENIZE || api == NK_API_DETOKENIZE || api == NK_API_APPLY_TEMPLATE;
}
