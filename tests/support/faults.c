/* For LD_PRELOAD: system calls on files below some directories fail, or sleep, when and as a shared plan says.
 *
 * The plan lies in a file that both sides map (FAULTS): the test arms it, this counts calls and fails the n-th, or all
 * from there on. A call that fails is not made, but for close(), which frees its descriptor whatever it says. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

struct plan {
    int armed;     /* whether calls are counted */
    int calls;     /* how many were, since */
    int at;        /* the first that is hit, counted from 1; 0: none */
    int count;     /* how many are hit from there on; 0: all */
    int error;     /* errno; 0: none */
    int sleep_ms;  /* before it is made, or fails */
    int kinds;     /* a mask of those below */
    int hit;       /* how many were hit */
    char roots[2][240];
    char last[64]; /* the name of the call that was hit last */
};

enum { OPEN = 1, WRITE = 2, FSYNC = 4, RENAME = 8, FLOCK = 16, MKDIR = 32, UNLINK = 64, CLOSE = 128, STAT = 256, TOUCH = 512,
       FSYNC_DIRECTORY = 1024, FSYNC_ROOT = 2048, SYNCFS = 4096 };

static struct plan *plan;
static int has_syncfs;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("FAULTS");
    has_syncfs = getenv("FAULTS_SYNCFS") != 0;
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *memory = mmap(0, sizeof(struct plan), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory != MAP_FAILED) plan = memory;
    close(fd);
}

static int below(const char *path) {
    for (int i = 0; i < 2; i++) {
        size_t length = strlen(plan->roots[i]);
        if (length && !strncmp(path, plan->roots[i], length)) return 1;
    }
    return 0;
}

static int open_below(int fd) {
    char link[40], path[512];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

/* One of a directory is of a kind of its own, too, and one of a root of another. */
static int fsync_kind(int fd) {
    char link[40], path[512];
    struct stat status;
    if (!plan || !plan->armed || fstat(fd, &status) || !S_ISDIR(status.st_mode)) return FSYNC;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    for (int i = 0; i < 2; i++) if (!strcmp(path, plan->roots[i])) return FSYNC | FSYNC_ROOT;
    return FSYNC | FSYNC_DIRECTORY;
}

static int is_meant(int kind, int fd, const char *path) {
    if (!plan || !plan->armed || !(plan->kinds & kind)) return 0;
    if (path && (path[0] == '/' || fd == AT_FDCWD)) return below(path);
    return open_below(fd);
}

/* Whether the call is to fail; errno is set then. */
static int fails(const char *name, int kind, int fd, const char *path) {
    int before = errno;
    if (!is_meant(kind, fd, path)) { errno = before; return 0; }
    int number = __sync_add_and_fetch(&plan->calls, 1);
    if (!plan->at || number < plan->at || (plan->count && number >= plan->at + plan->count)) { errno = before; return 0; }
    __sync_add_and_fetch(&plan->hit, 1);
    snprintf(plan->last, sizeof plan->last, "%s", name);
    if (plan->sleep_ms) {
        struct timespec left = {plan->sleep_ms / 1000, plan->sleep_ms % 1000 * 1000000L};
        while (nanosleep(&left, &left) && errno == EINTR) {}
    }
    errno = plan->error ? plan->error : before;
    return plan->error != 0;
}

/* Other tests write, too: here nothing waits to be written. */
static const char *meant(const char *path) {
    return has_syncfs && path && !strcmp(path, "/proc/meminfo") ? "/dev/null" : path;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)
#define ON_FD(type, name, kind, fd, parameters, arguments) \
    type name parameters { static type (*real) parameters; if (!real) real = dlsym(RTLD_NEXT, #name); \
        return fails(#name, kind, fd, 0) ? -1 : real arguments; }
#define ON_PATH(type, name, kind, fd, path, parameters, arguments) \
    type name parameters { static type (*real) parameters; if (!real) real = dlsym(RTLD_NEXT, #name); \
        return fails(#name, kind, fd, path) ? -1 : real arguments; }
#define OPENING(name) \
    int name(const char *path, int flags, ...) { REAL(int, name, const char *, int, ...); \
        va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
        return fails(#name, OPEN, AT_FDCWD, path) ? -1 : real(meant(path), flags, mode); }
#define OPENING_AT(name) \
    int name(int fd, const char *path, int flags, ...) { REAL(int, name, int, const char *, int, ...); \
        va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
        return fails(#name, OPEN, fd, path) ? -1 : real(fd, meant(path), flags, mode); }

OPENING(open)
OPENING(open64)
OPENING_AT(openat)
OPENING_AT(openat64)
ON_FD(ssize_t, write, WRITE, fd, (int fd, const void *data, size_t size), (fd, data, size))
ON_FD(ssize_t, pwrite64, WRITE, fd, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
ON_FD(ssize_t, pwrite, WRITE, fd, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
ON_FD(ssize_t, writev, WRITE, fd, (int fd, const struct iovec *data, int count), (fd, data, count))
ON_FD(int, fsync, fsync_kind(fd), fd, (int fd), (fd))
ON_FD(int, fdatasync, FSYNC, fd, (int fd), (fd))
ON_FD(int, flock, FLOCK, fd, (int fd, int how), (fd, how))
ON_PATH(int, rename, RENAME, AT_FDCWD, from, (const char *from, const char *to), (from, to))
ON_PATH(int, renameat, RENAME, fd, from, (int fd, const char *from, int tofd, const char *to), (fd, from, tofd, to))
ON_PATH(int, mkdir, MKDIR, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
ON_PATH(int, mkdirat, MKDIR, fd, path, (int fd, const char *path, mode_t mode), (fd, path, mode))
ON_PATH(int, unlink, UNLINK, AT_FDCWD, path, (const char *path), (path))
ON_PATH(int, unlinkat, UNLINK, fd, path, (int fd, const char *path, int flags), (fd, path, flags))
ON_PATH(int, rmdir, UNLINK, AT_FDCWD, path, (const char *path), (path))
ON_PATH(int, stat64, STAT, AT_FDCWD, path, (const char *path, struct stat64 *to), (path, to))
ON_PATH(int, fstatat64, STAT, fd, path, (int fd, const char *path, struct stat64 *to, int flags), (fd, path, to, flags))
ON_FD(int, fstat64, STAT, fd, (int fd, struct stat64 *to), (fd, to))
ON_PATH(int, utimensat, TOUCH, fd, path, (int fd, const char *path, const struct timespec to[2], int flags), (fd, path, to, flags))

/* There is none, so that each file is fsynced, unless a test wants it: then all file systems are ext4. */
int syncfs(int fd) {
    REAL(int, syncfs, int);
    if (has_syncfs) return fails("syncfs", SYNCFS, fd, 0) ? -1 : real(fd);
    errno = ENOSYS;
    return -1;
}

int fstatfs(int fd, struct statfs *to) {
    REAL(int, fstatfs, int, struct statfs *);
    int result = real(fd, to);
    if (has_syncfs && !result) to->f_type = 0xEF53;
    return result;
}

int close(int fd) {
    REAL(int, close, int);
    int is_to_fail = fails("close", CLOSE, fd, 0), error = errno, result = real(fd);
    if (!is_to_fail) return result;
    errno = error;
    return -1;
}
