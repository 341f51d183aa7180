#include "bench/figure.h"

#include <stddef.h>
#include <string.h>

static const int stage_counts[] = { 1, 2, 4, -1 };
static const int stream_counts[] = { 1, 2, 4, 8, 16, 32, 64, -1 };
static const int round_trips[] = { 1, 20, 75, 190, -1 };
static const int depths[] = { 128, 1024, 4096, 8192, -1 };

/* clang-format off */
const struct nk_figure nk_figures[] = {
    { .name = "decode-1", .group = "table",
      .title = "decode, 1 stream, 2 workers, median of 3 in turn", .question = NK_ASK_DECODE,
      .unit = "tok/s", .systems = "ours whole rpc", .n_streams = 1, .n_predict = 128,
      .n_workers = 2, .n_turns = 3, .bars = { { "whole", 0.97, 0 }, { "rpc", 1.2, 0 } } },
    { .name = "decode-8", .group = "table",
      .title = "decode, 8 streams, 2 workers, the cores shared out", .question = NK_ASK_DECODE,
      .unit = "tok/s", .systems = "ours whole rpc", .n_streams = 8, .n_predict = 64, .n_depth = 16,
      .n_workers = 2, .split_threads = true, .bars = { { "whole", 0.85, 0 }, { "rpc", 2.5, 0 } } },
    { .name = "prefill-512", .group = "table",
      .title = "prefill of 512, 2 workers, the cores shared out", .question = NK_ASK_PREFILL,
      .unit = "tok/s", .systems = "ours whole rpc", .n_streams = 1, .n_prompt = 512, .n_workers = 2,
      .split_threads = true, .bars = { { "whole", 0.85, 0 }, { "rpc", 1.5, 0 } } },
    { .name = "prefill-2048", .group = "table",
      .title = "prefill of 2048, 2 workers, the cores shared out", .question = NK_ASK_PREFILL,
      .unit = "tok/s", .systems = "ours whole rpc", .n_streams = 1, .n_prompt = 2048,
      .n_workers = 2, .split_threads = true, .bars = { { "whole", 0.85, 0 }, { "rpc", 1.5, 0 } } },
    { .name = "ttft-128", .group = "table",
      .title = "time to first token, prompt of 128, 2 workers, median of 5 in turn",
      .question = NK_ASK_TTFT, .unit = "ms", .lower_is_better = true, .systems = "ours whole",
      .n_streams = 1, .n_prompt = 128, .n_workers = 2, .n_turns = 5,
      .bars = { { "whole", 1.05, 0 } } },
    { .name = "gap-alone", .group = "table",
      .title = "longest time between two tokens, nobody else there", .question = NK_ASK_GAP,
      .unit = "ms", .lower_is_better = true, .systems = "ours whole", .n_streams = 2, .n_prompt = 0,
      .n_workers = 2, .split_threads = true },
    { .name = "gap-2048", .group = "table",
      .title = "the same while another session's prompt of 2048 is prefilled",
      .question = NK_ASK_GAP, .unit = "ms", .lower_is_better = true, .systems = "ours whole",
      .n_streams = 2, .n_prompt = 2048, .n_workers = 2, .split_threads = true,
      .bars = { { "limit", 1, 0 } },
      .parts = { { "gap-2048", "limit" }, { "gap-chunk", NULL }, { "gap-step", NULL } } },
    { .name = "gap-chunk", .group = "table",
      .title = "of its limit the longest chunk, all stages together", .question = NK_ASK_NOTHING,
      .unit = "ms", .lower_is_better = true, .systems = "ours" },
    { .name = "gap-step", .group = "table",
      .title = "of its limit a step while nobody else is there", .question = NK_ASK_NOTHING,
      .unit = "ms", .lower_is_better = true, .systems = "ours" },
    { .name = "start", .group = "table",
      .title = "start from a slice on disk, page cache warm, median of 5 in turn",
      .question = NK_ASK_STARTUP, .unit = "s", .lower_is_better = true, .systems = "ours whole",
      .n_streams = 1, .n_workers = 2, .n_turns = 5, .bars = { { "whole", 1.1, 0 } } },
    { .name = "memory", .group = "table", .title = "memory of all workers together",
      .question = NK_ASK_MEMORY, .unit = "MiB", .lower_is_better = true, .systems = "ours whole",
      .n_streams = 1, .n_workers = 2, .is_count = true, .bars = { { "whole", 1.1, 0 } } },
    { .name = "stages", .group = "curves",
      .title = "decode, 1 stream, by number of stages, median of 3 in turn",
      .question = NK_ASK_DECODE, .unit = "tok/s", .systems = "ours whole", .n_streams = 1,
      .n_predict = 64, .n_turns = 3, .places = stage_counts, .x = NK_X_WORKERS, .x_title = "stages",
      .expected = "Each stage more costs one hop per token and no arithmetic." },
    { .name = "streams", .group = "curves", .title = "decode, 2 workers, by number of streams",
      .question = NK_ASK_DECODE, .unit = "tok/s", .systems = "ours whole", .n_predict = 32,
      .n_depth = 16, .n_workers = 2, .places = stream_counts, .x = NK_X_STREAMS,
      .x_title = "streams",
      .expected = "Two workers that may use all cores, as `nakshatra up` starts them. Weights are "
      "read once per step for all streams: the rate grows until arithmetic is the limit." },
    { .name = "context", .group = "curves",
      .title = "decode, 1 stream, 2 workers, by tokens of context", .question = NK_ASK_DECODE,
      .unit = "tok/s", .systems = "ours whole", .n_streams = 1, .n_predict = 32, .n_workers = 2,
      .n_runs_max = 5, .places = depths, .x = NK_X_DEPTH, .x_title = "tokens of context",
      .expected = "A step reads the KV of all tokens before it: its time grows linearly with "
      "them." },
    { .name = "cache-f16", .group = "cache", .title = "f16, flash attention (the default): decode",
      .question = NK_ASK_AFTER_PROMPT, .unit = "tok/s", .systems = "ours whole", .n_streams = 1,
      .n_prompt = 2048, .n_predict = 32, .n_workers = 2, .n_runs_max = 5, .cache = "f16",
      .parts = { { "cache-f16-prompt", NULL } } },
    { .name = "cache-f16-prompt", .group = "cache", .title = "and the prompt",
      .question = NK_ASK_NOTHING, .unit = "tok/s", .systems = "ours whole" },
    { .name = "cache-f16-plain", .group = "cache", .title = "f16, `--no-flash-attn`: decode",
      .question = NK_ASK_AFTER_PROMPT, .unit = "tok/s", .systems = "ours whole", .n_streams = 1,
      .n_prompt = 2048, .n_predict = 32, .n_workers = 2, .n_runs_max = 5, .cache = "f16",
      .no_flash_attn = true, .parts = { { "cache-f16-plain-prompt", NULL } } },
    { .name = "cache-f16-plain-prompt", .group = "cache", .title = "and the prompt",
      .question = NK_ASK_NOTHING, .unit = "tok/s", .systems = "ours whole" },
    { .name = "cache-bf16-plain", .group = "cache", .title = "bf16, `--no-flash-attn`: decode",
      .question = NK_ASK_AFTER_PROMPT, .unit = "tok/s", .systems = "ours whole", .n_streams = 1,
      .n_prompt = 2048, .n_predict = 32, .n_workers = 2, .n_runs_max = 5, .cache = "bf16",
      .no_flash_attn = true, .parts = { { "cache-bf16-plain-prompt", NULL } } },
    { .name = "cache-bf16-plain-prompt", .group = "cache", .title = "and the prompt",
      .question = NK_ASK_NOTHING, .unit = "tok/s", .systems = "ours whole" },
    { .name = "cache-q8", .group = "cache",
      .title = "q8_0, flash attention, about half the memory: decode",
      .question = NK_ASK_AFTER_PROMPT, .unit = "tok/s", .systems = "ours whole", .n_streams = 1,
      .n_prompt = 2048, .n_predict = 32, .n_workers = 2, .n_runs_max = 5, .cache = "q8_0",
      .parts = { { "cache-q8-prompt", NULL } } },
    { .name = "cache-q8-prompt", .group = "cache", .title = "and the prompt",
      .question = NK_ASK_NOTHING, .unit = "tok/s", .systems = "ours whole" },
    { .name = "hop", .group = "hop", .title = "protocol per hop and token, there and back: median",
      .question = NK_ASK_HOP, .unit = "us", .lower_is_better = true, .systems = "ours ping cold",
      .n_streams = 1, .n_predict = 192, .n_depth = 1, .n_workers = 2, .split_threads = true,
      .limit = 60, .parts = { { "hop-p99", NULL }, { "hop-there", NULL }, { "hop-back", NULL } } },
    { .name = "hop-p99", .group = "hop", .title = "the same, 99th percentile",
      .question = NK_ASK_NOTHING, .unit = "us", .lower_is_better = true,
      .systems = "ours ping cold" },
    { .name = "hop-there", .group = "hop",
      .title = "of it the row's way to the next stage's compute thread: median",
      .question = NK_ASK_NOTHING, .unit = "us", .lower_is_better = true, .systems = "ours" },
    { .name = "hop-back", .group = "hop", .title = "of it the token's way back: median",
      .question = NK_ASK_NOTHING, .unit = "us", .lower_is_better = true, .systems = "ours" },
    { .name = "gateway-token", .group = "gateway",
      .title = "time per token through the gateway, 1 stream, median of 9 requests in turn",
      .question = NK_ASK_TOKEN, .unit = "ms", .lower_is_better = true, .systems = "serve chain",
      .n_streams = 1, .n_predict = 48, .n_workers = 2, .split_threads = true, .n_turns = 9,
      .bars = { { "chain", 1.02, 0 } } },
    { .name = "gateway-ttft", .group = "gateway",
      .title = "time to first token through the gateway, prompt of 8, median of 15 requests",
      .question = NK_ASK_TTFT, .unit = "ms", .lower_is_better = true, .systems = "serve chain",
      .n_streams = 1, .n_prompt = 8, .n_workers = 2, .split_threads = true,
      .bars = { { "chain", 0, 3 } } },
    { .name = "gateway-listeners", .group = "gateway",
      .title = "time per token while 100 others read /cluster/events, median of 9",
      .question = NK_ASK_TOKEN, .unit = "ms", .lower_is_better = true, .systems = "serve alone",
      .n_clients = 100, .n_streams = 1, .n_predict = 48, .n_workers = 2, .split_threads = true,
      .n_turns = 9, .bars = { { "alone", 1.02, 0 } } },
    { .name = "gateway-64", .group = "gateway",
      .title = "of 64 streams at once, on workers with 8 sequences, end whole",
      .question = NK_ASK_CROWD, .unit = "streams", .systems = "serve", .n_clients = 64, .limit = 64,
      .is_count = true, .n_streams = 8, .n_predict = 8, .n_depth = 16, .n_workers = 2,
      .split_threads = true, .parts = { { "gateway-64-rate", NULL } } },
    { .name = "gateway-64-rate", .group = "gateway",
      .title = "and their tokens together, prompts and waiting included",
      .question = NK_ASK_NOTHING, .unit = "tok/s", .systems = "serve" },
    { .name = "network-1g", .group = "network",
      .title = "decode over 1 Gbit/s, 2 workers, by round trip", .question = NK_ASK_NETWORK,
      .unit = "tok/s", .systems = "ours", .n_streams = 1, .n_predict = 32, .n_depth = 1,
      .n_workers = 2, .split_threads = true, .wan = { 0, 0, 1000 },
      .bars = { { "limit", 0.95, 0 } }, .parts = { { "network-1g", "limit" } },
      .places = round_trips, .x = NK_X_ROUND_TRIP, .x_title = "round trip, ms",
      .expected = "A token costs its computing and one round trip between the two workers: that "
      "is the limit." },
    { .name = "network-100m", .group = "network",
      .title = "decode over 100 Mbit/s, 2 workers, by round trip", .question = NK_ASK_NETWORK,
      .unit = "tok/s", .systems = "ours", .n_streams = 1, .n_predict = 32, .n_depth = 1,
      .n_workers = 2, .split_threads = true, .wan = { 0, 0, 100 }, .bars = { { "limit", 0.95, 0 } },
      .parts = { { "network-100m", "limit" } }, .places = round_trips, .x = NK_X_ROUND_TRIP,
      .x_title = "round trip, ms",
      .expected = "The same limit; a row takes 0.08 ms for each KiB of it on this line, which the "
      "limit does not count." },
    { .name = "network-jitter", .group = "network",
      .title = "decode over 100 Mbit/s with 75 ms of round trip, 30 ms of jitter",
      .question = NK_ASK_NETWORK, .unit = "tok/s", .systems = "ours", .n_streams = 1,
      .n_predict = 64, .n_depth = 1, .n_workers = 2, .split_threads = true, .wan = { 75, 30, 100 },
      .bars = { { "limit", 0.95, 0 } }, .parts = { { "network-jitter", "limit" } } },
    { .name = "wire-f32", .group = "wire", .title = "bytes per token and hop, f32, there",
      .question = NK_ASK_WIRE, .unit = "bytes", .lower_is_better = true, .systems = "ours",
      .n_streams = 1, .n_predict = 64, .n_depth = 1, .n_workers = 2, .split_threads = true,
      .n_runs_max = 5, .is_count = true,
      .parts = { { "wire-f32-back", NULL }, { "wire-f32", "row" } } },
    { .name = "wire-f32-back", .group = "wire", .title = "and back, the token",
      .question = NK_ASK_NOTHING, .is_count = true, .unit = "bytes", .lower_is_better = true,
      .systems = "ours" },
    { .name = "wire-f16", .group = "wire", .title = "bytes per token and hop, f16, there",
      .question = NK_ASK_WIRE, .unit = "bytes", .lower_is_better = true, .systems = "ours",
      .n_streams = 1, .n_predict = 64, .n_depth = 1, .n_workers = 2, .split_threads = true,
      .f16 = true, .n_runs_max = 5, .is_count = true,
      .parts = { { "wire-f16-back", NULL }, { "wire-f16", "row" } } },
    { .name = "wire-f16-back", .group = "wire", .title = "and back, the token",
      .question = NK_ASK_NOTHING, .is_count = true, .unit = "bytes", .lower_is_better = true,
      .systems = "ours" },
    { .name = "f16-nmse-trained", .group = "wire",
      .title = "f16 rows, a trained model, 2,000 tokens of its own text: largest nmse of the "
      "logits",
      .question = NK_ASK_QUALITY, .unit = "", .lower_is_better = true, .systems = "ours",
      .n_streams = 1, .n_predict = 2000, .n_workers = 2, .real_model = true, .n_runs_max = 1,
      .is_count = true, .parts = { { "f16-top1-trained", NULL } } },
    { .name = "f16-top1-trained", .group = "wire", .title = "and the same most probable next token",
      .question = NK_ASK_NOTHING, .is_count = true, .unit = "%", .systems = "ours" },
    { .name = "f16-nmse", .group = "wire",
      .title = "f16 rows, the synthetic model, 2,000 random tokens: largest nmse of the logits",
      .question = NK_ASK_QUALITY, .unit = "", .lower_is_better = true, .systems = "ours",
      .n_streams = 1, .n_predict = 2000, .n_workers = 2, .n_runs_max = 1, .is_count = true,
      .parts = { { "f16-top1", NULL } } },
    { .name = "f16-top1", .group = "wire", .title = "and the same most probable next token",
      .question = NK_ASK_NOTHING, .is_count = true, .unit = "%", .systems = "ours" },
    { .name = NULL },
};

const struct nk_group nk_groups[] = {
    { "table", "Against llama.cpp",
      "- *Whole model*: llama.cpp with the whole model in one process on the same cores "
      "(llama-bench, llama-batched-bench, llama-server). It is the limit.\n"
      "- *llama.cpp RPC*: the same tools over ggml-rpc-server, one server per worker of ours with "
      "as many threads.\n"
      "- *Cores shared out*: each of two workers or servers has half of the threads. Otherwise "
      "each may use all cores. For a prompt, ours take what the other worker leaves free "
      "(`--threads-batch`)." },
    { "hop", "The protocol",
      "From the step traces of two workers on loopback while one session decodes: all of a "
      "token's time that is neither computing nor sampling. It holds both hand-overs to compute "
      "threads and the writing of the traces.\n\n"
      "- *gRPC ping-pong*: a message of a row's size there and one of a token's size back, between "
      "two processes, with nothing behind it.\n"
      "- *Caches cold*: the same, but before it sends each side reads memory for 8 ms on one core, "
      "as a stage reads its weights. That time is not counted. Afterwards gRPC's own code and data "
      "come from memory again, as they do in a chain." },
    { "gateway", "The gateway",
      "`nakshatra serve` and *the chain's own client* (what `nakshatra run` uses) are asked in "
      "turn over the same two workers. A token's time is that from asking to the last token, "
      "divided by their number." },
    { "network", "Over a network",
      "Two workers in network namespaces of their own. A link between them holds every packet "
      "back: by a round trip, a rate, and jitter (each burst of packets takes up to half of it "
      "more or less, either way). TCP's congestion control is Reno, which does not pace.\n\n"
      "The limit is 1 / (computing + round trip): computing as the workers report it in the same "
      "run, the round trip as it is set.\n\n"
      "For orientation only, what others published of other models on other machines; not "
      "measured here:\n\n"
      "| system | model, machines | round trip, ms | tok/s | source |\n|---|---|---|---|---|\n"
      "| fthrvi/nakshatra | 30B MoE, Q3, 2 GPUs | 0.3 | 51.16 "
      "| its docs/findings/site-move-natural-experiment.md |\n"
      "| fthrvi/nakshatra | the same | 75 on average, 18 at least | 18.29 "
      "| its docs/findings/direct-path-live-wan.md |\n"
      "| fthrvi/nakshatra | the same | 171 to 190 | 4.85 | both |\n"
      "| Petals | BLOOM 176B, 3 A100, 1 Gbit/s | under 5 | 1.71 "
      "| arXiv 2312.08361, as others quote it |\n"
      "| Petals | Llama 2 70B, 3 T4, 1 Gbit/s | 100 | 2.29 | the same |\n"
      "| Petals | 14 servers, Europe and North America | not said | 0.83 | the same |" },
    { "wire", "On the wire",
      "Counted at the socket between the two workers, HTTP/2's and gRPC's framing included: what "
      "a session of twice the length takes more, divided by the tokens that it is longer. *The "
      "row itself* is the width times 4 or 2.\n\n"
      "What half precision costs: the same tokens go through two stages, once with exact rows "
      "between them and once with rounded ones, and the logits are compared." },
    { "cache", "The KV cache",
      "One stream after a prompt of 2,048 tokens, and that prompt itself, by the type of keys and "
      "values (`--cache-type-k`, `--cache-type-v`) and the kind of attention. Two workers, each "
      "may use all cores, beside llama-batched-bench with the same settings.\n\n"
      "The text is exactly that of a whole model with the same settings. With other settings it "
      "is another text." },
    { "curves", "Curves", NULL },
    { NULL, NULL, NULL },
};
/* clang-format on */

const struct nk_figure *nk_figure_find(const char *name)
{
    for (const struct nk_figure *f = nk_figures; f->name; f++)
        if (!strcmp(f->name, name))
            return f;
    return NULL;
}
