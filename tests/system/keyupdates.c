/*
 * A TLS 1.3 client that has one line echoed, and then sends KeyUpdates (RFC 8446, section 4.6.3), all at
 * once; it waits for a line on its standard input, has one more line echoed, and ends.
 *
 *     keyupdates PORT COUNT
 */

#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void echo(SSL *tls)
{
    char line[6];
    if (SSL_write(tls, "hello\n", 6) != 6 || SSL_read(tls, line, 6) != 6)
        exit(1);
    puts("echoed");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    alarm(60);
    if (connect(fd, (struct sockaddr *)&server, sizeof server))
        return 1;
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    SSL *tls = SSL_new(context);
    SSL_set_fd(tls, fd);
    if (SSL_connect(tls) != 1)
        return 1;
    echo(tls);

    /* All are made before the first one is sent: so the sender is never what takes the time. */
    BIO *memory = BIO_new(BIO_s_mem());
    char *data;
    SSL_set0_wbio(tls, memory);
    for (int i = atoi(argv[2]); i; i--)
        if (SSL_key_update(tls, SSL_KEY_UPDATE_NOT_REQUESTED) != 1 || SSL_do_handshake(tls) != 1)
            return 1;
    long size = BIO_get_mem_data(memory, &data);
    puts("made");
    fflush(stdout);
    for (long sent = 0; sent < size;) {
        ssize_t n = write(fd, data + sent, size - sent);
        if (n < 0)
            return 1;
        sent += n;
    }
    SSL_set_fd(tls, fd);
    puts("sent");
    fflush(stdout);
    getchar();
    echo(tls);
    return 0;
}
