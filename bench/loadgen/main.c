/* The tests of the load generator, and its command line. Each test prints one line of JSON; `loadgen` alone prints how
 * to call it. Every run is bounded: by its own duration, by a deadline per request, and at last by alarm().
 */
#define _GNU_SOURCE
#include "loadgen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

struct options opt = {.streams = 1, .concurrency = 64, .bulk = 8, .count = 2000, .rate = 200, .fresh_rate = 50,
                      .seconds = 3, .warmup = 0.7};

static void stop_on_error(void)
{
    if (errors) {
        printf("{\"error\": \"%s\"}\n", last_error);
        exit(1);
    }
}

static void run_for(double seconds)
{
    for (uint64_t end = now_ns() + (uint64_t)(seconds * SECOND); now_ns() < end && !errors;)
        turn(end);
    stop_on_error();
}

static struct stream *start_bulk(int count, enum kind kind)
{
    struct stream *all = new_streams(count);
    flowing = 0;
    for (int i = 0; i < count; i++)
        open_stream(&all[i], kind, NULL);
    for (uint64_t end = now_ns() + PATIENCE; flowing < count && !errors; turn(end))
        if (now_ns() >= end)
            errno = ETIMEDOUT, die("bulk streams did not start");
    stop_on_error();
    return all;
}

static int counters_fd = -1;

/* What the target has taken, and when: its own clock, so that no buffer on the way and no scheduling counts. */
static void ask_target(uint64_t *bytes, uint64_t *at)
{
    unsigned char answer[16];
    if (counters_fd < 0) {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.target)};
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        counters_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(counters_fd, (struct sockaddr *)&to, sizeof to) < 0)
            die("connect to the target");
    }
    if (send(counters_fd, "S", 1, MSG_NOSIGNAL) != 1 || recv(counters_fd, answer, 16, MSG_WAITALL) != 16)
        die("counters of the target");
    *bytes = get64(answer), *at = get64(answer + 8);
}

static void position(uint64_t *bytes, uint64_t *at)
{
    if (opt.up)
        ask_target(bytes, at);
    else
        *bytes = *bulk_bytes, *at = now_ns();
}

/* --size: every stream moves that many bytes, and every byte is compared. */
static void bulk_sized(void)
{
    uint64_t from = now_ns(), end = from + (uint64_t)opt.lifetime * SECOND;
    mark_cpu();
    start_bulk(opt.streams, opt.up ? UP : DOWN);
    while (finished < opt.streams && !errors && now_ns() < end)
        turn(end);
    stop_on_error();
    double seconds = (double)(now_ns() - from) / 1e9;
    printf("{\"verified\": true, \"streams\": %d, \"bytes\": %llu, \"seconds\": %.3f, \"gbit\": %.3f, ", opt.streams,
           (unsigned long long)*bulk_bytes, seconds, (double)*bulk_bytes * 8e-9 / seconds);
    print_cpu();
    printf("}\n");
}

static void bulk_timed(void)
{
    uint64_t from, to, bytes_before, bytes_after;
    struct stream *all = start_bulk(opt.streams, opt.up ? UP : DOWN);
    uint64_t *before = calloc((size_t)opt.streams, sizeof *before);
    run_for(opt.warmup);
    for (int i = 0; i < opt.streams; i++)
        before[i] = all[i].bytes;
    mark_cpu();
    position(&bytes_before, &from);
    run_for(opt.seconds);
    position(&bytes_after, &to);
    double seconds = (double)(to - from) / 1e9, bytes = (double)(bytes_after - bytes_before);
    uint64_t least = UINT64_MAX, most = 0;
    double all_moved = 0, squares = 0;
    for (int i = 0; i < opt.streams; i++) {
        uint64_t moved = all[i].bytes - before[i];
        least = moved < least ? moved : least, most = moved > most ? moved : most;
        all_moved += (double)moved, squares += (double)moved * (double)moved;
    }
    /* Jain's index: 1 if all streams have moved the same, 1 / streams if one has moved everything. */
    double fairness = squares > 0 ? all_moved * all_moved / (squares * opt.streams) : 0;
    printf("{\"streams\": %d, \"bytes\": %.0f, \"seconds\": %.3f, \"gbit\": %.3f, \"least_over_most\": %.2f, \"fairness\": %.3f, ",
           opt.streams, bytes, seconds, bytes * 8e-9 / seconds, most ? (double)least / (double)most : 0, fairness);
    print_cpu();
    printf("}\n");
}

static void fail_overdue(struct stream *all, int count)
{
    uint64_t now = now_ns();
    for (int i = 0; i < count; i++)
        if (all[i].state != DONE && now - all[i].since > PATIENCE)
            errno = ETIMEDOUT, failed(&all[i], "no answer");
}

/* A closed loop: as soon as one connection has done its request and is closed, the next one begins. */
static void connections(void)
{
    struct stream *all = new_streams(opt.concurrency);
    struct samples warm = {0}, measured = {0}, *into = &warm;
    uint64_t from = now_ns() + (uint64_t)(opt.warmup * SECOND), end = from + (uint64_t)(opt.seconds * SECOND), now;
    uint64_t check = from;
    while ((now = now_ns()) < end) {
        if (into == &warm && now >= from) {
            into = &measured, from = now, errors = 0;
            mark_cpu();
        }
        if (now >= check)
            fail_overdue(all, opt.concurrency), check = now + SECOND;
        for (int i = 0; i < opt.concurrency; i++)
            if (all[i].state == DONE)
                open_stream(&all[i], ONCE, into);
        turn(now + 100 * MS);
    }
    double seconds = (double)(now - from) / 1e9;
    printf("{\"connections\": %zu, \"seconds\": %.3f, \"rate\": %.0f, \"errors\": %d, \"last_error\": \"%s\", ",
           measured.count, seconds, (double)measured.count / seconds, errors, last_error);
    print_samples("ms", &measured);
    printf(", ");
    print_cpu();
    printf("}\n");
}

static void latency_phase(const char *name, struct stream *keep)
{
    struct samples echo = {0}, fresh = {0};
    int slots = 1024;
    struct stream *all = new_streams(slots);
    size_t total = (size_t)(opt.seconds * opt.rate), begun = 0, fresh_total = (size_t)(opt.seconds * opt.fresh_rate);
    uint64_t period = SECOND / (uint64_t)opt.rate, fresh_period = SECOND / (uint64_t)opt.fresh_rate;
    uint64_t from = now_ns(), bytes = *bulk_bytes;
    uint64_t end = from + (uint64_t)(opt.seconds * SECOND) + PATIENCE;
    kept.due = calloc(total + 1, sizeof *kept.due), kept.sent = kept.answered = 0;
    keep->into = &echo;
    mark_cpu();
    double moved = 0;
    while ((kept.answered < total || fresh.count < fresh_total) && now_ns() < end && !errors) {
        uint64_t now = now_ns(), next_echo = from + kept.sent * period, next_fresh = from + begun * fresh_period;
        for (; kept.sent < total && next_echo <= now; next_echo += period) {
            kept.due[kept.sent++] = next_echo;
            if (!send_all(keep, request, REQUEST_SIZE))
                break;
        }
        for (int i = 0; i < slots && begun < fresh_total && next_fresh <= now; i++)
            if (all[i].state == DONE) {
                open_stream(&all[i], ONCE, &fresh);
                all[i].since = next_fresh;
                begun++, next_fresh += fresh_period;
            }
        if (kept.sent == total && begun == fresh_total && moved == 0)
            moved = (double)(*bulk_bytes - bytes) * 8 / (double)(now - from);
        uint64_t next = kept.sent < total ? next_echo : end;
        turn(begun < fresh_total && next_fresh < next ? next_fresh : next);
    }
    if (!errors && (kept.answered < total || fresh.count < fresh_total))
        errno = ETIMEDOUT, die("small requests were not answered");
    stop_on_error();
    printf("\"%s\": {", name);
    print_samples("echo", &echo);
    printf(", ");
    print_samples("fresh", &fresh);
    printf(", \"bulk_gbit\": %.3f, ", moved);
    print_cpu();
    printf("}");
}

/* A process of its own for the bulk streams, so that small requests never wait behind them in the generator.
 * It starts at the first byte on its pipe, answers with one when all streams flow, and ends with its parent. */
static int bulk_process(int *control)
{
    int pair[2];
    char go = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
        die("socketpair");
    int child = fork();
    if (child < 0)
        die("fork");
    if (child) {
        close(pair[1]);
        *control = pair[0];
        return child;
    }
    close(pair[0]);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm((unsigned)opt.lifetime);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (read(pair[1], &go, 1) != 1)
        exit(0);
    if (opt.bulk_target)
        opt.target = opt.bulk_target;
    start_bulk(opt.bulk, DOWN);
    if (write(pair[1], &go, 1) != 1)
        exit(1);
    for (;;)
        run_for(1);
}

/* What measures must not wait for a core behind what is measured. Without the right to do so it runs as it is. */
static int run_first(void)
{
    struct sched_param first = {.sched_priority = 1};
    return sched_setscheduler(0, SCHED_RR, &first) == 0;
}

static void latency(void)
{
    int control;
    char go = 1;
    int child = bulk_process(&control), realtime = run_first();
    struct stream *keep = new_streams(1);
    open_stream(keep, KEPT, NULL);
    for (uint64_t end = now_ns() + PATIENCE; keep->state != RUNNING && now_ns() < end && !errors;)
        turn(end);
    stop_on_error();
    printf("{\"bulk\": %d, \"realtime\": %s, ", opt.bulk, realtime ? "true" : "false");
    latency_phase("quiet", keep);
    printf(", ");
    if (write(control, &go, 1) != 1 || read(control, &go, 1) != 1)
        _exit(1);                           /* the child has said why */
    run_for(opt.warmup);
    latency_phase("loaded", keep);
    printf("}\n");
    if (waitpid(child, NULL, WNOHANG))
        _exit(1);
    kill(child, SIGKILL);
}

/* Opens them 64 at a time, says so, and holds them until its standard input ends. */
static void idle(void)
{
    struct stream *all = new_streams(opt.count);
    int next = 0;
    uint64_t check = now_ns() + SECOND;
    while (finished < opt.count && !errors) {
        for (; next < opt.count && pending < 64; next++)
            open_stream(&all[next], HELD, NULL);
        turn(now_ns() + 100 * MS);
        if (now_ns() >= check)
            fail_overdue(all, next), check = now_ns() + SECOND;
    }
    stop_on_error();
    printf("{\"held\": %d}\n", finished);
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    turn(now_ns());
    stop_on_error();
    printf("{\"held\": %d}\n", finished);
}

/* ---- command line ---- */

static void usage(void)
{
    fputs("loadgen server  --port P [--realtime 1: run before all else, for a target of small requests only]\n"
          "loadgen bulk    --proxy P --target P --streams N --seconds S --dir down|up   [--size BYTES: move and compare]\n"
          "loadgen connect --proxy P --target P --concurrency 64 --seconds S [--close fin|rst]\n"
          "loadgen latency --proxy P --target P --bulk 8 --rate 200 --fresh-rate 50 --seconds S (each half)\n"
          "                [--bulk-target P: another target process for the bulk streams]\n"
          "loadgen idle    --proxy P --target P --count 2000          holds them until standard input ends\n"
          "  --proxy 0 goes straight to the target; --warmup S (0.7); --pids A,B adds their CPU seconds;\n"
          "  --lifetime S ends it in any case (300; server 3600)\n", stderr);
    exit(2);
}

static void read_options(int argc, char **argv)
{
    for (int i = 2; i < argc; i += 2) {
        if (i + 1 == argc)
            usage();
        const char *name = argv[i], *value = argv[i + 1];
        struct { const char *name; int *to; } numbers[] = {
            {"--proxy", &opt.proxy}, {"--target", &opt.target}, {"--port", &opt.port}, {"--streams", &opt.streams},
            {"--concurrency", &opt.concurrency}, {"--bulk", &opt.bulk}, {"--count", &opt.count}, {"--rate", &opt.rate},
            {"--fresh-rate", &opt.fresh_rate}, {"--lifetime", &opt.lifetime}, {"--bulk-target", &opt.bulk_target},
            {"--realtime", &opt.realtime},
        };
        size_t k = 0, known = sizeof numbers / sizeof *numbers;
        while (k < known && strcmp(name, numbers[k].name))
            k++;
        if (k < known)
            *numbers[k].to = atoi(value);
        else if (!strcmp(name, "--seconds"))
            opt.seconds = atof(value);
        else if (!strcmp(name, "--warmup"))
            opt.warmup = atof(value);
        else if (!strcmp(name, "--size"))
            opt.size = strtoull(value, NULL, 10);
        else if (!strcmp(name, "--dir"))
            opt.up = !strcmp(value, "up");
        else if (!strcmp(name, "--close"))
            opt.rst = !strcmp(value, "rst");
        else if (!strcmp(name, "--pids"))
            for (const char *p = value; p && *p && opt.pid_count < MAX_PIDS; p = strchr(p, ',') ? strchr(p, ',') + 1 : 0)
                opt.pids[opt.pid_count++] = atoi(p);
        else
            usage();
    }
}

int main(int argc, char **argv)
{
    if (argc < 2)
        usage();
    int server = !strcmp(argv[1], "server");
    opt.lifetime = server ? 3600 : 300;
    read_options(argc, argv);
    alarm((unsigned)opt.lifetime);
    signal(SIGPIPE, SIG_IGN);
    make_pattern();
    if (server) {
        if (opt.realtime)
            run_first();
        return serve(opt.port);
    }
    bulk_bytes = mmap(NULL, sizeof *bulk_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (bulk_bytes == MAP_FAILED)
        die("mmap");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!strcmp(argv[1], "bulk"))
        opt.size ? bulk_sized() : bulk_timed();
    else if (!strcmp(argv[1], "connect"))
        connections();
    else if (!strcmp(argv[1], "latency"))
        latency();
    else if (!strcmp(argv[1], "idle"))
        idle();
    else
        usage();
    return 0;
}
