/*
 * The limit: an echo in C, one thread, epoll. It sends back bytes, and knows no lines. What does not
 * fit the socket is waited for, with all other clients: the load never lets that happen for long.
 *
 *     PORT=4040 epoll
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>


static char buffer[1 << 18];

static void echo(int fd)
{
    ssize_t size = recv(fd, buffer, sizeof buffer, 0), sent = 0;
    if (size < 0 && errno == EAGAIN)
        return;
    while (sent < size) {
        ssize_t n = send(fd, buffer + sent, size - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            struct pollfd writable = {.fd = fd, .events = POLLOUT};
            poll(&writable, 1, 1000);
        } else if (n < 0) {
            size = 0;
        } else {
            sent += n;
        }
    }
    if (size <= 0)
        close(fd);
}

int main(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(atoi(getenv("PORT"))),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN}, events[256];
    int yes = 1, epoll = epoll_create1(0), server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 1024))
        return 1;
    event.data.fd = server;
    epoll_ctl(epoll, EPOLL_CTL_ADD, server, &event);
    for (;;) {
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd != server) {
                echo(events[i].data.fd);
                continue;
            }
            while ((event.data.fd = accept4(server, NULL, NULL, SOCK_NONBLOCK)) >= 0)
                epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event);
        }
    }
}
