/** Everything that a peer can make us keep or wait for, bounded in one place. Sizes in bytes, times in milliseconds. */
export const KiB = 1024;
export const MiB = 1024 * KiB;
export const GiB = 1024 * MiB;

export const PAGE_SIZE = 4096;

/** vfio-user: `max_data_xfer_size` that we offer and enforce. */
export const MAX_DATA_XFER_SIZE = 1 * MiB;
/** The largest vfio-user message: the largest payload, and room for the largest fixed part in front of it. */
export const MAX_MESSAGE_SIZE = MAX_DATA_XFER_SIZE + 4 * KiB;
/** VERSION's JSON. */
export const MAX_VERSION_JSON_SIZE = 4 * KiB;
/** File descriptors on one message: what Linux's SCM_RIGHTS carries. */
export const MAX_MESSAGE_FDS = 253;
/**
 * File descriptors that are kept for a device VM's VMM, whatever the client takes: kicks, calls and errors of its
 * queues, memory.
 */
export const DEVICE_VM_FDS = 256;
/** DMA maps of one session. */
export const MAX_DMA_MAPS = 65535;
/** Commands that a client may have sent before the reply to the first; reading stops above it. */
export const MAX_PENDING_COMMANDS = 256;
/** Regions of one device: PCI's nine, and the device's own. HELLO's set of posted regions has 32 bits. */
export const MAX_REGIONS = 32;
/** Vectors of one interrupt index (MSI-X's own limit). */
export const MAX_IRQ_VECTORS = 2048;

/** Memory of the device's that clients may map, of one session: bytes, and parts of one region. */
export const MAX_REGION_MEMORY = 1 * GiB;
export const MAX_SHARED_PARTS = 64;
/** Memory for the values of a device's registers: bytes, and runs of registers that can be in there. */
export const MAX_REGISTER_MEMORY = 64 * KiB;
export const MAX_REGISTER_AREAS = 64;
/** Ioeventfds of one session. */
export const MAX_IOEVENTFDS = 64;

/** The bitmap of one reply: with its fixed part it is no more than a transfer. 4 KiB are for 128 MiB of memory. */
export const MAX_DIRTY_BITMAP_SIZE = MAX_DATA_XFER_SIZE - 4 * KiB;
/** Ranges of addresses that one DMA_LOGGING_START may name (as many as Linux takes). */
export const MAX_DMA_LOGGING_RANGES = 256;
/**
 * What the log of written pages may take; enough for 2 TiB of driver-VM memory. Above it every page counts as written.
 */
export const MAX_DMA_LOG_SIZE = 64 * MiB;
/** A device's whole migration stream, which is kept until it has come, or has been read, to its end. */
export const MAX_MIGRATION_STREAM = 64 * MiB;

/** Bytes that may wait in a socket's send queue before the peer counts as gone. */
export const MAX_SEND_BACKLOG = 4 * MiB;
/** Bytes of DMA_WRITE messages on their way to one client; more wait in their order. */
export const MAX_DMA_WRITE_BYTES = 1 * MiB;
/** The most bytes that one request of the copy queue moves; one is carried out whole before others are. */
export const MAX_COPY_SIZE = 2 * MiB;
/** The most driver-VM memory of one session that can be copied to and from; in whole GiB of the files that it is in. */
export const DRIVER_VM_MEMORY_SIZE = 1024 * GiB;
/**
 * DMA maps of one session in the window of a device VM; the others are copied. QEMU takes some 3 ms for one more at
 * this number, 12 ms at 1200, and half a second at 4400, and its VM stands still meanwhile.
 */
export const MAX_WINDOW_MAPS = 512;
/** DMA messages that may wait to be sent. */
export const MAX_DMA_REQUESTS = 64 * KiB;
/** What a device process may say of itself when it is inspected, and how long that may take. */
export const MAX_INSPECTION_SIZE = 128 * KiB;
export const INSPECT_DEADLINE_MS = 4000;
/** vhost-user: messages are small; the memory table of 8 regions is the largest. */
export const MAX_VHOST_USER_MESSAGE_SIZE = 4 * KiB;
/** vhost-user without CONFIGURE_MEM_SLOTS: regions of SET_MEM_TABLE, VHOST_MEMORY_BASELINE_NREGIONS. */
export const MAX_VHOST_USER_REGIONS = 8;
/** The most memory of a device VM; all regions of SET_MEM_TABLE must fit. */
export const DEVICE_VM_MEMORY_SIZE = 1024 * GiB;
/**
 * Memory of a device VM behind a virtual IOMMU: GiB of its addresses that can be in use at a time, and ranges of them,
 * each of which may be a map of this process.
 */
export const MAX_IOTLB_PARTS = 64;
export const MAX_IOTLB_RANGES = 2048;
/** Requests for the window that may wait for the one in flight. */
export const MAX_WINDOW_REQUESTS = 4 * KiB;
/** Queues of the virtio-vfio-user device: three for messages and copies, the rest are doorbells. */
export const MAX_QUEUES = 256;
export const MAX_QUEUE_SIZE = 1024;

/**
 * Lines of the log that a session's peers can cause: in so much time so many of one kind (a level and a message), and
 * of one level; what is above is counted, and said at the end of that time.
 */
export const LOG_PERIOD_MS = 30_000;
export const LOG_LINES_PER_KIND = 20;
export const LOG_LINES_PER_LEVEL = 100;
/**
 * Bytes of the log that wait for whoever reads it, above which lines are lost; and how long the end of a process waits
 * for them.
 */
export const MAX_LOG_BACKLOG = 1 * MiB;
export const LOG_FLUSH_MS = 500;

/** How long a device may take for one command before the driver VM is answered without it. QEMU gives up at 5000. */
export const REPLY_DEADLINE_MS = 4000;
/**
 * How long what the client waits for waits for the client's answers to DMA messages. Stock QEMU cannot answer any
 * meanwhile, so then it goes on without them.
 */
export const DMA_ANSWER_MS = 25;
/** How long a device may take to release memory, or to reset, before the memory is unmapped by force. */
export const QUIESCE_DEADLINE_MS = 2000;
/** The same as seen by the bridge: the device process answers in time, or it does not answer at all. */
export const UNMAP_DEADLINE_MS = 3000;
/** How long the device VM's VMM may take for a change of the window; the driver VM's waits for it. */
export const WINDOW_DEADLINE_MS = 2000;
/** How long after a pause of the device VM began a command may wait for its end. */
export const PAUSE_GRACE_MS = 2000;
/** Pause between attempts to give a device process its client. */
export const RETRY_MS = 500;
/** How long a client may take for the whole of its first message. Nobody else is served meanwhile. */
export const VERSION_WAIT_MS = 4000;
/** How long VERSION's reply waits for a device to be there. */
export const DEVICE_WAIT_MS = 4000;
/** Jobs of a device's that may be pending, or wait for the end of a pause. */
export const MAX_JOBS = 1024;

/** Default size of the window of driver-VM memory; a power of two. */
export const WINDOW_SIZE = 64 * GiB;
/** One ArrayBuffer of the window: Node 20 allows at most 4 GiB each. */
export const WINDOW_PIECE_SIZE = 1 * GiB;
/** Maps at least this large are aligned to it in the window, so that large pages can be used. */
export const LARGE_PAGE_SIZE = 2 * MiB;
