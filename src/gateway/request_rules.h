/* Rules that several tables of fields have: what OpenAI's routes and llama-server's own share. */
#ifndef NK_GATEWAY_REQUEST_RULES_H
#define NK_GATEWAY_REQUEST_RULES_H

#include <stddef.h>

#include "gateway/request_int.h"

#define NK_OFFSET(field) offsetof(struct nk_request, field)
#define NK_SAMPLING(member)                                                                        \
    (offsetof(struct nk_request, sampling) + offsetof(struct nk_sampling, member))

/* clang-format off */
#define NK_NO_LOADING "workers are set up when they are started"

/* How tokens are chosen, in every dialect but Ollama's, and which sessions may be reused. */
#define NK_RULES_MORE_SAMPLING \
    { "presence_penalty",   NK_FIELD_YES, nk__read_float, NK_SAMPLING(presence_penalty), -2, 2, \
      "" }, \
    { "frequency_penalty",  NK_FIELD_YES, nk__read_float, NK_SAMPLING(frequency_penalty), -2, 2, \
      "" }, \
    { "logit_bias",         NK_FIELD_YES, nk__read_logit_bias, 0, 0, 0, \
      "by token id, or by text: each of its tokens; an object, or a list of pairs" }, \
    { "cache_salt",         NK_FIELD_YES, nk__read_cache_salt, 0, 0, 0, \
      "vLLM's: KV is reused only among requests with the same one (and the same key)" }, \
    { "typical_p",          NK_FIELD_YES, nk__read_float, NK_SAMPLING(typical_p), 0, 1, \
      "llama-server's; 1: off" }, \
    { "repeat_penalty",     NK_FIELD_YES, nk__read_float, NK_SAMPLING(repeat_penalty), 0.01, 100, \
      "llama-server's; 1: off" }, \
    { "repetition_penalty", NK_FIELD_YES, nk__read_float, NK_SAMPLING(repeat_penalty), 0.01, 100, \
      "vLLM's name for repeat_penalty" }, \
    { "repeat_last_n",      NK_FIELD_YES, nk__read_int, NK_SAMPLING(penalty_last_n), -1, \
      INT32_MAX, "llama-server's; tokens that penalties look at; default 64; -1: all" }, \
    { "dry_multiplier",     NK_FIELD_YES, nk__read_float, NK_SAMPLING(dry_multiplier), 0, 100, \
      "llama-server's; 0: off" }, \
    { "dry_base",           NK_FIELD_YES, nk__read_float, NK_SAMPLING(dry_base), 1, 100, \
      "llama-server's; default 1.75" }, \
    { "dry_allowed_length", NK_FIELD_YES, nk__read_int, NK_SAMPLING(dry_allowed_length), 0, \
      INT32_MAX, "llama-server's; default 2" }, \
    { "dry_penalty_last_n", NK_FIELD_YES, nk__read_int, NK_SAMPLING(dry_penalty_last_n), -1, \
      INT32_MAX, "llama-server's; -1: all" }, \
    { "mirostat",           NK_FIELD_YES, nk__read_int, NK_SAMPLING(mirostat), 0, 2, \
      "llama-server's; 0: off" }, \
    { "mirostat_tau",       NK_FIELD_YES, nk__read_float, NK_SAMPLING(mirostat_tau), 0, 100, \
      "llama-server's" }, \
    { "mirostat_eta",       NK_FIELD_YES, nk__read_float, NK_SAMPLING(mirostat_eta), 0, 1, \
      "llama-server's" }, \
    { "cache_prompt",       NK_FIELD_YES, nk__read_cache_prompt, 0, 0, 0, \
      "llama-server's; false: no kept session is used, and this one is not kept" }, \
    { "top_n_sigma",        NK_FIELD_YES, nk__read_top_n_sigma, NK_SAMPLING(top_n_sigma), 0, \
      1000, "llama-server's; 0 and less: off" }, \
    { "xtc_probability",    NK_FIELD_YES, nk__read_float, NK_SAMPLING(xtc_probability), 0, 1, \
      "llama-server's; 0: off; not with temperature 0" }, \
    { "xtc_threshold",      NK_FIELD_YES, nk__read_float, NK_SAMPLING(xtc_threshold), 0, 1, \
      "llama-server's; default 0.1" }, \
    { "dynatemp_range",     NK_FIELD_YES, nk__read_float, NK_SAMPLING(dynatemp_range), 0, 100, \
      "llama-server's; 0: off; not with temperature 0" }, \
    { "dynatemp_exponent",  NK_FIELD_YES, nk__read_float, NK_SAMPLING(dynatemp_exponent), 0, 100, \
      "llama-server's; default 1" }, \
    { "samplers",           NK_FIELD_YES, nk__read_samplers, 0, 0, 0, \
      "llama-server's; which of penalties, dry, top_n_sigma, top_k, typ_p, top_p, min_p, xtc and " \
      "temperature take part, in this order" }

/* How tokens are chosen. */
#define NK_RULES_SAMPLING \
    { "temperature",        NK_FIELD_YES, nk__read_float, NK_SAMPLING(temperature), 0, 100, \
      "0: greedy; default 0.8" }, \
    { "top_p",              NK_FIELD_YES, nk__read_float, NK_SAMPLING(top_p), 0, 1, \
      "default 0.95" }, \
    { "seed",               NK_FIELD_YES, nk__read_seed, 0, 0, 0, \
      "the same seed gives the same text; choice i has seed + i; -1: a random one" }, \
    { "stop",               NK_FIELD_YES, nk__read_stop, 0, 0, 0, \
      "a string, or up to 16; empty ones stop nothing" }, \
    NK_RULES_MORE_SAMPLING, \
    { "user",               NK_FIELD_YES, nk__read_string, NK_OFFSET(user), 0, 0, \
      "goes to the log with the request" }, \
    { "n_predict",          NK_FIELD_YES, nk__read_max_tokens, 0, 0, 0, \
      "llama-server's name for max_tokens" }, \
    { "top_k",              NK_FIELD_YES, nk__read_top_k, NK_SAMPLING(top_k), 0, INT32_MAX, \
      "llama-server's; 0 and less: off; default 40" }, \
    { "min_p",              NK_FIELD_YES, nk__read_float, NK_SAMPLING(min_p), 0, 1, \
      "llama-server's; default 0.05" }, \
    { "grammar",            NK_FIELD_YES, nk__read_grammar, 0, 0, 0, \
      "llama-server's; GBNF with the rule root" }, \
    { "json_schema",        NK_FIELD_YES, nk__read_json_schema, 0, 0, 0, \
      "llama-server's; like a response_format of that schema" }, \
    { "guided_json",        NK_FIELD_YES, nk__read_json_schema, 0, 0, 0, \
      "vLLM's; the same" }, \
    { "ignore_eos",         NK_FIELD_YES, nk__read_bool, NK_SAMPLING(ignore_eos), 0, 0, \
      "llama-server's" }, \
    { "deterministic",      NK_FIELD_YES, nk__read_bool, NK_OFFSET(deterministic), 0, 0, \
      "ours; the same to the last bit whatever else runs; workers without --deterministic refuse " \
      "it (400 not_deterministic)" }, \
    { "min_tokens",         NK_FIELD_FIXED, nk__read_only_number, 0, 0, 0, "0" }, \
    { "top_a",              NK_FIELD_FIXED, nk__read_only_number, 0, 0, 0, \
      "0; libllama has no such sampler" }, \
    { "tfs_z",              NK_FIELD_FIXED, nk__read_only_number, 0, 1, 1, \
      "1; libllama has it no more" }, \
    { "dry_sequence_breakers", NK_FIELD_FIXED, nk__read_dry_breakers, 0, 0, 0, \
      "[\"\\n\", \":\", \"\\\"\", \"*\"]" }, \
    { "min_keep",           NK_FIELD_FIXED, nk__read_only_number, 0, 0, 0, "0" }, \
    { "length_penalty",     NK_FIELD_FIXED, nk__read_only_number, 0, 1, 1, "1; of beam search" }, \
    { "use_beam_search",    NK_FIELD_FIXED, nk__read_only_false, 0, 0, 0, "false" }, \
    { "guided_regex",       NK_FIELD_REFUSED, NULL, 0, 0, 0, "use grammar or response_format" }, \
    { "guided_choice",      NK_FIELD_REFUSED, NULL, 0, 0, 0, "use grammar or response_format" }, \
    { "guided_grammar",     NK_FIELD_REFUSED, NULL, 0, 0, 0, "use grammar (GBNF)" }, \
    { "structured_outputs", NK_FIELD_REFUSED, NULL, 0, 0, 0, "use grammar or response_format" }, \
    { "lora",               NK_FIELD_FIXED, nk__read_only_empty, 0, 0, 0, \
      "[]; workers load no adapters" }

/* Where, for whom and how fast something is computed, and how it is written. */
#define NK_RULES_HINTS \
    { "n_keep",              NK_FIELD_IGNORED, nk__read_wish, 0, 0, 0, \
      "a full context ends the reply, it is not shifted" }, \
    { "n_discard",           NK_FIELD_IGNORED, nk__read_wish, 0, 0, 0, "the same" }, \
    { "num_ctx",             NK_FIELD_IGNORED, NULL, 0, 0, 0, NK_NO_LOADING }, \
    { "n_cache_reuse",       NK_FIELD_IGNORED, nk__read_wish, 0, 0, 0, "kept KV is not moved" }, \
    { "id_slot",             NK_FIELD_IGNORED, nk__read_wish, 0, 0, -1, \
      "a kept session is found by its prompt; -1: any" }, \
    { "slot_id",             NK_FIELD_IGNORED, nk__read_wish, 0, 0, -1, "the same" }, \
    { "t_max_predict_ms",    NK_FIELD_FIXED, nk__read_only_number, 0, 0, 0, "0" }, \
    { "t_max_prompt_ms",     NK_FIELD_IGNORED, nk__read_wish, 0, 0, -1, "" }, \
    { "top_logprobs_num",    NK_FIELD_IGNORED, NULL, 0, 0, 0, "use top_logprobs" }, \
    { "skip_special_tokens", NK_FIELD_FIXED, nk__read_only_true, 0, 0, 0, \
      "true; control tokens are no text" }, \
    { "spaces_between_special_tokens", NK_FIELD_IGNORED, NULL, 0, 0, 0, "" }, \
    { "extra_body",          NK_FIELD_FIXED, nk__read_only_empty, 0, 0, 0, \
      "{}; its members belong into the request itself" }, \
    { "priority",            NK_FIELD_IGNORED, NULL, 0, 0, 0, "first come, first served" }, \
    { "request_id",          NK_FIELD_IGNORED, NULL, 0, 0, 0, "" }

#endif
