// fakeup: a fake OpenAI-compatible upstream, fast enough never to be the
// bottleneck of a gateway benchmark.  One epoll loop per thread (SO_REUSEPORT).
//
//   fakeup PORT [THREADS]
//
//   POST <any path>   chat completion; a stream when the body has "stream":true
//   GET  /v1/models, /health, anything else   small fixed replies
//   GET  /__set?latency_us=0&chunks=32&delay_us=0&size=600&fail_every=0&fail_status=503
//   GET  /__stats     what was served since the last /__reset
//
// Every streamed chunk carries its own send time as @<16 digits of monotonic us>@
// inside delta.content, so that a client on the same machine can tell the
// one-way delay of each chunk through whatever sits in between.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_HEAD 65536

typedef struct { volatile long latency_us, chunks, delay_us, size, fail_every, fail_status, bare; } profile_t;
static profile_t P = {0, 32, 0, 600, 0, 503, 0};
static volatile long n_requests, n_streams, n_failed, n_bytes_in, n_conns;
static int port;

static char *json_reply; static size_t json_reply_len; static long json_reply_size = -1;
static pthread_mutex_t reply_lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t now_us(void) {
    struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + t.tv_nsec / 1000;
}

// The headers that a real OpenAI reply carries, so that header parsing costs what it costs.
#define VENDOR_HEADERS \
    "date: Fri, 20 Nov 2026 12:00:00 GMT\r\n" \
    "openai-organization: bench\r\nopenai-processing-ms: 12\r\nopenai-version: 2020-10-01\r\n" \
    "x-ratelimit-limit-requests: 10000\r\nx-ratelimit-limit-tokens: 30000000\r\n" \
    "x-ratelimit-remaining-requests: 9999\r\nx-ratelimit-remaining-tokens: 29999000\r\n" \
    "x-ratelimit-reset-requests: 6ms\r\nx-ratelimit-reset-tokens: 0s\r\n" \
    "x-request-id: req_0123456789abcdef0123456789abcdef\r\n"

static void build_reply(void) {
    long size = P.size;
    pthread_mutex_lock(&reply_lock);
    if (json_reply_size != size) {
        static const char words[] = "The quick brown fox jumps over the lazy dog and then it rests. ";
        char *text = malloc(size + 1);
        for (long i = 0; i < size; i++) text[i] = words[i % (sizeof words - 1)];
        text[size] = 0;
        char *body; int body_len = asprintf(&body,
            "{\"id\":\"chatcmpl-BenchAbCdEfGhIjKlMnOpQr\",\"object\":\"chat.completion\",\"created\":1763640000,"
            "\"model\":\"gpt-4o-mini-2024-07-18\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
            "\"content\":\"%s\",\"refusal\":null,\"annotations\":[]},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
            "\"usage\":{\"prompt_tokens\":212,\"completion_tokens\":128,\"total_tokens\":340,"
            "\"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0},"
            "\"completion_tokens_details\":{\"reasoning_tokens\":0,\"audio_tokens\":0,"
            "\"accepted_prediction_tokens\":0,\"rejected_prediction_tokens\":0}},"
            "\"service_tier\":\"default\",\"system_fingerprint\":\"fp_bench00001\"}", text);
        char *whole; int whole_len = asprintf(&whole,
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" VENDOR_HEADERS "\r\n%s",
            body_len, body);
        free(body); free(text);
        json_reply_len = whole_len; json_reply = whole; json_reply_size = size; // the old one leaks: /__set is rare
    }
    pthread_mutex_unlock(&reply_lock);
}

typedef struct conn {
    int fd, heap_at;            // heap_at: place in the timer heap, -1 when not in it
    int state;                  // 0 reading, 1 waiting to reply, 2 streaming
    int stream;
    long left;                  // stream chunks still to send
    uint64_t due;
    char *in; size_t in_len, in_cap;
    size_t need;                // bytes of the current request, 0 while unknown
    char *out; size_t out_len, out_cap, out_off;
} conn_t;

typedef struct { int ep, lfd; conn_t **heap; int n, cap; } loop_t;

static void heap_put(loop_t *l, int i, conn_t *c) { l->heap[i] = c; c->heap_at = i; }
static void heap_up(loop_t *l, int i) {
    conn_t *c = l->heap[i];
    while (i && l->heap[(i - 1) / 2]->due > c->due) { heap_put(l, i, l->heap[(i - 1) / 2]); i = (i - 1) / 2; }
    heap_put(l, i, c);
}
static void heap_down(loop_t *l, int i) {
    conn_t *c = l->heap[i];
    for (;;) {
        int k = 2 * i + 1; if (k >= l->n) break;
        if (k + 1 < l->n && l->heap[k + 1]->due < l->heap[k]->due) k++;
        if (l->heap[k]->due >= c->due) break;
        heap_put(l, i, l->heap[k]); i = k;
    }
    heap_put(l, i, c);
}
static void heap_add(loop_t *l, conn_t *c) {
    if (l->n == l->cap) { l->cap = l->cap ? 2 * l->cap : 256; l->heap = realloc(l->heap, l->cap * sizeof *l->heap); }
    heap_put(l, l->n++, c); heap_up(l, c->heap_at);
}
static void heap_del(loop_t *l, conn_t *c) {
    int i = c->heap_at; if (i < 0) return;
    conn_t *last = l->heap[--l->n]; c->heap_at = -1;
    if (last == c) return;
    heap_put(l, i, last); heap_up(l, i); heap_down(l, last->heap_at);
}

static void drop(loop_t *l, conn_t *c) {
    heap_del(l, c); close(c->fd); free(c->in); free(c->out); free(c);
    __sync_fetch_and_sub(&n_conns, 1);
}

static int flush(conn_t *c) { // 0 all sent, 1 would block, -1 dead
    while (c->out_off < c->out_len) {
        ssize_t w = send(c->fd, c->out + c->out_off, c->out_len - c->out_off, MSG_NOSIGNAL);
        if (w < 0) return errno == EAGAIN ? 1 : -1;
        c->out_off += w;
    }
    c->out_off = c->out_len = 0;
    return 0;
}
static void put(conn_t *c, const char *s, size_t n) {
    if (c->out_len + n > c->out_cap) { c->out_cap = (c->out_len + n) * 2; c->out = realloc(c->out, c->out_cap); }
    memcpy(c->out + c->out_len, s, n); c->out_len += n;
}
static void putf(conn_t *c, const char *f, ...) {
    char b[4096]; va_list a; va_start(a, f); int n = vsnprintf(b, sizeof b, f, a); va_end(a);
    put(c, b, n);
}
static void put_event(conn_t *c, const char *s, size_t n) { // one SSE event as one HTTP chunk
    char h[32]; int k = snprintf(h, sizeof h, "%zx\r\n", n + 8);
    put(c, h, k); put(c, "data: ", 6); put(c, s, n); put(c, "\n\n\r\n", 4);
}
#define CHUNK_HEAD "{\"id\":\"chatcmpl-BenchAbCdEfGhIjKlMnOpQr\",\"object\":\"chat.completion.chunk\",\"created\":1763640000," \
    "\"model\":\"gpt-4o-mini-2024-07-18\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_bench00001\","

static void stream_step(conn_t *c) { // appends the next event(s); the last call appends the end
    char b[1024]; int n;
    if (c->left > 0) {
        n = snprintf(b, sizeof b, CHUNK_HEAD "\"choices\":[{\"index\":0,\"delta\":{%s\"content\":\"@%016llu@\"},"
                     "\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}",
                     c->left == P.chunks ? "\"role\":\"assistant\"," : "", (unsigned long long)now_us());
        put_event(c, b, n); c->left--;
    }
    if (c->left == 0) {
        n = snprintf(b, sizeof b, CHUNK_HEAD "\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":null}");
        put_event(c, b, n);
        n = snprintf(b, sizeof b, CHUNK_HEAD "\"choices\":[],\"usage\":{\"prompt_tokens\":212,\"completion_tokens\":128,\"total_tokens\":340,"
                     "\"prompt_tokens_details\":{\"cached_tokens\":0},\"completion_tokens_details\":{\"reasoning_tokens\":0}}}");
        put_event(c, b, n);
        put_event(c, "[DONE]", 6); put(c, "0\r\n\r\n", 5); c->left = -1;
    }
}

static void small(conn_t *c, int status, const char *body) {
    putf(c, "HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", status,
         status == 200 ? "OK" : "Error", strlen(body));
    put(c, body, strlen(body));
}

static void control(conn_t *c, char *target) {
    if (!strncmp(target, "/__set?", 7)) {
        char *save, *kv = strtok_r(target + 7, "& ", &save);
        for (; kv; kv = strtok_r(NULL, "& ", &save)) {
            char *eq = strchr(kv, '='); if (!eq) continue; *eq = 0; long v = atol(eq + 1);
            if (!strcmp(kv, "latency_us")) P.latency_us = v; else if (!strcmp(kv, "chunks")) P.chunks = v;
            else if (!strcmp(kv, "delay_us")) P.delay_us = v; else if (!strcmp(kv, "size")) P.size = v;
            else if (!strcmp(kv, "fail_every")) P.fail_every = v; else if (!strcmp(kv, "fail_status")) P.fail_status = v;
        }
        build_reply(); small(c, 200, "{\"ok\":true}");
    } else if (!strncmp(target, "/__reset", 8)) {
        n_requests = n_streams = n_failed = n_bytes_in = 0; small(c, 200, "{\"ok\":true}");
    } else if (!strncmp(target, "/__stats", 8)) {
        char b[256]; snprintf(b, sizeof b, "{\"requests\":%ld,\"streams\":%ld,\"failed\":%ld,\"bytes_in\":%ld,\"conns\":%ld}",
                              n_requests, n_streams, n_failed, n_bytes_in, n_conns);
        small(c, 200, b);
    } else if (!strncmp(target, "/v1/models", 10)) {
        small(c, 200, "{\"object\":\"list\",\"data\":[{\"id\":\"gpt-4o-mini\",\"object\":\"model\",\"created\":1763640000,\"owned_by\":\"bench\"}]}");
    } else if (strstr(target, "model_info")) {
        small(c, 200, "{\"model_path\":\"gpt-4o-mini\",\"is_generation\":true}");
    } else small(c, 200, "{\"status\":\"ok\"}");
}

static void begin_reply(conn_t *c) { // latency is over: start the reply
    c->state = 0;
    if (c->stream) {
        static const char h[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n" VENDOR_HEADERS "\r\n";
        put(c, h, sizeof h - 1); c->left = P.chunks; c->state = 2;
    } else put(c, json_reply, json_reply_len);
}

static void find_need(conn_t *c) { // how long is the request at the front of the buffer?
    char *e = memmem(c->in, c->in_len, "\r\n\r\n", 4); if (!e) return;
    size_t head = e + 4 - c->in; size_t body = 0; int chunked = 0;
    for (char *p = c->in; p < e;) {
        char *nl = memchr(p, '\n', c->in + c->in_len - p); if (!nl) break; p = nl + 1;
        if (!strncasecmp(p, "content-length:", 15)) body = strtoul(p + 15, NULL, 10);
        else if (!strncasecmp(p, "transfer-encoding: chunked", 26)) chunked = 1;
        else if (!strncasecmp(p, "expect: 100-continue", 20)) put(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    }
    if (!chunked) { c->need = head + body; return; }
    for (size_t at = head;;) { // a chunked request body: walk the chunks
        char *nl = memchr(c->in + at, '\n', c->in_len - at); if (!nl) return;
        size_t n = strtoul(c->in + at, NULL, 16); at = nl + 1 - c->in + n + 2;
        if (at > c->in_len) return;
        if (!n) { c->need = at; return; }
    }
}

static int has_stream_true(const char *s, size_t n) {
    for (const char *p = s, *end = s + n; (p = memmem(p, end - p, "\"stream\"", 8)); p++) {
        const char *q = p + 8; while (q < end && (isspace((unsigned char)*q) || *q == ':')) q++;
        if (end - q >= 4 && !memcmp(q, "true", 4)) return 1;
    }
    return 0;
}

static int run(loop_t *l, conn_t *c) { // drive the connection; -1 when it must be dropped
    for (;;) {
        if (c->state == 2) {
            if (P.delay_us == 0) { while (c->left >= 0) stream_step(c); c->state = 0; }
            else if (c->left == P.chunks) { stream_step(c); if (c->left < 0) c->state = 0; }
        }
        int f = flush(c); if (f < 0) return -1;
        if (f > 0) return 0;                                   // EPOLLOUT will come
        if (c->state == 2) { if (c->heap_at < 0) { c->due = now_us() + P.delay_us; heap_add(l, c); } return 0; }
        if (c->state == 1) return 0;
        if (!c->in_len) return 0;
        if (!c->need) find_need(c);
        if (!c->need || c->in_len < c->need) { if (c->out_len) { if (flush(c) < 0) return -1; } return 0; }
        char *line_end = memchr(c->in, '\r', c->in_len);
        char *sp = memchr(c->in, ' ', line_end - c->in);
        if (!sp) return -1;                                    // not HTTP/1: an HTTP/2 preface, say
        int post = !memcmp(c->in, "POST", 4);
        int is_chat = post && sp && !memmem(sp, line_end - sp, "/__", 3);
        c->stream = is_chat && has_stream_true(c->in, c->need);
        long seq = 0;
        if (is_chat) {
            seq = __sync_add_and_fetch(&n_requests, 1); __sync_fetch_and_add(&n_bytes_in, c->need);
            if (c->stream) __sync_fetch_and_add(&n_streams, 1);
        }
        if (!is_chat) { char t[512]; size_t n = line_end - sp - 1; if (n > 511) n = 511; memcpy(t, sp + 1, n); t[n] = 0; control(c, t); }
        memmove(c->in, c->in + c->need, c->in_len - c->need); c->in_len -= c->need; c->need = 0;
        if (is_chat) {
            if (P.fail_every && seq % P.fail_every == 0) {
                __sync_fetch_and_add(&n_failed, 1);
                small(c, P.fail_status, "{\"error\":{\"message\":\"bench failure\",\"type\":\"server_error\",\"code\":null}}");
            } else if (P.latency_us) { c->state = 1; c->due = now_us() + P.latency_us; heap_add(l, c); }
            else begin_reply(c);
        }
    }
}

static void *loop(void *arg) {
    (void)arg; loop_t L = {0}, *l = &L; int one = 1;
    prctl(PR_SET_TIMERSLACK, 1);
    l->lfd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(l->lfd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(l->lfd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(l->lfd, (void *)&a, sizeof a) || listen(l->lfd, 4096)) { perror("listen"); exit(1); }
    l->ep = epoll_create1(0);
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = NULL}, evs[512];
    epoll_ctl(l->ep, EPOLL_CTL_ADD, l->lfd, &ev);
    for (;;) {
        struct timespec ts, *tp = NULL;
        if (l->n) {
            uint64_t t = now_us(), d = l->heap[0]->due > t ? l->heap[0]->due - t : 0;
            ts.tv_sec = d / 1000000; ts.tv_nsec = d % 1000000 * 1000; tp = &ts;
        }
        int n = epoll_pwait2(l->ep, evs, 512, tp, NULL);
        for (int i = 0; i < n; i++) {
            conn_t *c = evs[i].data.ptr;
            if (!c) {
                int fd;
                while ((fd = accept4(l->lfd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    conn_t *k = calloc(1, sizeof *k); k->fd = fd; k->heap_at = -1;
                    __sync_fetch_and_add(&n_conns, 1);
                    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP, .data.ptr = k};
                    epoll_ctl(l->ep, EPOLL_CTL_ADD, fd, &e);
                }
                continue;
            }
            int dead = evs[i].events & (EPOLLHUP | EPOLLERR) ? 1 : 0;
            while (!dead) {
                if (c->in_cap - c->in_len < 16384) { c->in_cap = c->in_cap * 2 + 16384; c->in = realloc(c->in, c->in_cap); }
                ssize_t r = recv(c->fd, c->in + c->in_len, c->in_cap - c->in_len, 0);
                if (r > 0) c->in_len += r;
                else { if (r == 0 || errno != EAGAIN) dead = 1; break; }
            }
            if (dead || run(l, c) < 0) drop(l, c);
        }
        uint64_t t = now_us();
        while (l->n && l->heap[0]->due <= t) {
            conn_t *c = l->heap[0]; heap_del(l, c);
            if (c->state == 1) begin_reply(c);
            else if (c->state == 2) { stream_step(c); if (c->left < 0) c->state = 0; }
            if (run(l, c) < 0) drop(l, c);
        }
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 2) { fprintf(stderr, "usage: fakeup PORT [THREADS]\n"); return 2; }
    port = atoi(argv[1]); int threads = argc > 2 ? atoi(argv[2]) : 1;
    signal(SIGPIPE, SIG_IGN); build_reply();
    for (int i = 1; i < threads; i++) { pthread_t t; pthread_create(&t, NULL, loop, NULL); }
    loop(NULL);
}
