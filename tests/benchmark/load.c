/*
 * The load: clients in one thread, on epoll. When all of them are connected, and one batch of each has
 * come back, it says READY and waits for a line; then it begins. It prints one line of JSON, and ends
 * when its standard input does.
 *
 *     load tcp|tls PORT exchange CLIENTS DEPTH SIZE SECONDS
 *         each client sends DEPTH lines of SIZE bytes at a time, and more when they are back
 *     load tcp|tls PORT connect CLIENTS SIZE SECONDS
 *         each client connects, has one line echoed, closes, and begins again
 *     load tcp|tls PORT hold CLIENTS
 *         each client has one line echoed, and stays
 *
 * It sends to 127.0.0.1 only, and ends within a minute of what it is to do.
 *
 * TLS is 1.3, with one cipher suite and one group, so that all servers do the same. No certificate is
 * verified, and no session resumed.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
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
    SSL *tls;              /* or NULL */
    size_t sent, received; /* of one batch */
    uint64_t begin;        /* of one batch, in ns */
};

static int port, epoll;
static SSL_CTX *context; /* NULL for plain TCP */
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

static int accepted(X509_STORE_CTX *chain, void *argument)
{
    (void)chain, (void)argument;
    return 1;
}

static void prepareTLS(void)
{
    context = SSL_CTX_new(TLS_client_method());
    if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
        !SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") ||
        !SSL_CTX_set1_groups_list(context, "X25519")) {
        ERR_print_errors_fp(stderr);
        exit(1);
    }
    /* SSL_VERIFY_NONE would verify, and not mind. */
    SSL_CTX_set_cert_verify_callback(context, accepted, NULL);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE);
    /* One system call for what is there, not two for each record. */
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_default_read_buffer_len(context, 1 << 16);
    signal(SIGPIPE, SIG_IGN);
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
    if (context) {
        if (fcntl(client->fd, F_SETFL, O_NONBLOCK))
            fail("fcntl");
        client->tls = SSL_new(context);
        SSL_set_fd(client->tls, client->fd);
        /* The handshake is part of the first SSL_write or SSL_read. */
        SSL_set_connect_state(client->tls);
    }
}

/* Has the handshake still to end? */
static int joining(struct client *client)
{
    return client->tls && !SSL_is_init_finished(client->tls);
}

static void leave(struct client *client)
{
    if (client->tls) {
        SSL_shutdown(client->tls);
        SSL_free(client->tls);
    }
    close(client->fd);
}

static void watch(struct client *client, int how, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = client};
    if (epoll_ctl(epoll, how, client->fd, &event))
        fail("epoll_ctl");
}

static void closed(void)
{
    fprintf(stderr, "the server has closed a connection\n");
    exit(1);
}

/* What SSL_write or SSL_read has done: how many bytes, or 0 when it has to wait. */
static size_t done(struct client *client, int n)
{
    if (n > 0)
        return n;
    int error = SSL_get_error(client->tls, n);
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
        return 0;
    if (error == SSL_ERROR_ZERO_RETURN)
        closed();
    ERR_print_errors_fp(stderr);
    fail("TLS");
    return 0;
}

/* Send some. Returns how many bytes, or 0 when it has to wait. */
static size_t give(struct client *client, const char *data, size_t most)
{
    if (client->tls)
        return done(client, SSL_write(client->tls, data, most));
    ssize_t n = send(client->fd, data, most, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN)
        fail("send");
    return n < 0 ? 0 : n;
}

/* Receive some. Returns how many bytes, or 0 when it has to wait. */
static size_t take(struct client *client, size_t most)
{
    if (client->tls)
        return done(client, SSL_read(client->tls, buffer, most));
    ssize_t n = recv(client->fd, buffer, most, MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN)
        fail("recv");
    if (n == 0)
        closed();
    return n < 0 ? 0 : n;
}

/* Send what is left of the batch. Returns 1 when all has been sent. */
static int push(struct client *client)
{
    while (client->sent < batch) {
        size_t n = give(client, text + client->sent, batch - client->sent);
        if (!n)
            return 0;
        client->sent += n;
    }
    return 1;
}

/* Receive what is there. Returns 1 when the batch is back. */
static int pull(struct client *client)
{
    while (client->received < batch) {
        size_t most = batch - client->received < BUFFER ? batch - client->received : BUFFER;
        size_t n = take(client, most);
        if (!n)
            return 0;
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
    if (argc < 5)
        return 2;
    port = atoi(argv[2]);
    const char *mode = argv[3];
    unsigned clients = atoi(argv[4]);
    int exchanging = !strcmp(mode, "exchange"), connecting = !strcmp(mode, "connect");
    if (argc < (exchanging ? 8 : connecting ? 7 : 5))
        return 2;
    size_t depth = exchanging ? atoi(argv[5]) : 1;
    size = exchanging ? atoi(argv[6]) : connecting ? atoi(argv[5]) : 64;
    double seconds = exchanging ? atof(argv[7]) : connecting ? atof(argv[6]) : 0;
    if (!strcmp(argv[1], "tls"))
        prepareTLS();

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
    if (!exchanging && !connecting) {
        for (unsigned i = 0; i < clients; i++)
            leave(&all[i]);
        return 0;
    }

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
            if (joining(client)) {
                push(client);
                continue;
            }
            if (events[i].events & EPOLLOUT && push(client))
                watch(client, EPOLL_CTL_MOD, EPOLLIN);
            if (!(events[i].events & ~EPOLLOUT) || !pull(client))
                continue;
            batches++;
            if (connecting) {
                leave(client);
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
    for (unsigned i = 0; i < clients; i++)
        leave(&all[i]);
    return 0;
}
