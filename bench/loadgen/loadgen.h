/* What the parts of the load generator share. common.c: pattern, clock, samples, CPU time. target.c: the server that
 * streams go to. stream.c: one stream through a proxy. main.c: the tests, and the command line.
 *
 * The first byte of a connection to the target tells what it is for. Numbers are 8 bytes, big-endian.
 *
 *   'D' size      the target sends `size` bytes of the pattern (0: without end), then closes
 *   'U'           the target throws away what comes, and counts it
 *   'V' size      the target compares `size` bytes with the pattern, answers how many were right, and closes
 *   'E'           the target sends every byte back
 *   'S'           the target answers, to this and to every further byte: bytes counted by all 'U', and its clock in ns
 *
 * The pattern is 1 MiB of fixed random bytes, over and over. It lives in a memfd, so that sending it is a sendfile that
 * copies nothing; what is thrown away is read with MSG_TRUNC, which copies nothing either. So the generator takes as
 * little as possible of the two or four cores that the proxies under test need.
 */
#ifndef LOADGEN_H
#define LOADGEN_H

#include <stddef.h>
#include <stdint.h>

#define PATTERN_SIZE (1u << 20)
#define SLICE (256u << 10)        /* bytes moved per stream and wake-up: small enough to keep small requests quick */
#define EVENTS 256

extern unsigned char pattern[PATTERN_SIZE];
extern unsigned char scratch[PATTERN_SIZE];
extern int pattern_fd;

void make_pattern(void);
int matches_pattern(uint64_t position, const unsigned char *bytes, size_t count);
long send_pattern(int fd, uint64_t position, uint64_t limit);   /* one sendfile; bytes sent, or -1 with errno */
uint64_t now_ns(void);
void put64(unsigned char *to, uint64_t value);
uint64_t get64(const unsigned char *from);
void die(const char *what);

int serve(int port);

#define MS 1000000ull
#define SECOND 1000000000ull
#define PATIENCE (10 * SECOND)     /* a request, or the start of bulk streams, fails after this */
#define REQUEST_SIZE 64
#define MAX_PIDS 8

struct options {
    int proxy, target, bulk_target, port, streams, concurrency, bulk, count, rate, fresh_rate, realtime, up, rst, lifetime;
    double seconds, warmup;
    uint64_t size;
    int pids[MAX_PIDS], pid_count;
};
extern struct options opt;

struct samples {
    double *ms;
    size_t count, room;
};
void add_sample(struct samples *s, uint64_t ns);
void print_samples(const char *name, struct samples *s);
void mark_cpu(void);
void print_cpu(void);              /* seconds since mark_cpu(), as members of a JSON object */

enum kind { DOWN, UP, ONCE, KEPT, HELD };      /* ONCE, HELD: one request, then close / stay */
enum state { CONNECTING, GREETING, REQUEST, RUNNING, DONE };

struct stream {
    int fd;
    enum kind kind;
    enum state state;
    uint64_t since;             /* ns: when the request began */
    unsigned char buf[512];
    size_t have;                /* bytes in buf */
    uint64_t bytes;             /* bulk bytes moved */
    struct samples *into;       /* where a finished request goes; NULL: not measured */
};

/* The kept-alive stream: requests leave on schedule whether or not the last is answered; answers come in order. */
struct kept {
    uint64_t *due;              /* when each was to leave: lateness of the generator counts as latency */
    size_t sent, answered;
};
extern struct kept kept;
extern const unsigned char request[REQUEST_SIZE];
extern int epoll_fd;            /* of this process, server or client */
extern uint64_t *bulk_bytes;    /* moved by all bulk streams; shared with the bulk process of `latency` */
extern int flowing, finished, errors, pending;  /* bulk streams with data; requests done; failed; ONCE/HELD open */
extern char last_error[128];

struct stream *new_streams(int count);
void open_stream(struct stream *s, enum kind kind, struct samples *into);
int send_all(struct stream *s, const void *data, size_t size);
void failed(struct stream *s, const char *why);
void turn(uint64_t until);

#endif
