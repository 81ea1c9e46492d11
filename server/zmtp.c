#include "zmtp.h"

#include "wire.h"

#define SIGNATURE_END 9
#define VERSION 10
#define MECHANISM 12
#define GREETING_BYTES 64
#define MAX_COMMAND_BYTES 512

enum phase {
    GREETING,
    FLAGS,
    SIZE,
    BODY,
    /* The first frame: a READY command. */
    COMMAND_NAME,
    KEY_SIZE,
    KEY,
    VALUE_SIZE,
    VALUE,
};

enum flag {
    FLAG_MORE = 1,
    FLAG_LONG = 2,
    FLAG_COMMAND = 4,
};

static void enter(struct zmtp *zmtp, enum phase phase)
{
    zmtp->phase = (uint8_t)phase;
    zmtp->at = 0;
    zmtp->number = 0;
}

static void on_greeting(struct zmtp *zmtp, uint8_t byte)
{
    static const char mechanism[20] = "NULL";
    size_t at = zmtp->at++;
    bool good = true;

    if (at == 0) {
        good = byte == 0xff;
    } else if (at == SIGNATURE_END) {
        good = byte == 0x7f;
    } else if (at == VERSION) {
        good = byte >= 3;
    } else if (at >= MECHANISM && at < MECHANISM + sizeof(mechanism)) {
        good = byte == (uint8_t)mechanism[at - MECHANISM];
    }
    if (!good) {
        zmtp->fault = "it does not greet as ZMTP 3 without a mechanism";
    } else if (zmtp->at == GREETING_BYTES) {
        enter(zmtp, FLAGS);
    }
}

static void on_flags(struct zmtp *zmtp, uint8_t byte)
{
    if ((byte & FLAG_MORE) != 0) {
        zmtp->fault = "its message has more than one frame";
    } else if ((byte & ~(FLAG_LONG | FLAG_COMMAND)) != 0) {
        zmtp->fault = "its frame has unknown flags";
    } else if (!zmtp->ready && (byte & FLAG_COMMAND) == 0) {
        zmtp->fault = "it does not begin with READY";
    }
    zmtp->flags = byte;
    enter(zmtp, SIZE);
}

static void on_size(struct zmtp *zmtp, uint8_t byte)
{
    bool command = (zmtp->flags & FLAG_COMMAND) != 0;

    zmtp->number = zmtp->number << 8 | byte;
    zmtp->at++;
    if (zmtp->at < ((zmtp->flags & FLAG_LONG) != 0 ? 8 : 1)) {
        return;
    }
    if (zmtp->number > (command ? MAX_COMMAND_BYTES : WIRE_MAX_MESSAGE_BYTES)) {
        zmtp->fault = "its frame is too long";
        return;
    }
    zmtp->left = (uint32_t)zmtp->number;
    if (!zmtp->ready) {
        enter(zmtp, COMMAND_NAME);
        zmtp->fault = zmtp->left == 0 ? "it does not begin with READY" : NULL;
    } else {
        enter(zmtp, zmtp->left > 0 ? BODY : FLAGS);
    }
}

static void on_command_name(struct zmtp *zmtp, uint8_t byte)
{
    static const char name[] = "\5READY";

    if (byte != (uint8_t)name[zmtp->at++]) {
        zmtp->fault = "it does not begin with READY";
    } else if (zmtp->at == sizeof(name) - 1) {
        enter(zmtp, KEY_SIZE);
    }
}

static void on_key_size(struct zmtp *zmtp, uint8_t byte)
{
    zmtp->key_size = byte;
    zmtp->identity = byte == sizeof("identity") - 1;
    enter(zmtp, byte > 0 ? KEY : VALUE_SIZE);
}

static void on_key(struct zmtp *zmtp, uint8_t byte)
{
    static const char identity[] = "identity";

    /* Case means nothing in a key; the letters' cases differ in one bit. */
    zmtp->identity = zmtp->identity && (byte | 0x20) == (uint8_t)identity[zmtp->at];
    zmtp->at++;
    if (zmtp->at == zmtp->key_size) {
        enter(zmtp, VALUE_SIZE);
    }
}

static void on_value_size(struct zmtp *zmtp, uint8_t byte)
{
    uint64_t number = zmtp->number << 8 | byte;

    zmtp->number = number;
    zmtp->at++;
    if (zmtp->at < 4) {
        return;
    }
    if (zmtp->identity && number > 0) {
        zmtp->fault = "it names itself";
    }
    enter(zmtp, number > 0 ? VALUE : KEY_SIZE);
    zmtp->number = number;
}

static void on_value(struct zmtp *zmtp)
{
    zmtp->number--;
    if (zmtp->number == 0) {
        enter(zmtp, KEY_SIZE);
    }
}

/* A byte of the READY command, which has to end where a property does. */
static void on_ready(struct zmtp *zmtp, uint8_t byte)
{
    switch ((enum phase)zmtp->phase) {
    case COMMAND_NAME:
        on_command_name(zmtp, byte);
        break;
    case KEY_SIZE:
        on_key_size(zmtp, byte);
        break;
    case KEY:
        on_key(zmtp, byte);
        break;
    case VALUE_SIZE:
        on_value_size(zmtp, byte);
        break;
    default:
        on_value(zmtp);
        break;
    }
    zmtp->left--;
    if (zmtp->left > 0 || zmtp->fault != NULL) {
        return;
    }
    if (zmtp->phase != KEY_SIZE) {
        zmtp->fault = "its READY is cut off";
    }
    zmtp->ready = true;
    enter(zmtp, FLAGS);
}

/* How many bytes it has taken. */
static size_t take(struct zmtp *zmtp, const uint8_t *bytes, size_t size)
{
    size_t taken = 1;

    switch ((enum phase)zmtp->phase) {
    case GREETING:
        on_greeting(zmtp, *bytes);
        break;
    case FLAGS:
        on_flags(zmtp, *bytes);
        break;
    case SIZE:
        on_size(zmtp, *bytes);
        break;
    case BODY:
        taken = size < zmtp->left ? size : zmtp->left;
        zmtp->left -= (uint32_t)taken;
        if (zmtp->left == 0) {
            enter(zmtp, FLAGS);
        }
        break;
    default:
        on_ready(zmtp, *bytes);
        break;
    }
    return taken;
}

void zmtp_init(struct zmtp *zmtp)
{
    *zmtp = (struct zmtp){.phase = GREETING};
}

bool zmtp_feed(struct zmtp *zmtp, const uint8_t *bytes, size_t size)
{
    size_t done = 0;

    while (done < size && zmtp->fault == NULL) {
        done += take(zmtp, bytes + done, size - done);
    }
    return zmtp->fault == NULL;
}
