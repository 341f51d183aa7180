#include "cli/model_source.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "cli/interrupt.h"
#include "hub/hub.h"

static void say(void *arg, const char *line)
{
    (void)arg;
    fprintf(stderr, "nakshatra: %s\n", line);
}

static bool interrupted(void *arg)
{
    (void)arg;
    return nk_interrupt_signal() != 0;
}

int nk_model_source(char **path, const char *argument, struct nk_error *err)
{
    const struct nk_hub_opts opts = { .say = say, .interrupted = interrupted, .bar = true };

    if (nk_hub_is_source(argument))
        return nk_hub_get(path, argument, &opts, err);
    *path = strdup(argument);
    return *path ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}
