/* Writes down every file operation below one folder, in the order in which it happened, so that what a power cut would have
   left of them can be rebuilt; and lets chosen ones fail.

   Preload it (LD_PRELOAD). POWER_ROOT is the folder, as a real path; POWER_LOG the file that gets the records. An operation
   and its record happen under one lock, which every process that writes to the same log holds in turn: what stands earlier in
   the log had happened when the next one began. Reads are not recorded, nor what is written through a mapping: SQLite maps
   only its index of the WAL, which it rebuilds after a crash.

   A file is known by its inode, so that it does not matter under how many descriptors or names it is open. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* What a record begins with; names and data follow. tests/power/recording.py reads it. */
struct __attribute__((packed)) header {
    uint8_t what;
    uint8_t flags;
    uint16_t first_length;
    uint16_t second_length;
    uint32_t data_length;
    uint64_t inode;
    int64_t at;
};

enum { OPENED = 'o', WROTE = 'w', CUT = 't', GREW = 'a', SYNCED = 's', SYNC_FAILED = 'f' };
enum { RENAMED = 'r', LINKED = 'l', REMOVED = 'u', FOLDER_MADE = 'm', FOLDER_REMOVED = 'd' };
enum { CREATED = 1, FOLDER = 2 };

/* Kinds of operations that can be made to fail. */
enum { SYNCS = 1, WRITES = 2, RENAMES = 4, CREATIONS = 8 };

static char root[PATH_MAX];
static size_t root_length;
static char log_path[PATH_MAX];
static int log_descriptor = -1;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static struct {
    int kinds, skip, times, error, seen;
} failing;

static uint64_t spared;

/* The inodes below the root that this process has met, as an open hash table. */
static uint64_t *known;
static size_t known_room, known_count;

static void open_log(void) {
    log_descriptor = syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void before_fork(void) { pthread_mutex_lock(&turn); }
static void after_fork(void) { pthread_mutex_unlock(&turn); }

/* A descriptor of its own: the lock on one that is shared would be held by parent and child at once. */
static void in_child(void) {
    pthread_mutex_unlock(&turn);
    if (log_descriptor >= 0) {
        syscall(SYS_close, log_descriptor);
        open_log();
    }
}

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("POWER_ROOT"), *log = getenv("POWER_LOG");
    if (!folder || !log) return;
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    snprintf(log_path, sizeof log_path, "%s", log);
    open_log();
    pthread_atfork(before_fork, after_fork, in_child);
}

static int recording(void) { return log_descriptor >= 0; }

static void enter(void) {
    pthread_mutex_lock(&turn);
    if (recording()) flock(log_descriptor, LOCK_EX);
}

static void leave(void) {
    int kept = errno;
    if (recording()) flock(log_descriptor, LOCK_UN);
    pthread_mutex_unlock(&turn);
    errno = kept;
}

/* Lets operations of these kinds fail with an error: not the next `skip`, but so many `times` after them. For ctypes. */
void power_fail(int kinds, int skip, int times, int error) {
    enter();
    failing.kinds = kinds;
    failing.skip = skip;
    failing.times = times;
    failing.error = error;
    failing.seen = 0;
    leave();
}

/* Never lets the file of a descriptor fail: the notes of whoever looks on. */
void power_spare(int descriptor) {
    struct stat found;
    if (!fstat(descriptor, &found)) spared = found.st_ino;
}

/* How many operations of the kinds that may fail there were since. */
int power_seen(void) { return failing.seen; }

static int must_fail(int kind) {
    if (!(failing.kinds & kind)) return 0;
    int number = failing.seen++;
    if (number < failing.skip || number >= failing.skip + failing.times) return 0;
    errno = failing.error;
    return 1;
}

static size_t place_of(uint64_t inode) {
    size_t at = (inode * 11400714819323198485ull) % known_room;
    while (known[at] && known[at] != inode) at = (at + 1) % known_room;
    return at;
}

static int is_known(uint64_t inode) { return known_room && known[place_of(inode)] == inode; }

static void meet(uint64_t inode) {
    if (2 * (known_count + 1) > known_room) {
        uint64_t *old = known;
        size_t had = known_room;
        known_room = had ? 2 * had : 1024;
        known = calloc(known_room, sizeof *known);
        for (size_t at = 0; at < had; at++)
            if (old[at]) known[place_of(old[at])] = old[at];
        free(old);
    }
    size_t at = place_of(inode);
    known_count += !known[at];
    known[at] = inode;
}

/* The path below the root, with its first slash; NULL for any other. `room` holds it. */
static const char *below(int folder, const char *path, char *room) {
    if (!recording() || !path) return NULL;
    if (path[0] == '/') {
        snprintf(room, PATH_MAX, "%s", path);
    } else if (folder == AT_FDCWD) {
        char here[PATH_MAX];
        if (!getcwd(here, sizeof here)) return NULL;
        if (snprintf(room, PATH_MAX, "%s/%s", here, path) >= PATH_MAX) return NULL;
    } else {
        char link[64], here[PATH_MAX];
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, here, sizeof here - 1);
        if (length < 0) return NULL;
        here[length] = 0;
        if (snprintf(room, PATH_MAX, "%s/%s", here, path) >= PATH_MAX) return NULL;
    }
    int inside = !strncmp(room, root, root_length) && (room[root_length] == '/' || !room[root_length]);
    return inside ? room + root_length : NULL;
}

static void note(int what, int flags, uint64_t inode, int64_t at, const char *first, const char *second,
                 const struct iovec *data, int pieces, size_t data_length) {
    struct header head = {what, flags, first ? strlen(first) : 0, second ? strlen(second) : 0, data_length, inode, at};
    struct iovec parts[3 + pieces];
    int count = 0;
    parts[count++] = (struct iovec){&head, sizeof head};
    parts[count++] = (struct iovec){(void *)first, head.first_length};
    parts[count++] = (struct iovec){(void *)second, head.second_length};
    for (int each = 0; each < pieces && data_length; each++) {
        size_t length = data[each].iov_len < data_length ? data[each].iov_len : data_length;
        parts[count++] = (struct iovec){data[each].iov_base, length};
        data_length -= length;
    }
    if (syscall(SYS_writev, log_descriptor, parts, count) < 0) abort(); /* a recording with a hole proves nothing */
}

static void note_names(int what, const char *first, const char *second) {
    note(what, 0, 0, 0, first, second, NULL, 0, 0);
}

/* The inode of a descriptor if it is one below the root, else 0; and how long its file is. */
static uint64_t inode_of(int descriptor, int64_t *size) {
    struct stat found;
    if (!recording() || fstat(descriptor, &found)) return 0;
    if (size) *size = found.st_size;
    return is_known(found.st_ino) ? found.st_ino : 0;
}

static int64_t position_of(int descriptor, int64_t size) {
    return fcntl(descriptor, F_GETFL) & O_APPEND ? size : lseek(descriptor, 0, SEEK_CUR);
}

#define REAL(name)                                 \
    static typeof(&name) real;                     \
    if (!real) real = (typeof(&name))dlsym(RTLD_NEXT, #name)

/* Opening: `call` does it. */
#define OPEN(folder, path, flags, call)                                                       \
    do {                                                                                      \
        char room[PATH_MAX];                                                                  \
        enter();                                                                              \
        const char *name = below(folder, path, room);                                         \
        int fresh = name && ((flags) & O_CREAT) && access(room, F_OK);                          \
        int descriptor = fresh && must_fail(CREATIONS) ? -1 : (call);                         \
        if (descriptor >= 0 && name) opened(descriptor, name, flags, fresh);                  \
        leave();                                                                              \
        return descriptor;                                                                    \
    } while (0)

static void opened(int descriptor, const char *name, int flags, int fresh) {
    struct stat found;
    if (fstat(descriptor, &found)) return;
    meet(found.st_ino);
    int told = (fresh ? CREATED : 0) | (S_ISDIR(found.st_mode) ? FOLDER : 0);
    note(OPENED, told, found.st_ino, 0, name, NULL, NULL, 0, 0);
    if (flags & O_TRUNC && !fresh) note(CUT, 0, found.st_ino, 0, NULL, NULL, NULL, 0, 0);
}

static mode_t mode_of(int flags, va_list more) {
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(more, mode_t) : 0;
}

#define WITH_MODE(flags)         \
    va_list more;                \
    va_start(more, flags);       \
    mode_t mode = mode_of(flags, more); \
    va_end(more)

int open(const char *path, int flags, ...) {
    REAL(open);
    WITH_MODE(flags);
    OPEN(AT_FDCWD, path, flags, real(path, flags, mode));
}

int openat(int folder, const char *path, int flags, ...) {
    REAL(openat);
    WITH_MODE(flags);
    OPEN(folder, path, flags, real(folder, path, flags, mode));
}

int creat(const char *path, mode_t mode) {
    REAL(creat);
    OPEN(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, real(path, mode));
}

/* Writing: `call` does it, `offset` is where. */
#define WRITE(descriptor, offset, data, pieces, call)                                          \
    do {                                                                                       \
        enter();                                                                               \
        int64_t size = 0;                                                                      \
        uint64_t inode = inode_of(descriptor, &size);                                          \
        int64_t at = inode ? (offset) : 0;                                                     \
        ssize_t written = inode && inode != spared && must_fail(WRITES) ? -1 : (call);         \
        if (inode && written > 0) note(WROTE, 0, inode, at, NULL, NULL, data, pieces, written); \
        leave();                                                                               \
        return written;                                                                        \
    } while (0)

ssize_t write(int descriptor, const void *data, size_t length) {
    REAL(write);
    struct iovec one = {(void *)data, length};
    WRITE(descriptor, position_of(descriptor, size), &one, 1, real(descriptor, data, length));
}

ssize_t writev(int descriptor, const struct iovec *data, int pieces) {
    REAL(writev);
    WRITE(descriptor, position_of(descriptor, size), data, pieces, real(descriptor, data, pieces));
}

ssize_t pwrite(int descriptor, const void *data, size_t length, off_t offset) {
    REAL(pwrite);
    struct iovec one = {(void *)data, length};
    WRITE(descriptor, offset, &one, 1, real(descriptor, data, length, offset));
}

ssize_t pwritev(int descriptor, const struct iovec *data, int pieces, off_t offset) {
    REAL(pwritev);
    WRITE(descriptor, offset, data, pieces, real(descriptor, data, pieces, offset));
}

/* What changes a length. */
#define RESIZE(what, descriptor, length, kind, succeeded, call)                                \
    do {                                                                                       \
        enter();                                                                               \
        uint64_t inode = inode_of(descriptor, NULL);                                           \
        int result = inode && must_fail(kind) ? -1 : (call);                                   \
        if (inode && succeeded) note(what, 0, inode, length, NULL, NULL, NULL, 0, 0);          \
        leave();                                                                               \
        return result;                                                                         \
    } while (0)

int ftruncate(int descriptor, off_t length) {
    REAL(ftruncate);
    RESIZE(CUT, descriptor, length, WRITES, result == 0, real(descriptor, length));
}

int posix_fallocate(int descriptor, off_t from, off_t length) {
    REAL(posix_fallocate);
    enter();
    uint64_t inode = inode_of(descriptor, NULL);
    int result = inode && must_fail(WRITES) ? errno : real(descriptor, from, length); /* it returns its error */
    if (inode && result == 0) note(GREW, 0, inode, from + length, NULL, NULL, NULL, 0, 0);
    leave();
    return result;
}

int fallocate(int descriptor, int mode, off_t from, off_t length) {
    REAL(fallocate);
    RESIZE(GREW, descriptor, from + length, WRITES, result == 0 && mode == 0, real(descriptor, mode, from, length));
}

/* Where off_t is narrow these are other functions; where it is not, other names of the same ones. */
#ifdef __GLIBC__
int open64(const char *path, int flags, ...) {
    REAL(open64);
    WITH_MODE(flags);
    OPEN(AT_FDCWD, path, flags, real(path, flags, mode));
}

int openat64(int folder, const char *path, int flags, ...) {
    REAL(openat64);
    WITH_MODE(flags);
    OPEN(folder, path, flags, real(folder, path, flags, mode));
}

int creat64(const char *path, mode_t mode) {
    REAL(creat64);
    OPEN(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, real(path, mode));
}

ssize_t pwrite64(int descriptor, const void *data, size_t length, off64_t offset) {
    REAL(pwrite64);
    struct iovec one = {(void *)data, length};
    WRITE(descriptor, offset, &one, 1, real(descriptor, data, length, offset));
}

ssize_t pwritev64(int descriptor, const struct iovec *data, int pieces, off64_t offset) {
    REAL(pwritev64);
    WRITE(descriptor, offset, data, pieces, real(descriptor, data, pieces, offset));
}

int ftruncate64(int descriptor, off64_t length) {
    REAL(ftruncate64);
    RESIZE(CUT, descriptor, length, WRITES, result == 0, real(descriptor, length));
}

int posix_fallocate64(int descriptor, off64_t from, off64_t length) {
    REAL(posix_fallocate64);
    enter();
    uint64_t inode = inode_of(descriptor, NULL);
    int result = inode && must_fail(WRITES) ? errno : real(descriptor, from, length);
    if (inode && result == 0) note(GREW, 0, inode, from + length, NULL, NULL, NULL, 0, 0);
    leave();
    return result;
}

int fallocate64(int descriptor, int mode, off64_t from, off64_t length) {
    REAL(fallocate64);
    RESIZE(GREW, descriptor, from + length, WRITES, result == 0 && mode == 0, real(descriptor, mode, from, length));
}
#endif

static int sync_with(int (*real)(int), int descriptor) {
    enter();
    uint64_t inode = inode_of(descriptor, NULL);
    int result = inode && must_fail(SYNCS) ? -1 : real(descriptor);
    int kept = errno;
    if (inode) note(result ? SYNC_FAILED : SYNCED, 0, inode, 0, NULL, NULL, NULL, 0, 0);
    errno = kept;
    leave();
    return result;
}

int fsync(int descriptor) {
    REAL(fsync);
    return sync_with(real, descriptor);
}

int fdatasync(int descriptor) {
    REAL(fdatasync);
    return sync_with(real, descriptor);
}

/* What changes names. */
#define NAMES(what, kind, folder, path, other_folder, other, call)                              \
    do {                                                                                        \
        char room[PATH_MAX], other_room[PATH_MAX];                                              \
        enter();                                                                                \
        const char *first = below(folder, path, room), *second = below(other_folder, other, other_room); \
        int result = first && must_fail(kind) ? -1 : (call);                                    \
        if (!result && (!first) != (!second)) abort(); /* a file that comes in or goes out is none we could rebuild */ \
        if (!result && first) note_names(what, first, second);                                  \
        leave();                                                                                \
        return result;                                                                          \
    } while (0)

int rename(const char *path, const char *other) {
    REAL(rename);
    NAMES(RENAMED, RENAMES, AT_FDCWD, path, AT_FDCWD, other, real(path, other));
}

int renameat(int folder, const char *path, int other_folder, const char *other) {
    REAL(renameat);
    NAMES(RENAMED, RENAMES, folder, path, other_folder, other, real(folder, path, other_folder, other));
}

int link(const char *path, const char *other) {
    REAL(link);
    NAMES(LINKED, RENAMES, AT_FDCWD, path, AT_FDCWD, other, real(path, other));
}

int linkat(int folder, const char *path, int other_folder, const char *other, int flags) {
    REAL(linkat);
    NAMES(LINKED, RENAMES, folder, path, other_folder, other, real(folder, path, other_folder, other, flags));
}

#define NAME(what, folder, path, call)              \
    do {                                            \
        char room[PATH_MAX];                        \
        enter();                                    \
        const char *name = below(folder, path, room); \
        int result = (call);                        \
        if (!result && name) note_names(what, name, NULL); \
        leave();                                    \
        return result;                              \
    } while (0)

int unlink(const char *path) {
    REAL(unlink);
    NAME(REMOVED, AT_FDCWD, path, real(path));
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    NAME(flags & AT_REMOVEDIR ? FOLDER_REMOVED : REMOVED, folder, path, real(folder, path, flags));
}

int remove(const char *path) {
    REAL(remove);
    struct stat found;
    int is_folder = !lstat(path, &found) && S_ISDIR(found.st_mode);
    NAME(is_folder ? FOLDER_REMOVED : REMOVED, AT_FDCWD, path, real(path));
}

int rmdir(const char *path) {
    REAL(rmdir);
    NAME(FOLDER_REMOVED, AT_FDCWD, path, real(path));
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    NAME(FOLDER_MADE, AT_FDCWD, path, real(path, mode));
}

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(mkdirat);
    NAME(FOLDER_MADE, folder, path, real(folder, path, mode));
}
