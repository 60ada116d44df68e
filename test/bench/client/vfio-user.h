// A vfio-user client as small as can be, for measurements: one request at a time, no check but that the reply is no
// error.
#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "../floor/bench.h"

enum { VERSION = 1, DMA_MAP = 2, DMA_UNMAP = 3, REGION_INFO = 5, SET_IRQS = 8, REGION_READ = 9, REGION_WRITE = 10 };
enum { BAR0 = 0, CONFIG = 7, MSIX = 2, HEADER = 16, ACCESS = 16, NO_REPLY = 0x10 };

struct message {
  uint16_t id, command;
  uint32_t size, flags, error;
  uint8_t body[240];
};
struct access {
  uint64_t offset;
  uint32_t region, count;
  uint8_t data[8];
} __attribute__((packed));

static inline void send_all(int fd, const void *bytes, size_t length, const int *fds, int fd_count) {
  struct iovec vector = {(void *)bytes, length};
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(16 * sizeof(int))];
  } control;
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
  if (fd_count > 0) {
    message.msg_control = &control;
    message.msg_controllen = CMSG_SPACE((size_t)fd_count * sizeof(int));
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN((size_t)fd_count * sizeof(int));
    memcpy(CMSG_DATA(header), fds, (size_t)fd_count * sizeof(int));
  }
  while (vector.iov_len > 0) {
    ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    check(sent > 0, "sendmsg");
    vector.iov_base = (char *)vector.iov_base + sent;
    vector.iov_len -= (size_t)sent;
    message.msg_control = NULL;
    message.msg_controllen = 0;
  }
}

static inline void receive_all(int fd, void *bytes, size_t length) {
  for (size_t done = 0; done < length;) {
    ssize_t got = read(fd, (char *)bytes + done, length - done);
    check(got > 0, "the server closed the connection");
    done += (size_t)got;
  }
}

// Sends a command and waits for its reply, which replaces it. Requests and replies are short: one read call takes a
// reply.
static inline void exchange(int fd, struct message *message, size_t body, const int *fds, int fd_count) {
  message->id++;
  message->size = (uint32_t)(HEADER + body);
  message->flags = 0;
  message->error = 0;
  send_all(fd, message, HEADER + body, fds, fd_count);
  size_t got = 0;
  do {
    ssize_t count = read(fd, (char *)message + got, sizeof *message - got);
    check(count > 0, "the server closed the connection");
    got += (size_t)count;
  } while (got < HEADER || got < message->size);
  errno = (int)message->error;
  check((message->flags & 0x20) == 0, "an error reply");
}

static inline int connect_to(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  check(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0, path);
  struct message message = {.command = VERSION};
  const char json[] = "{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576}}";
  memcpy(message.body + 4, json, sizeof json);
  exchange(fd, &message, 4 + sizeof json, NULL, 0);
  return fd;
}

static inline uint32_t region_read(int fd, uint32_t region, uint64_t offset) {
  struct message message = {.command = REGION_READ};
  struct access access = {offset, region, 4, {0}};
  memcpy(message.body, &access, ACCESS);
  exchange(fd, &message, ACCESS, NULL, 0);
  uint32_t value;
  memcpy(&value, message.body + ACCESS, 4);
  return value;
}

static inline void region_write(int fd, uint32_t region, uint64_t offset, uint32_t value, uint32_t width) {
  struct message message = {.command = REGION_WRITE};
  struct access access = {offset, region, width, {0}};
  memcpy(access.data, &value, 4);
  memcpy(message.body, &access, ACCESS + width);
  exchange(fd, &message, ACCESS + width, NULL, 0);
}

// Memory and bus master.
static inline void enable(int fd) { region_write(fd, CONFIG, 4, 6, 2); }

// A sealed memfd, as a VMM makes its guest's memory of.
static inline int make_memory(size_t size) {
  int fd = memfd_create("driver-vm", MFD_ALLOW_SEALING);
  check(fd >= 0 && ftruncate(fd, (off_t)size) == 0, "memfd");
  check(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0, "seals");
  return fd;
}

static inline void dma_map(int fd, int memory, uint64_t address, uint64_t size) {
  struct message message = {.command = DMA_MAP};
  struct {
    uint32_t argsz, flags;
    uint64_t offset, address, size;
  } map = {32, 3, 0, address, size};
  memcpy(message.body, &map, sizeof map);
  exchange(fd, &message, sizeof map, &memory, 1);
}

static inline void dma_unmap(int fd, uint64_t address, uint64_t size) {
  struct message message = {.command = DMA_UNMAP};
  struct {
    uint32_t argsz, flags;
    uint64_t address, size;
  } unmap = {24, 0, address, size};
  memcpy(message.body, &unmap, sizeof unmap);
  exchange(fd, &message, sizeof unmap, NULL, 0);
}

// Eventfds for the first MSI-X vectors.
static inline void bind_vectors(int fd, const int *eventfds, int count) {
  struct message message = {.command = SET_IRQS};
  uint32_t body[5] = {20, 0x24, MSIX, 0, (uint32_t)count};
  memcpy(message.body, body, sizeof body);
  exchange(fd, &message, sizeof body, eventfds, count);
}

// Maps part of a region; the reply to the question about it brings the fd. Which parts may be mapped is not looked at.
static inline volatile uint8_t *map_region(int fd, uint32_t region, off_t offset, size_t length) {
  struct message message = {.command = REGION_INFO, .id = 0x7777, .size = HEADER + 32};
  uint32_t argsz = 200;
  memcpy(message.body, &argsz, 4);
  memcpy(message.body + 8, &region, 4);
  send_all(fd, &message, message.size, NULL, 0);
  struct iovec vector = {&message, sizeof message};
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(sizeof(int))];
  } control;
  struct msghdr reply = {.msg_iov = &vector, .msg_iovlen = 1};
  reply.msg_control = &control;
  reply.msg_controllen = sizeof control;
  check(recvmsg(fd, &reply, 0) >= HEADER + 32 && CMSG_FIRSTHDR(&reply) != NULL, "no memory for the region");
  int memory;
  memcpy(&memory, CMSG_DATA(CMSG_FIRSTHDR(&reply)), sizeof memory);
  uint8_t *mapped = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, memory, offset);
  check(mapped != MAP_FAILED, "mmap");
  close(memory);
  return mapped;
}
