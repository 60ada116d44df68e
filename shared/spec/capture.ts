/**
 * A recorded message: what stands in front of it in each packet of a pcapng file. The interface that a
 * packet belongs to says which session it is of, and by its link type, which protocol.
 */
import { struct } from "../struct/struct.js";

export const CAPTURE_VERSION = 1;

export const CaptureHead = struct({ version: "u8", direction: "u8", fds: "u16" });

/** Who sent it: the client, or the bridge on the link, goes to the device. */
export const CaptureDirection = { TO_DEVICE: 0, FROM_DEVICE: 1 } as const;

/** LINKTYPE_USER0 and LINKTYPE_USER1 of the pcap registry, which are for private use. */
export const LinkType = { VFIO_USER: 147, VIRTIO_VFIO_USER: 148 } as const;
