/* Marks that a file was whole: one small file each in the cache folder's "verified", named by a
 * hash of the file's seal and its device, inode, size and times. Where there can be none (no
 * folder, no space), files are verified again. */
#ifndef NK_SLICE_MARK_INT_H
#define NK_SLICE_MARK_INT_H

#include "base/file.h"
#include "slice/hash_int.h"

/* Over it, those that were not used for longest go. */
enum { NK__MARKS_MAX = 128 };

bool nk__mark_find(const struct nk_file_id *id, const char *seal_sha256);
/* `began_s`: when the verification began, in seconds of time(). A file that was changed just before
 * gets no mark: it could be changed again without its times moving on. */
void nk__mark_set(const struct nk_file_id *id, const char *seal_sha256, const char *path,
                  int64_t began_s);

#endif
