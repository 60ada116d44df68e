/*
 * A driver for edu that runs as a program in the driver VM, in three ways: `edu resource0 ADDRESS` maps the BAR that the kernel shows in
 * sysfs, `edu vfio ADDRESS` takes the device over by VFIO, behind the VM's IOMMU, for DMA and interrupts, and `edu leave ADDRESS` ends
 * with pages mapped. It prints what it sees, a line each, and ends with 1 at the first system call that fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { IDENTIFICATION = 0x00, LIVENESS = 0x04, FACTORIAL = 0x08, STATUS = 0x20 };
enum { INTERRUPT_STATUS = 0x24, INTERRUPT_RAISE = 0x60, INTERRUPT_ACK = 0x64 };
enum { SOURCE = 0x80, TARGET = 0x88, COUNT = 0x90, COMMAND = 0x98 };
enum { COMPUTING = 0x01, INTERRUPT_WHEN_DONE = 0x80, RUN = 1, TO_MEMORY = 2, INTERRUPT = 4 };
enum { BAR_SIZE = 0x100000, BUFFER = 0x40000, BUFFER_SIZE = 4096 };
/* An address for the device, within the 28 bits that it has. */
enum { IOVA = 0x400000, MEMORY_SIZE = 4 * 4096 };
enum { PAGES = 16 };
enum { PCI_COMMAND = 4, PCI_MEMORY_AND_BUS_MASTER = 6 };

static volatile uint8_t *bar;
static int container, device;

static uint32_t get(unsigned offset) { return *(volatile uint32_t *)(bar + offset); }
static void set(unsigned offset, uint32_t value) { *(volatile uint32_t *)(bar + offset) = value; }
static void set64(unsigned offset, uint64_t value) { *(volatile uint64_t *)(bar + offset) = value; }

static int check(const char *what, int result) {
  if (result >= 0) return result;
  printf("%s: %s\n", what, strerror(errno));
  exit(1);
}

static void *map(int fd, off_t offset, size_t size) {
  int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE : MAP_SHARED;
  void *address = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, offset);
  check("mmap", address == MAP_FAILED ? -1 : 0);
  return address;
}

static void try_registers(void) {
  printf("identification %08x\n", get(IDENTIFICATION));
  set(LIVENESS, 0x12345678);
  printf("liveness %08x\n", get(LIVENESS));
  set(FACTORIAL, 10);
  while (get(STATUS) & COMPUTING) {
  }
  printf("factorial %u\n", get(FACTORIAL));
}

/* Waits for the interrupt, and acknowledges it as a handler does. */
static void take_interrupt(const char *kind, int eventfd) {
  uint64_t count = 0;
  check("read of the eventfd", (int)read(eventfd, &count, sizeof count));
  uint32_t causes = get(INTERRUPT_STATUS);
  set(INTERRUPT_ACK, causes);
  printf("%s %llu, causes %x, then %x\n", kind, (unsigned long long)count, causes, get(INTERRUPT_STATUS));
}

static void open_device(const char *address) {
  char path[PATH_MAX], link[PATH_MAX] = "";
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", address);
  check(path, (int)readlink(path, link, sizeof link - 1));
  snprintf(path, sizeof path, "/dev/vfio/%s", strrchr(link, '/') + 1);
  container = check("/dev/vfio/vfio", open("/dev/vfio/vfio", O_RDWR));
  int group = check(path, open(path, O_RDWR));
  check("SET_CONTAINER", ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
  check("SET_IOMMU", ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU));
  device = check("GET_DEVICE_FD", ioctl(group, VFIO_GROUP_GET_DEVICE_FD, address));
  struct vfio_region_info region = {.argsz = sizeof region, .index = VFIO_PCI_CONFIG_REGION_INDEX};
  check("GET_REGION_INFO", ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region));
  uint16_t command = PCI_MEMORY_AND_BUS_MASTER;
  check("config space", (int)pwrite(device, &command, sizeof command, (off_t)region.offset + PCI_COMMAND));
  region = (struct vfio_region_info){.argsz = sizeof region, .index = VFIO_PCI_BAR0_REGION_INDEX};
  check("GET_REGION_INFO", ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region));
  bar = map(device, (off_t)region.offset, BAR_SIZE);
}

static int bind_interrupt(unsigned index) {
  struct {
    struct vfio_irq_set set;
    int32_t fd;
  } irq = {{.argsz = sizeof irq, .index = index, .count = 1, .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER}, 0};
  irq.fd = check("eventfd", eventfd(0, 0));
  check("SET_IRQS", ioctl(device, VFIO_DEVICE_SET_IRQS, &irq));
  return irq.fd;
}

static void act_on_interrupt(unsigned index, unsigned flags, unsigned count) {
  struct vfio_irq_set set = {.argsz = sizeof set, .index = index, .count = count, .flags = VFIO_IRQ_SET_DATA_NONE | flags};
  check("SET_IRQS", ioctl(device, VFIO_DEVICE_SET_IRQS, &set));
}

static void try_intx(void) {
  int intx = bind_interrupt(VFIO_PCI_INTX_IRQ_INDEX);
  for (uint32_t cause = 0x10; cause <= 0x20; cause += 0x10) {
    set(INTERRUPT_RAISE, cause);
    take_interrupt("INTx", intx);
    act_on_interrupt(VFIO_PCI_INTX_IRQ_INDEX, VFIO_IRQ_SET_ACTION_UNMASK, 1);
  }
  act_on_interrupt(VFIO_PCI_INTX_IRQ_INDEX, VFIO_IRQ_SET_ACTION_TRIGGER, 0);
}

static void transfer(int msi, uint64_t source, uint64_t target, uint64_t count, uint32_t command) {
  set64(SOURCE, source);
  set64(TARGET, target);
  set64(COUNT, count);
  set(COMMAND, command | RUN | INTERRUPT);
  take_interrupt("DMA", msi);
  printf("command %x\n", get(COMMAND));
}

static void try_dma(int msi) {
  uint8_t *memory = map(-1, 0, MEMORY_SIZE);
  struct vfio_iommu_type1_dma_map dma = {.argsz = sizeof dma, .vaddr = (uintptr_t)memory, .iova = IOVA, .size = MEMORY_SIZE};
  dma.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
  check("MAP_DMA", ioctl(container, VFIO_IOMMU_MAP_DMA, &dma));
  /* Across a page each, so that the addresses behind the IOMMU need not be in a row. */
  uint8_t *from = memory + 100, *to = memory + 2 * 4096 + 2000;
  for (int n = 0; n < BUFFER_SIZE; n++) from[n] = (uint8_t)(n * 7);
  transfer(msi, IOVA + 100, BUFFER, BUFFER_SIZE, 0);
  transfer(msi, BUFFER, IOVA + 2 * 4096 + 2000, BUFFER_SIZE, TO_MEMORY);
  printf("DMA there and back: %s\n", memcmp(from, to, BUFFER_SIZE) == 0 ? "the same" : "different");
  memset(to, 0, BUFFER_SIZE);
  transfer(msi, BUFFER, IOVA + MEMORY_SIZE, 16, TO_MEMORY);
  struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = IOVA, .size = MEMORY_SIZE};
  check("UNMAP_DMA", ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap));
  transfer(msi, BUFFER, IOVA + 2 * 4096 + 2000, BUFFER_SIZE, TO_MEMORY);
  int changed = 0;
  for (int n = 0; n < BUFFER_SIZE; n++) changed |= to[n];
  printf("DMA to what is unmapped: %s\n", changed ? "it came through" : "nothing came");
}

/* Maps pages apart from each other, writes to the first and the last of them, and leaves it to the kernel to unmap them. */
static void leave_mapped(int msi) {
  uint8_t *memory = map(-1, 0, PAGES * 4096);
  for (int n = 0; n < PAGES; n++) {
    struct vfio_iommu_type1_dma_map dma = {.argsz = sizeof dma, .vaddr = (uintptr_t)memory + n * 4096, .iova = IOVA + n * 3 * 4096, .size = 4096};
    dma.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
    check("MAP_DMA", ioctl(container, VFIO_IOMMU_MAP_DMA, &dma));
  }
  transfer(msi, BUFFER, IOVA, 16, TO_MEMORY);
  transfer(msi, BUFFER, IOVA + (PAGES - 1) * 3 * 4096, 16, TO_MEMORY);
  printf("left with %d pages mapped\n", PAGES);
}

int main(int argc, char **argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc != 3) return 2;
  if (strcmp(argv[1], "resource0") == 0) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/resource0", argv[2]);
    bar = map(check(path, open(path, O_RDWR | O_SYNC)), 0, BAR_SIZE);
    try_registers();
    return 0;
  }
  open_device(argv[2]);
  if (strcmp(argv[1], "leave") == 0) {
    leave_mapped(bind_interrupt(VFIO_PCI_MSI_IRQ_INDEX));
    return 0;
  }
  try_registers();
  try_intx();
  int msi = bind_interrupt(VFIO_PCI_MSI_IRQ_INDEX);
  set(STATUS, INTERRUPT_WHEN_DONE);
  set(FACTORIAL, 5);
  take_interrupt("MSI", msi);
  printf("factorial %u\n", get(FACTORIAL));
  try_dma(msi);
  return 0;
}
