/* Clock, pattern, samples and CPU time. */
#define _GNU_SOURCE
#include "loadgen.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <time.h>
#include <unistd.h>

unsigned char pattern[PATTERN_SIZE];
unsigned char scratch[PATTERN_SIZE];
int pattern_fd;

void die(const char *what)
{
    printf("{\"error\": \"%s: %s\"}\n", what, errno ? strerror(errno) : "failed");
    fflush(stdout);
    exit(1);
}

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

void put64(unsigned char *to, uint64_t value)
{
    for (int i = 7; i >= 0; i--, value >>= 8)
        to[i] = (unsigned char)value;
}

uint64_t get64(const unsigned char *from)
{
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value = value << 8 | from[i];
    return value;
}

void make_pattern(void)
{
    uint64_t x = 0x9e3779b97f4a7c15ull;
    for (size_t i = 0; i < PATTERN_SIZE; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        pattern[i] = (unsigned char)(x >> 32);
    }
    pattern_fd = memfd_create("pattern", MFD_CLOEXEC);
    if (pattern_fd < 0 || write(pattern_fd, pattern, PATTERN_SIZE) != PATTERN_SIZE)
        die("memfd");
}

int matches_pattern(uint64_t position, const unsigned char *bytes, size_t count)
{
    while (count) {
        size_t at = position % PATTERN_SIZE, n = PATTERN_SIZE - at;
        if (n > count)
            n = count;
        if (memcmp(pattern + at, bytes, n))
            return 0;
        position += n, bytes += n, count -= n;
    }
    return 1;
}

long send_pattern(int fd, uint64_t position, uint64_t limit)
{
    off_t at = (off_t)(position % PATTERN_SIZE);
    uint64_t n = PATTERN_SIZE - (uint64_t)at;
    return sendfile(fd, pattern_fd, &at, n < limit ? n : limit);
}

void add_sample(struct samples *s, uint64_t ns)
{
    if (s->count == s->room) {
        s->room = s->room ? 2 * s->room : 1024;
        s->ms = realloc(s->ms, s->room * sizeof *s->ms);
        if (!s->ms)
            die("realloc");
    }
    s->ms[s->count++] = (double)ns / (double)MS;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(const struct samples *s, double p)    /* of sorted samples */
{
    return s->count ? s->ms[(size_t)(p * (double)(s->count - 1) + 0.5)] : -1;
}

void print_samples(const char *name, struct samples *s)
{
    qsort(s->ms, s->count, sizeof *s->ms, by_size);
    printf("\"%s\": {\"n\": %zu, \"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}", name, s->count, percentile(s, 0.5),
           percentile(s, 0.99), percentile(s, 1));
}

/* User + system seconds of a process; the kernel keeps the sum exactly and rounds it to ticks here. */
static double cpu_seconds(int pid)
{
    char path[64], line[1024];
    unsigned long user = 0, sys = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    if (!f)
        return 0;
    if (fgets(line, sizeof line, f)) {
        char *rest = strrchr(line, ')');
        if (rest)
            sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &sys);
    }
    fclose(f);
    return (double)(user + sys) / (double)sysconf(_SC_CLK_TCK);
}

static double own_cpu(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* Seconds that all cores together stood idle: with them, a slow pair that waits is told from one that works. */
static double idle_seconds(void)
{
    unsigned long idle = 0, io = 0;
    FILE *f = fopen("/proc/stat", "r");
    if (!f)
        return 0;
    if (fscanf(f, "cpu %*u %*u %*u %lu %lu", &idle, &io) != 2)
        idle = io = 0;
    fclose(f);
    return (double)(idle + io) / (double)sysconf(_SC_CLK_TCK);
}

static double cpu_before[MAX_PIDS], own_before, idle_before;

void mark_cpu(void)
{
    for (int i = 0; i < opt.pid_count; i++)
        cpu_before[i] = cpu_seconds(opt.pids[i]);
    own_before = own_cpu(), idle_before = idle_seconds();
}

void print_cpu(void)
{
    printf("\"cpu\": [");
    for (int i = 0; i < opt.pid_count; i++)
        printf("%s%.2f", i ? ", " : "", cpu_seconds(opt.pids[i]) - cpu_before[i]);
    printf("], \"generator_cpu\": %.2f, \"idle_cpu\": %.2f", own_cpu() - own_before, idle_seconds() - idle_before);
}
