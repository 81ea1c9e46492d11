#include "packet.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "codec.h"

#define REPLY_BYTES 1024 /* no reply comes near */

/* Takes the descriptors out of a received message's control data. */
static void take_descriptors(struct msghdr *message, struct packet *packet)
{
    for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head != NULL;
         head = CMSG_NXTHDR(message, head)) {
        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        unsigned count = (unsigned)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (unsigned i = 0; i < count && packet->descriptors < PACKET_MAX_DESCRIPTORS; i++) {
            memcpy(&packet->descriptor[packet->descriptors++], CMSG_DATA(head) + i * sizeof(int),
                sizeof(int));
        }
    }
}

int packet_receive(int fd, struct packet *packet)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(PACKET_MAX_DESCRIPTORS * sizeof(int))];
    struct iovec part = {packet->bytes, sizeof(packet->bytes)};
    struct msghdr message = {.msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = sizeof(control)};
    ssize_t size = 0;

    do {
        size = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (size < 0 && errno == EINTR);
    if (size < 0) {
        return errno == EAGAIN ? 0 : -1;
    }
    packet->descriptors = 0;
    take_descriptors(&message, packet);
    packet->size = (size_t)size;
    packet->cut = (message.msg_flags & MSG_TRUNC) != 0;
    packet->descriptors_cut = (message.msg_flags & MSG_CTRUNC) != 0;
    return size == 0 && packet->descriptors == 0 ? -1 : 1;
}

bool packet_has_descriptors(int fd)
{
    struct msghdr message = {0};

    return recvmsg(fd, &message, MSG_PEEK | MSG_DONTWAIT) >= 0 &&
           (message.msg_flags & MSG_CTRUNC) != 0;
}

bool packet_check(const struct packet *packet, unsigned wanted, struct wire_error *error)
{
    if (packet->descriptors_cut) {
        return wire_fail(
            error, WIRE_RESOURCE_EXHAUSTED, "descriptors were lost: the daemon has none left");
    }
    if (packet->descriptors != wanted) {
        return wire_fail(error, WIRE_INVALID_ARGUMENT,
            "the message came with %u descriptors instead of %u", packet->descriptors, wanted);
    }
    return true;
}

bool packet_send(int fd, const struct wire_gate_reply *reply)
{
    uint8_t bytes[REPLY_BYTES];
    size_t size = codec_encode_gate_reply(reply, bytes, sizeof(bytes));

    return size > 0 && send(fd, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)size;
}
