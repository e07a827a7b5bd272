"""A file system without locks, such as Lustre mounted without flock: a library that refuses them below a folder."""

import os
import pathlib
import shutil
import subprocess
from collections.abc import Mapping

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int without_locks(int fd) {
    const char *folder = getenv("NOLOCKS_FOLDER");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0 || !folder) return 0;
    path[length] = 0;
    return strncmp(path, folder, strlen(folder)) == 0;
}

int flock(int fd, int operation) {
    if (without_locks(fd)) { errno = ENOSYS; return -1; }
    return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(fd, operation);
}

static int refusing(const char *name, int fd, int command, void *argument) {
    int locks = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;
    if (locks && without_locks(fd)) { errno = ENOSYS; return -1; }
    return ((int (*)(int, int, ...))dlsym(RTLD_NEXT, name))(fd, command, argument);
}

#define REFUSING(name) \
    int name(int fd, int command, ...) { \
        va_list list; va_start(list, command); void *argument = va_arg(list, void *); va_end(list); \
        return refusing(#name, fd, command, argument); \
    }
REFUSING(fcntl)
REFUSING(fcntl64)
"""


def environment(folder: pathlib.Path, built: pathlib.Path) -> Mapping[str, str]:
    """Return the environment of a process in which flock and fcntl locks of files in `folder` aren't implemented.

    Skips the test where there is no C compiler. `built`: a folder for the library.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = built / "nolocks.c", built / "nolocks.so"
    source.write_text(_SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return os.environ | {"LD_PRELOAD": str(library), "NOLOCKS_FOLDER": str(folder.resolve())}
