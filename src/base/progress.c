#include "base/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/args.h"
#include "base/clock.h"

static const uint64_t redraw_ns = 100000000; /* ten times a second */

void nk_progress_start(struct nk_progress *p, const char *label, uint64_t total_bytes)
{
    const char *term = getenv("TERM");

    *p =
        (struct nk_progress){ .label = label, .total_bytes = total_bytes, .start_ns = nk_now_ns() };
    p->tty = isatty(STDERR_FILENO) && (!term || strcmp(term, "dumb") != 0);
}

static void draw(const struct nk_progress *p, uint64_t now)
{
    double seconds = (double)(now - p->start_ns) / 1e9;
    double rate = seconds > 0 ? (double)(p->done_bytes - p->earlier_bytes) / seconds : 0;
    double share = p->total_bytes ? (double)p->done_bytes / (double)p->total_bytes : 1;
    double left = rate > 0 ? (double)(p->total_bytes - p->done_bytes) / rate : 0;
    char rate_text[24], bar[31];

    if (share > 1)
        share = 1;
    for (int i = 0; i < 30; i++)
        bar[i] = i < (int)(share * 30) ? '#' : '.';
    bar[30] = '\0';
    /* Carriage return and erase-to-end only: understood by every terminal since the VT100. */
    fprintf(stderr, "\r%.24s [%s] %3.0f %% %s/s %.0f s left\033[K", p->label, bar, share * 100,
            nk_size_format(rate_text, (uint64_t)rate), left);
    fflush(stderr);
}

void nk_progress_add(struct nk_progress *p, uint64_t bytes)
{
    uint64_t now;

    p->done_bytes += bytes;
    if (!p->tty)
        return;
    now = nk_now_ns();
    if (now - p->drawn_ns >= redraw_ns) {
        p->drawn_ns = now;
        draw(p, now);
    }
}

void nk_progress_end(struct nk_progress *p)
{
    if (p->tty && p->drawn_ns)
        fprintf(stderr, "\r\033[K");
}
