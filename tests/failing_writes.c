/* Loaded before the C library: writes, syncs, renames and creations below one folder can be made to fail.

   arm(root, first, every, error): of the operations below root, number `first` fails with `error`, and after it every
   `every`-th (0: none). counted() says how many there were since. Failed operations do nothing. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[4096];
static long first = 0, every = 0, count = 0;
static int code = 0;
static __thread int inside = 0;

void arm(const char *path, long at, long step, int error) {
    snprintf(root, sizeof root, "%s", path);
    first = at, every = step, code = error, count = 0;
}

long counted(void) { return count; }

static int below(const char *path) { return root[0] && path && strncmp(path, root, strlen(root)) == 0; }

static int due(int hit) {
    if (!hit) return 0;
    long now = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    int fails = first > 0 && (now == first || (every > 0 && now > first && (now - first) % every == 0));
    if (fails) errno = code;
    return fails;
}

static int fd_fails(int fd) {
    char name[64], path[4096];
    if (!root[0] || inside) return 0;
    inside = 1;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(name, path, sizeof path - 1);
    inside = 0;
    if (size <= 0) return 0;
    path[size] = 0;
    return due(below(path));
}

static int path_fails(const char *path) {
    char absolute[8192];
    if (!root[0] || !path) return 0;
    if (path[0] != '/') {
        char here[4096];
        if (!getcwd(here, sizeof here)) return 0;
        snprintf(absolute, sizeof absolute, "%s/%s", here, path);
        path = absolute;
    }
    return due(below(path));
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) { return fd_fails(fd) ? -1 : REAL(write)(fd, data, size); }
ssize_t writev(int fd, const struct iovec *data, int n) { return fd_fails(fd) ? -1 : REAL(writev)(fd, data, n); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    return fd_fails(fd) ? -1 : REAL(pwrite)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    return fd_fails(fd) ? -1 : REAL(pwrite64)(fd, data, size, at);
}
int fsync(int fd) { return fd_fails(fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fd_fails(fd) ? -1 : REAL(fdatasync)(fd); }
int ftruncate(int fd, off_t size) { return fd_fails(fd) ? -1 : REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return fd_fails(fd) ? -1 : REAL(ftruncate64)(fd, size); }
int posix_fallocate(int fd, off_t at, off_t size) { return fd_fails(fd) ? code : REAL(posix_fallocate)(fd, at, size); }
int posix_fallocate64(int fd, off64_t at, off64_t size) {
    return fd_fails(fd) ? code : REAL(posix_fallocate64)(fd, at, size);
}
int rename(const char *from, const char *to) { return path_fails(to) ? -1 : REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) {
    return path_fails(to) ? -1 : REAL(renameat)(a, from, b, to);
}
int mkdir(const char *path, mode_t mode) { return path_fails(path) ? -1 : REAL(mkdir)(path, mode); }

#define OPEN(name, before, arguments)                                       \
    int name before {                                                       \
        mode_t mode = 0;                                                    \
        if (flags & O_CREAT) {                                              \
            va_list rest;                                                   \
            va_start(rest, flags);                                          \
            mode = va_arg(rest, mode_t);                                    \
            va_end(rest);                                                   \
            if (path_fails(path)) return -1;                                \
        }                                                                   \
        return REAL(name) arguments;                                        \
    }
OPEN(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OPEN(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode))
