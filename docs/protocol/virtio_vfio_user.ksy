# Made by `npm run protocol` from shared/spec: not to be edited.
meta:
  id: virtio_vfio_user
  title: virtio-vfio-user
  license: Apache-2.0
  ks-version: "0.10"
  endian: le
doc: "A message between the bridge and a device process, on the queues todevice and fromdevice: vfio-user's,
  with handles in place of file descriptors, and commands of the link's own."
seq:
  - id: header
    type: header
  - id: body
    size: header.size - 16 - 4 * handle_count
    type:
      switch-on: body_kind
      cases:
        "4": dma_map_request
        "5": empty
        "6": dma_unmap_request
        "7": dma_unmap_reply
        "8": device_get_info_request
        "9": device_get_info_reply
        "10": device_get_region_info_request
        "11": device_get_region_info_reply
        "12": device_get_region_io_fds_request
        "13": device_get_region_io_fds_reply
        "14": device_get_irq_info_request
        "15": device_get_irq_info_reply
        "16": device_set_irqs_request
        "17": empty
        "18": region_read_request
        "19": region_read_reply
        "20": region_write_request
        "21": region_write_reply
        "22": dma_read_request
        "23": dma_read_reply
        "24": dma_write_request
        "25": dma_write_reply
        "26": empty
        "27": empty
        "30": region_write_multi_request
        "31": region_write_multi_reply
        "32": device_feature_request
        "33": device_feature_reply
        "34": mig_data_read_request
        "35": mig_data_read_reply
        "36": mig_data_write_request
        "37": mig_data_write_reply
        "514": hello_request
        "515": empty
        "516": client_connected_request
        "517": empty
        "518": client_gone_request
        "519": empty
        "520": empty
        "521": empty
        "522": allocate_memory_request
        "523": allocate_memory_reply
        "524": allocate_events_request
        "525": allocate_events_reply
        "526": io_event_request
        "527": empty
        "528": share_registers_request
        "529": empty
        "530": inspect_request
        "531": inspect_reply
        "131072": empty
        _: unknown_data
  - id: handles
    type: u4
    repeat: expr
    repeat-expr: handle_count
instances:
  command:
    value: header.command
    enum: command
  is_reply:
    value: (header.flags & 0xf) == 1
  is_error:
    value: (header.flags & 0x20) != 0
  body_kind:
    doc: Twice the command, and one more for a reply.
    value: "(is_reply and is_error) ? 131072 : 2 * header.command + (is_reply ? 1 : 0)"
  handle_count:
    value: "(is_reply and not is_error and (header.command == 5 or header.command == 6)) ? header.errno : 0"
types:
  header:
    seq:
      - id: id
        type: u2
      - id: command
        type: u2
      - id: size
        type: u4
      - id: flags
        type: u4
        doc: "Bits: 0x10 NO_REPLY, 0x20 ERROR"
      - id: errno
        type: u4
  dma_map:
    seq:
      - id: argsz
        type: u4
      - id: flags
        type: u4
        doc: "Bits: 0x1 READ, 0x2 WRITE, 0x4 MMAP, 0x8 FILE_IO"
      - id: offset
        type: u8
      - id: address
        type: u8
      - id: size
        type: u8
  dma_unmap:
    seq:
      - id: argsz
        type: u4
      - id: flags
        type: u4
        doc: "Bits: 0x1 GET_DIRTY_BITMAP, 0x2 ALL"
      - id: address
        type: u8
      - id: size
        type: u8
  bitmap:
    seq:
      - id: page_size
        type: u8
      - id: size
        type: u8
  device_info:
    seq:
      - id: argsz
        type: u4
      - id: flags
        type: u4
        doc: "Bits: 0x1 RESET, 0x2 PCI"
      - id: num_regions
        type: u4
      - id: num_irqs
        type: u4
  region_info:
    seq:
      - id: argsz
        type: u4
      - id: flags
        type: u4
        doc: "Bits: 0x1 READ, 0x2 WRITE, 0x4 MMAP, 0x8 CAPS"
      - id: index
        type: u4
        enum: region_info_index
      - id: cap_offset
        type: u4
      - id: size
        type: u8
      - id: offset
        type: u8
  region_cap_header:
    seq:
      - id: id
        type: u2
      - id: version
        type: u2
      - id: next
        type: u4
  sparse_mmap:
    seq:
      - id: areas
        type: u4
      - id: reserved
        size: 4
  sparse_mmap_area:
    seq:
      - id: offset
        type: u8
      - id: size
        type: u8
  region_type:
    seq:
      - id: type
        type: u4
      - id: subtype
        type: u4
  region_io_fds:
    seq:
      - id: argsz
        type: u4
      - id: flags
        type: u4
      - id: index
        type: u4
        enum: region_io_fds_index
      - id: count
        type: u4
  io_event_fd:
    seq:
      - id: gpa_offset
        type: u8
      - id: size
        type: u8
      - id: fd_index
        type: u4
      - id: type
        type: u4
        enum: io_event_fd_type
      - id: flags
        type: u4
        doc: "Bits: 0x1 DATAMATCH, 0x2 PIO"
      - id: shadow_mem_fd_index
        type: u4
      - id: shadow_offset
        type: u8
      - id: data_match
        type: u8
  irq_info:
    seq:
      - id: argsz
        type: u4
      - id: flags
        type: u4
        doc: "Bits: 0x1 EVENTFD, 0x2 MASKABLE, 0x4 AUTOMASKED, 0x8 NORESIZE"
      - id: index
        type: u4
        enum: irq_info_index
      - id: count
        type: u4
  irq_set:
    seq:
      - id: argsz
        type: u4
      - id: flags
        type: u4
        doc: "Bits: 0x1 DATA_NONE, 0x2 DATA_BOOL, 0x4 DATA_EVENTFD, 0x8 ACTION_MASK, 0x10 ACTION_UNMASK, 0x20
          ACTION_TRIGGER"
      - id: index
        type: u4
        enum: irq_set_index
      - id: start
        type: u4
      - id: count
        type: u4
  region_access:
    seq:
      - id: offset
        type: u8
      - id: region
        type: u4
        enum: region_access_region
      - id: count
        type: u4
  dma_access:
    seq:
      - id: address
        type: u8
      - id: count
        type: u8
  write_multi:
    seq:
      - id: writes
        type: u8
  write_multi_entry:
    seq:
      - id: offset
        type: u8
      - id: region
        type: u4
        enum: write_multi_entry_region
      - id: count
        type: u4
      - id: data
        size: 8
  device_feature:
    seq:
      - id: argsz
        type: u4
      - id: flags
        type: u4
        doc: "Bits: 0x10000 GET, 0x20000 SET, 0x40000 PROBE"
  feature_migration:
    seq:
      - id: flags
        type: u8
        doc: "Bits: 0x1 STOP_COPY, 0x2 P2P, 0x4 PRE_COPY"
  feature_mig_device_state:
    seq:
      - id: device_state
        type: u4
        enum: feature_mig_device_state_device_state
      - id: data_fd
        type: u4
  dma_logging_control:
    seq:
      - id: page_size
        type: u8
      - id: num_ranges
        type: u4
      - id: reserved
        size: 4
  dma_logging_range:
    seq:
      - id: iova
        type: u8
      - id: length
        type: u8
  dma_logging_report:
    seq:
      - id: iova
        type: u8
      - id: length
        type: u8
      - id: page_size
        type: u8
  mig_data:
    seq:
      - id: argsz
        type: u4
      - id: size
        type: u4
  hello:
    seq:
      - id: abi_version
        type: u4
      - id: posted_regions
        type: u4
      - id: regions
        type: u4
      - id: flags
        type: u4
        doc: "Bits: 0x1 ISOLATED"
  client_connected:
    seq:
      - id: generation
        type: u4
      - id: major
        type: u2
      - id: minor
        type: u2
      - id: max_data_xfer_size
        type: u4
      - id: max_message_fds
        type: u4
  client_gone:
    seq:
      - id: generation
        type: u4
      - id: reserved
        size: 4
  allocate_memory:
    seq:
      - id: region
        type: u4
      - id: areas
        type: u4
  memory_area:
    seq:
      - id: offset
        type: u8
      - id: size
        type: u8
  memory_allocated:
    seq:
      - id: handle
        type: u4
      - id: reserved
        size: 4
  allocate_events:
    seq:
      - id: region
        type: u4
      - id: count
        type: u4
  io_event:
    seq:
      - id: handle
        type: u4
      - id: reserved
        size: 4
  share_registers:
    seq:
      - id: address
        type: u8
      - id: size
        type: u4
      - id: areas
        type: u4
  register_area:
    seq:
      - id: region
        type: u4
      - id: offset
        type: u4
      - id: size
        type: u4
      - id: place
        type: u4
  inspect:
    seq:
      - id: max_size
        type: u4
      - id: reserved
        size: 4
  unknown_data:
    seq:
      - id: data
        size-eos: true
  dma_map_request:
    seq:
      - id: map
        type: dma_map
      - id: end
        size: 0
        valid:
          expr: _io.eof
  empty:
    seq:
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_get_region_info_request:
    seq:
      - id: info
        type: region_info
  device_get_region_info_reply:
    seq:
      - id: info
        type: region_info
    instances:
      first_capability:
        if: (info.flags & 8) != 0 and info.cap_offset != 0
        pos: info.cap_offset
        type: capability
  capability:
    seq:
      - id: header
        type: region_cap_header
      - id: body
        type:
          switch-on: header.id
          cases:
            "1": sparse_mmap_capability
            "2": region_type
    instances:
      next_capability:
        if: header.next != 0
        pos: header.next
        type: capability
  sparse_mmap_capability:
    seq:
      - id: sparse
        type: sparse_mmap
      - id: areas
        type: sparse_mmap_area
        repeat: expr
        repeat-expr: sparse.areas
  device_get_region_io_fds_request:
    seq:
      - id: info
        type: region_io_fds
  device_get_region_io_fds_reply:
    seq:
      - id: info
        type: region_io_fds
      - id: sub_regions
        type: io_event_fd
        repeat: eos
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_set_irqs_request:
    seq:
      - id: set
        type: irq_set
      - id: values
        type:
          switch-on: set.flags & 0x7
          cases:
            "1": device_set_irqs_none
            "2": device_set_irqs_bool
            "4": device_set_irqs_doorbells
            _: unknown_data
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_set_irqs_none:
    seq:
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_set_irqs_bool:
    seq:
      - id: values
        size-eos: true
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_set_irqs_doorbells:
    seq:
      - id: doorbells
        type: u4
        repeat: eos
      - id: end
        size: 0
        valid:
          expr: _io.eof
  dma_unmap_request:
    seq:
      - id: unmap
        type: dma_unmap
      - id: bitmap
        if: not _io.eof
        type: bitmap
      - id: end
        size: 0
        valid:
          expr: _io.eof
  dma_unmap_reply:
    seq:
      - id: unmap
        if: not _io.eof
        type: dma_unmap
      - id: bitmap
        if: not _io.eof
        type: bitmap
      - id: dirty
        if: not _io.eof
        size-eos: true
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_get_info_request:
    seq:
      - id: info
        type: device_info
  device_get_info_reply:
    seq:
      - id: info
        type: device_info
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_get_irq_info_request:
    seq:
      - id: info
        type: irq_info
  device_get_irq_info_reply:
    seq:
      - id: info
        type: irq_info
      - id: end
        size: 0
        valid:
          expr: _io.eof
  region_read_request:
    seq:
      - id: access
        type: region_access
      - id: end
        size: 0
        valid:
          expr: _io.eof
  region_read_reply:
    seq:
      - id: access
        type: region_access
      - id: data
        size: access.count
      - id: end
        size: 0
        valid:
          expr: _io.eof
  region_write_request:
    seq:
      - id: access
        type: region_access
      - id: data
        size: access.count
      - id: end
        size: 0
        valid:
          expr: _io.eof
  region_write_reply:
    seq:
      - id: access
        type: region_access
      - id: end
        size: 0
        valid:
          expr: _io.eof
  dma_read_request:
    seq:
      - id: access
        type: dma_access
      - id: end
        size: 0
        valid:
          expr: _io.eof
  dma_read_reply:
    seq:
      - id: access
        type: dma_access
      - id: data
        size: access.count
      - id: end
        size: 0
        valid:
          expr: _io.eof
  dma_write_request:
    seq:
      - id: access
        type: dma_access
      - id: data
        size: access.count
      - id: end
        size: 0
        valid:
          expr: _io.eof
  dma_write_reply:
    seq:
      - id: access
        type: dma_access
      - id: end
        size: 0
        valid:
          expr: _io.eof
  region_write_multi_request:
    seq:
      - id: multi
        type: write_multi
      - id: entries
        type: write_multi_entry
        repeat: expr
        repeat-expr: multi.writes
      - id: end
        size: 0
        valid:
          expr: _io.eof
  region_write_multi_reply:
    seq:
      - id: multi
        type: write_multi
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_feature_request:
    seq:
      - id: head
        type: device_feature
      - id: data
        type:
          switch-on: head.flags & 0xffff
          cases:
            "1": device_feature_request_migration
            "2": device_feature_request_mig_device_state
            "6": device_feature_request_dma_logging_start
            "7": device_feature_request_dma_logging_stop
            "8": device_feature_request_dma_logging_report
            _: unknown_data
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_feature_request_migration:
    seq:
      - id: migration
        if: not _io.eof
        type: feature_migration
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_feature_request_mig_device_state:
    seq:
      - id: state
        if: not _io.eof
        type: feature_mig_device_state
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_feature_request_dma_logging_start:
    seq:
      - id: control
        if: not _io.eof
        type: dma_logging_control
      - id: ranges
        if: not _io.eof
        type: dma_logging_range
        repeat: eos
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_feature_request_dma_logging_stop:
    seq:
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_feature_request_dma_logging_report:
    seq:
      - id: report
        if: not _io.eof
        type: dma_logging_report
      - id: bitmap
        if: not _io.eof
        size-eos: true
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_feature_reply:
    seq:
      - id: head
        type: device_feature
      - id: data
        type:
          switch-on: head.flags & 0xffff
          cases:
            "1": device_feature_reply_migration
            "2": device_feature_reply_mig_device_state
            "6": device_feature_reply_dma_logging_start
            "7": device_feature_reply_dma_logging_stop
            "8": device_feature_reply_dma_logging_report
            _: unknown_data
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_feature_reply_migration:
    seq:
      - id: migration
        if: not _io.eof
        type: feature_migration
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_feature_reply_mig_device_state:
    seq:
      - id: state
        if: not _io.eof
        type: feature_mig_device_state
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_feature_reply_dma_logging_start:
    seq:
      - id: control
        if: not _io.eof
        type: dma_logging_control
      - id: ranges
        if: not _io.eof
        type: dma_logging_range
        repeat: eos
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_feature_reply_dma_logging_stop:
    seq:
      - id: end
        size: 0
        valid:
          expr: _io.eof
  device_feature_reply_dma_logging_report:
    seq:
      - id: report
        if: not _io.eof
        type: dma_logging_report
      - id: bitmap
        if: not _io.eof
        size-eos: true
      - id: end
        size: 0
        valid:
          expr: _io.eof
  mig_data_read_request:
    seq:
      - id: data
        type: mig_data
      - id: end
        size: 0
        valid:
          expr: _io.eof
  mig_data_read_reply:
    seq:
      - id: data
        type: mig_data
      - id: bytes
        size: data.size
      - id: end
        size: 0
        valid:
          expr: _io.eof
  mig_data_write_request:
    seq:
      - id: data
        type: mig_data
      - id: bytes
        size: data.size
      - id: end
        size: 0
        valid:
          expr: _io.eof
  mig_data_write_reply:
    seq:
      - id: data
        if: not _io.eof
        type: mig_data
      - id: end
        size: 0
        valid:
          expr: _io.eof
  hello_request:
    seq:
      - id: hello
        type: hello
      - id: region_sizes
        type: u8
        repeat: expr
        repeat-expr: hello.regions
      - id: irq_counts
        type: u4
        repeat: expr
        repeat-expr: 5
      - id: end
        size: 0
        valid:
          expr: _io.eof
  client_connected_request:
    seq:
      - id: client
        type: client_connected
      - id: end
        size: 0
        valid:
          expr: _io.eof
  client_gone_request:
    seq:
      - id: client
        type: client_gone
      - id: end
        size: 0
        valid:
          expr: _io.eof
  allocate_memory_request:
    seq:
      - id: memory
        type: allocate_memory
      - id: areas
        type: memory_area
        repeat: expr
        repeat-expr: memory.areas
      - id: end
        size: 0
        valid:
          expr: _io.eof
  allocate_memory_reply:
    seq:
      - id: memory
        type: memory_allocated
      - id: window_offsets
        type: u8
        repeat: eos
      - id: end
        size: 0
        valid:
          expr: _io.eof
  allocate_events_request:
    seq:
      - id: events
        type: allocate_events
      - id: end
        size: 0
        valid:
          expr: _io.eof
  allocate_events_reply:
    seq:
      - id: handles
        type: u4
        repeat: eos
      - id: end
        size: 0
        valid:
          expr: _io.eof
  io_event_request:
    seq:
      - id: event
        type: io_event
      - id: end
        size: 0
        valid:
          expr: _io.eof
  share_registers_request:
    seq:
      - id: registers
        type: share_registers
      - id: areas
        type: register_area
        repeat: expr
        repeat-expr: registers.areas
      - id: end
        size: 0
        valid:
          expr: _io.eof
  inspect_request:
    seq:
      - id: wanted
        type: inspect
      - id: end
        size: 0
        valid:
          expr: _io.eof
  inspect_reply:
    seq:
      - id: json
        size-eos: true
      - id: end
        size: 0
        valid:
          expr: _io.eof
enums:
  command:
    "2": dma_map
    "3": dma_unmap
    "4": device_get_info
    "5": device_get_region_info
    "6": device_get_region_io_fds
    "7": device_get_irq_info
    "8": device_set_irqs
    "9": region_read
    "10": region_write
    "11": dma_read
    "12": dma_write
    "13": device_reset
    "15": region_write_multi
    "16": device_feature
    "17": mig_data_read
    "18": mig_data_write
    "257": hello
    "258": client_connected
    "259": client_gone
    "260": quiesce
    "261": allocate_memory
    "262": allocate_events
    "263": io_event
    "264": share_registers
    "265": inspect
  region_info_index:
    "0": bar0
    "1": bar1
    "2": bar2
    "3": bar3
    "4": bar4
    "5": bar5
    "6": rom
    "7": config
    "8": vga
  region_cap_header_id:
    "1": sparse_mmap
    "2": type
  region_io_fds_index:
    "0": bar0
    "1": bar1
    "2": bar2
    "3": bar3
    "4": bar4
    "5": bar5
    "6": rom
    "7": config
    "8": vga
  io_event_fd_type:
    "0": ioeventfd
    "1": ioregionfd
    "2": ioeventfd_shadow
  irq_info_index:
    "0": intx
    "1": msi
    "2": msix
    "3": err
    "4": req
  irq_set_index:
    "0": intx
    "1": msi
    "2": msix
    "3": err
    "4": req
  region_access_region:
    "0": bar0
    "1": bar1
    "2": bar2
    "3": bar3
    "4": bar4
    "5": bar5
    "6": rom
    "7": config
    "8": vga
  write_multi_entry_region:
    "0": bar0
    "1": bar1
    "2": bar2
    "3": bar3
    "4": bar4
    "5": bar5
    "6": rom
    "7": config
    "8": vga
  feature_mig_device_state_device_state:
    "0": error
    "1": stop
    "2": running
    "3": stop_copy
    "4": resuming
    "5": running_p2p
    "6": pre_copy
    "7": pre_copy_p2p
