#include "slice/mark_int.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void name_of(const struct nk_file_id *id, const char *seal_sha256, nk_sha256 *h,
                    char hex[NK_SHA256_HEX])
{
    char text[256];
    int n = snprintf(text, sizeof text, "%s %llu:%llu %llu %lld.%09lld %lld.%09lld\n", seal_sha256,
                     (unsigned long long)id->dev, (unsigned long long)id->ino,
                     (unsigned long long)id->size_bytes, (long long)id->mtime_s,
                     (long long)id->mtime_ns, (long long)id->ctime_s, (long long)id->ctime_ns);

    nk_sha256_add(h, text, (size_t)n);
    nk_sha256_finish(h, hex);
}

/* The mark's path, and its folder's; NULL when there can be none. Both are owned by the caller. */
static char *path_of(const struct nk_file_id *id, const char *seal_sha256, char **dir)
{
    nk_sha256 *h = nk_sha256_new();
    char hex[NK_SHA256_HEX], *path = NULL;

    *dir = NULL;
    if (!h)
        return NULL;
    name_of(id, seal_sha256, h, hex);
    if (!nk_cache_dir(dir, "verified", NULL)) {
        size_t size = strlen(*dir) + sizeof hex + 1;

        path = malloc(size);
        if (path)
            snprintf(path, size, "%s/%s", *dir, hex);
    }
    return path;
}

bool nk__mark_find(const struct nk_file_id *id, const char *seal_sha256)
{
    char *dir, *path = path_of(id, seal_sha256, &dir);
    /* Its time is when it was last used. */
    bool found = path && !utimensat(AT_FDCWD, path, NULL, 0);

    free(path);
    free(dir);
    return found;
}

/* Removes the mark that was not used for longest while there are too many. */
static void remove_old(const char *dir)
{
    for (;;) {
        struct timespec oldest = { 0 };
        char name[NK_SHA256_HEX] = "";
        DIR *d = opendir(dir);
        struct dirent *e;
        int n = 0;

        while (d && (e = readdir(d))) {
            struct stat st;

            if (!nk__is_sha256(e->d_name) || fstatat(dirfd(d), e->d_name, &st, 0))
                continue;
            n++;
            if (!name[0] || st.st_mtim.tv_sec < oldest.tv_sec ||
                (st.st_mtim.tv_sec == oldest.tv_sec && st.st_mtim.tv_nsec < oldest.tv_nsec)) {
                oldest = st.st_mtim;
                memcpy(name, e->d_name, sizeof name);
            }
        }
        if (n <= NK__MARKS_MAX || unlinkat(dirfd(d), name, 0))
            n = 0;
        if (d)
            closedir(d);
        if (!n)
            return;
    }
}

void nk__mark_set(const struct nk_file_id *id, const char *seal_sha256, const char *path,
                  int64_t began_s)
{
    char *dir, *mark;

    if (began_s - id->mtime_s < NK__RACY_S || began_s - id->ctime_s < NK__RACY_S)
        return;
    mark = path_of(id, seal_sha256, &dir);
    if (mark && !nk_file_write(mark, path, strlen(path), NULL)) /* best effort */
        remove_old(dir);
    free(mark);
    free(dir);
}
