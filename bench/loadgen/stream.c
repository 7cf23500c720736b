/* One stream: through CONNECTING, GREETING and REQUEST (SOCKS5, RFC 1928 sections 3 to 6; with --proxy 0 straight to
 * the target), then what its kind says. The functions follow in that order; `turn` at the end calls them.
 */
#define _GNU_SOURCE
#include "loadgen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

int epoll_fd, flowing, finished, errors, pending;
uint64_t *bulk_bytes;
char last_error[128] = "";
struct kept kept;
const unsigned char request[REQUEST_SIZE] = "a small request of sixty-four bytes, answered with the same";

static void close_stream(struct stream *s)
{
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
    s->state = DONE;
}

void failed(struct stream *s, const char *why)
{
    snprintf(last_error, sizeof last_error, "%s (%s)", why, errno ? strerror(errno) : "no errno");
    errors++;
    if (s->kind == ONCE || s->kind == HELD)
        pending--;
    close_stream(s);
}

static void watch(struct stream *s, uint32_t events, int op)
{
    struct epoll_event ev = {.events = events, .data.ptr = s};
    if (epoll_ctl(epoll_fd, op, s->fd, &ev) < 0)
        die("epoll_ctl");
}

int send_all(struct stream *s, const void *data, size_t size)
{
    errno = 0;
    if (send(s->fd, data, size, MSG_NOSIGNAL) == (ssize_t)size)
        return 1;
    failed(s, "send");
    return 0;
}

/* Opens a connection. Source addresses rotate over 127.0.0.2-250, so that ports in TIME_WAIT never run out here. */
void open_stream(struct stream *s, enum kind kind, struct samples *into)
{
    static unsigned turn;
    int one = 1;
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET};
    memset(s, 0, offsetof(struct stream, buf));
    s->have = 0, s->bytes = 0;
    s->kind = kind, s->state = CONNECTING, s->into = into, s->since = now_ns();
    if (kind == ONCE || kind == HELD)
        pending++;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0)
        die("socket");
    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(s->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (opt.rst && kind == ONCE) {
        struct linger now = {.l_onoff = 1, .l_linger = 0};
        setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + turn++ % 249);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons((uint16_t)(opt.proxy ? opt.proxy : opt.target));
    errno = 0;
    if (bind(s->fd, (struct sockaddr *)&from, sizeof from) < 0
        || (connect(s->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)) {
        failed(s, "connect");
        return;
    }
    watch(s, EPOLLOUT, EPOLL_CTL_ADD);
}

/* The way to the target is open: say what this stream is for. */
static void start(struct stream *s)
{
    unsigned char first[1 + REQUEST_SIZE];
    s->state = RUNNING, s->have = 0;
    uint32_t events = EPOLLIN;
    size_t size = 1;
    if (s->kind == DOWN || (s->kind == UP && opt.size)) {
        first[0] = s->kind == DOWN ? 'D' : 'V';
        put64(first + 1, opt.size);
        size = 9;
    } else if (s->kind == UP) {
        first[0] = 'U';
    } else {
        first[0] = 'E';
        if (s->kind != KEPT) {
            memcpy(first + 1, request, REQUEST_SIZE);
            size = sizeof first;
        }
    }
    if (s->kind == UP)
        events = EPOLLOUT;
    watch(s, events, EPOLL_CTL_MOD);
    if (!send_all(s, first, size))
        return;
    if (s->kind == UP)
        flowing++;
}

static void connected(struct stream *s)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        errno = error;
        failed(s, "connect");
    } else if (!opt.proxy) {
        start(s);
    } else {
        s->state = GREETING;
        watch(s, EPOLLIN, EPOLL_CTL_MOD);
        send_all(s, "\5\1\0", 3);
    }
}

/* Reads until `want` bytes stand in buf. 1 when they do. */
static int gather(struct stream *s, size_t want)
{
    if (s->have < want) {
        errno = 0;
        ssize_t n = recv(s->fd, s->buf + s->have, want - s->have, 0);
        if (n < 0 && errno == EAGAIN)
            return 0;
        if (n <= 0) {
            failed(s, n ? "recv" : "closed early");
            return 0;
        }
        s->have += (size_t)n;
    }
    return s->have >= want;
}

static void greeting_answered(struct stream *s)
{
    if (!gather(s, 2))
        return;
    if (s->buf[0] != 5 || s->buf[1] != 0) {
        failed(s, "SOCKS greeting refused");
        return;
    }
    unsigned char ask[10] = {5, 1, 0, 1, 127, 0, 0, 1, (unsigned char)(opt.target >> 8), (unsigned char)opt.target};
    s->state = REQUEST, s->have = 0;
    send_all(s, ask, sizeof ask);
}

static void request_answered(struct stream *s)
{
    if (!gather(s, 5))
        return;
    char why[40];
    if (s->buf[1] != 0) {
        snprintf(why, sizeof why, "SOCKS reply %d", s->buf[1]);
        errno = 0;
        failed(s, why);
        return;
    }
    size_t address = s->buf[3] == 1 ? 4 : s->buf[3] == 4 ? 16 : 1u + s->buf[4];
    if (gather(s, 6 + address) || (s->state == REQUEST && gather(s, 6 + address)))
        start(s);
}

static void take_bulk(struct stream *s)
{
    errno = 0;
    ssize_t n = recv(s->fd, scratch, SLICE, opt.size ? 0 : MSG_TRUNC);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        if (n == 0 && opt.size && s->bytes == opt.size) {
            close_stream(s);
            finished++;
        } else {
            failed(s, "bulk stream ended");
        }
        return;
    }
    if (opt.size && !matches_pattern(s->bytes, scratch, (size_t)n)) {
        failed(s, "bulk stream brought wrong bytes");
        return;
    }
    if (!s->bytes)
        flowing++;
    s->bytes += (uint64_t)n, *bulk_bytes += (uint64_t)n;
}

static void give_bulk(struct stream *s, uint32_t events)
{
    if (opt.size && s->bytes == opt.size) {
        if (gather(s, 8)) {
            if (get64(s->buf) == opt.size) {
                close_stream(s);
                finished++;
            } else {
                failed(s, "target saw wrong bytes");
            }
        }
        return;
    }
    errno = 0;
    uint64_t left = opt.size ? opt.size - s->bytes : SLICE;
    long n = send_pattern(s->fd, s->bytes, left < SLICE ? left : SLICE);
    if (n < 0 || (events & (EPOLLERR | EPOLLHUP))) {
        if (errno != EAGAIN)
            failed(s, "bulk stream ended");
        return;
    }
    s->bytes += (uint64_t)n, *bulk_bytes += (uint64_t)n;
    if (opt.size && s->bytes == opt.size)
        watch(s, EPOLLIN, EPOLL_CTL_MOD);
}

static void kept_answered(struct stream *s)
{
    if (!gather(s, REQUEST_SIZE))
        return;
    s->have = 0;
    if (memcmp(s->buf, request, REQUEST_SIZE)) {
        failed(s, "wrong answer");
        return;
    }
    if (s->into && kept.answered < kept.sent)
        add_sample(s->into, now_ns() - kept.due[kept.answered]);
    kept.answered++;
}

static void once_answered(struct stream *s)
{
    if (!gather(s, REQUEST_SIZE))
        return;
    if (memcmp(s->buf, request, REQUEST_SIZE)) {
        failed(s, "wrong answer");
        return;
    }
    if (s->into)
        add_sample(s->into, now_ns() - s->since);
    finished++, pending--;
    if (s->kind == HELD)
        s->have = 0, s->state = DONE;
    else
        close_stream(s);
}

static void handle(struct stream *s, uint32_t events)
{
    switch (s->state) {
    case CONNECTING: connected(s); return;
    case GREETING: greeting_answered(s); return;
    case REQUEST: request_answered(s); return;
    case DONE:
        if (s->kind == HELD && s->fd >= 0)
            failed(s, "an idle stream was closed"), pending++;
        return;
    case RUNNING: break;
    }
    if (s->kind == DOWN)
        take_bulk(s);
    else if (s->kind == UP)
        give_bulk(s, events);
    else if (s->kind == KEPT)
        kept_answered(s);
    else
        once_answered(s);
}

/* One wake-up, small requests first. Waits until `until` at most; below a millisecond it polls. */
void turn(uint64_t until)
{
    struct epoll_event events[EVENTS];
    uint64_t now = now_ns(), wait = until > now ? until - now : 0;
    struct timespec limit = {(time_t)(wait / SECOND), (long)(wait % SECOND)};
    int n = epoll_pwait2(epoll_fd, events, EVENTS, &limit, NULL);
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < n; i++) {
            struct stream *s = events[i].data.ptr;
            if ((s->kind <= UP) == pass)
                handle(s, events[i].events);
        }
}

struct stream *new_streams(int count)
{
    struct stream *all = calloc((size_t)count, sizeof *all);
    if (!all)
        die("calloc");
    for (int i = 0; i < count; i++)
        all[i].fd = -1, all[i].state = DONE;
    return all;
}
