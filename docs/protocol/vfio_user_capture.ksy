# Made by `npm run protocol` from shared/spec: not to be edited.
meta:
  id: vfio_user_capture
  title: A recorded message of vfio-user or of virtio-vfio-user
  license: Apache-2.0
  ks-version: "0.10"
  endian: le
doc: A packet of a recording. The link type of its interface says whose the message is.
seq:
  - id: head
    type: capture_head
  - id: message
    size-eos: true
types:
  capture_head:
    seq:
      - id: version
        type: u1
      - id: direction
        type: u1
      - id: fds
        type: u2
enums:
  direction:
    "0": to_device
    "1": from_device
