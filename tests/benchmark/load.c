/*
 * The load: clients in one thread, on epoll. When all of them are connected, and one batch of each has
 * come back, it says READY and waits for a line; then it begins. It prints one line of JSON, and ends
 * when its standard input does.
 *
 *     load PORT exchange CLIENTS DEPTH SIZE SECONDS
 *         each client sends DEPTH lines of SIZE bytes at a time, and more when they are back
 *     load PORT connect CLIENTS SIZE SECONDS
 *         each client connects, has one line echoed, closes, and begins again
 *     load PORT hold CLIENTS
 *         each client has one line echoed, and stays
 *
 * It sends to 127.0.0.1 only, and ends within a minute of what it is to do.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 256, BUFFER = 1 << 18, SAMPLES = 1 << 22 };

struct client {
    int fd;
    size_t sent, received; /* of one batch */
    uint64_t begin;        /* of one batch, in ns */
};

static int port, epoll;
static size_t batch, size;
static char *text;
static char buffer[BUFFER];
static uint32_t *samples; /* latencies, in ns */
static size_t count;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static double cpu(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec +
           (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* Each client has one of 32 loopback addresses, so that there are ports enough. */
static void join(struct client *client, unsigned number)
{
    struct sockaddr_in own = {.sin_family = AF_INET,
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + number % 32)};
    struct sockaddr_in server = {.sin_family = AF_INET,
                                 .sin_port = htons(port),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int yes = 1;

    client->begin = now();
    client->sent = client->received = 0;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd < 0)
        fail("socket");
    setsockopt(client->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (bind(client->fd, (struct sockaddr *)&own, sizeof own))
        fail("bind");
    if (connect(client->fd, (struct sockaddr *)&server, sizeof server))
        fail("connect");
}

static void watch(struct client *client, int how, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = client};
    if (epoll_ctl(epoll, how, client->fd, &event))
        fail("epoll_ctl");
}

/* Send what is left of the batch. Returns 1 when all has been sent. */
static int push(struct client *client)
{
    while (client->sent < batch) {
        ssize_t n = send(client->fd, text + client->sent, batch - client->sent,
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN)
                return 0;
            fail("send");
        }
        client->sent += n;
    }
    return 1;
}

/* Receive what is there. Returns 1 when the batch is back. */
static int pull(struct client *client)
{
    while (client->received < batch) {
        size_t most = batch - client->received < BUFFER ? batch - client->received : BUFFER;
        ssize_t n = recv(client->fd, buffer, most, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return 0;
        if (n < 0)
            fail("recv");
        if (n == 0) {
            fprintf(stderr, "the server has closed a connection\n");
            exit(1);
        }
        if (memcmp(buffer, text + client->received, n)) {
            fprintf(stderr, "what came back is not what was sent\n");
            exit(1);
        }
        client->received += n;
    }
    if (count < SAMPLES)
        samples[count++] = now() - client->begin;
    return 1;
}

static void begin(struct client *client)
{
    client->begin = now();
    client->sent = client->received = 0;
    if (!push(client))
        watch(client, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
}

/* Wait for a line; for the end, if there is none. */
static void await(void)
{
    while (read(0, buffer, 1) > 0 && buffer[0] != '\n')
        ;
}

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    port = atoi(argv[1]);
    const char *mode = argv[2];
    unsigned clients = atoi(argv[3]);
    int exchanging = !strcmp(mode, "exchange"), connecting = !strcmp(mode, "connect");
    size_t depth = exchanging ? atoi(argv[4]) : 1;
    size = exchanging ? atoi(argv[5]) : connecting ? atoi(argv[4]) : 64;
    double seconds = exchanging ? atof(argv[6]) : connecting ? atof(argv[5]) : 0;

    batch = depth * size;
    text = malloc(batch);
    samples = malloc(SAMPLES * sizeof *samples);
    for (size_t i = 0; i < batch; i++)
        text[i] = i % size == size - 1 ? '\n' : 'a' + i % 23;
    epoll = epoll_create1(EPOLL_CLOEXEC);

    struct client *all = calloc(clients, sizeof *all);
    unsigned joined = 0;
    for (unsigned i = 0; i < clients; i++) {
        join(&all[i], joined++);
        watch(&all[i], EPOLL_CTL_ADD, EPOLLIN);
        if (!connecting) {
            /* One batch to warm up: from now on the server knows this client. */
            alarm(60);
            while (!push(&all[i]) | !pull(&all[i]))
                ;
        }
    }
    /* Whatever happens, it ends. */
    alarm(seconds + 60);
    puts("READY");
    fflush(stdout);
    await();
    if (!exchanging && !connecting)
        return 0;

    count = 0;
    uint64_t batches = 0, start = now(), end = start + seconds * 1e9, last = start;
    double used = cpu();
    for (unsigned i = 0; i < clients; i++)
        begin(&all[i]);
    while (last < end) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll, events, EVENTS, 1000);
        if (!ready) {
            fprintf(stderr, "nothing came back for a second\n");
            return 1;
        }
        for (int i = 0; i < ready; i++) {
            struct client *client = events[i].data.ptr;
            if (events[i].events & EPOLLOUT && push(client))
                watch(client, EPOLL_CTL_MOD, EPOLLIN);
            if (!(events[i].events & ~EPOLLOUT) || !pull(client))
                continue;
            batches++;
            if (connecting) {
                close(client->fd);
                join(client, joined++);
                watch(client, EPOLL_CTL_ADD, EPOLLIN);
                push(client);
            } else {
                begin(client);
            }
        }
        last = now();
    }
    used = cpu() - used;
    qsort(samples, count, sizeof *samples, ascending);
    printf("{\"lines\": %llu, \"bytes\": %llu, \"seconds\": %.6f, \"p50\": %.3f, \"p99\": %.3f, "
           "\"load\": %.3f}\n",
           (unsigned long long)(batches * depth), (unsigned long long)(batches * batch),
           (last - start) / 1e9, samples[count / 2] / 1e3, samples[count * 99 / 100] / 1e3,
           used / ((last - start) / 1e9));
    fflush(stdout);
    await();
    return 0;
}
