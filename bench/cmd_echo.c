/* nakshatra-bench echo: answers gRPC messages. */
#include "bench/command.h"

#include <stdio.h>

#include "bench/ping.h"

static void print_port(int port, void *arg)
{
    (void)arg;
    printf("ready %d\n", port);
    fflush(stdout);
}

int nk_cmd_echo(int argc, char **argv)
{
    const struct nk_arg args[] = { { 0 } };
    const struct nk_command cmd = { "echo",
                                    "Answers gRPC messages with one of a token's size until it is "
                                    "ended: the other side of the\n"
                                    "ping-pong that a hop is compared with. Prints 'ready PORT'.",
                                    args, 0, 0 };
    struct nk_error err;
    int first, exit_code, rc = nk_command_parse(argc, argv, &cmd, &first, &exit_code);

    if (rc)
        return exit_code;
    nk_ping_serve(print_port, NULL, &err);
    return nk_command_report(&err);
}
