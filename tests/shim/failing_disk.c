/* Fault injection for disks: this preloaded library makes system calls on files fail as a control file selects.
 *
 * BLOCKD_TEST_FAULTS names the control file. Each of its lines is OPERATION ERRNO PART: the operation (pwrite, fdatasync
 * or fsync) fails with the number ERRNO on files whose path contains PART; with 0, it does nothing and reports
 * success. Other calls are passed to libc. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Returns the errno of an injected failure, 0 for no operation, or -1 for the real call. */
static int fault(const char *operation, int fd)
{
    const char *control = getenv("BLOCKD_TEST_FAULTS");
    char text[4096], path[4096], link[64];
    int control_fd;
    ssize_t len;
    char *line, *rest = text;

    if (control == NULL || (control_fd = open(control, O_RDONLY | O_CLOEXEC)) < 0)
        return -1;
    len = read(control_fd, text, sizeof text - 1);
    close(control_fd);
    if (len <= 0)
        return -1;
    text[len] = 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    len = readlink(link, path, sizeof path - 1);
    if (len <= 0)
        return -1;
    path[len] = 0;
    while ((line = strsep(&rest, "\n")) != NULL) {
        char name[32], part[256];
        int number;

        if (sscanf(line, "%31s %d %255s", name, &number, part) == 3 && strcmp(name, operation) == 0
            && strstr(path, part) != NULL)
            return number;
    }
    return -1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL_OR(operation, fd, done, call)    \
    do {                                      \
        int number = fault(operation, fd);    \
        if (number == 0)                      \
            return done;                      \
        if (number > 0) {                     \
            errno = number;                   \
            return -1;                        \
        }                                     \
        return call;                          \
    } while (0)

ssize_t pwrite(int fd, const void *data, size_t len, off_t at)
{
    FAIL_OR("pwrite", fd, (ssize_t)len, REAL(pwrite)(fd, data, len, at));
}

ssize_t pwrite64(int fd, const void *data, size_t len, off64_t at)
{
    FAIL_OR("pwrite", fd, (ssize_t)len, REAL(pwrite64)(fd, data, len, at));
}

int fdatasync(int fd)
{
    FAIL_OR("fdatasync", fd, 0, REAL(fdatasync)(fd));
}

int fsync(int fd)
{
    FAIL_OR("fsync", fd, 0, REAL(fsync)(fd));
}
