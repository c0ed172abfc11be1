/*
 * generator - the clients of a tlsmgr, each with one request in flight
 *
 *   generator PLAN SOCKET CONNECTIONS NANOSECONDS RANDOM
 *
 * PLAN holds prepared requests with the replies due to them; loads.py describes its format. The
 * program prints "ready" when all clients are connected and have read the announcement, waits for
 * a byte on standard input, and applies the load for NANOSECONDS, or, if the plan says so, until
 * every request was made once. Then it prints one line of JSON, and exits when standard input ends:
 * its clients stay connected until the server's CPU time has been read.
 *
 * The latency of a request begins when the previous one is answered, or, on a new connection, with
 * connect(2); it ends with the whole reply. A request that meets a closed connection is made again
 * on a new one and keeps its first start time. A connect(2) that fails because the listen queue is
 * full is tried again. Every reply is compared with the one due.
 *
 * It uses little CPU time per request, because server and generator may share two CPUs: one send,
 * one recv and a part of an epoll_wait; one clock_gettime; latencies are counted in a histogram.
 *
 * Wrong arguments, lack of memory and a server that does not accept are fatal: one line, status 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAGIC "tlsbench"
#define ANNOUNCEMENT "protocol\0tlsmgr_protocol\0"      /* and the NUL of the C string */
#define REQUEST_LIMIT 65536
#define SUB_BITS 7                                      /* as in figures.py */
#define BUCKETS ((64 - SUB_BITS + 1) << SUB_BITS)
#define SHOWN_BYTES 24                                  /* of the first wrong reply */
#define SECOND 1000000000ull
#define GRACE 60                                        /* seconds beyond the load */

struct header {
    char magic[8];
    uint32_t steps, entries, per_connection, once, longest_reply, unused;
};
struct step {
    uint32_t first, count, fresh, unused;
};
struct entry {                                          /* offsets into the texts */
    uint32_t head, head_length, tail, tail_length;      /* of the request */
    uint32_t want, want_length, want_tail, want_tail_length;
    uint32_t reply_length;
};

struct client {
    int fd;                                             /* -1: to be connected */
    int greeted;                                        /* it has read the announcement */
    uint32_t turn, left;                                /* step; requests for this connection */
    uint64_t key, since;                                /* since: start of its wait */
    const struct entry *entry;                          /* request in hand */
    size_t got;
    char *reply, *last;                                 /* last: of a step with "fresh" */
    struct client *next;                                /* in the line for connect(2) */
};

static const struct header *plan;
static const struct step *steps;
static const struct entry *entries;
static const char *texts;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static struct client *clients, *line, **line_end = &line;
static uint32_t connections, greeted, given, done;
static uint64_t random_state, histogram[BUCKETS];
static uint64_t requests, wrong, lost, refused;
static char first_wrong[2 * SHOWN_BYTES + 1];
static size_t room;                                     /* bytes for a reply, and one more */
static int epoll, running;

static void fatal(const char *what)
{
    fprintf(stderr, "generator: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static uint64_t next_random(void)                       /* xorshift64 */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
}

static void record(uint64_t latency)
{
    int shift = latency >> SUB_BITS ? 63 - __builtin_clzll(latency) - SUB_BITS : 0;
    histogram[((uint64_t) shift << SUB_BITS) + (latency >> shift)]++;
}

/* Connections. */

static void stand_in_line(struct client *client)
{
    client->next = NULL;
    *line_end = client;
    line_end = &client->next;
}

/* connect_line - connect the clients in line; stop when the listen queue is full */
static void connect_line(void)
{
    while (line != NULL) {
        struct client *client = line;
        struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = client};
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0)
            fatal("socket");
        if (connect(fd, (struct sockaddr *) &address, sizeof address) < 0) {
            if (errno != EAGAIN)
                fatal("connect");
            close(fd);
            refused++;
            return;
        }
        line = client->next;
        if (line == NULL)
            line_end = &line;
        client->fd = fd;
        client->greeted = 0;
        client->got = 0;
        client->left = plan->per_connection;
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
            fatal("epoll_ctl");
    }
}

static void hang_up(struct client *client)
{
    close(client->fd);
    client->fd = -1;
    stand_in_line(client);
}

/* Requests. */

static void transmit(struct client *client)
{
    static char request[REQUEST_LIMIT];
    const struct entry *entry = client->entry;
    size_t size = entry->head_length + entry->tail_length;

    memcpy(request, texts + entry->head, entry->head_length);
    memcpy(request + entry->head_length, texts + entry->tail, entry->tail_length);
    client->got = 0;
    if (send(client->fd, request, size, MSG_NOSIGNAL) != (ssize_t) size) {
        lost++;
        hang_up(client);
    }
}

/* begin - take the next request and send it, now or when there is a connection */
static void begin(struct client *client, uint64_t now)
{
    const struct step *step = steps + client->turn;

    if (plan->once) {
        if (given == step->count) {
            client->entry = NULL;
            return;
        }
        client->key = given++;
    } else if (client->turn == 0) {                     /* one key for all steps */
        client->key = next_random() >> 11;
    }
    client->entry = entries + step->first + client->key % step->count;
    client->since = now;
    if (client->fd >= 0)
        transmit(client);
    else if (line == client)
        connect_line();
}

static int is_right(struct client *client, const struct entry *entry)
{
    const char *reply = client->reply;
    int right = client->got == entry->reply_length
        && memcmp(reply, texts + entry->want, entry->want_length) == 0
        && memcmp(reply + entry->want_length, texts + entry->want_tail,
                  entry->want_tail_length) == 0;

    if (right && steps[client->turn].fresh) {
        right = memcmp(reply, client->last, client->got) != 0;
        memcpy(client->last, reply, client->got);
    }
    return right;
}

static void note_wrong(const struct client *client)
{
    if (wrong++ == 0)
        for (size_t i = 0; i < client->got && i < SHOWN_BYTES; i++)
            sprintf(first_wrong + 2 * i, "%02x", (unsigned char) client->reply[i]);
}

static void finish(struct client *client, uint64_t now)
{
    record(now - client->since);
    requests++;
    done++;
    if (!is_right(client, client->entry))
        note_wrong(client);
    client->entry = NULL;
    if (++client->turn == plan->steps)
        client->turn = 0;
    if (plan->per_connection && --client->left == 0)
        hang_up(client);
    begin(client, now);
}

/* is_whole - the reply has its length, or the end of its attribute list came earlier */
static int is_whole(const struct client *client, size_t length)
{
    size_t got = client->got;
    return got >= length
        || (got > 1 && client->reply[got - 1] == 0 && client->reply[got - 2] == 0);
}

static void greet(struct client *client)
{
    if (client->got < sizeof ANNOUNCEMENT)
        return;
    if (client->got > sizeof ANNOUNCEMENT || memcmp(client->reply, ANNOUNCEMENT, client->got)) {
        fprintf(stderr, "generator: the server does not announce itself as tlsmgr\n");
        exit(1);
    }
    client->greeted = 1;
    client->got = 0;
    greeted++;
    if (running && client->entry != NULL)
        transmit(client);
}

static void receive(struct client *client)
{
    ssize_t n = recv(client->fd, client->reply + client->got, room - client->got, 0);

    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        lost++;
        hang_up(client);
        return;
    }
    client->got += n;
    if (!client->greeted) {
        greet(client);
    } else if (client->entry == NULL) {                 /* nothing was asked */
        note_wrong(client);
        client->got = 0;
    } else if (is_whole(client, client->entry->reply_length)) {
        finish(client, nanoseconds(CLOCK_MONOTONIC));
    }
}

/* The loop. */

static void iterate(uint64_t limit)
{
    struct epoll_event events[256];
    uint64_t now = nanoseconds(CLOCK_MONOTONIC);
    int wait = line != NULL ? 1 : now < limit ? (limit - now) / 1000000 + 1 : 0;
    int n = epoll_wait(epoll, events, 256, wait);

    for (int i = 0; i < n; i++)
        receive(events[i].data.ptr);
    connect_line();
}

static void connect_all(uint64_t limit)
{
    connect_line();
    while (greeted < connections) {
        iterate(limit);
        if (nanoseconds(CLOCK_MONOTONIC) > limit) {
            fprintf(stderr, "generator: %u of %u clients were let in\n", greeted, connections);
            exit(1);
        }
    }
}

static void apply_load(uint64_t start, uint64_t limit)
{
    running = 1;
    for (uint32_t i = 0; i < connections; i++)
        begin(clients + i, start);
    while (nanoseconds(CLOCK_MONOTONIC) < limit && !(plan->once && done == steps->count))
        iterate(limit);
}

static void print_result(uint64_t elapsed, uint64_t cpu, uint64_t end)
{
    uint64_t waiting = 0, longest = 0;
    const char *comma = "";

    for (uint32_t i = 0; i < connections; i++) {
        uint64_t age = clients[i].entry != NULL ? end - clients[i].since : 0;
        waiting += age > SECOND;
        longest = age > longest ? age : longest;
    }
    printf("{\"requests\": %ju, \"elapsed\": %ju, \"cpu\": %ju, \"wrong\": %ju, \"lost\": %ju, "
           "\"refused\": %ju, \"waiting\": %ju, \"longest\": %ju, \"first_wrong\": \"%s\", "
           "\"histogram\": {", requests, elapsed, cpu, wrong, lost, refused, waiting, longest,
           first_wrong);
    for (int i = 0; i < BUCKETS; i++)
        if (histogram[i] != 0) {
            printf("%s\"%d\": %ju", comma, i, histogram[i]);
            comma = ", ";
        }
    printf("}}\n");
    fflush(stdout);
}

/* Set-up. */

static void read_plan(const char *path)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &status) < 0)
        fatal(path);
    plan = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (plan == MAP_FAILED || memcmp(plan->magic, MAGIC, sizeof plan->magic) != 0)
        fatal(path);
    steps = (const struct step *) (plan + 1);
    entries = (const struct entry *) (steps + plan->steps);
    texts = (const char *) (entries + plan->entries);
    close(fd);
}

static void make_clients(void)
{
    room = plan->longest_reply + 1;
    if (room < sizeof ANNOUNCEMENT + 1)
        room = sizeof ANNOUNCEMENT + 1;
    clients = calloc(connections, sizeof *clients);
    for (uint32_t i = 0; i < connections; i++) {
        clients[i].fd = -1;
        clients[i].reply = calloc(2, room);
        clients[i].last = clients[i].reply + room;
        stand_in_line(clients + i);
    }
}

int main(int argc, char **argv)
{
    struct rlimit files;
    uint64_t start, end, cpu, length;
    char go;

    if (argc != 6 || strlen(argv[2]) >= sizeof address.sun_path)
        return 1;
    read_plan(argv[1]);
    strcpy(address.sun_path, argv[2]);
    connections = strtoul(argv[3], NULL, 10);
    length = strtoull(argv[4], NULL, 10);
    random_state = strtoull(argv[5], NULL, 10) | 1;
    alarm(length / SECOND + GRACE);                     /* it ends in any case */
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if ((epoll = epoll_create1(EPOLL_CLOEXEC)) < 0)
        fatal("epoll_create1");
    make_clients();
    connect_all(nanoseconds(CLOCK_MONOTONIC) + GRACE / 2 * SECOND);
    printf("ready\n");
    fflush(stdout);
    if (read(0, &go, 1) != 1)
        return 1;
    cpu = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
    start = nanoseconds(CLOCK_MONOTONIC);
    apply_load(start, start + length);
    end = nanoseconds(CLOCK_MONOTONIC);
    print_result(end - start, nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - cpu, end);
    while (read(0, &go, 1) > 0)
        ;
    return 0;
}
