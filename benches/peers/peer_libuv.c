/* libuv, as its guide has it: one loop, one buffer to read into. What a write does not take at once waits in a request of
 * its own, and nothing more is read until it has left. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <uv.h>

static uv_loop_t *loop;
static char buffer[64 * 1024];

union peer {
    uv_stream_t stream;
    uv_tcp_t tcp;
    uv_pipe_t pipe;
};

struct unsent {
    uv_write_t request;
    char bytes[];
};

static void must(int result, const char *what) {
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, uv_strerror(result));
        exit(1);
    }
}

static void to_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *into) {
    (void)handle, (void)suggested;
    *into = uv_buf_init(buffer, sizeof buffer);
}

static void on_close(uv_handle_t *handle) {
    free(handle);
}

static void on_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *from);

static void on_written(uv_write_t *request, int status) {
    uv_stream_t *stream = request->handle;
    free(request);
    if (uv_is_closing((uv_handle_t *)stream))
        return;
    if (status < 0)
        uv_close((uv_handle_t *)stream, on_close);
    else
        uv_read_start(stream, to_buffer, on_read);
}

static void on_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *from) {
    if (count == 0)
        return;
    if (count > 0) {
        uv_buf_t bytes = uv_buf_init(from->base, count);
        int taken = uv_try_write(stream, &bytes, 1);
        if (taken == UV_EAGAIN)
            taken = 0;
        if (taken == count)
            return;
        if (taken >= 0) {
            struct unsent *unsent = malloc(sizeof *unsent + count - taken);
            if (unsent) {
                memcpy(unsent->bytes, from->base + taken, count - taken);
                bytes = uv_buf_init(unsent->bytes, count - taken);
                uv_read_stop(stream);
                if (uv_write(&unsent->request, stream, &bytes, 1, on_written) == 0)
                    return;
                free(unsent);
            }
        }
    }
    /* Its end, or an error: nothing waits to be written, for then nothing is read. */
    uv_close((uv_handle_t *)stream, on_close);
}

static void on_connection(uv_stream_t *listener, int status) {
    if (status < 0)
        return;
    union peer *peer = malloc(sizeof *peer);
    if (!peer)
        return;
    if (listener->type == UV_TCP)
        uv_tcp_init(loop, &peer->tcp);
    else
        uv_pipe_init(loop, &peer->pipe, 0);
    if (uv_accept(listener, &peer->stream) == 0)
        uv_read_start(&peer->stream, to_buffer, on_read);
    else
        uv_close((uv_handle_t *)peer, on_close);
}

static void on_datagram(uv_udp_t *socket, ssize_t count, const uv_buf_t *from, const struct sockaddr *sender,
                        unsigned flags) {
    (void)flags;
    if (count < 0 || !sender)
        return;
    uv_buf_t bytes = uv_buf_init(from->base, count);
    uv_udp_try_send(socket, &bytes, 1, sender);
}

static struct sockaddr_in address(char *text) {
    struct sockaddr_in address;
    char *port = strrchr(text, ':');
    if (!port)
        must(UV_EINVAL, text);
    *port = 0;
    must(uv_ip4_addr(text, atoi(port + 1), &address), text);
    return address;
}

static void say(const char *kind, const struct sockaddr_in *at) {
    char host[64];
    uv_ip4_name(at, host, sizeof host);
    printf("listening on %s%s:%d\n", kind, host, ntohs(at->sin_port));
}

int main(int count, char **arguments) {
    if (count != 2)
        return 2;
    char *where = arguments[1];
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    loop = uv_default_loop();
    struct sockaddr_in at;
    int length = sizeof at;
    union peer listener;
    uv_udp_t socket;
    if (strncmp(where, "udp:", 4) == 0) {
        at = address(where + 4);
        uv_udp_init(loop, &socket);
        must(uv_udp_bind(&socket, (struct sockaddr *)&at, 0), "bind");
        uv_udp_recv_start(&socket, to_buffer, on_datagram);
        uv_udp_getsockname(&socket, (struct sockaddr *)&at, &length);
        say("udp:", &at);
    } else if (strncmp(where, "unix:", 5) == 0) {
        uv_pipe_init(loop, &listener.pipe, 0);
        must(uv_pipe_bind(&listener.pipe, where + 5), "bind");
        must(uv_listen(&listener.stream, 4096, on_connection), "listen");
        printf("listening on %s\n", where);
    } else {
        at = address(where);
        uv_tcp_init(loop, &listener.tcp);
        must(uv_tcp_bind(&listener.tcp, (struct sockaddr *)&at, 0), "bind");
        must(uv_listen(&listener.stream, 4096, on_connection), "listen");
        uv_tcp_getsockname(&listener.tcp, (struct sockaddr *)&at, &length);
        say("", &at);
    }
    fflush(stdout);
    return uv_run(loop, UV_RUN_DEFAULT);
}
