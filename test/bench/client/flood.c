// A client that sends all it can until its standard input ends, whatever the server makes of it: "writes" of a register that want no
// reply, "reads" of one that the device computes, "maps" of a page each with its unmap. "none": only keeps the CPU busy.
// CPU none|writes|reads|maps SOCKET
#include <pthread.h>

#include "vfio-user.h"

enum { COMPUTED = 0x80, BATCH = 64, PAGE = 4096 };

static int socket_fd;

static void *wait_for_end(void *unused) {
  char byte;
  while (read(STDIN_FILENO, &byte, 1) > 0) continue;
  _exit(0);
  return unused;
}

static void *drain(void *unused) {
  static char bytes[1 << 16];
  while (read(socket_fd, bytes, sizeof bytes) > 0) continue;
  return unused;
}

static size_t put(char *to, uint16_t command, uint32_t flags, const void *body, size_t length) {
  struct message message = {.id = 1, .command = command, .size = (uint32_t)(HEADER + length), .flags = flags};
  memcpy(message.body, body, length);
  memcpy(to, &message, HEADER + length);
  return HEADER + length;
}

static void start(void *(*run)(void *)) {
  pthread_t thread;
  check(pthread_create(&thread, NULL, run, NULL) == 0, "pthread_create");
}

int main(int argc, char **argv) {
  check(argc == 4, "CPU none|writes|reads|maps SOCKET");
  pin(atoi(argv[1]));
  socket_fd = connect_to(argv[3]);
  enable(socket_fd);
  printf("ready\n");
  fflush(stdout);
  start(wait_for_end);
  if (strcmp(argv[2], "none") == 0) for (;;) pause_cpu();
  start(drain);
  struct {
    struct access access;
    uint8_t more[4];
  } write = {{COMPUTED, BAR0, 4, {0}}, {0}};
  struct {
    uint32_t argsz, flags;
    uint64_t offset, address, size;
  } map = {32, 3, 0, 0, PAGE};
  struct {
    uint32_t argsz, flags;
    uint64_t address, size;
  } unmap = {24, 0, 0, PAGE};
  static char batch[BATCH * sizeof(struct message)];
  size_t length = 0;
  for (int i = 0; i < BATCH; i++) {
    if (strcmp(argv[2], "writes") == 0) length += put(batch + length, REGION_WRITE, NO_REPLY, &write, ACCESS + 4);
    else if (strcmp(argv[2], "reads") == 0) length += put(batch + length, REGION_READ, 0, &write, ACCESS);
    else if (i % 2 == 0) length += put(batch + length, DMA_MAP, 0, &map, sizeof map);
    else length += put(batch + length, DMA_UNMAP, 0, &unmap, sizeof unmap);
  }
  for (;;) send_all(socket_fd, batch, length, NULL, 0);
}
