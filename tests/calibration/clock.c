/* Preloaded into `echoloop bench`, times each message by a clock of its own: from before the send that begins it to when the
 * recv that completes its echo has returned. Messages are of SIZE bytes. The times, in nanoseconds, are written to
 * CLOCK_FILE at the end, one a line. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

#define SOCKETS 4096
#define FLIGHTS 1024 /* at most so many are in flight on one socket */
#define TIMES (1 << 24)

static struct socket {
    uint64_t sent, received, begun, ended;
    uint64_t since[FLIGHTS];
} *sockets[SOCKETS];
static uint64_t size, count, *times;
static ssize_t (*real_send)(int, const void *, size_t, int);
static ssize_t (*real_recv)(int, void *, size_t, int);

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static void finish(void)
{
    FILE *file = fopen(getenv("CLOCK_FILE"), "w");
    for (uint64_t i = 0; file && i < count; i++)
        fprintf(file, "%llu\n", (unsigned long long)times[i]);
    if (file)
        fclose(file);
}

__attribute__((constructor)) static void start(void)
{
    *(void **)&real_send = dlsym(RTLD_NEXT, "send");
    *(void **)&real_recv = dlsym(RTLD_NEXT, "recv");
    size = strtoull(getenv("SIZE"), NULL, 10);
    times = malloc(TIMES * sizeof *times);
    atexit(finish);
}

ssize_t send(int fd, const void *bytes, size_t length, int flags)
{
    uint64_t at = now();
    ssize_t taken = real_send(fd, bytes, length, flags);
    if (taken > 0 && fd < SOCKETS) {
        struct socket *socket = sockets[fd] ? sockets[fd] : (sockets[fd] = calloc(1, sizeof **sockets));
        socket->sent += taken;
        while (socket->begun * size < socket->sent)
            socket->since[socket->begun++ % FLIGHTS] = at;
    }
    return taken;
}

ssize_t recv(int fd, void *bytes, size_t length, int flags)
{
    ssize_t got = real_recv(fd, bytes, length, flags);
    uint64_t at = now();
    if (got > 0 && fd < SOCKETS && sockets[fd] && !(flags & MSG_PEEK)) {
        struct socket *socket = sockets[fd];
        socket->received += got;
        while ((socket->ended + 1) * size <= socket->received && count < TIMES)
            times[count++] = at - socket->since[socket->ended++ % FLIGHTS];
    }
    return got;
}
