#include "bench/figure.h"

#include <stddef.h>
#include <string.h>

static const int stage_counts[] = { 1, 2, 4, -1 };
static const int stream_counts[] = { 1, 2, 4, 8, 16, 32, 64, -1 };
static const int depths[] = { 128, 512, 1024, 2048, 4096, 8192, -1 };

/* clang-format off */
const struct nk_figure nk_figures[] = {
    { .name = "decode-1", .group = "table", .title = "decode, 1 stream, 2 workers",
      .question = NK_ASK_DECODE, .unit = "tok/s", .systems = "ours whole rpc",
      .n_streams = 1, .n_predict = 128, .n_workers = 2, .bars = { { "whole", 0.97 }, { "rpc", 1.2 } } },
    { .name = "decode-8", .group = "table", .title = "decode, 8 streams, 2 workers, the cores shared out",
      .question = NK_ASK_DECODE, .unit = "tok/s", .systems = "ours whole rpc",
      .n_streams = 8, .n_predict = 64, .n_depth = 16, .n_workers = 2, .split_threads = true,
      .bars = { { "whole", 0.85 }, { "rpc", 2.5 } } },
    { .name = "prefill-512", .group = "table", .title = "prefill of 512, 2 workers, the cores shared out",
      .question = NK_ASK_PREFILL, .unit = "tok/s", .systems = "ours whole rpc",
      .n_streams = 1, .n_prompt = 512, .n_workers = 2, .split_threads = true, .bars = { { "whole", 0.85 }, { "rpc", 1.5 } } },
    { .name = "prefill-2048", .group = "table", .title = "prefill of 2048, 2 workers, the cores shared out",
      .question = NK_ASK_PREFILL, .unit = "tok/s", .systems = "ours whole rpc",
      .n_streams = 1, .n_prompt = 2048, .n_workers = 2, .split_threads = true, .bars = { { "whole", 0.85 }, { "rpc", 1.5 } } },
    { .name = "ttft-128", .group = "table", .title = "time to first token, prompt of 128, 2 workers",
      .question = NK_ASK_TTFT, .unit = "ms", .lower_is_better = true, .systems = "ours whole",
      .n_streams = 1, .n_prompt = 128, .n_workers = 2, .bars = { { "whole", 1.05 } } },
    { .name = "gap-alone", .group = "table", .title = "longest time between two tokens, nobody else there",
      .question = NK_ASK_GAP, .unit = "ms", .lower_is_better = true, .systems = "ours whole",
      .n_streams = 2, .n_prompt = 0, .n_workers = 2, .split_threads = true },
    { .name = "gap-2048", .group = "table", .title = "the same while another session's prompt of 2048 is prefilled",
      .question = NK_ASK_GAP, .unit = "ms", .lower_is_better = true, .systems = "ours whole",
      .n_streams = 2, .n_prompt = 2048, .n_workers = 2, .split_threads = true },
    { .name = "start", .group = "table", .title = "start from a slice on disk, page cache warm",
      .question = NK_ASK_STARTUP, .unit = "s", .lower_is_better = true, .systems = "ours whole",
      .n_streams = 1, .n_workers = 2, .bars = { { "whole", 1.1 } } },
    { .name = "memory", .group = "table", .title = "memory of all workers together",
      .question = NK_ASK_MEMORY, .unit = "MiB", .lower_is_better = true, .systems = "ours whole",
      .n_streams = 1, .n_workers = 2, .bars = { { "whole", 1.1 } } },
    { .name = "stages", .group = "curves", .title = "decode, 1 stream, by number of stages",
      .question = NK_ASK_DECODE, .unit = "tok/s", .systems = "ours whole rpc",
      .n_streams = 1, .n_predict = 64, .places = stage_counts, .x = NK_X_WORKERS, .x_title = "stages",
      .expected = "Each stage more costs one hop per token and no arithmetic." },
    { .name = "streams", .group = "curves", .title = "decode, 2 workers, by number of streams",
      .question = NK_ASK_DECODE, .unit = "tok/s", .systems = "ours whole rpc",
      .n_predict = 32, .n_depth = 16, .n_workers = 2, .split_threads = true, .places = stream_counts, .x = NK_X_STREAMS,
      .x_title = "streams", .expected = "Weights are read once per step for all streams: the rate grows until arithmetic is the limit." },
    { .name = "context", .group = "curves", .title = "decode, 1 stream, 2 workers, by tokens of context",
      .question = NK_ASK_DECODE, .unit = "tok/s", .systems = "ours whole",
      .n_streams = 1, .n_predict = 32, .n_workers = 2, .places = depths, .x = NK_X_DEPTH, .x_title = "tokens of context",
      .expected = "A step reads the KV of all tokens before it: its time grows linearly with them." },
    { .name = NULL },
};
/* clang-format on */

const struct nk_figure *nk_figure_find(const char *name)
{
    for (const struct nk_figure *f = nk_figures; f->name; f++)
        if (!strcmp(f->name, name))
            return f;
    return NULL;
}
