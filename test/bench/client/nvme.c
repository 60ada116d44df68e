// An NVMe driver that reads, writes, deallocates (Dataset Management) or zeroes (Write Zeroes) random 4 KiB blocks of a
// namespace, DEPTH at a time, or fills it in order. "poll" watches the completion queue, "shared" as well and has the
// doorbells mapped, "sleep" waits for the interrupt's eventfd. Doorbells that are not mapped are region writes. "idle" is
// "shared", and when all is done a pause until standard input ends.
// CPU COUNT read|write|deallocate|zero|fill poll|shared|idle|sleep DEPTH SOCKET NAMESPACE
#include <sys/eventfd.h>

#include "vfio-user.h"

enum { PAGE = 4096, ENTRIES = 64, SQ_ENTRY = 64, CQ_ENTRY = 16, DOORBELLS = 0x1000, WARM_UP = 300 };
enum { CC = 0x14, CSTS = 0x1c, AQA = 0x24, ASQ = 0x28, ACQ = 0x30 };
static const uint64_t kBase = 1ull << 32;
static const size_t kMemory = 4 << 20;

struct queue {
  uint8_t *submissions;
  volatile uint8_t *completions;
  uint32_t id, tail, head, phase;
};
struct command {
  uint8_t opcode, flags;
  uint16_t id;
  uint32_t nsid;
  uint64_t reserved, metadata, prp1, prp2;
  uint32_t dwords[6];
};

static int server;
static uint8_t *memory;
static int interrupts[2];
static uint32_t stride = 4;
static volatile uint8_t *doorbells;

static void write_register(uint32_t offset, uint32_t value) { region_write(server, BAR0, offset, value, 4); }

static void write_address(uint32_t offset, uint64_t address) {
  write_register(offset, (uint32_t)address);
  write_register(offset + 4, (uint32_t)(address >> 32));
}

static void wait_ready(uint32_t ready) {
  while ((region_read(server, BAR0, CSTS) & 1) != ready) usleep(1000);
}

static void put(struct queue *queue, struct command command) {
  memcpy(queue->submissions + queue->tail * SQ_ENTRY, &command, sizeof command);
  queue->tail = (queue->tail + 1) % ENTRIES;
}

static void ring_doorbell(uint32_t number, uint32_t value) {
  if (doorbells == NULL) write_register(DOORBELLS + number * stride, value);
  else __atomic_store_n((volatile uint32_t *)(doorbells + number * stride), value, __ATOMIC_RELEASE);
}

static void ring(struct queue *queue) { ring_doorbell(queue->id * 2, queue->tail); }

// The id of the next command that ended, or -1.
static int take(struct queue *queue) {
  volatile uint8_t *entry = queue->completions + queue->head * CQ_ENTRY;
  uint32_t word = __atomic_load_n((volatile uint32_t *)(entry + 12), __ATOMIC_ACQUIRE);
  if (((word >> 16) & 1) != queue->phase) return -1;
  errno = EIO;
  check(word >> 17 == 0, "an NVMe command failed");
  queue->head = (queue->head + 1) % ENTRIES;
  if (queue->head == 0) queue->phase ^= 1;
  return (int)(word & 0xffff);
}

static void release(struct queue *queue) { ring_doorbell(queue->id * 2 + 1, queue->head); }

static void sleep_until_interrupt(int vector) {
  uint64_t got;
  check(read(interrupts[vector], &got, 8) == 8, "read");
}

static void admin(struct queue *queue, struct command command) {
  put(queue, command);
  ring(queue);
  while (take(queue) < 0) sleep_until_interrupt(0);
  release(queue);
}

static uint8_t opcode_of(const char *operation) {
  if (strcmp(operation, "read") == 0) return 2;
  if (strcmp(operation, "zero") == 0) return 8;
  return strcmp(operation, "deallocate") == 0 ? 9 : 1;
}

int main(int argc, char **argv) {
  check(argc == 8, "CPU COUNT read|write|deallocate|zero|fill poll|shared|idle|sleep DEPTH SOCKET NAMESPACE");
  pin(atoi(argv[1]));
  int count = atoi(argv[2]), idles = strcmp(argv[4], "idle") == 0;
  int shares = idles || strcmp(argv[4], "shared") == 0, polls = shares || strcmp(argv[4], "poll") == 0, depth = atoi(argv[5]);
  uint32_t nsid = (uint32_t)atoi(argv[7]);
  int fills = strcmp(argv[3], "fill") == 0;
  uint8_t opcode = opcode_of(argv[3]);
  server = connect_to(argv[6]);
  int fd = make_memory(kMemory);
  memory = mmap(NULL, kMemory, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  check(memory != MAP_FAILED, "mmap");
  memset(memory, 0, kMemory);
  dma_map(server, fd, kBase, kMemory);
  for (int i = 0; i < 2; i++) check((interrupts[i] = eventfd(0, 0)) >= 0, "eventfd");
  bind_vectors(server, interrupts, 2);
  enable(server);
  stride = 4u << (region_read(server, BAR0, 4) & 0xf);
  if (shares) doorbells = map_region(server, BAR0, DOORBELLS, PAGE);
  // MSI-X on: it is the third capability at most.
  uint32_t at = region_read(server, CONFIG, 0x34) & 0xff;
  for (int i = 0; at != 0 && i < 48; i++) {
    uint32_t capability = region_read(server, CONFIG, at);
    if ((capability & 0xff) == 0x11) region_write(server, CONFIG, at + 2, (capability >> 16) | 0x8000, 2);
    at = (capability >> 8) & 0xff;
  }

  write_register(CC, 0);
  wait_ready(0);
  struct queue admins = {memory, memory + PAGE, 0, 0, 0, 1};
  struct queue io = {memory + 2 * PAGE, memory + 3 * PAGE, 1, 0, 0, 1};
  write_register(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
  write_address(ASQ, kBase);
  write_address(ACQ, kBase + PAGE);
  write_register(CC, 1 | 6 << 16 | 4 << 20);
  wait_ready(1);
  admin(&admins, (struct command){.opcode = 6, .nsid = nsid, .prp1 = kBase + 4 * PAGE});
  uint64_t blocks;
  memcpy(&blocks, memory + 4 * PAGE, 8);
  uint32_t pages = (uint32_t)(blocks / 8), size = (ENTRIES - 1) << 16 | 1;
  admin(&admins, (struct command){.opcode = 9, .dwords = {7, 0}});
  // Interrupt enabled only for a driver that sleeps.
  admin(&admins, (struct command){.opcode = 5, .prp1 = kBase + 3 * PAGE, .dwords = {size, 1 << 16 | (polls ? 1 : 3)}});
  admin(&admins, (struct command){.opcode = 1, .prp1 = kBase + 2 * PAGE, .dwords = {size, 1 << 16 | 1}});

  if (fills) count = (int)pages - WARM_UP;
  struct pace pace;
  uint32_t seed = 99;
  int sent = 0, done = -WARM_UP, total = count + WARM_UP, idle[ENTRIES], idle_count = 0;
  for (int i = 0; i < depth; i++) idle[idle_count++] = i;
  while (done < count) {
    if (idle_count > 0 && sent < total) {
      while (idle_count > 0 && sent < total) {
        int id = idle[--idle_count];
        uint64_t block = (uint64_t)((fills ? (uint32_t)sent : next_random(&seed)) % pages) * 8;
        struct command command = {.opcode = opcode, .id = (uint16_t)id, .nsid = nsid,
                                  .prp1 = kBase + (uint64_t)(16 + id) * PAGE,
                                  .dwords = {(uint32_t)block, (uint32_t)(block >> 32), 7}};
        if (opcode == 9) {
          struct {
            uint32_t attributes, blocks;
            uint64_t lba;
          } range = {0, 8, block};
          memcpy(memory + (16 + id) * PAGE, &range, sizeof range);
          memcpy(command.dwords, (uint32_t[3]){0, 4, 0}, sizeof(uint32_t[3]));
        }
        put(&io, command);
        sent++;
      }
      ring(&io);
    }
    int id = take(&io);
    if (id < 0) {
      if (polls) pause_cpu();
      else sleep_until_interrupt(1);
      continue;
    }
    do {
      idle[idle_count++] = id;
      if (++done == 0) pace_begin(&pace, now_ns(), count);
    } while (done < count && (id = take(&io)) >= 0);
    release(&io);
    if (done > 0) pace_note(&pace, now_ns(), done);
  }
  pace_report(&pace);
  fflush(stdout);
  char byte;
  while (idles && read(0, &byte, 1) > 0) continue;
  write_register(CC, 0);
  wait_ready(0);
}
