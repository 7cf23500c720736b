/* The target of all streams: one epoll loop, level-triggered, no allocation but one record per connection.
 * Small requests of a wake-up are answered before bulk streams get their slice, so that what the generator measures as
 * latency is the proxy's and not the target's.
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
#include <unistd.h>

struct conn {
    int fd;
    char kind;                  /* the command byte, 0 before it came */
    unsigned char head[8];
    int have;                   /* bytes of head */
    uint64_t size, position;
    int wrong;
};

static uint64_t counted;        /* bytes taken by all 'U' connections so far */

static void watch(struct conn *c, uint32_t events, int op)
{
    struct epoll_event ev = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, op, c->fd, &ev) < 0)
        die("epoll_ctl");
}

static void drop(struct conn *c)
{
    close(c->fd);
    free(c);
}

static int again(void) { return errno == EAGAIN || errno == EINTR; }

static void accept_all(int listener)
{
    for (int i = 0; i < 64; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
        if (fd < 0)
            return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct conn *c = calloc(1, sizeof *c);
        if (!c)
            die("calloc");
        c->fd = fd;
        watch(c, EPOLLIN, EPOLL_CTL_ADD);
    }
}

/* Bulk towards the proxy. */
static void send_slice(struct conn *c)
{
    uint64_t left = c->size ? c->size - c->position : SLICE;
    long n = send_pattern(c->fd, c->position, left < SLICE ? left : SLICE);
    if (n < 0) {
        if (!again())
            drop(c);
        return;
    }
    c->position += (uint64_t)n;
    if (c->size && c->position == c->size)
        drop(c);
}

/* Bulk from the proxy, thrown away or compared. */
static void take_slice(struct conn *c)
{
    int check = c->kind == 'V';
    ssize_t n = recv(c->fd, scratch, check ? SLICE : PATTERN_SIZE, check ? 0 : MSG_TRUNC);
    if (n < 0 && again())
        return;
    if (n <= 0) {
        drop(c);
        return;
    }
    if (!check) {
        counted += (uint64_t)n;
        return;
    }
    if (!matches_pattern(c->position, scratch, (size_t)n))
        c->wrong = 1;
    c->position += (uint64_t)n;
    if (c->position >= c->size) {
        unsigned char answer[8];
        put64(answer, c->wrong || c->position > c->size ? 0 : c->position);
        send(c->fd, answer, sizeof answer, MSG_NOSIGNAL);
        drop(c);
    }
}

static void answer_counters(struct conn *c)
{
    unsigned char answer[16];
    put64(answer, counted);
    put64(answer + 8, now_ns());
    send(c->fd, answer, sizeof answer, MSG_NOSIGNAL);
}

static void echo(struct conn *c)
{
    unsigned char buf[16384];
    ssize_t n = recv(c->fd, buf, sizeof buf, 0);
    if (n < 0 && again())
        return;
    if (n <= 0 || (c->kind == 'E' && send(c->fd, buf, (size_t)n, MSG_NOSIGNAL) != n)) {
        drop(c);
        return;
    }
    if (c->kind == 'S')
        answer_counters(c);
}

/* The command byte and, where it has one, its size. */
static void begin(struct conn *c)
{
    if (!c->kind) {
        ssize_t n = recv(c->fd, &c->kind, 1, 0);
        if (n < 0 && again())
            return;
        if (n <= 0 || !strchr("DUVES", c->kind)) {
            drop(c);
            return;
        }
        if (c->kind == 'U' || c->kind == 'E') {
            c->have = 8;
            return;             /* level-triggered: the rest is reported at once */
        }
        if (c->kind == 'S') {
            c->have = 8;
            answer_counters(c);
            return;
        }
    }
    ssize_t n = recv(c->fd, c->head + c->have, (size_t)(8 - c->have), 0);
    if (n < 0 && again())
        return;
    if (n <= 0) {
        drop(c);
        return;
    }
    c->have += (int)n;
    if (c->have == 8) {
        c->size = get64(c->head);
        if (c->kind == 'D')
            watch(c, EPOLLOUT, EPOLL_CTL_MOD);
    }
}

static int is_bulk(const struct conn *c) { return c->have == 8 && strchr("DUV", c->kind); }

static void bulk(struct conn *c)
{
    if (c->kind == 'D')
        send_slice(c);
    else
        take_slice(c);
}

int serve(int port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 4096) < 0)
        die("listen");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &ev) < 0)
        die("epoll_ctl");
    printf("{\"port\": %d}\n", port);
    fflush(stdout);
    for (;;) {
        struct epoll_event events[EVENTS];
        struct conn *heavy[EVENTS];
        int n = epoll_wait(epoll_fd, events, EVENTS, -1), waiting = 0;
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c)
                accept_all(listener);
            else if (is_bulk(c))
                heavy[waiting++] = c;
            else if (c->have == 8)
                echo(c);
            else
                begin(c);
        }
        for (int i = 0; i < waiting; i++)
            bulk(heavy[i]);
    }
}
