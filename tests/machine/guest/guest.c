/* A guest for tests: a few hundred instructions entered by PVH, on microvm or q35.
 *
 * Its first command-line word, "do=<deed>", says what it does after writing "up <command line>\n"
 * on the serial port. It speaks on the agent's port with a virtio-mmio driver of its own (polling,
 * four buffers per queue), and to q35 through ACPI's fixed registers and the keyboard controller.
 * Formats: Virtual I/O Device (VIRTIO) 1.1, §§2.6, 4.2, 5.3; Xen's public/arch-x86/hvm/start_info.h.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct start_info { /* hvm_start_info, version 1 */
    u32 magic, version, flags, modules;
    u64 modlist, cmdline, rsdp;
};

static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0,%1" ::"a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { __asm__ volatile("outw %0,%1" ::"a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; __asm__ volatile("inb %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static inline u16 inw(u16 port) { u16 v; __asm__ volatile("inw %1,%0" : "=a"(v) : "Nd"(port)); return v; }

static void put(char c)
{
    while (!(inb(0x3fd) & 0x20))
        ;
    outb(0x3f8, (u8)c);
}

static void say(const char *text)
{
    for (; *text; text++)
        put(*text);
}

static int same(const char *a, const char *b, u32 n)
{
    for (u32 i = 0; i < n; i++)
        if (a[i] != b[i] || !a[i])
            return i && !a[i] && !b[i];
    return 1;
}

static void reset(void)
{
    static const struct { u16 limit; u32 base; } __attribute__((packed)) none = {0, 0};
    __asm__ volatile("lidt %0; int3" ::"m"(none));
    for (;;)
        __asm__ volatile("hlt");
}

static void halt(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* virtio-mmio */
static volatile u32 *mmio;
#define REG(offset) mmio[(offset) / 4]

struct desc { u64 addr; u32 len; u16 flags, next; };
struct queue {
    struct desc desc[4];
    struct { u16 flags, idx, ring[4], event; } avail;
    u8 pad[64];
    struct { u16 flags, idx; struct { u32 id, len; } ring[4]; u16 event; } used __attribute__((aligned(4)));
    u16 seen;
    u8 buffer[256];
} __attribute__((aligned(16)));
static struct queue queues[6]; /* 0,1: port 0; 2,3: control; 4,5: port 1 (receive, send) */

static void barrier(void) { __asm__ volatile("" ::: "memory"); __sync_synchronize(); }

static void queue_up(u16 number)
{
    struct queue *q = &queues[number];

    REG(0x030) = number;
    REG(0x038) = 4;
    REG(0x080) = (u32)q->desc; REG(0x084) = 0;
    REG(0x090) = (u32)&q->avail; REG(0x094) = 0;
    REG(0x0a0) = (u32)&q->used; REG(0x0a4) = 0;
    REG(0x044) = 1;
}

static u8 *slot_buffer(u16 number, u32 slot) { return queues[number].buffer + slot % 4 * 64; }

static void offer(u16 number, u32 length, int from_device)
{
    struct queue *q = &queues[number];
    const u16 slot = q->avail.idx % 4;

    q->desc[slot].addr = (u32)slot_buffer(number, slot);
    q->desc[slot].len = length;
    q->desc[slot].flags = from_device ? 2 : 0;
    q->avail.ring[slot] = slot;
    barrier();
    q->avail.idx++;
    barrier();
    REG(0x050) = number;
}

/* The next buffer that the device has used, or none. */
static u8 *used(u16 number, u32 *length)
{
    struct queue *q = &queues[number];
    const u16 at = q->seen % 4;

    barrier();
    if (*(volatile u16 *)&q->used.idx == q->seen)
        return 0;
    *length = q->used.ring[at].len;
    q->seen++;
    return slot_buffer(number, q->used.ring[at].id);
}

static void send(u16 number, const void *data, u32 length)
{
    u8 *buffer = slot_buffer(number, queues[number].avail.idx);
    u32 ignored;

    for (u32 i = 0; i < length; i++)
        buffer[i] = ((const u8 *)data)[i];
    offer(number, length, 0);
    while (!used(number, &ignored))
        ;
}

static u32 length_of(const char *text)
{
    u32 n = 0;
    while (text[n])
        n++;
    return n;
}

static void word(const char *text) { send(5, text, length_of(text)); }

struct control { u32 id; u16 event, value; };

static int port_open(void)
{
    struct control message;
    u32 length;
    u32 slot;

    for (slot = 0; slot < 8; slot++) {
        mmio = (volatile u32 *)(0xfeb00000 + slot * 0x200);
        if (REG(0x000) == 0x74726976 && REG(0x008) == 3)
            break;
    }
    if (slot == 8)
        return 0;
    REG(0x070) = 0;
    REG(0x070) = 3;
    REG(0x024) = 0; REG(0x020) = 2;  /* VIRTIO_CONSOLE_F_MULTIPORT */
    REG(0x024) = 1; REG(0x020) = 1;  /* VIRTIO_F_VERSION_1 */
    REG(0x070) = 11;
    for (u16 number = 0; number < 6; number++)
        queue_up(number);
    REG(0x070) = 15;
    for (u32 i = 0; i < 4; i++)
        offer(2, 64, 1);
    message.id = 0; message.event = 0; message.value = 1; /* DEVICE_READY */
    send(3, &message, sizeof message);
    for (;;) { /* until PORT_NAME of port 1 */
        const struct control *got;

        while (!(got = (const struct control *)used(2, &length)))
            ;
        message = *got;
        offer(2, 64, 1);
        if (message.event == 1) { /* PORT_ADD: PORT_READY */
            message.event = 3;
            message.value = 1;
            send(3, &message, sizeof message);
        } else if (message.event == 7 && message.id == 1) {
            break;
        }
    }
    message.id = 1; message.event = 6; message.value = 1; /* PORT_OPEN */
    send(3, &message, sizeof message);
    offer(4, 63, 1);
    return 1;
}

static const char *hear(void)
{
    u32 length;
    u8 *text;

    while (!(text = used(4, &length)))
        ;
    text[length] = 0;
    return (const char *)text;
}

static void await_key(void)
{
    while (!(inb(0x3fd) & 1))
        ;
}

static void obey(int stubborn)
{
    if (!port_open()) {
        say("no port\n");
        halt();
    }
    word("ready\n");
    say("ready\n");
    for (;;) {
        const char *text = hear();

        while (*text) { /* whole lines, maybe several */
            if (stubborn && text[0] != 'p') {
                say("no\n");
            } else if (same(text, "stop\n", 5)) {
                word("stopping\n");
                say("stopping\n");
                reset();
            } else if (same(text, "reboot\n", 7)) {
                word("rebooting\n");
                say("rebooting\n");
                reset();
            } else if (same(text, "ping\n", 5)) {
                word("pong\n");
            }
            while (*text && *text++ != '\n')
                ;
        }
        offer(4, 63, 1);
    }
}

/* q35: PM1a at 0x600 as SeaBIOS sets it; the keyboard controller at 0x60 and 0x64. */
static void acpi(void)
{
    outw(0x602, 0x100); /* power button enable */
    say("ready\n");
    for (;;) {
        if (inw(0x600) & 0x100) {
            say("power button\n");
            outw(0x604, 0x2000); /* S5 */
            halt();
        }
        if ((inb(0x64) & 1) && inb(0x60) == 0x53) {
            say("ctrl-alt-delete\n");
            outb(0x64, 0xfe);
            halt();
        }
    }
}

static void number(u32 value)
{
    char digits[10];
    int count = 0;

    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    while (count)
        put(digits[--count]);
}

/* Every virtio device, in the order in which Linux would find them. */
static void slots(void)
{
    for (int slot = 7; slot >= 0; slot--) {
        mmio = (volatile u32 *)(0xfeb00000 + (u32)slot * 0x200);
        if (REG(0x000) != 0x74726976 || !REG(0x008))
            continue;
        say("slot ");
        number((u32)slot);
        say(REG(0x008) == 1 ? " net " : REG(0x008) == 2 ? " blk " : " other ");
        if (REG(0x008) == 1)
            number(((volatile u8 *)mmio)[0x105]); /* the last byte of the MAC */
        else
            number(REG(0x008) == 2 ? REG(0x100) : REG(0x008)); /* sectors, or the device's id */
        say("\n");
    }
    say("end of slots\n");
    halt();
}

static void flood(void)
{
    char line[] = "0000000 the quick brown fox jumps over the lazy dog 0123456789\n";

    for (u32 i = 0; i < 10000; i++) {
        u32 n = i;
        for (int digit = 6; digit >= 0; digit--, n /= 10)
            line[digit] = (char)('0' + n % 10);
        say(line);
    }
    say("end of flood\n");
    halt();
}

static void echo(void)
{
    say("ready\n");
    for (;;)
        if (inb(0x3fd) & 1)
            put((char)inb(0x3f8));
}

void guest_main(const struct start_info *info)
{
    const char *line = (const char *)(u32)info->cmdline;

    say("up ");
    say(line);
    say("\n");
    if (same(line, "do=obey", 7))
        obey(0);
    else if (same(line, "do=late", 7)) {
        await_key();
        obey(0);
    } else if (same(line, "do=stubborn", 11))
        obey(1);
    else if (same(line, "do=slots", 8))
        slots();
    else if (same(line, "do=acpi", 7))
        acpi();
    else if (same(line, "do=reset", 8)) {
        await_key();
        reset();
    } else if (same(line, "do=panic", 8)) {
        await_key();
        outb(0x505, 1); /* pvpanic: PANICKED */
        reset();
    } else if (same(line, "do=flood", 8))
        flood();
    else if (same(line, "do=echo", 7))
        echo();
    else if (same(line, "do=babble", 9)) {
        port_open();
        for (int i = 0; i < 20; i++)
            word("\xff\x00 no word at all, and no end of line either; ");
        word("\nready\n");
        say("ready\n");
        halt();
    }
    halt();
}

__asm__(".section .text.start,\"ax\"\n"
        ".globl _start\n"
        "_start:\n"
        "  cli\n"
        "  mov $stack_top, %esp\n"
        "  push %ebx\n"
        "  call guest_main\n"
        "1: hlt\n"
        "  jmp 1b\n"
        ".bss\n"
        ".align 16\n"
        ".skip 16384\n"
        "stack_top:\n"
        ".section .note.Xen,\"a\",@note\n"
        ".align 4\n"
        ".long 4, 4, 18\n" /* XEN_ELFNOTE_PHYS32_ENTRY */
        ".asciz \"Xen\"\n"
        ".long _start\n"
        ".text\n");
