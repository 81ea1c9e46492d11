#include "raw_client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "codec.h"
#include "sealed.h"

#define WAIT_MS 10000
#define MAX_DESCRIPTORS 253 /* that the kernel sends at once */

static bool connect_gate(int fd, const char *directory)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s/gate.sock", directory);
    return connect(fd, (const struct sockaddr *)&address, sizeof address) == 0;
}

bool raw_connect(struct raw_client *client, const char *directory)
{
    *client = (struct raw_client){.directory = directory, .page_fd = -1};
    client->gate = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    return client->gate >= 0 && connect_gate(client->gate, directory);
}

void raw_close_gate(struct raw_client *client)
{
    if (client->gate >= 0) {
        (void)close(client->gate);
        client->gate = -1;
    }
}

void raw_close(struct raw_client *client)
{
    raw_close_gate(client);
    if (client->dealer) {
        (void)zmq_close(client->dealer);
    }
    if (client->context) {
        (void)zmq_ctx_term(client->context);
    }
    if (client->page_fd >= 0) {
        (void)close(client->page_fd);
    }
    page_unmap(client->page);
    *client = (struct raw_client){.gate = -1, .page_fd = -1};
}

bool raw_gate_send(
    struct raw_client *client, const void *bytes, size_t size, const int *descriptors, size_t count)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(MAX_DESCRIPTORS * sizeof(int))] = {0};
    static char copy[2 * WIRE_MAX_MESSAGE_BYTES];
    memcpy(copy, bytes, size);
    struct iovec part = {copy, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(head), descriptors, count * sizeof(int));
    }
    return sendmsg(client->gate, &message, MSG_NOSIGNAL) == (ssize_t)size;
}

static ssize_t receive_packet(struct raw_client *client, void *bytes, size_t capacity)
{
    struct pollfd poller = {.fd = client->gate, .events = POLLIN};
    if (poll(&poller, 1, WAIT_MS) != 1) {
        return -1;
    }
    return recv(client->gate, bytes, capacity, 0);
}

bool raw_gate_receive(struct raw_client *client, struct wire_gate_reply *reply)
{
    uint8_t bytes[2048];
    struct wire_error error;
    ssize_t size = receive_packet(client, bytes, sizeof bytes);
    return size > 0 && codec_decode_gate_reply(bytes, (size_t)size, reply, &error);
}

bool raw_gate_ends(struct raw_client *client)
{
    uint8_t bytes[2048];
    ssize_t size = 0;
    do {
        size = receive_packet(client, bytes, sizeof bytes);
    } while (size > 0);
    return size == 0 || errno == ECONNRESET;
}

bool raw_gate_call(struct raw_client *client, struct wire_gate_request *request,
    const int *descriptors, size_t count, struct wire_gate_reply *reply)
{
    uint8_t bytes[2048];
    request->id = ++client->id;
    size_t size = codec_encode_gate_request(request, bytes, sizeof bytes);
    return size > 0 && raw_gate_send(client, bytes, size, descriptors, count) &&
           raw_gate_receive(client, reply) && reply->id == request->id;
}

bool raw_open_session(struct raw_client *client, struct wire_gate_reply *reply)
{
    struct wire_gate_request request = {
        .kind = WIRE_GATE_OPEN, .major = WIRE_MAJOR, .minor = WIRE_MINOR, .name = "raw client"};
    if (!client->page && page_create(&client->page_fd, &client->page) != 0) {
        return false;
    }
    if (!raw_gate_call(client, &request, &client->page_fd, 1, reply)) {
        return false;
    }
    client->session = reply->session;
    return true;
}

uint32_t raw_add_region(struct raw_client *client, uint64_t bytes)
{
    struct wire_gate_request request = {.kind = WIRE_GATE_ADD_REGION, .bytes = bytes};
    struct wire_gate_reply reply = {0};
    int fd = sealed_create("raw region", bytes);
    bool answered = fd >= 0 && raw_gate_call(client, &request, &fd, 1, &reply);
    if (fd >= 0) {
        (void)close(fd);
    }
    return answered && reply.error.status == WIRE_OK ? reply.region : 0;
}

bool raw_rpc_connect(struct raw_client *client)
{
    char address[128];
    int none = 0;
    (void)snprintf(address, sizeof address, "ipc://%s/rpc.sock", client->directory);
    client->context = zmq_ctx_new();
    client->dealer = zmq_socket(client->context, ZMQ_DEALER);
    return client->dealer && zmq_setsockopt(client->dealer, ZMQ_LINGER, &none, sizeof none) == 0 &&
           zmq_connect(client->dealer, address) == 0;
}

bool raw_send(struct raw_client *client, const void *bytes, size_t size, bool more)
{
    return zmq_send(client->dealer, bytes, size, more ? ZMQ_SNDMORE : 0) == (int)size;
}

bool raw_receive(struct raw_client *client, struct wire_reply *reply, int timeout_ms)
{
    uint8_t bytes[4096];
    struct wire_error error;
    (void)zmq_setsockopt(client->dealer, ZMQ_RCVTIMEO, &timeout_ms, sizeof timeout_ms);
    int size = zmq_recv(client->dealer, bytes, sizeof bytes, 0);
    return size > 0 && (size_t)size <= sizeof bytes &&
           codec_decode_reply(bytes, (size_t)size, reply, &error);
}

bool raw_post(struct raw_client *client, struct wire_request *request)
{
    uint8_t bytes[WIRE_MAX_MESSAGE_BYTES];
    request->id = ++client->id;
    size_t size = codec_encode_request(request, bytes, sizeof bytes);
    return size > 0 && raw_send(client, bytes, size, false);
}

bool raw_call(struct raw_client *client, struct wire_request *request, struct wire_reply *reply)
{
    return raw_post(client, request) && raw_receive(client, reply, WAIT_MS) &&
           reply->id == request->id;
}

bool raw_hello(struct raw_client *client, struct wire_reply *reply)
{
    struct wire_request request = {.kind = WIRE_HELLO};
    request.hello.session = client->session.id;
    memcpy(request.hello.token, client->session.token, WIRE_TOKEN_BYTES);
    return raw_call(client, &request, reply);
}

bool raw_open(struct raw_client *client, const char *directory)
{
    struct wire_gate_reply opened;
    struct wire_reply greeted;
    return raw_connect(client, directory) && raw_open_session(client, &opened) &&
           opened.error.status == WIRE_OK && raw_rpc_connect(client) &&
           raw_hello(client, &greeted) && greeted.error.status == WIRE_OK;
}

bool raw_stats(struct raw_client *client, struct wire_stats *stats)
{
    struct wire_request request = {.kind = WIRE_GET_STATS};
    struct wire_reply reply;
    if (!raw_call(client, &request, &reply) || reply.kind != WIRE_REPLY_STATS) {
        return false;
    }
    *stats = reply.stats;
    return true;
}

bool raw_is_alone(struct raw_client *client, struct wire_stats *stats)
{
    bool alone = false;
    for (int waited = 0; !alone && waited < WAIT_MS; waited += 5) {
        if (!raw_stats(client, stats)) {
            return false;
        }
        alone = stats->sessions == 1 && stats->daemon.in_flight == 0 && stats->daemon.plans == 0 &&
                stats->daemon.regions == 0 && stats->daemon.region_bytes == 0;
        (void)usleep(5000);
    }
    return alone;
}

void raw_plan(struct wire_plan *plan)
{
    static const enum wire_role roles[] = {WIRE_Q, WIRE_K, WIRE_V, WIRE_OUT};

    *plan = (struct wire_plan){.direction = WIRE_FORWARD, .alignment = WIRE_TOP_LEFT, .tensors = 4};
    for (size_t t = 0; t < 4; t++) {
        plan->tensor[t] = (struct wire_tensor){.role = roles[t],
            .dtype = WIRE_FP32,
            .dims = 4,
            .shape = {1, RAW_ROWS, 1, RAW_DIM},
            .strides = {RAW_ROWS * RAW_DIM, RAW_DIM, RAW_DIM, 1}};
    }
}

uint32_t raw_add_plan(struct raw_client *client)
{
    struct wire_request request = {.kind = WIRE_ADD_PLAN};
    struct wire_reply reply;
    raw_plan(&request.plan);
    return raw_call(client, &request, &reply) && reply.kind == WIRE_REPLY_PLAN ? reply.plan.plan
                                                                               : 0;
}

void raw_submission(struct raw_client *client, struct wire_request *request, uint32_t lane,
    uint32_t first_sequence, uint32_t count, uint32_t plan, uint32_t region)
{
    *request = (struct wire_request){.kind = WIRE_SUBMIT};
    request->submit.lane = lane;
    request->submit.first_sequence = first_sequence;
    request->submit.calls = count;
    for (uint32_t i = 0; i < count; i++) {
        struct wire_call *call = &request->submit.call[i];
        *call = (struct wire_call){.plan = plan, .tensors = 4};
        for (uint32_t t = 0; t < 4; t++) {
            call->region[t] = region;
            call->offset[t] = t * RAW_TENSOR_BYTES;
        }
        /* Calls that may run at once write to different places. */
        call->offset[3] += (lane % 3 * 8 + i % 8) * RAW_TENSOR_BYTES;
    }
    if (lane < PAGE_LANES) {
        atomic_store(&client->page->lane[lane].ready, first_sequence + count - 1);
    }
}

bool raw_wait(struct raw_client *client, uint32_t lane, uint32_t sequence, enum wire_status *status)
{
    struct page_lane *at = &client->page->lane[lane];
    for (int waited = 0; waited < WAIT_MS; waited++) {
        uint32_t done = atomic_load(&at->done);
        if (page_reached(done, sequence)) {
            return page_result(at, sequence, status);
        }
        page_sleep(at, done, 1000000);
    }
    return false;
}
