-- A Wireshark dissector for recorded messages of vfio-user and virtio-vfio-user. Copy it into Wireshark's folder of
-- personal Lua plugins, or name it: tshark -X lua_script:vfio-user.lua -r FILE
--
-- Made by `npm run protocol` from shared/spec: not to be edited.

local protocols = {}
protocols[#protocols + 1] = {
  id = "vfio_user",
  title = "vfio-user",
  structs = {
    header = {
      size = 16,
      fields = {
        { name = "id", size = 2 },
        {
          name = "command",
          size = 2,
          values = {
            [1] = "version",
            [2] = "dma_map",
            [5] = "device_get_region_info",
            [6] = "device_get_region_io_fds",
            [8] = "device_set_irqs",
            [3] = "dma_unmap",
            [4] = "device_get_info",
            [7] = "device_get_irq_info",
            [9] = "region_read",
            [10] = "region_write",
            [11] = "dma_read",
            [12] = "dma_write",
            [13] = "device_reset",
            [15] = "region_write_multi",
            [16] = "device_feature",
            [17] = "mig_data_read",
            [18] = "mig_data_write",
          },
        },
        { name = "size", size = 4 },
        { name = "flags", size = 4, bits = { no_reply = 16, error = 32 } },
        { name = "errno", size = 4 },
      },
    },
    version = { size = 4, fields = { { name = "major", size = 2 }, { name = "minor", size = 2 } } },
    dma_map = {
      size = 32,
      fields = {
        { name = "argsz", size = 4 },
        { name = "flags", size = 4, bits = { read = 1, write = 2, mmap = 4, file_io = 8 } },
        { name = "offset", size = 8 },
        { name = "address", size = 8 },
        { name = "size", size = 8 },
      },
    },
    dma_unmap = {
      size = 24,
      fields = {
        { name = "argsz", size = 4 },
        { name = "flags", size = 4, bits = { get_dirty_bitmap = 1, all = 2 } },
        { name = "address", size = 8 },
        { name = "size", size = 8 },
      },
    },
    bitmap = { size = 16, fields = { { name = "page_size", size = 8 }, { name = "size", size = 8 } } },
    device_info = {
      size = 16,
      fields = {
        { name = "argsz", size = 4 },
        { name = "flags", size = 4, bits = { reset = 1, pci = 2 } },
        { name = "num_regions", size = 4 },
        { name = "num_irqs", size = 4 },
      },
    },
    region_info = {
      size = 32,
      fields = {
        { name = "argsz", size = 4 },
        { name = "flags", size = 4, bits = { read = 1, write = 2, mmap = 4, caps = 8 } },
        {
          name = "index",
          size = 4,
          values = {
            [0] = "bar0",
            [1] = "bar1",
            [2] = "bar2",
            [3] = "bar3",
            [4] = "bar4",
            [5] = "bar5",
            [6] = "rom",
            [7] = "config",
            [8] = "vga",
          },
        },
        { name = "cap_offset", size = 4 },
        { name = "size", size = 8 },
        { name = "offset", size = 8 },
      },
    },
    region_cap_header = {
      size = 8,
      fields = {
        { name = "id", size = 2, values = { [1] = "sparse_mmap", [2] = "type" } },
        { name = "version", size = 2 },
        { name = "next", size = 4 },
      },
    },
    sparse_mmap = { size = 8, fields = { { name = "areas", size = 4 }, { name = "reserved", bytes = 4 } } },
    sparse_mmap_area = { size = 16, fields = { { name = "offset", size = 8 }, { name = "size", size = 8 } } },
    region_type = { size = 8, fields = { { name = "type", size = 4 }, { name = "subtype", size = 4 } } },
    region_io_fds = {
      size = 16,
      fields = {
        { name = "argsz", size = 4 },
        { name = "flags", size = 4 },
        {
          name = "index",
          size = 4,
          values = {
            [0] = "bar0",
            [1] = "bar1",
            [2] = "bar2",
            [3] = "bar3",
            [4] = "bar4",
            [5] = "bar5",
            [6] = "rom",
            [7] = "config",
            [8] = "vga",
          },
        },
        { name = "count", size = 4 },
      },
    },
    io_event_fd = {
      size = 48,
      fields = {
        { name = "gpa_offset", size = 8 },
        { name = "size", size = 8 },
        { name = "fd_index", size = 4 },
        {
          name = "type",
          size = 4,
          values = { [0] = "ioeventfd", [1] = "ioregionfd", [2] = "ioeventfd_shadow" },
        },
        { name = "flags", size = 4, bits = { datamatch = 1, pio = 2 } },
        { name = "shadow_mem_fd_index", size = 4 },
        { name = "shadow_offset", size = 8 },
        { name = "data_match", size = 8 },
      },
    },
    irq_info = {
      size = 16,
      fields = {
        { name = "argsz", size = 4 },
        {
          name = "flags",
          size = 4,
          bits = { eventfd = 1, maskable = 2, automasked = 4, noresize = 8 },
        },
        {
          name = "index",
          size = 4,
          values = { [0] = "intx", [1] = "msi", [2] = "msix", [3] = "err", [4] = "req" },
        },
        { name = "count", size = 4 },
      },
    },
    irq_set = {
      size = 20,
      fields = {
        { name = "argsz", size = 4 },
        {
          name = "flags",
          size = 4,
          bits = {
            data_none = 1,
            data_bool = 2,
            data_eventfd = 4,
            action_mask = 8,
            action_unmask = 16,
            action_trigger = 32,
          },
        },
        {
          name = "index",
          size = 4,
          values = { [0] = "intx", [1] = "msi", [2] = "msix", [3] = "err", [4] = "req" },
        },
        { name = "start", size = 4 },
        { name = "count", size = 4 },
      },
    },
    region_access = {
      size = 16,
      fields = {
        { name = "offset", size = 8 },
        {
          name = "region",
          size = 4,
          values = {
            [0] = "bar0",
            [1] = "bar1",
            [2] = "bar2",
            [3] = "bar3",
            [4] = "bar4",
            [5] = "bar5",
            [6] = "rom",
            [7] = "config",
            [8] = "vga",
          },
        },
        { name = "count", size = 4 },
      },
    },
    dma_access = { size = 16, fields = { { name = "address", size = 8 }, { name = "count", size = 8 } } },
    write_multi = { size = 8, fields = { { name = "writes", size = 8 } } },
    write_multi_entry = {
      size = 24,
      fields = {
        { name = "offset", size = 8 },
        {
          name = "region",
          size = 4,
          values = {
            [0] = "bar0",
            [1] = "bar1",
            [2] = "bar2",
            [3] = "bar3",
            [4] = "bar4",
            [5] = "bar5",
            [6] = "rom",
            [7] = "config",
            [8] = "vga",
          },
        },
        { name = "count", size = 4 },
        { name = "data", bytes = 8 },
      },
    },
    device_feature = {
      size = 8,
      fields = {
        { name = "argsz", size = 4 },
        { name = "flags", size = 4, bits = { get = 65536, set = 131072, probe = 262144 } },
      },
    },
    feature_migration = {
      size = 8,
      fields = { { name = "flags", size = 8, bits = { stop_copy = 1, p2p = 2, pre_copy = 4 } } },
    },
    feature_mig_device_state = {
      size = 8,
      fields = {
        {
          name = "device_state",
          size = 4,
          values = {
            [0] = "error",
            [1] = "stop",
            [2] = "running",
            [3] = "stop_copy",
            [4] = "resuming",
            [5] = "running_p2p",
            [6] = "pre_copy",
            [7] = "pre_copy_p2p",
          },
        },
        { name = "data_fd", size = 4 },
      },
    },
    dma_logging_control = {
      size = 16,
      fields = {
        { name = "page_size", size = 8 },
        { name = "num_ranges", size = 4 },
        { name = "reserved", bytes = 4 },
      },
    },
    dma_logging_range = { size = 16, fields = { { name = "iova", size = 8 }, { name = "length", size = 8 } } },
    dma_logging_report = {
      size = 24,
      fields = {
        { name = "iova", size = 8 },
        { name = "length", size = 8 },
        { name = "page_size", size = 8 },
      },
    },
    mig_data = { size = 8, fields = { { name = "argsz", size = 4 }, { name = "size", size = 4 } } },
  },
  messages = {
    [1] = {
      name = "version",
      request = {
        parts = {
          { kind = "struct", name = "version", struct = "version" },
          { kind = "text", name = "capabilities" },
        },
      },
      reply = {
        parts = {
          { kind = "struct", name = "version", struct = "version" },
          { kind = "text", name = "capabilities" },
        },
      },
    },
    [2] = {
      name = "dma_map",
      request = { parts = { { kind = "struct", name = "map", struct = "dma_map" } } },
      reply = { parts = {} },
    },
    [5] = {
      name = "device_get_region_info",
      request = { parts = { { kind = "struct", name = "info", struct = "region_info" } }, padded = true },
      reply = {
        parts = {
          { kind = "struct", name = "info", struct = "region_info" },
          {
            kind = "capabilities",
            name = "capabilities",
            of = "info",
            flag = 8,
            struct = "region_info",
          },
        },
      },
    },
    [6] = {
      name = "device_get_region_io_fds",
      request = { parts = { { kind = "struct", name = "info", struct = "region_io_fds" } }, padded = true },
      reply = {
        parts = {
          { kind = "struct", name = "info", struct = "region_io_fds" },
          { kind = "structs", name = "sub_regions", struct = "io_event_fd", count = "rest" },
        },
      },
    },
    [8] = {
      name = "device_set_irqs",
      request = {
        parts = {
          { kind = "struct", name = "set", struct = "irq_set" },
          { kind = "bytes", name = "values", count = "rest" },
        },
      },
      reply = { parts = {} },
    },
    [3] = {
      name = "dma_unmap",
      request = {
        parts = {
          { kind = "struct", name = "unmap", struct = "dma_unmap" },
          { kind = "struct", name = "bitmap", struct = "bitmap", optional = true },
        },
      },
      reply = {
        parts = {
          { kind = "struct", name = "unmap", struct = "dma_unmap", optional = true },
          { kind = "struct", name = "bitmap", struct = "bitmap", optional = true },
          { kind = "bytes", name = "dirty", count = "rest" },
        },
      },
    },
    [4] = {
      name = "device_get_info",
      request = { parts = { { kind = "struct", name = "info", struct = "device_info" } }, padded = true },
      reply = { parts = { { kind = "struct", name = "info", struct = "device_info" } } },
    },
    [7] = {
      name = "device_get_irq_info",
      request = { parts = { { kind = "struct", name = "info", struct = "irq_info" } }, padded = true },
      reply = { parts = { { kind = "struct", name = "info", struct = "irq_info" } } },
    },
    [9] = {
      name = "region_read",
      request = { parts = { { kind = "struct", name = "access", struct = "region_access" } } },
      reply = {
        parts = {
          { kind = "struct", name = "access", struct = "region_access" },
          { kind = "bytes", name = "data", count = { "access", "count" } },
        },
      },
    },
    [10] = {
      name = "region_write",
      request = {
        parts = {
          { kind = "struct", name = "access", struct = "region_access" },
          { kind = "bytes", name = "data", count = { "access", "count" } },
        },
      },
      reply = { parts = { { kind = "struct", name = "access", struct = "region_access" } } },
    },
    [11] = {
      name = "dma_read",
      request = { parts = { { kind = "struct", name = "access", struct = "dma_access" } } },
      reply = {
        parts = {
          { kind = "struct", name = "access", struct = "dma_access" },
          { kind = "bytes", name = "data", count = { "access", "count" } },
        },
      },
    },
    [12] = {
      name = "dma_write",
      request = {
        parts = {
          { kind = "struct", name = "access", struct = "dma_access" },
          { kind = "bytes", name = "data", count = { "access", "count" } },
        },
      },
      reply = { parts = { { kind = "struct", name = "access", struct = "dma_access" } } },
    },
    [13] = { name = "device_reset", request = { parts = {} }, reply = { parts = {} } },
    [15] = {
      name = "region_write_multi",
      request = {
        parts = {
          { kind = "struct", name = "multi", struct = "write_multi" },
          {
            kind = "structs",
            name = "entries",
            struct = "write_multi_entry",
            count = { "multi", "writes" },
          },
        },
      },
      reply = { parts = { { kind = "struct", name = "multi", struct = "write_multi" } } },
    },
    [16] = {
      name = "device_feature",
      request = {
        parts = {
          { kind = "struct", name = "head", struct = "device_feature" },
          {
            kind = "choice",
            name = "data",
            of = "head",
            field = "flags",
            mask = 65535,
            bodies = {
              [1] = {
                parts = {
                  {
                    kind = "struct",
                    name = "migration",
                    struct = "feature_migration",
                    optional = true,
                  },
                },
              },
              [2] = {
                parts = {
                  {
                    kind = "struct",
                    name = "state",
                    struct = "feature_mig_device_state",
                    optional = true,
                  },
                },
              },
              [6] = {
                parts = {
                  {
                    kind = "struct",
                    name = "control",
                    struct = "dma_logging_control",
                    optional = true,
                  },
                  {
                    kind = "structs",
                    name = "ranges",
                    struct = "dma_logging_range",
                    count = "rest",
                  },
                },
              },
              [7] = { parts = {} },
              [8] = {
                parts = {
                  {
                    kind = "struct",
                    name = "report",
                    struct = "dma_logging_report",
                    optional = true,
                  },
                  { kind = "bytes", name = "bitmap", count = "rest" },
                },
              },
            },
          },
        },
      },
      reply = {
        parts = {
          { kind = "struct", name = "head", struct = "device_feature" },
          {
            kind = "choice",
            name = "data",
            of = "head",
            field = "flags",
            mask = 65535,
            bodies = {
              [1] = {
                parts = {
                  {
                    kind = "struct",
                    name = "migration",
                    struct = "feature_migration",
                    optional = true,
                  },
                },
              },
              [2] = {
                parts = {
                  {
                    kind = "struct",
                    name = "state",
                    struct = "feature_mig_device_state",
                    optional = true,
                  },
                },
              },
              [6] = {
                parts = {
                  {
                    kind = "struct",
                    name = "control",
                    struct = "dma_logging_control",
                    optional = true,
                  },
                  {
                    kind = "structs",
                    name = "ranges",
                    struct = "dma_logging_range",
                    count = "rest",
                  },
                },
              },
              [7] = { parts = {} },
              [8] = {
                parts = {
                  {
                    kind = "struct",
                    name = "report",
                    struct = "dma_logging_report",
                    optional = true,
                  },
                  { kind = "bytes", name = "bitmap", count = "rest" },
                },
              },
            },
          },
        },
      },
    },
    [17] = {
      name = "mig_data_read",
      request = { parts = { { kind = "struct", name = "data", struct = "mig_data" } } },
      reply = {
        parts = {
          { kind = "struct", name = "data", struct = "mig_data" },
          { kind = "bytes", name = "bytes", count = { "data", "size" } },
        },
      },
    },
    [18] = {
      name = "mig_data_write",
      request = {
        parts = {
          { kind = "struct", name = "data", struct = "mig_data" },
          { kind = "bytes", name = "bytes", count = { "data", "size" } },
        },
      },
      reply = { parts = { { kind = "struct", name = "data", struct = "mig_data", optional = true } } },
    },
  },
}
protocols[#protocols + 1] = {
  id = "virtio_vfio_user",
  title = "virtio-vfio-user",
  structs = {
    header = {
      size = 16,
      fields = {
        { name = "id", size = 2 },
        {
          name = "command",
          size = 2,
          values = {
            [2] = "dma_map",
            [5] = "device_get_region_info",
            [6] = "device_get_region_io_fds",
            [8] = "device_set_irqs",
            [3] = "dma_unmap",
            [4] = "device_get_info",
            [7] = "device_get_irq_info",
            [9] = "region_read",
            [10] = "region_write",
            [11] = "dma_read",
            [12] = "dma_write",
            [13] = "device_reset",
            [15] = "region_write_multi",
            [16] = "device_feature",
            [17] = "mig_data_read",
            [18] = "mig_data_write",
            [257] = "hello",
            [258] = "client_connected",
            [259] = "client_gone",
            [260] = "quiesce",
            [261] = "allocate_memory",
            [262] = "allocate_events",
            [263] = "io_event",
            [264] = "share_registers",
            [265] = "inspect",
          },
        },
        { name = "size", size = 4 },
        { name = "flags", size = 4, bits = { no_reply = 16, error = 32 } },
        { name = "errno", size = 4 },
      },
    },
    dma_map = {
      size = 32,
      fields = {
        { name = "argsz", size = 4 },
        { name = "flags", size = 4, bits = { read = 1, write = 2, mmap = 4, file_io = 8 } },
        { name = "offset", size = 8 },
        { name = "address", size = 8 },
        { name = "size", size = 8 },
      },
    },
    dma_unmap = {
      size = 24,
      fields = {
        { name = "argsz", size = 4 },
        { name = "flags", size = 4, bits = { get_dirty_bitmap = 1, all = 2 } },
        { name = "address", size = 8 },
        { name = "size", size = 8 },
      },
    },
    bitmap = { size = 16, fields = { { name = "page_size", size = 8 }, { name = "size", size = 8 } } },
    device_info = {
      size = 16,
      fields = {
        { name = "argsz", size = 4 },
        { name = "flags", size = 4, bits = { reset = 1, pci = 2 } },
        { name = "num_regions", size = 4 },
        { name = "num_irqs", size = 4 },
      },
    },
    region_info = {
      size = 32,
      fields = {
        { name = "argsz", size = 4 },
        { name = "flags", size = 4, bits = { read = 1, write = 2, mmap = 4, caps = 8 } },
        {
          name = "index",
          size = 4,
          values = {
            [0] = "bar0",
            [1] = "bar1",
            [2] = "bar2",
            [3] = "bar3",
            [4] = "bar4",
            [5] = "bar5",
            [6] = "rom",
            [7] = "config",
            [8] = "vga",
          },
        },
        { name = "cap_offset", size = 4 },
        { name = "size", size = 8 },
        { name = "offset", size = 8 },
      },
    },
    region_cap_header = {
      size = 8,
      fields = {
        { name = "id", size = 2, values = { [1] = "sparse_mmap", [2] = "type" } },
        { name = "version", size = 2 },
        { name = "next", size = 4 },
      },
    },
    sparse_mmap = { size = 8, fields = { { name = "areas", size = 4 }, { name = "reserved", bytes = 4 } } },
    sparse_mmap_area = { size = 16, fields = { { name = "offset", size = 8 }, { name = "size", size = 8 } } },
    region_type = { size = 8, fields = { { name = "type", size = 4 }, { name = "subtype", size = 4 } } },
    region_io_fds = {
      size = 16,
      fields = {
        { name = "argsz", size = 4 },
        { name = "flags", size = 4 },
        {
          name = "index",
          size = 4,
          values = {
            [0] = "bar0",
            [1] = "bar1",
            [2] = "bar2",
            [3] = "bar3",
            [4] = "bar4",
            [5] = "bar5",
            [6] = "rom",
            [7] = "config",
            [8] = "vga",
          },
        },
        { name = "count", size = 4 },
      },
    },
    io_event_fd = {
      size = 48,
      fields = {
        { name = "gpa_offset", size = 8 },
        { name = "size", size = 8 },
        { name = "fd_index", size = 4 },
        {
          name = "type",
          size = 4,
          values = { [0] = "ioeventfd", [1] = "ioregionfd", [2] = "ioeventfd_shadow" },
        },
        { name = "flags", size = 4, bits = { datamatch = 1, pio = 2 } },
        { name = "shadow_mem_fd_index", size = 4 },
        { name = "shadow_offset", size = 8 },
        { name = "data_match", size = 8 },
      },
    },
    irq_info = {
      size = 16,
      fields = {
        { name = "argsz", size = 4 },
        {
          name = "flags",
          size = 4,
          bits = { eventfd = 1, maskable = 2, automasked = 4, noresize = 8 },
        },
        {
          name = "index",
          size = 4,
          values = { [0] = "intx", [1] = "msi", [2] = "msix", [3] = "err", [4] = "req" },
        },
        { name = "count", size = 4 },
      },
    },
    irq_set = {
      size = 20,
      fields = {
        { name = "argsz", size = 4 },
        {
          name = "flags",
          size = 4,
          bits = {
            data_none = 1,
            data_bool = 2,
            data_eventfd = 4,
            action_mask = 8,
            action_unmask = 16,
            action_trigger = 32,
          },
        },
        {
          name = "index",
          size = 4,
          values = { [0] = "intx", [1] = "msi", [2] = "msix", [3] = "err", [4] = "req" },
        },
        { name = "start", size = 4 },
        { name = "count", size = 4 },
      },
    },
    region_access = {
      size = 16,
      fields = {
        { name = "offset", size = 8 },
        {
          name = "region",
          size = 4,
          values = {
            [0] = "bar0",
            [1] = "bar1",
            [2] = "bar2",
            [3] = "bar3",
            [4] = "bar4",
            [5] = "bar5",
            [6] = "rom",
            [7] = "config",
            [8] = "vga",
          },
        },
        { name = "count", size = 4 },
      },
    },
    dma_access = { size = 16, fields = { { name = "address", size = 8 }, { name = "count", size = 8 } } },
    write_multi = { size = 8, fields = { { name = "writes", size = 8 } } },
    write_multi_entry = {
      size = 24,
      fields = {
        { name = "offset", size = 8 },
        {
          name = "region",
          size = 4,
          values = {
            [0] = "bar0",
            [1] = "bar1",
            [2] = "bar2",
            [3] = "bar3",
            [4] = "bar4",
            [5] = "bar5",
            [6] = "rom",
            [7] = "config",
            [8] = "vga",
          },
        },
        { name = "count", size = 4 },
        { name = "data", bytes = 8 },
      },
    },
    device_feature = {
      size = 8,
      fields = {
        { name = "argsz", size = 4 },
        { name = "flags", size = 4, bits = { get = 65536, set = 131072, probe = 262144 } },
      },
    },
    feature_migration = {
      size = 8,
      fields = { { name = "flags", size = 8, bits = { stop_copy = 1, p2p = 2, pre_copy = 4 } } },
    },
    feature_mig_device_state = {
      size = 8,
      fields = {
        {
          name = "device_state",
          size = 4,
          values = {
            [0] = "error",
            [1] = "stop",
            [2] = "running",
            [3] = "stop_copy",
            [4] = "resuming",
            [5] = "running_p2p",
            [6] = "pre_copy",
            [7] = "pre_copy_p2p",
          },
        },
        { name = "data_fd", size = 4 },
      },
    },
    dma_logging_control = {
      size = 16,
      fields = {
        { name = "page_size", size = 8 },
        { name = "num_ranges", size = 4 },
        { name = "reserved", bytes = 4 },
      },
    },
    dma_logging_range = { size = 16, fields = { { name = "iova", size = 8 }, { name = "length", size = 8 } } },
    dma_logging_report = {
      size = 24,
      fields = {
        { name = "iova", size = 8 },
        { name = "length", size = 8 },
        { name = "page_size", size = 8 },
      },
    },
    mig_data = { size = 8, fields = { { name = "argsz", size = 4 }, { name = "size", size = 4 } } },
    hello = {
      size = 16,
      fields = {
        { name = "abi_version", size = 4 },
        { name = "posted_regions", size = 4 },
        { name = "regions", size = 4 },
        { name = "flags", size = 4, bits = { isolated = 1 } },
      },
    },
    client_connected = {
      size = 16,
      fields = {
        { name = "generation", size = 4 },
        { name = "major", size = 2 },
        { name = "minor", size = 2 },
        { name = "max_data_xfer_size", size = 4 },
        { name = "max_message_fds", size = 4 },
      },
    },
    client_gone = { size = 8, fields = { { name = "generation", size = 4 }, { name = "reserved", bytes = 4 } } },
    allocate_memory = { size = 8, fields = { { name = "region", size = 4 }, { name = "areas", size = 4 } } },
    memory_area = { size = 16, fields = { { name = "offset", size = 8 }, { name = "size", size = 8 } } },
    memory_allocated = { size = 8, fields = { { name = "handle", size = 4 }, { name = "reserved", bytes = 4 } } },
    allocate_events = { size = 8, fields = { { name = "region", size = 4 }, { name = "count", size = 4 } } },
    io_event = { size = 8, fields = { { name = "handle", size = 4 }, { name = "reserved", bytes = 4 } } },
    share_registers = {
      size = 16,
      fields = { { name = "address", size = 8 }, { name = "size", size = 4 }, { name = "areas", size = 4 } },
    },
    register_area = {
      size = 16,
      fields = {
        { name = "region", size = 4 },
        { name = "offset", size = 4 },
        { name = "size", size = 4 },
        { name = "place", size = 4 },
      },
    },
    inspect = { size = 8, fields = { { name = "max_size", size = 4 }, { name = "reserved", bytes = 4 } } },
  },
  messages = {
    [2] = {
      name = "dma_map",
      request = { parts = { { kind = "struct", name = "map", struct = "dma_map" } } },
      reply = { parts = {} },
    },
    [5] = {
      name = "device_get_region_info",
      request = { parts = { { kind = "struct", name = "info", struct = "region_info" } }, padded = true },
      reply = {
        parts = {
          { kind = "struct", name = "info", struct = "region_info" },
          {
            kind = "capabilities",
            name = "capabilities",
            of = "info",
            flag = 8,
            struct = "region_info",
          },
        },
      },
      handles = true,
    },
    [6] = {
      name = "device_get_region_io_fds",
      request = { parts = { { kind = "struct", name = "info", struct = "region_io_fds" } }, padded = true },
      reply = {
        parts = {
          { kind = "struct", name = "info", struct = "region_io_fds" },
          { kind = "structs", name = "sub_regions", struct = "io_event_fd", count = "rest" },
        },
      },
      handles = true,
    },
    [8] = {
      name = "device_set_irqs",
      request = {
        parts = {
          { kind = "struct", name = "set", struct = "irq_set" },
          {
            kind = "choice",
            name = "values",
            of = "set",
            field = "flags",
            mask = 7,
            bodies = {
              [1] = { parts = {} },
              [2] = { parts = { { kind = "bytes", name = "values", count = "rest" } } },
              [4] = { parts = { { kind = "words", name = "doorbells", size = 4, count = "rest" } } },
            },
          },
        },
      },
      reply = { parts = {} },
    },
    [3] = {
      name = "dma_unmap",
      request = {
        parts = {
          { kind = "struct", name = "unmap", struct = "dma_unmap" },
          { kind = "struct", name = "bitmap", struct = "bitmap", optional = true },
        },
      },
      reply = {
        parts = {
          { kind = "struct", name = "unmap", struct = "dma_unmap", optional = true },
          { kind = "struct", name = "bitmap", struct = "bitmap", optional = true },
          { kind = "bytes", name = "dirty", count = "rest" },
        },
      },
    },
    [4] = {
      name = "device_get_info",
      request = { parts = { { kind = "struct", name = "info", struct = "device_info" } }, padded = true },
      reply = { parts = { { kind = "struct", name = "info", struct = "device_info" } } },
    },
    [7] = {
      name = "device_get_irq_info",
      request = { parts = { { kind = "struct", name = "info", struct = "irq_info" } }, padded = true },
      reply = { parts = { { kind = "struct", name = "info", struct = "irq_info" } } },
    },
    [9] = {
      name = "region_read",
      request = { parts = { { kind = "struct", name = "access", struct = "region_access" } } },
      reply = {
        parts = {
          { kind = "struct", name = "access", struct = "region_access" },
          { kind = "bytes", name = "data", count = { "access", "count" } },
        },
      },
    },
    [10] = {
      name = "region_write",
      request = {
        parts = {
          { kind = "struct", name = "access", struct = "region_access" },
          { kind = "bytes", name = "data", count = { "access", "count" } },
        },
      },
      reply = { parts = { { kind = "struct", name = "access", struct = "region_access" } } },
    },
    [11] = {
      name = "dma_read",
      request = { parts = { { kind = "struct", name = "access", struct = "dma_access" } } },
      reply = {
        parts = {
          { kind = "struct", name = "access", struct = "dma_access" },
          { kind = "bytes", name = "data", count = { "access", "count" } },
        },
      },
    },
    [12] = {
      name = "dma_write",
      request = {
        parts = {
          { kind = "struct", name = "access", struct = "dma_access" },
          { kind = "bytes", name = "data", count = { "access", "count" } },
        },
      },
      reply = { parts = { { kind = "struct", name = "access", struct = "dma_access" } } },
    },
    [13] = { name = "device_reset", request = { parts = {} }, reply = { parts = {} } },
    [15] = {
      name = "region_write_multi",
      request = {
        parts = {
          { kind = "struct", name = "multi", struct = "write_multi" },
          {
            kind = "structs",
            name = "entries",
            struct = "write_multi_entry",
            count = { "multi", "writes" },
          },
        },
      },
      reply = { parts = { { kind = "struct", name = "multi", struct = "write_multi" } } },
    },
    [16] = {
      name = "device_feature",
      request = {
        parts = {
          { kind = "struct", name = "head", struct = "device_feature" },
          {
            kind = "choice",
            name = "data",
            of = "head",
            field = "flags",
            mask = 65535,
            bodies = {
              [1] = {
                parts = {
                  {
                    kind = "struct",
                    name = "migration",
                    struct = "feature_migration",
                    optional = true,
                  },
                },
              },
              [2] = {
                parts = {
                  {
                    kind = "struct",
                    name = "state",
                    struct = "feature_mig_device_state",
                    optional = true,
                  },
                },
              },
              [6] = {
                parts = {
                  {
                    kind = "struct",
                    name = "control",
                    struct = "dma_logging_control",
                    optional = true,
                  },
                  {
                    kind = "structs",
                    name = "ranges",
                    struct = "dma_logging_range",
                    count = "rest",
                  },
                },
              },
              [7] = { parts = {} },
              [8] = {
                parts = {
                  {
                    kind = "struct",
                    name = "report",
                    struct = "dma_logging_report",
                    optional = true,
                  },
                  { kind = "bytes", name = "bitmap", count = "rest" },
                },
              },
            },
          },
        },
      },
      reply = {
        parts = {
          { kind = "struct", name = "head", struct = "device_feature" },
          {
            kind = "choice",
            name = "data",
            of = "head",
            field = "flags",
            mask = 65535,
            bodies = {
              [1] = {
                parts = {
                  {
                    kind = "struct",
                    name = "migration",
                    struct = "feature_migration",
                    optional = true,
                  },
                },
              },
              [2] = {
                parts = {
                  {
                    kind = "struct",
                    name = "state",
                    struct = "feature_mig_device_state",
                    optional = true,
                  },
                },
              },
              [6] = {
                parts = {
                  {
                    kind = "struct",
                    name = "control",
                    struct = "dma_logging_control",
                    optional = true,
                  },
                  {
                    kind = "structs",
                    name = "ranges",
                    struct = "dma_logging_range",
                    count = "rest",
                  },
                },
              },
              [7] = { parts = {} },
              [8] = {
                parts = {
                  {
                    kind = "struct",
                    name = "report",
                    struct = "dma_logging_report",
                    optional = true,
                  },
                  { kind = "bytes", name = "bitmap", count = "rest" },
                },
              },
            },
          },
        },
      },
    },
    [17] = {
      name = "mig_data_read",
      request = { parts = { { kind = "struct", name = "data", struct = "mig_data" } } },
      reply = {
        parts = {
          { kind = "struct", name = "data", struct = "mig_data" },
          { kind = "bytes", name = "bytes", count = { "data", "size" } },
        },
      },
    },
    [18] = {
      name = "mig_data_write",
      request = {
        parts = {
          { kind = "struct", name = "data", struct = "mig_data" },
          { kind = "bytes", name = "bytes", count = { "data", "size" } },
        },
      },
      reply = { parts = { { kind = "struct", name = "data", struct = "mig_data", optional = true } } },
    },
    [257] = {
      name = "hello",
      request = {
        parts = {
          { kind = "struct", name = "hello", struct = "hello" },
          { kind = "words", name = "region_sizes", size = 8, count = { "hello", "regions" } },
          { kind = "words", name = "irq_counts", size = 4, count = 5 },
        },
      },
      reply = { parts = {} },
    },
    [258] = {
      name = "client_connected",
      request = { parts = { { kind = "struct", name = "client", struct = "client_connected" } } },
      reply = { parts = {} },
    },
    [259] = {
      name = "client_gone",
      request = { parts = { { kind = "struct", name = "client", struct = "client_gone" } } },
      reply = { parts = {} },
    },
    [260] = { name = "quiesce", request = { parts = {} }, reply = { parts = {} } },
    [261] = {
      name = "allocate_memory",
      request = {
        parts = {
          { kind = "struct", name = "memory", struct = "allocate_memory" },
          {
            kind = "structs",
            name = "areas",
            struct = "memory_area",
            count = { "memory", "areas" },
          },
        },
      },
      reply = {
        parts = {
          { kind = "struct", name = "memory", struct = "memory_allocated" },
          { kind = "words", name = "window_offsets", size = 8, count = "rest" },
        },
      },
    },
    [262] = {
      name = "allocate_events",
      request = { parts = { { kind = "struct", name = "events", struct = "allocate_events" } } },
      reply = { parts = { { kind = "words", name = "handles", size = 4, count = "rest" } } },
    },
    [263] = {
      name = "io_event",
      request = { parts = { { kind = "struct", name = "event", struct = "io_event" } } },
      reply = { parts = {} },
    },
    [264] = {
      name = "share_registers",
      request = {
        parts = {
          { kind = "struct", name = "registers", struct = "share_registers" },
          {
            kind = "structs",
            name = "areas",
            struct = "register_area",
            count = { "registers", "areas" },
          },
        },
      },
      reply = { parts = {} },
    },
    [265] = {
      name = "inspect",
      request = { parts = { { kind = "struct", name = "wanted", struct = "inspect" } } },
      reply = { parts = { { kind = "bytes", name = "json", count = "rest" } } },
    },
  },
}

local HEADER_SIZE, CAPTURE_SIZE = 16, 4
local TYPE_MASK, TYPE_REPLY, NO_REPLY, ERROR = 0xf, 1, 0x10, 0x20
-- The deepest list of capabilities that is followed.
local MOST_CAPABILITIES = 64

local add_uint = { [1] = ProtoField.uint8, [2] = ProtoField.uint16, [4] = ProtoField.uint32, [8] = ProtoField.uint64 }

-- A protocol's fields by "structure.field", and its notes of what is wrong.
local function declare(definition)
  local proto = Proto(definition.id, definition.title)
  local fields, list = {}, {}
  local function add(key, field)
    fields[key] = field
    list[#list + 1] = field
  end
  for name, struct in pairs(definition.structs) do
    for _, field in ipairs(struct.fields) do
      local key = name .. "." .. field.name
      local abbreviation = definition.id .. "." .. key
      if field.bytes then
        add(key, ProtoField.bytes(abbreviation, field.name))
      else
        add(key, add_uint[field.size](abbreviation, field.name, field.values and base.DEC or base.HEX_DEC, field.values))
        for bit, mask in pairs(field.bits or {}) do
          add(key .. "." .. bit, ProtoField.bool(abbreviation .. "." .. bit, bit, 8 * field.size, nil, mask))
        end
      end
    end
  end
  add("data", ProtoField.bytes(definition.id .. ".data", "data"))
  add("text", ProtoField.string(definition.id .. ".text", "text"))
  add("word", ProtoField.uint64(definition.id .. ".word", "word", base.HEX_DEC))
  add("direction", ProtoField.uint8(definition.id .. ".direction", "direction", base.DEC,
    { [0] = "to the device", [1] = "from the device" }))
  add("fds", ProtoField.uint16(definition.id .. ".fds", "file descriptors"))
  proto.fields = list
  local malformed = ProtoExpert.new(definition.id .. ".malformed", "malformed", expert.group.MALFORMED,
    expert.severity.ERROR)
  proto.experts = { malformed }
  return proto, fields, malformed
end

-- One message's bytes from `at` to `last`. A part that does not fit ends it, by an error with a table.
local Reader = {}
Reader.__index = Reader

function Reader:need(size, what)
  if self.at + size > self.last then
    error({ why = what .. " of " .. size .. " bytes has " .. (self.last - self.at) })
  end
  local range = self.buffer(self.at, size)
  self.at = self.at + size
  return range
end

function Reader:struct(name, label, tree)
  local struct = self.definition.structs[name]
  local range = self:need(struct.size, label)
  local values, branch = {}, tree:add(self.proto, range, label)
  local at = 0
  for _, field in ipairs(struct.fields) do
    local key = name .. "." .. field.name
    local part = range(at, field.bytes or field.size)
    local item = branch:add_le(self.fields[key], part)
    if not field.bytes then values[field.name] = field.size == 8 and part:le_uint64() or part:le_uint() end
    for bit in pairs(field.bits or {}) do item:add_le(self.fields[key .. "." .. bit], part) end
    at = at + (field.bytes or field.size)
  end
  self.values[label] = values
  return values
end

local function number(value)
  return type(value) == "number" and value or value:tonumber()
end

-- How many of something of `size` bytes follow.
function Reader:count(count, size)
  local left = self.last - self.at
  if count == "rest" then
    if left % size ~= 0 then error({ why = left .. " bytes, in pieces of " .. size }) end
    return left / size
  end
  local wanted = type(count) == "table" and number(self.values[count[1]][count[2]]) or count
  if wanted * size > left then error({ why = wanted .. " times " .. size .. " bytes in " .. left }) end
  return wanted
end

function Reader:capabilities(start, at, tree)
  for _ = 1, MOST_CAPABILITIES do
    self.at = start + at
    local header = self:struct("region_cap_header", "capability", tree)
    if header.id == 1 then
      local sparse = self:struct("sparse_mmap", "sparse_mmap", tree)
      for _ = 1, sparse.areas do self:struct("sparse_mmap_area", "area", tree) end
    elseif header.id == 2 then
      self:struct("region_type", "type", tree)
    end
    if header.next == 0 then break end
    if header.next <= at then error({ why = "a capability that leads back" }) end
    at = header.next
  end
  self.at = self.last
end

local parts = {}

function parts.struct(reader, part, tree) reader:struct(part.struct, part.name, tree) end

function parts.structs(reader, part, tree)
  local size = reader.definition.structs[part.struct].size
  for _ = 1, reader:count(part.count, size) do reader:struct(part.struct, part.name, tree) end
end

function parts.words(reader, part, tree)
  for _ = 1, reader:count(part.count, part.size) do
    tree:add_le(reader.fields.word, reader:need(part.size, part.name)):prepend_text(part.name .. ": ")
  end
end

function parts.bytes(reader, part, tree)
  local size = reader:count(part.count, 1)
  if size > 0 then tree:add(reader.fields.data, reader:need(size, part.name)):prepend_text(part.name .. ": ") end
end

function parts.text(reader, part, tree)
  local range = reader:need(reader.last - reader.at, part.name)
  local text = range:stringz()
  if #text ~= range:len() - 1 then error({ why = "text that does not end with a NUL" }) end
  tree:add(reader.fields.text, range, text)
end

function parts.choice(reader, part, tree)
  local value = bit.band(number(reader.values[part.of][part.field]), part.mask)
  local body = part.bodies[value]
  if body then reader:body(body, tree) else parts.bytes(reader, { name = part.name, count = "rest" }, tree) end
end

function parts.capabilities(reader, part, tree)
  local info = reader.values[part.of]
  local start = reader.at - reader.definition.structs[part.struct].size
  if bit.band(info.flags, part.flag) ~= 0 and info.cap_offset ~= 0 then
    reader:capabilities(start, info.cap_offset, tree)
  end
  reader.at = reader.last
end

function Reader:body(body, tree)
  local is_optional = false
  for _, part in ipairs(body.parts) do
    is_optional = is_optional or part.optional
    if is_optional and self.at == self.last then return end
    parts[part.kind](self, part, tree)
  end
  if body.padded then self.at = self.last end
end

-- The first structure's fields, for the line of the list.
local function summary(reader, body)
  local first = body.parts[1]
  local values = first and reader.values[first.name]
  if not values then return "" end
  local words = {}
  for _, field in ipairs(reader.definition.structs[first.struct].fields) do
    local value = values[field.name]
    if value and field.name ~= "argsz" and not field.name:find("^reserved") then
      words[#words + 1] = field.name .. " " .. (field.values and field.values[number(value)] or
        string.format(number(value) < 1024 and "%d" or "0x%x", number(value)))
    end
  end
  return ", " .. table.concat(words, ", ")
end

local function dissector(definition)
  local proto, fields, malformed = declare(definition)

  local function message(buffer, pinfo, tree)
    local reader = setmetatable({
      buffer = buffer, at = CAPTURE_SIZE, last = buffer:len(), definition = definition, proto = proto, fields = fields,
      values = {},
    }, Reader)
    local header = reader:struct("header", "header", tree)
    local is_reply = bit.band(header.flags, TYPE_MASK) == TYPE_REPLY
    local known = definition.messages[header.command]
    local name = known and known.name or ("command " .. header.command)
    local kind = is_reply and "reply" or "request"
    pinfo.cols.info = string.format("%s %s %d", name, kind, header.id)
    if bit.band(header.flags, TYPE_MASK) > TYPE_REPLY then error({ why = "a message of an unknown type" }) end
    if header.size ~= buffer:reported_len() - CAPTURE_SIZE then
      error({ why = "a size of " .. header.size .. " in a message of " .. buffer:reported_len() - CAPTURE_SIZE })
    end
    if not known then error({ why = name .. ", which does not exist" }) end
    if bit.band(header.flags, ERROR) ~= 0 then
      pinfo.cols.info:append(", error " .. header.errno)
    else
      local body = is_reply and known.reply or known.request
      local handles = known.handles and is_reply and header.errno or 0
      if buffer:len() == buffer:reported_len() then reader.last = reader.last - 4 * handles end
      if reader.last < reader.at then error({ why = handles .. " handles" }) end
      reader:body(body, tree)
      pinfo.cols.info:append(summary(reader, body))
      if reader.at ~= reader.last then error({ why = reader.last - reader.at .. " bytes too many" }) end
      reader.last = reader.last + 4 * handles
      parts.words(reader, { name = "handle", size = 4, count = handles }, tree)
    end
    if reader.at ~= reader.last then error({ why = reader.last - reader.at .. " bytes too many" }) end
  end

  function proto.dissector(buffer, pinfo, root)
    pinfo.cols.protocol = definition.title
    local tree = root:add(proto, buffer(), definition.title)
    if buffer:len() < CAPTURE_SIZE then
      tree:add_proto_expert_info(malformed, "no capture header")
      return
    end
    tree:add(fields.direction, buffer(1, 1))
    tree:add_le(fields.fds, buffer(2, 2))
    local to_device = buffer(1, 1):uint() == 0
    pinfo.cols.src = to_device and "client" or "device"
    pinfo.cols.dst = to_device and "device" or "client"
    local is_whole, problem = pcall(message, buffer, pinfo, tree)
    if is_whole then return end
    -- What was too long to be recorded whole ends early, and that is no fault of its sender's.
    if type(problem) == "table" and buffer:len() < buffer:reported_len() then return end
    tree:add_proto_expert_info(malformed, type(problem) == "table" and problem.why or tostring(problem))
    pinfo.cols.info:append(" [malformed]")
  end

  return proto
end

local encapsulations = { wtap.USER0, wtap.USER1 }
for n, definition in ipairs(protocols) do
  DissectorTable.get("wtap_encap"):add(encapsulations[n], dissector(definition))
end
