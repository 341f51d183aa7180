/* The page's files, put into the program at build time (cmake/embed.cmake). */
#ifndef NK_GATEWAY_ASSETS_H
#define NK_GATEWAY_ASSETS_H

#include <stddef.h>

struct nk_asset {
    const char *path; /* "/", "/app.js" */
    const char *type; /* media type */
    const unsigned char *data;
    size_t size;
    const unsigned char *packed; /* by gzip; NULL: it was not there when this was built */
    size_t packed_size;
    const char *etag; /* with its quotes; the packed one's has "z" before the last of them */
    const char *packed_etag;
};
extern const struct nk_asset nk__assets[]; /* ended by a NULL path; empty when there was no page */

#endif
