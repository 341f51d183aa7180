/* One tool call as a JSON object, read byte by byte: {"name": "f", "arguments": {...}}, members in
 * any order, "parameters" for "arguments". The arguments' bytes go out as they come, once the name
 * is known. Pure. */
#ifndef NK_GATEWAY_CALL_H
#define NK_GATEWAY_CALL_H

#include <stdbool.h>

#include "gateway/output.h"

enum nk_call_state {
    NK_CALL_GOING, /* more bytes are needed */
    NK_CALL_DONE,  /* the object ended with the last byte */
    NK_CALL_BAD,   /* the last byte cannot be part of a call */
};

struct nk_call_scan {
    enum {
        CALL_START,
        CALL_KEY,
        CALL_COLON,
        CALL_VALUE,
        CALL_IN_VALUE,
        CALL_NEXT
    } at;                                                    /* what is expected, or goes on */
    enum { VALUE_OTHER, VALUE_NAME, VALUE_ARGUMENTS } value; /* of the member that is read */
    int depth;                                               /* of brackets inside a value */
    bool in_string, escaped;
    bool named;     /* only the arguments are read: the name was there before */
    bool as_text;   /* the arguments are a string with JSON in it */
    bool announced; /* the sink knows of the call */
    bool has_arguments;
    struct nk_buf word; /* the key or the string that is read, with its quotes */
    struct nk_buf held; /* arguments that did not go out yet */
    char name[65];
    const char *const *names; /* NULL: any function's name will do; else it must be one of these */
    int n_names;
    nk_output_sink *sink;
    void *user;
};

void nk__call_init(struct nk_call_scan *c, nk_output_sink *sink, void *user);
void nk__call_release(struct nk_call_scan *c);
/* For formats where the name stands before the arguments' object. INVALID `bad_name`: empty or too
 * long. */
int nk__call_named(struct nk_call_scan *c, const char *name, size_t size, struct nk_error *err);
/* Takes one byte. *rc: an error of the sink or of memory. */
enum nk_call_state nk__call_byte(struct nk_call_scan *c, char byte, int *rc, struct nk_error *err);
/* Gives out the arguments that are held, if the call is announced. */
int nk__call_flush(struct nk_call_scan *c, struct nk_error *err);

#endif
