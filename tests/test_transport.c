/* The socket of the requests, without a daemon: what nobody has read yet is bounded, and nothing of it
 * is lost. */
#include "transport.h"

#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "check.h"
#include "wire.h"

#define FLOOD 2000
#define MOST 100 /* that wait at the daemon, in the kernel and at the sender */
#define QUIET_MS 1000
#define WAIT_S 20

static unsigned received;

static void on_message(
    void *context, const struct transport_peer *peer, const uint8_t *bytes, size_t size)
{
    CHECK(context == &received);
    CHECK(peer->size > 0);
    CHECK(size == WIRE_MAX_MESSAGE_BYTES && bytes[size - 1] == (uint8_t)received);
    received++;
}

/* As many of the largest messages as are taken while nobody reads. */
static unsigned flood(void *socket)
{
    static uint8_t bytes[WIRE_MAX_MESSAGE_BYTES];
    zmq_pollitem_t writable = {.socket = socket, .events = ZMQ_POLLOUT};
    unsigned sent = 0;

    while (sent < FLOOD && zmq_poll(&writable, 1, QUIET_MS) == 1) {
        bytes[sizeof(bytes) - 1] = (uint8_t)sent;
        CHECK(zmq_send(socket, bytes, sizeof(bytes), ZMQ_DONTWAIT) == (int)sizeof(bytes));
        sent++;
    }
    return sent;
}

static void *connect_to(void *context, const char *path)
{
    char address[128];
    const int one = 1;
    const int none = 0;
    void *socket = zmq_socket(context, ZMQ_DEALER);

    (void)snprintf(address, sizeof(address), "ipc://%s", path);
    CHECK(socket != NULL && zmq_setsockopt(socket, ZMQ_SNDHWM, &one, sizeof(one)) == 0);
    CHECK(zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof(none)) == 0);
    CHECK(zmq_connect(socket, address) == 0);
    return socket;
}

int main(void)
{
    char directory[] = "/tmp/attnd-transport-XXXXXX";
    char path[64];
    struct transport transport;
    uv_loop_t loop;

    CHECK(mkdtemp(directory) != NULL);
    (void)snprintf(path, sizeof(path), "%s/rpc.sock", directory);
    CHECK(uv_loop_init(&loop) == 0);
    CHECK(transport_open(&transport, &loop, path, on_message, &received));
    void *context = zmq_ctx_new();
    void *peer = connect_to(context, path);
    unsigned sent = flood(peer);
    CHECK(sent > 0 && sent <= MOST);
    time_t start = time(NULL);
    while (received < sent) {
        CHECK(time(NULL) - start < WAIT_S);
        (void)uv_run(&loop, UV_RUN_NOWAIT);
        (void)usleep(100);
    }
    CHECK(received == sent && transport.malformed == 0);
    CHECK(zmq_close(peer) == 0 && zmq_ctx_term(context) == 0);
    transport_close(&transport);
    (void)uv_run(&loop, UV_RUN_DEFAULT);
    CHECK(uv_loop_close(&loop) == 0);
    (void)unlink(path);
    CHECK(rmdir(directory) == 0);
    return 0;
}
