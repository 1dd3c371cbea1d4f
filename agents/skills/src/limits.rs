//! What a skill may take. Whoever raises one lets each answer cost every bot more.

/// A skill file. Skills in Rust have some ten kilobytes; compiling this much takes a second or two, once.
pub const FILE_BYTES: usize = 1 << 20;
/// A module or component before it is packed.
pub const MODULE_BYTES: usize = FILE_BYTES;
/// Memory of one answer. A decision over typed terms needs less than one MiB.
pub const MEMORY_BYTES: usize = 16 << 20;
/// Instructions of one answer, as wasmtime counts them: some ten milliseconds, wherever it runs, since it is no clock.
pub const FUEL: u64 = 10_000_000;
/// Stack of one answer; a caller's thread has two MiB.
pub const STACK_BYTES: usize = 256 << 10;
/// Elements of all kinds of tables.
pub const TABLE_ELEMENTS: usize = 10_000;
/// Instances inside one component: the module, and the glue that its packer put in.
pub const INSTANCES: usize = 16;
/// What one answer may copy between a skill and the bot, by one call and by all that log.
pub const COPIED_BYTES: usize = 1 << 20;
/// What a call counts for beside the bytes that it copies.
pub const CALL_BYTES: usize = 64;
/// Components nested in a component, and instances of them: more could stand for billions, which an engine writes out.
pub const NESTED_COMPONENTS: usize = 16;
pub const NESTED_INSTANCES: usize = 24;
/// Lines of the log that are kept of one answer, and characters of each.
pub const LOG_LINES: usize = 16;
pub const LOG_CHARS: usize = 200;
/// Characters of a word that a message is marked with.
pub const MARK_CHARS: usize = 32;
/// Characters of an error that comes from outside.
pub const REASON_CHARS: usize = 300;
