//! Every bound of the protocol in one place, with who suffers when it is wrong.

/// A signed command. Larger than any sealed workload plus terms; a replica buffers this much per stream.
pub const COMMAND_BYTES: usize = 96 * 1024;
/// A sealed workload inside a contract. Every later version of the contract repeats it.
pub const SEALED_WORKLOAD_BYTES: usize = 64 * 1024;
/// A record: a contract with its terms and both signatures is the largest.
pub const RECORD_BYTES: usize = 96 * 1024;
/// A request to a replica other than a blob: a command or a list of keys.
pub const REQUEST_BYTES: usize = 128 * 1024;
/// A response other than a blob: a page of records with proofs.
pub const RESPONSE_BYTES: usize = 4 * 1024 * 1024;
/// A blob: one compressed chunk or one manifest.
pub const BLOB_BYTES: usize = 2 * 1024 * 1024;
/// A chunk of an image before compression. Small enough to refetch cheaply, large enough to compress.
pub const CHUNK_BYTES: usize = 1024 * 1024;
/// A manifest of at most this many chunks: images up to 64 GiB.
pub const MANIFEST_CHUNKS: usize = 65_536;
/// A message between peers over the relay (proposal, log page).
pub const PEER_MESSAGE_BYTES: usize = 256 * 1024;
/// Keys in one proved read.
pub const KEYS_PER_GET: usize = 256;
/// Records in one page of a range, history or query.
pub const RECORDS_PER_PAGE: usize = 256;
/// Found things in one page with proofs: each proof is read from the state map's tree.
pub const PROVED_PER_PAGE: usize = 64;
/// Where a search goes on: opaque to whoever hands it back.
pub const CURSOR_BYTES: usize = 256;
/// Contracts that one node may have at a time: bounds its commitment entry and its work.
pub const CONTRACTS_PER_NODE: usize = 256;
/// Published ports in one contract.
pub const PORTS_PER_CONTRACT: usize = 64;
/// Approvers in one contract.
pub const APPROVERS_PER_CONTRACT: usize = 16;
/// microVMs in one workload.
pub const VMS_PER_WORKLOAD: usize = 16;
/// Volumes in one workload.
pub const VOLUMES_PER_WORKLOAD: usize = 32;
/// Bytes of one free text: a reason, a detail, a description.
pub const TEXT_BYTES: usize = 1024;
/// Validators in one set.
pub const VALIDATORS: usize = 64;
/// How many blocks ahead a command may expire: bounds what must be remembered against replay.
pub const EXPIRY_BLOCKS: u64 = 100_000;
/// Commands in one block.
pub const COMMANDS_PER_BLOCK: usize = 1_000;
/// Commands that one author may bring to one replica in a minute, all at once if need be. Whoever floods delays
/// only himself; a busy shop stays far below.
pub const COMMANDS_PER_MINUTE: u64 = 6_000;
/// Bytes of commands in one block.
pub const BLOCK_BYTES: usize = 4 * 1024 * 1024;
/// A report covers at most this much time: a node that was silent for longer is not paid for the silence.
pub const REPORT_COVERS_MS: u64 = 2 * 3_600_000;
/// A node with running workloads reports at least this often.
pub const REPORT_EVERY_MS: u64 = 3_600_000;
/// A report may be ahead of block time by this much clock error.
pub const CLOCK_SLACK_MS: u64 = 60_000;
/// An idle ledger makes an empty block this often, so that freshness can be checked.
pub const HEARTBEAT_MS: u64 = 10_000;
/// A tip older than this is too old to act on.
pub const TIP_MAX_AGE_MS: u64 = 120_000;
/// The longest contract: ten years. Keeps `rate x duration` far from overflow.
pub const DURATION_S: u64 = 10 * 365 * 86_400;
/// The longest time that data is kept after a contract ended.
pub const GRACE_S: u64 = 90 * 86_400;
/// The least that is paid ahead, as time at the contract's rate: with the agreement, and to resume what ran out of
/// funds. Less, and capacity could be held for a grace period again and again for next to nothing.
pub const PREPAID_S: u64 = 3600;
/// A contract whose funds last for less than this is out of funds: starting it would take longer.
pub const FUNDED_LEAST_MS: u64 = 60_000;
/// After the end of a contract its node's final report counts for this long; what it could pay at most stays held.
/// Shorter, and a user closes just before each report and never pays; longer, and refunds take longer.
pub const FINAL_REPORT_MS: u64 = 15 * 60_000;
/// A farm's addition on a boot medium. Firmware and netboot servers hand it over whole, before anything is checked.
pub const ADDITION_BYTES: usize = 16 * 1024;
/// Entries in one list of an addition: time servers, resolvers, addresses of one link.
pub const ADDITION_TEXTS: usize = 16;
/// Links with settings of their own in an addition.
pub const LINKS: usize = 32;
/// Links in one bond.
pub const BOND_MEMBERS: usize = 8;
/// A host name (RFC 1035, section 2.3.4).
pub const HOST_BYTES: usize = 253;
/// A release's boot file. The budget is a quarter of it; a node keeps one in memory while it checks it.
pub const BOOT_FILE_BYTES: u64 = 128 << 20;
/// A recipe's text: what an expert writes down by hand, with room for comments. It travels in one command.
pub const RECIPE_BYTES: usize = 32 * 1024;
/// A recipe's title, in one line of a list.
pub const RECIPE_TITLE_BYTES: usize = 120;
/// Release keys of a grid: a small group of people.
pub const RELEASE_KEYS: usize = 16;
/// Digests that one release predicts.
pub const RELEASE_MEASUREMENTS: usize = 64;
/// A TPM key in the TPM's encoding. One of P-256 has some 120 bytes.
pub const TPM_KEY_BYTES: usize = 256;
/// One certificate of a TPM's maker: some 1 KiB.
pub const TPM_CERTIFICATE_BYTES: usize = 4096;
/// Certificates from a TPM's to its maker's root: makers have one or two issuers in between.
pub const TPM_CERTIFICATES: usize = 8;
/// A quote in the TPM's encoding: some 150 bytes, with room for longer names.
pub const TPM_QUOTE_BYTES: usize = 1024;
/// Measured events that a registration carries. Firmware of servers makes some hundred in the quoted registers.
pub const MEASURED_EVENTS: usize = 512;
/// Vouchers that a registration carries.
pub const VOUCHERS: usize = 16;
/// A quote is fresh while the header in its nonce is younger than this: time to quote, sign and send on a slow line.
pub const QUOTE_FRESH_MS: u64 = 600_000;
/// Headers that quotes may name are kept this far apart: some sixty of them, whatever the pace of the blocks.
pub const RECENT_HEADER_EVERY_MS: u64 = 10_000;
/// A node quotes anew this often, or four times before its last quote is stale, if that is more often. Less often, and
/// one outage makes it stale; more often, and each adds a version of its record.
pub const REQUOTE_EVERY_MS: u64 = 6 * 3_600_000;
/// How long a grid may want a quote to last at least: nodes look every ten minutes whether it is time for the next.
pub const STALE_LEAST_S: u64 = 3600;
/// And at most. Longer, and a class says nothing of the present.
pub const STALE_MOST_S: u64 = 90 * 86_400;
/// How far back a channel looks for releases: whoever checks a node looks as far as the ledger.
pub const CHANNEL_LOOK_BACK: usize = 64;
/// Digests in one list of a grid's trust policy.
pub const KNOWN_DIGESTS: usize = 64;
/// Reasons that are kept of why a node is worth less.
pub const TRUST_REASONS: usize = 8;
/// Troubles that one node tells of itself: more are summed up in the last one. Its record repeats them in every version.
pub const NODE_TROUBLES: usize = 8;
/// What a trouble is about: the name of a disk or of a network card.
pub const TROUBLE_SUBJECT_BYTES: usize = 64;
/// The reason of a trouble, and its remedy: a sentence each. Longer, and a node that flaps fills the ledger.
pub const TROUBLE_TEXT_BYTES: usize = 256;
/// Refused machines of one farm that a replica remembers.
pub const REFUSED_PER_FARM: usize = 32;
/// The text of one message between bots. A mailbox holds some hundred of the longest.
pub const MESSAGE_BYTES: usize = 32 * 1024;
/// The same signed, padded and sealed; a link of a key that was replaced has 160 bytes.
pub const SEALED_MESSAGE_BYTES: usize = MESSAGE_BYTES + 1024 + KEY_CHANGES * 160;
/// Messages that one question to a mailbox may be about.
pub const MAIL_PER_REQUEST: usize = 256;
/// What a bot says of itself for people.
pub const DESCRIPTION_BYTES: usize = 512;
/// Capabilities in one bot's profile.
pub const CAPABILITIES: usize = 16;
/// The text of a search.
pub const SEARCH_TEXT_BYTES: usize = 128;
/// The longest time between two claims of one bot from a faucet: a year.
pub const FAUCET_EVERY_S: u64 = 365 * 86_400;
/// Reservations of one user that hold capacity: whoever orders more at once commits in time, or is a hoarder.
pub const RESERVATIONS_PER_USER: u32 = 16;
/// Reservations of one farmer that hold capacity: bounds what a farmer and his friends can make the ledger keep.
pub const RESERVATIONS_PER_FARMER: u32 = 1024;
/// Reservations free themselves at the end of the slot of time in which they expire: how late that may be.
pub const RESERVATION_SLOT_MS: u64 = 5_000;
/// Reservations that expire in one slot: the work of one block.
pub const RESERVATIONS_PER_SLOT: usize = 512;
/// How often a bot's key can be replaced. Each signature of the bot carries that many links from then on.
pub const KEY_CHANGES: usize = 8;
/// Blocks between two changes of a bot's key: time for whoever meets it to see the first one.
pub const KEY_CHANGE_BLOCKS: u64 = 20;
