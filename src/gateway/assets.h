/* The page's files, put into the program at build time (cmake/embed.cmake). */
#ifndef NK_GATEWAY_ASSETS_H
#define NK_GATEWAY_ASSETS_H

#include <stddef.h>

struct nk_asset {
    const char *path; /* "/", "/app.js" */
    const char *type; /* media type */
    const unsigned char *data;
    size_t size;
    const char *etag; /* with its quotes */
};
extern const struct nk_asset nk__assets[]; /* ended by a NULL path; empty when there was no page */

#endif
