/*
 * ceiling - a server that parses nothing: an upper limit for the speed of any tlsmgr
 *
 *   ceiling SOCKET SEED_LENGTH SESSION_LENGTH
 *
 * It reads what has arrived and immediately writes a canned reply with as many base64 characters as
 * the arguments say. It looks at one byte only, the first of the request's name, to choose the
 * reply. One process, one thread; it accepts up to 64 connections in a row. It exits when standard
 * input ends; errors are fatal: one line, status 1.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define ANNOUNCEMENT "protocol\0tlsmgr_protocol\0"      /* and the NUL of the C string */
#define NAME_AT 8                                       /* behind "request" and NUL */
#define BACKLOG 511
#define BURST 64

struct reply {
    char text[65536];
    size_t length;
};

static struct reply replies[256];                       /* by that byte */

static void fatal(const char *what)
{
    perror(what);
    exit(1);
}

static void make_reply(unsigned char letter, const char *name, size_t length)
{
    struct reply *reply = replies + letter;
    char *end = reply->text + sizeof "status\0" "0";

    if (length > sizeof reply->text / 2)
        exit(1);
    memcpy(reply->text, "status\0" "0", sizeof "status\0" "0");
    if (name != NULL) {
        end = stpcpy(end, name) + 1;
        memset(end, 'A', length);
        end += length + 1;
    }
    reply->length = end + 1 - reply->text;
}

static int listen_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (fd < 0 || bind(fd, (struct sockaddr *) &address, sizeof address) < 0
        || listen(fd, BACKLOG) < 0)
        fatal(path);
    return fd;
}

static void accept_some(int epoll, int listener)
{
    for (int i = 0; i < BURST; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

        if (fd < 0)
            return;
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
        send(fd, ANNOUNCEMENT, sizeof ANNOUNCEMENT, MSG_NOSIGNAL);
    }
}

static void answer(int fd)
{
    static unsigned char request[65536];
    ssize_t n = recv(fd, request, sizeof request, 0);

    if (n > 0) {
        const struct reply *reply = replies + request[NAME_AT];
        send(fd, reply->text, reply->length, MSG_NOSIGNAL);
    } else {
        close(fd);
    }
}

int main(int argc, char **argv)
{
    struct epoll_event events[256], event = {.events = EPOLLIN};
    struct rlimit files;
    int epoll = epoll_create1(0), listener;

    if (argc != 4 || epoll < 0)
        return 1;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    make_reply('s', "seed", strtoul(argv[2], NULL, 10));
    make_reply('l', "session", strtoul(argv[3], NULL, 10));
    make_reply('u', NULL, 0);
    event.data.fd = listener = listen_at(argv[1]);
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    event.data.fd = 0;
    epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event);
    for (;;) {
        int n = epoll_wait(epoll, events, 256, -1);

        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == 0)
                return 0;
            if (events[i].data.fd == listener)
                accept_some(epoll, listener);
            else
                answer(events[i].data.fd);
        }
    }
}
