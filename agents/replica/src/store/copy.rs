//! What another replica copies from a snapshot: pages of the log, and pages of proved values.

use croft_ledger::log_tree;
use croft_protocol::api::ProvedValue;
use croft_protocol::{Record, StateKey, encode};
use redb::ReadableTableMetadata;

use super::StoreError;
use super::snapshot::{PAGE_BYTES, Snapshot, decoded};

/// Entries in one page: bounds what one request costs.
const PAGE_ENTRIES: usize = if cfg!(test) { 16 } else { 4_096 };

/// A part of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPage {
    pub records: Vec<Record>,
    /// That the log up to the last of them is how the whole begins; empty when it is all of it.
    pub proof: Vec<u8>,
}

/// Values in the order of their keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValuesPage {
    pub values: Vec<(StateKey, ProvedValue)>,
    /// Whether there are values after these.
    pub more: bool,
}

impl Snapshot {
    /// Records from `first` on, as many as fit into a page, as the log of `size` records has them. `None` when it
    /// has nothing from `first` on, or this log is shorter.
    pub fn log_page(&self, first: u64, size: u64) -> Result<Option<LogPage>, StoreError> {
        if first >= size || size > self.tip().header.log_size {
            return Ok(None);
        }
        let (mut records, mut bytes) = (Vec::new(), 0);
        for position in (first..size).take(PAGE_ENTRIES) {
            let record = self.record_bytes(position)?;
            let record =
                record.ok_or_else(|| StoreError::damaged(format!("record {position} is missing")))?;
            bytes += record.len();
            if bytes > PAGE_BYTES && !records.is_empty() {
                break;
            }
            records.push(decoded(&format!("record {position}"), &record)?);
        }
        let end = first + records.len() as u64;
        let proof = if end == size { Vec::new() } else { log_tree::prove_consistency(self, end, size)? };
        Ok(Some(LogPage { records, proof }))
    }

    /// Values other than records, after a key, with proofs against the tip.
    pub fn values_after(&self, after: Option<&StateKey>) -> Result<ValuesPage, StoreError> {
        let mut page = ValuesPage { values: Vec::new(), more: false };
        let mut bytes = 0;
        // The zero byte makes it the next possible key.
        let start = after.map(|key| [&encode(key)[..], &[0]].concat()).unwrap_or_default();
        for entry in self.state.range::<&[u8]>(start.as_slice()..)? {
            let (key, _) = entry?;
            if page.values.len() >= PAGE_ENTRIES || bytes > PAGE_BYTES {
                page.more = true;
                break;
            }
            let key: StateKey = decoded("a state key", key.value())?;
            let proved = self.prove(&key)?;
            bytes += encode(&(&key, &proved)).len();
            page.values.push((key, proved));
        }
        Ok(page)
    }

    /// How many such values there are.
    pub fn values(&self) -> Result<u64, StoreError> {
        Ok(self.state.len()?)
    }
}
