//! Tests that need processes: boot, lifecycle, replica
